"""Abilities that have nothing to do with the facts, to see whether an editor harms the rest of a model.

Each skill makes a prompt and its only right answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ..edits import Probe

__all__ = ["SKILLS", "skills"]


def _list(words: str) -> list[str]:
    return words.split()


# noun, plural
_THINGS = [
    tuple(pair.split("/"))
    for pair in _list(
        "key/keys lamp/lamps stone/stones chair/chairs window/windows basket/baskets ladder/ladders "
        "bottle/bottles letter/letters wagon/wagons candle/candles bucket/buckets hammer/hammers "
        "blanket/blankets mirror/mirrors ribbon/ribbons kettle/kettles barrel/barrels"
    )
]
_QUALITIES = _list("old small heavy clean broken empty round dusty plain new")
_PLACES = ["near", "behind", "under", "beside", "above"]


def _add(rng: random.Random) -> Probe:
    a, b = rng.randint(0, 15), rng.randint(0, 15)
    return Probe(f"What is {a} plus {b}?", str(a + b))


def _subtract(rng: random.Random) -> Probe:
    a, b = sorted((rng.randint(0, 15), rng.randint(0, 15)), reverse=True)
    return Probe(f"What is {a} minus {b}?", str(a - b))


def _words(rng: random.Random) -> list[str]:
    return [rng.choice(rng.choice(_THINGS)) for _ in range(rng.randint(2, 4))]


def _copy(rng: random.Random) -> Probe:
    words = " ".join(_words(rng))
    return Probe(f"Repeat these words: {words}.", words)


def _last(rng: random.Random) -> Probe:
    words = _words(rng)
    return Probe(f"Which word is the last one of: {' '.join(words)}?", words[-1])


def _order(rng: random.Random) -> Probe:
    numbers = rng.sample(range(21), 3)
    given = " ".join(map(str, numbers))
    return Probe(f"Put these numbers in order: {given}.", " ".join(map(str, sorted(numbers))))


def _larger(rng: random.Random) -> Probe:
    a, b = rng.sample(range(41), 2)
    return Probe(f"Which number is larger, {a} or {b}?", str(max(a, b)))


def _noun_phrase(rng: random.Random) -> tuple[str, bool]:
    """A subject with a distracting noun behind it, and whether it is plural."""
    (one, many), (other_one, other_many) = rng.sample(_THINGS, 2)
    plural = rng.random() < 0.5
    other = rng.choice([other_one, other_many])
    text = f"the {many if plural else one} {rng.choice(_PLACES)} the {rng.choice(_QUALITIES)} {other}"
    return text, plural


def _agree(rng: random.Random) -> Probe:
    phrase, plural = _noun_phrase(rng)
    return Probe(f"Is or are: {phrase}?", "are" if plural else "is")


SKILLS: dict[str, Callable[[random.Random], Probe]] = {
    "addition": _add,
    "subtraction": _subtract,
    "copying": _copy,
    "last_word": _last,
    "ordering": _order,
    "larger": _larger,
    "agreement": _agree,
}


def skills(n: int = 100, seed: int = 0) -> dict[str, list[Probe]]:
    """``n`` probes of each skill, the same for the same seed, none twice.

    The two arithmetic skills draw from 256 and 136 different questions, so they yield no more than that.

    Raises:
        ValueError: ``n`` is not positive, or more than a skill has different questions.
    """
    if not 1 <= n <= 120:
        raise ValueError(f"n must be between 1 and 120 probes a skill, got {n!r}")
    made: dict[str, list[Probe]] = {}
    for name, make in SKILLS.items():
        rng = random.Random(f"{name} {seed}")
        probes: dict[Probe, None] = {}
        while len(probes) < n:
            probes[make(rng)] = None
        made[name] = list(probes)
    return made
