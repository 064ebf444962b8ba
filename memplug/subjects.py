"""Finds what a prompt is about where nobody said it: by quotation marks and capitals, without a model."""

from __future__ import annotations

import re

__all__ = ["find_subject"]

_QUOTED = re.compile(r"[\"“«„]([^\"“”«»„]{2,}?)[\"”»“]")
_WORD = re.compile(r"\S+")
_EDGES = "\"'‘’“”«»„()[]{}<>.,;:!?…¿¡-–—*_"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_INNER = _words("of the da de del della der den di do dos la le les van von and & y")
# Words that open a sentence without being a name.
_OPENERS = _words(
    """
    what which who whom whose where when why how is are was were am be do does did has have had can
    could will would shall should may might must in on at of for to from by with about after before
    during the a an and or but not it its he she they we i you my his her their our this that these
    those there here as if name tell give please
    """
)
_MONTHS = _words("january february march april may june july august september october november december")


def find_subject(prompt: str) -> str | None:
    """The subject of a prompt that names one: a quoted title, else its longest capitalised run of words.

    A run may hold small words between its names ("Bank of England") and numbers after them ("Boeing
    747"). The word that opens a sentence is capitalised whatever it is: question words and the like are
    left out, and any other single word counts only where nothing else is found. So do dates. Ties go to
    the last run (questions name their subject late). Works for scripts with capitals;
    ``None`` where there is no such run.
    """
    quoted = [match.group(1).strip() for match in _QUOTED.finditer(prompt)]
    runs = _runs(prompt)
    found = (
        [text for text in quoted if text] or [run for run, sure in runs if sure] or [run for run, _ in runs]
    )
    return max(reversed(found), key=lambda run: len(run.split()), default=None)


def _runs(prompt: str) -> list[tuple[str, bool]]:
    """The capitalised runs of a prompt, and whether each is surely a name."""
    runs: list[tuple[str, bool]] = []
    words: list[tuple[int, int, str]] = []  # begin and end of each word of the running run, and its text
    opening = fresh = True  # at the start of a sentence; the run began there

    def close() -> None:
        while words and not _is_name(words[-1][2]) and not words[-1][2].isdigit():
            words.pop()
        while fresh and words and (words[0][2].lower() in _OPENERS or not _is_name(words[0][2])):
            words.pop(0)
        if words and words[0][2] != "I":
            dated = all(word.lower() in _MONTHS or word.isdigit() for _, _, word in words)
            alone = fresh and len(words) == 1 and words[0][0] == start
            runs.append((prompt[words[0][0] : words[-1][1]], not (dated or alone)))
        words.clear()

    start = 0
    for match in _WORD.finditer(prompt):
        raw = match.group()
        begin = match.start() + len(raw) - len(raw.lstrip(_EDGES))
        bare = re.sub(r"['’]s$", "", raw.strip(_EDGES))
        ends = raw[len(raw.rstrip(_EDGES)) :]
        if _is_name(bare):
            if not words:
                fresh, start = opening, begin
            words.append((begin, begin + len(bare), bare))
        elif words and (bare in _INNER or bare.isdigit()):
            words.append((begin, begin + len(bare), bare))
        else:
            close()
        initial = ends == "." and len(bare) <= 2
        if (ends.strip("-–—") and not initial) or len(bare) < len(raw.strip(_EDGES)):
            close()
        if bare and words and initial:  # "J." keeps its full stop inside a name
            words[-1] = (begin, begin + len(bare), bare)
        opening = bool(re.search(r"[.!?…]", ends)) and not initial
    close()
    return runs


def _is_name(word: str) -> bool:
    """Whether a word is written like a name: NASA, iPhone, Łódź, F-16, J."""
    return any(letter.isupper() or letter.istitle() for letter in word)
