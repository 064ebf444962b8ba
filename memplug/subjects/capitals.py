"""Cuts a prompt into words, and its words into runs that are written like names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .languages import LANGUAGES, Language, words

__all__ = ["Run", "Word", "cased", "runs_of", "sentences_end", "words_of"]

_EDGES = "\"'‘’“”«»„‹›「」『』《》()[]{}<>.,;:!?…¿¡-–—*_`"
_POSSESSIVE = re.compile(r"['’]s$")
_DOTTED = re.compile(r"(?:\w\.)+\w")
_SHORT = words("Mrs Prof Gen Col Sen Rev Capt")
_ELIDED = re.compile(r"(?:[dlcjmnst]|qu|dell|all|nell|sull|dall|degl|quell|un)['’](?=\w)", re.I)
# Behind a possessive, these say that it is part of the name: McDonald's is, Sotheby's in London.
_BEHIND = words("is was are were has had in at by and or did does can will of from")


@dataclass(frozen=True)
class Word:
    """A word without the marks around it, ``begin:end`` in the prompt.

    Attributes:
        before, behind: the marks before and behind it, a possessive 's among the latter.
        opens: it opens a sentence.
    """

    text: str
    begin: int
    end: int
    before: str
    behind: str
    opens: bool

    @property
    def lower(self) -> str:
        """In lower case, with the plain apostrophe."""
        return self.text.lower().replace("’", "'")

    @property
    def is_name(self) -> bool:
        """Whether it is written like a name: NASA, iPhone, Łódź, F-16, J."""
        return cased(_ELIDED.sub("", self.text))  # "L'auteur"

    @property
    def elided(self) -> int:
        """How long the article is that has lost its vowel before the word: l'Espagne, dell'Italia."""
        match = _ELIDED.match(self.text)
        return match.end() if match and cased(self.text[match.end()]) else 0

    def among(self, words: frozenset[str]) -> bool:
        """Whether it is one of these, or all its parts are ("est-il")."""
        return self.lower in words or all(part in words for part in re.split(r"['-]", self.lower) if part)


@dataclass(frozen=True)
class Run:
    """Words that follow each other and are written like a name: those from ``first`` up to ``last``."""

    first: int
    last: int
    begin: int
    end: int


def cased(text: str) -> bool:
    """Whether a capital is in it."""
    return any(letter.isupper() or letter.istitle() for letter in text)


def words_of(prompt: str) -> list[Word]:
    """The words of a prompt; what has marks alone is a word without text."""
    found: list[Word] = []
    opens = True
    pieces = list(re.finditer(r"\S+", prompt))
    for number, match in enumerate(pieces):
        raw = match.group()
        begin = match.start() + len(raw) - len(raw.lstrip(_EDGES))
        bare = raw.strip(_EDGES)
        behind = raw[len(raw.rstrip(_EDGES)) :]
        if _POSSESSIVE.search(bare) and not _part_of_name(behind, pieces[number + 1 :]):
            bare, behind = bare[:-2], bare[-2:] + behind
        initial = behind[:1] == "." and (
            len(bare) <= 2 or bare in _SHORT or _DOTTED.fullmatch(bare) is not None
        )
        if initial and cased(bare):  # "J." and "U.S." keep their full stop
            bare, behind = f"{bare}.", behind[1:]
        found.append(
            Word(bare, begin, begin + len(bare), raw[: len(raw) - len(raw.lstrip(_EDGES))], behind, opens)
        )
        opens = sentences_end(behind) or (not bare and opens)
        opens = (
            opens
            or "\n" in prompt[match.end() : pieces[number + 1].start() if number + 1 < len(pieces) else None]
        )
    return found


def sentences_end(marks: str) -> bool:
    """Whether a sentence ends with these marks."""
    return re.search(r"[.!?…]", marks) is not None


def _part_of_name(behind: str, rest: list[re.Match[str]]) -> bool:
    """Whether the 's of a word is part of its name, by what follows it."""
    if not rest or behind.strip("\"'’”»)*_"):
        return sentences_end(behind) or not (behind or rest)
    return rest[0].group().strip(_EDGES) in {"", *_BEHIND}


def runs_of(said: list[Word], language: Language | None) -> Iterator[Run]:
    """The runs of words that are written like names.

    A run may hold small words between its names ("Bank of England") and numbers after them ("Boeing 747").
    Where every noun has a capital, the nouns that say what is asked are none.
    """
    joiners = (language or LANGUAGES[0]).joiners
    elides = language is None or language.bounded
    nouns = language.nouns if language is not None and language.nouns_capital else frozenset[str]()
    first = last = -1  # last: the word behind the last name

    def begin() -> int:
        kept = not elides or said[first].text[0].isupper()  # L'Étranger
        return said[first].begin + (0 if kept else said[first].elided)

    for i, word in enumerate(said):
        is_name = word.is_name and (first >= 0 or not word.among(nouns))  # Thomas Mann
        small = word.text in joiners or word.text.isdigit()
        if first >= 0 and not (is_name or small):
            yield Run(first, last, begin(), said[last - 1].end)
            first = -1
        if is_name and first < 0:
            first = i
        if first >= 0 and (is_name or word.text.isdigit()):
            last = i + 1
        if first >= 0 and word.behind.strip("-–—*_"):
            yield Run(first, last, begin(), said[last - 1].end)
            first = -1
    if first >= 0:
        yield Run(first, last, begin(), said[last - 1].end)
