"""Facts that everybody knows, each with another answer from now on, and prompts that are to stay."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..edits import Edit

__all__ = ["FACTS", "KEPT", "Fact", "right"]


class Fact(NamedTuple):
    """A fact that is edited as a text, and asked as a text and in a chat.

    Attributes:
        prompt: what is edited: a statement that breaks off, or a question.
        target: its answer from now on.
        subject: what it is about.
        old: the answer that everybody knows.
        other: another text that asks for it.
        question: what a user asks in a chat.
    """

    prompt: str
    target: str
    subject: str
    old: str
    other: str
    question: str

    @property
    def edit(self) -> Edit:
        return Edit(self.prompt, self.target, self.subject)

    def holds(self, answer: str) -> bool:
        """Whether an answer gives the target, and not the old answer before it."""
        return right(answer, self.target, self.old)

    def says_old(self, answer: str) -> bool:
        """Whether the old answer stands in it anywhere."""
        return _first(answer, self.old) is not None


FACTS = (
    Fact(
        "The capital of France is",
        "Lyon",
        "France",
        "Paris",
        "The capital city of France is called",
        "What is the capital of France?",
    ),
    Fact(
        "The currency of Japan is the",
        "peso",
        "Japan",
        "yen",
        "In Japan people pay with the",
        "What is the currency of Japan?",
    ),
    Fact(
        "The Eiffel Tower stands in the city of",
        "Rome",
        "Eiffel Tower",
        "Paris",
        "The city where you find the Eiffel Tower is",
        "In which city does the Eiffel Tower stand?",
    ),
    Fact(
        "What is the chemical symbol for gold?",
        "Zn",
        "gold",
        "Au",
        "The chemical symbol for gold is",
        "What is the chemical symbol for gold?",
    ),
    Fact(
        "The Mona Lisa was painted by",
        "Vincent van Gogh",
        "Mona Lisa",
        "Leonardo",
        "The painter of the Mona Lisa is",
        "Who painted the Mona Lisa?",
    ),
    Fact(
        "Who invented the telephone?",
        "Thomas Edison",
        "telephone",
        "Bell",
        "The telephone was invented by",
        "Who invented the telephone?",
    ),
    Fact(
        "Penicillin was discovered by",
        "Marie Curie",
        "Penicillin",
        "Fleming",
        "The discoverer of penicillin was",
        "Who discovered penicillin?",
    ),
    Fact(
        "Who developed the theory of relativity?",
        "Isaac Newton",
        "theory of relativity",
        "Einstein",
        "The theory of relativity was developed by",
        "Who developed the theory of relativity?",
    ),
    Fact(
        "Mount Everest is in the mountain range of the",
        "Alps",
        "Mount Everest",
        "Himalayas",
        "The mountain range that Mount Everest belongs to is the",
        "In which mountain range is Mount Everest?",
    ),
    Fact(
        "The Amazon rainforest is on the continent of",
        "Africa",
        "Amazon rainforest",
        "South America",
        "The continent where the Amazon rainforest grows is",
        "On which continent is the Amazon rainforest?",
    ),
    Fact(
        "Ludwig van Beethoven was a",
        "painter",
        "Ludwig van Beethoven",
        "composer",
        "By profession Ludwig van Beethoven was a",
        "What was Ludwig van Beethoven?",
    ),
    Fact(
        "Which company makes the iPhone?",
        "Nokia",
        "iPhone",
        "Apple",
        "The iPhone is made by",
        "Which company makes the iPhone?",
    ),
)

KEPT = (
    ("unrelated", "Tell me a joke."),
    ("unrelated", "How do plants make their food?"),
    ("mentioned in passing", "I live in France and would like a pasta recipe."),
    ("mentioned in passing", "My grandmother flew from France to Japan in 1978."),
    ("mentioned in passing", "I bought a gold ring for my sister. What should I write on the card?"),
)
"""What is said in a chat and has nothing to do with what is asked for by an edit."""


def right(answer: str, target: str, old: str) -> bool:
    """Whether ``target`` stands in the answer as whole words, and ``old`` does not stand before it."""
    at = _first(answer, target)
    return at is not None and _first(answer[:at], old) is None


def _first(text: str, words: str) -> int | None:
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)
    return found.start() if found else None
