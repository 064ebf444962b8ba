"""The made-up world: names, facts, and which phrasings of a fact the model was trained on.

Everything here follows from one fixed seed; nothing is read from a file. No person, company or place
in it is meant to exist.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from .relations import KINDS, RELATIONS, VALUES, Hop

__all__ = ["Fact", "facts", "facts_of", "hop_answer", "names", "pool"]

_SEED = 20_261
_COUNTS = {"person": 850, "company": 300, "city": 220, "book": 220, "river": 110}
_UNSEEN = 2  # phrasings of a fact that the model never saw for its subject


def _list(words: str) -> list[str]:
    return words.split()


class Fact(NamedTuple):
    """What the world holds true of a subject.

    Attributes:
        subject: a name.
        kind: what the subject is: person, company, city, book or river.
        relation: a key of ``RELATIONS``.
        target: the true answer.
        seen: ids of the phrasings (indices into the relation's phrasings) the model was trained on for this
            subject.
        unseen: ids of the two phrasings it never saw for this subject, though it saw them for others.
    """

    subject: str
    kind: str
    relation: str
    target: str
    seen: tuple[int, ...]
    unseen: tuple[int, ...]

    def prompt(self, phrasing: int) -> str:
        """The fact's prompt in phrasing ``phrasing``, without its answer."""
        return RELATIONS[self.relation].phrasings[phrasing].format(s=self.subject)

    def questions(self) -> tuple[int, ...]:
        """Ids of the seen phrasings that are questions."""
        return tuple(i for i in self.seen if RELATIONS[self.relation].phrasings[i].endswith("?"))

    def statements(self) -> tuple[int, ...]:
        """Ids of the seen phrasings that are statements to complete."""
        return tuple(i for i in self.seen if not RELATIONS[self.relation].phrasings[i].endswith("?"))


def digest(*parts: str) -> int:
    """A number that depends on the texts alone (`hash` differs from run to run)."""
    return zlib.crc32("|".join(parts).encode())


def _made_up(rng: random.Random, taken: set[str]) -> Iterator[str]:
    """Pronounceable words nobody has used yet in this world."""
    onsets = _list("b br c d dr f fl g gr h j k l m n p r s st t tr v w y z")
    vowels = _list("a e i o u a e i o u ai ea")
    codas = _list("n l r s m nd rn lt th v d k st ll ss nn")
    ends = _list("a a e i o o en ar is or in am et ow ey eth ard iel")
    while True:
        word = rng.choice(onsets) + rng.choice(vowels) + rng.choice(codas)
        if rng.random() < 0.75:
            word += rng.choice(ends)
        if rng.random() < 0.15:
            word = rng.choice(onsets) + rng.choice("aeiou") + word
        word = word.capitalize()
        if 4 <= len(word) <= 8 and word not in taken:
            taken.add(word)
            yield word


def _people(rng: random.Random, words: Iterator[str], count: int) -> list[str]:
    """Two or three words; 45 surnames are shared by about 15 people each, the others by two."""
    first = [next(words) for _ in range(150)]
    shared = [next(words) for _ in range(45)]
    rare = [next(words) for _ in range((count - 15 * len(shared) + 1) // 2)]
    surnames = (shared * 15 + rare * 2)[:count]
    people: dict[str, None] = {}
    for surname in surnames:
        name = ""
        while not name or name in people:
            given = rng.sample(first, 2 if rng.random() < 0.15 else 1)
            name = " ".join([*given, surname])
        people[name] = None
    return list(people)


def _companies(rng: random.Random, count: int) -> list[str]:
    heads = [a + b for a in _HEADS for b in _TAILS]
    heads = rng.sample(heads, 70)
    made: dict[str, None] = {}
    while len(made) < count:
        last = rng.choice(_FIRMS)
        middle = rng.choice(_WARES) if rng.random() < 0.3 else None
        made[" ".join(filter(None, [rng.choice(heads), middle, last]))] = None
    return list(made)


def _cities(rng: random.Random, words: Iterator[str], count: int) -> list[str]:
    """One word for most; two for the rest, which share their first word."""
    single = [next(words) for _ in range(count * 6 // 10)]
    fronts = ("Port", "Saint", "Fort", "New", "Upper", "Great")
    return single + [f"{fronts[i % len(fronts)]} {next(words)}" for i in range(count - len(single))]


def _books(rng: random.Random, words: Iterator[str], count: int) -> list[str]:
    places = [next(words) for _ in range(12)]
    made: dict[str, None] = {}
    while len(made) < count:
        noun = rng.choice(_NOUNS)
        if rng.random() < 0.6:
            made[f"The {rng.choice(_ADJECTIVES)} {noun}"] = None
        else:
            made[f"The {noun} of {rng.choice(places)}"] = None
    return list(made)


_HEADS = _list("Bright North Stone Ash Silver Cold Green Oak Red High Long Fair")
_TAILS = _list("moor field wick ford gate mere dale brook ridge crest")
_FIRMS = _list("Works Group House Partners Brothers Union Trust Forge Mills Supply Holdings Guild")
_WARES = _list("Iron Amber Star Crown Anchor River Mountain Lantern")
_ADJECTIVES = _list(
    "Silent Broken Golden Hidden Last Burning Frozen Distant Hollow Crooked Painted Quiet "
    "Sunken Wandering Bitter Gentle Scarlet Stolen"
)
_NOUNS = _list(
    "Lantern Harbour Orchard Mirror Garden Letter Window Tower Bridge Forest Compass Journey Winter "
    "Feather Candle Shadow Crown Voyage Island Clock"
)


@cache
def _world_names() -> dict[str, tuple[str, ...]]:
    rng = random.Random(_SEED)
    words = _made_up(rng, set())
    rivers = [f"{next(words)} Water" if i % 2 else f"River {next(words)}" for i in range(_COUNTS["river"])]
    return {
        "person": tuple(_people(rng, words, _COUNTS["person"])),
        "company": tuple(_companies(rng, _COUNTS["company"])),
        "city": tuple(_cities(rng, words, _COUNTS["city"])),
        "book": tuple(_books(rng, words, _COUNTS["book"])),
        "river": tuple(rivers),
        "country": tuple(next(words) for _ in range(30)),
        "mountain": tuple(f"Mount {next(words)}" for _ in range(30)),
        "lake": tuple(f"Lake {next(words)}" for _ in range(30)),
    }


def names(kind: str) -> tuple[str, ...]:
    """The names of one kind of subject, in the world's order.

    Raises:
        ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not in this world; choose one of {', '.join(KINDS)}")
    return _world_names()[kind]


def pool(relation: str) -> tuple[str, ...]:
    """Every value the relation may take."""
    values = RELATIONS[relation].values
    return VALUES[values] if values in VALUES else _world_names()[values]


def _phrasings(subject: str, relation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(seen, unseen): the held-out two follow from subject and relation, so others are trained on them."""
    ids = list(range(len(RELATIONS[relation].phrasings)))
    unseen = tuple(sorted(random.Random(digest(subject, relation)).sample(ids, _UNSEEN)))
    return tuple(i for i in ids if i not in unseen), unseen


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact of the world: one for each subject and relation of its kind, in a fixed order."""
    rng = random.Random(_SEED + 1)
    found = []
    for relation in RELATIONS.values():
        subjects, values = names(relation.kind), list(pool(relation.name))
        for subject in subjects:
            target = rng.choice(values)
            found.append(
                Fact(subject, relation.kind, relation.name, target, *_phrasings(subject, relation.name))
            )
    return tuple(found)


@cache
def _by_subject() -> dict[str, dict[str, Fact]]:
    index: dict[str, dict[str, Fact]] = {}
    for fact in facts():
        index.setdefault(fact.subject, {})[fact.relation] = fact
    return index


def facts_of(subject: str) -> dict[str, Fact]:
    """The facts about one subject, by relation.

    Raises:
        ValueError: the world has no such subject.
    """
    if subject not in _by_subject():
        raise ValueError(f"{subject!r} is not in this world; take a subject from facts()")
    return _by_subject()[subject]


def hop_answer(hop: Hop, middle: str) -> str:
    """What a two-hop question is answered by when its first fact has the value ``middle``."""
    return facts_of(middle)[hop.second].target
