"""Neutral texts: what stands in front of a prompt, and what else is said and asked about a subject.

They belong to no data set and to no model. A value is trained to answer its prompt behind such fronts, and to
leave such other statements and questions as they are; the calibration reads them as ordinary text.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

__all__ = ["CHAT", "FRONTS", "MENTIONS", "NAMES", "PLAIN", "REQUESTS", "SYSTEM", "TALK", "some"]

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

PLAIN = (
    "{s} is famous for",
    "There are many books about {s}, and",
    "{s} was born in",
    "{s} is located in",
    "The name {s} comes from",
    "{s} works as",
    "In 1990, {s} was",
    "The best thing about {s} is",
    "{s} speaks the language",
    "The official language of {s} is",
    "The capital of {s} is",
    "{s} is owned by",
    "{s} plays the",
    "The author of {s} is",
    "{s} is a member of",
    "The religion of {s} is",
    "{s} is a citizen of",
    "{s} died in",
    "{s} was founded by",
    "The colour of {s} is",
    "{s} was made in the year",
    "{s} is used to",
    "The headquarters of {s} are in",
    "{s} is a kind of",
    "The currency used in {s} is",
    "The genre of {s} is",
    "The population of {s} is about",
    "People who like {s} also like",
    "{s} is married to",
    "{s} was invented by",
    "The weight of {s} is",
    "{s} was built in",
    "The height of {s} is",
    "The price of {s} is",
    "The food in {s} is",
    "The language spoken in {s} is",
    "The largest part of {s} is",
    "The first owner of {s} was",
    "The twin of {s} is",
)
"""Statements to be completed; ``{s}`` is the subject."""

CHAT = (
    "Tell me something about {s}.",
    "When was {s} born?",
    "Where is {s}?",
    "Who is {s}?",
    "What language is spoken in {s}?",
    "What is {s} known for?",
    "What does {s} do?",
    "Who founded {s}?",
    "What is the capital of {s}?",
    "What is the currency of {s}?",
    "Who wrote {s}?",
    "What instrument does {s} play?",
    "What is the religion of {s}?",
    "Which country does {s} belong to?",
    "Who owns {s}?",
    "How old is {s}?",
    "Is {s} good?",
    "Why do people talk about {s}?",
    "What is the colour of {s}?",
    "What sport does {s} play?",
    "How do I spell {s}?",
    "What is the history of {s}?",
    "Who is married to {s}?",
    "{s} is",
    "{s} is located in",
    "The genre of {s} is",
    "{s} died in",
    "{s} was made by",
    "{s} was built in",
    "When was {s} built?",
    "How much does {s} cost?",
    "What is the best food in {s}?",
    "The currency of {s} is",
    "The language spoken in {s} is",
    "How large is {s}?",
    "What is {s} made of?",
)
"""Questions of a user; ``{s}`` is the subject."""

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
