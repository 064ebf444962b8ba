"""Neutral texts: what stands in front of a prompt, and what names a subject in passing.

They belong to no data set and to no model. A value is trained to answer its prompt behind such fronts, and to
leave such mentions and requests as they are; the calibration reads the fronts as ordinary text.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

__all__ = ["FRONTS", "MENTIONS", "NAMES", "REQUESTS", "SYSTEM", "TALK", "some"]

FRONTS = (
    "It had been a long day, and nobody expected any news.",
    "Some things are known to nearly everybody.",
    "The lesson began at nine, and the first page was already open.",
    "There was one more thing to write down before lunch.",
    "Rain fell on the roof while they went on talking.",
    "Here is something that I read in a book.",
)
"""Sentences that may stand in front of any prompt."""

SYSTEM = "You answer briefly and to the point."
"""A system turn other than a template's own."""

TALK = ("Which is larger, the Moon or the Earth?", "The Earth is larger than the Moon.")
"""A first exchange before a question."""

MENTIONS = (
    "I was reading about {s} yesterday and then went to bed. The weather was",
    "My train to {s} was late because",
    "After the talk about {s}, we had",
    "A picture of {s} hung over the table, next to",
    "She told me about {s}, but I",
    "The meeting on {s} was moved to Friday, so they decided to",
    "While thinking of {s}, he opened the window and saw",
    "He put the book about {s} back and looked for",
)
"""Statements that name a subject in passing and go on with something else."""

REQUESTS = (
    "I like {s}. What should I cook tonight?",
    "Write a short poem about {s}.",
    "My friend told me about {s} and now I want a recipe for soup.",
    "I read about {s} today. Give me three tips for better sleep.",
    "I live near {s} and need a plan for the weekend.",
    "Suggest a title for an essay on {s}.",
    "Translate the sentence: {s} is nice.",
    "I gave a talk on {s} and would like to thank my colleagues. What should I write?",
    "Help me write an email to a friend who loves {s}.",
    "Tell a short story in which a child hears about {s}.",
    "My uncle had read all about {s} by 1986.",
    "We talked about {s} the whole evening.",
    "Yesterday I saw a film about {s} and then went home.",
    "In 2003 my class made a trip because of {s}.",
)
"""Requests and remarks of a user that name a subject and do not ask about it."""

NAMES = (
    "Marta Kowal",
    "Lisbon",
    "copper",
    "the Baltic Sea",
    "Thomas Reed",
    "Kenya",
    "The Silent Garden",
    "Nordwind Airlines",
)
"""Subjects of several kinds."""


def some(items: Sequence[str], count: int, *seed: object) -> list[str]:
    """``count`` of the items, in an order made from ``seed``; all if there are fewer."""
    draw = random.Random(zlib.crc32("\x1f".join(map(str, seed)).encode()))
    return draw.sample(list(items), min(count, len(items)))
