"""Finds what a prompt is about where nobody said it: by quotation marks and capitals, without a model.

What is not plain is not guessed: an edit of the wrong subject would be made without a word. Then there are
candidates to choose from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from ..text.names import place_of, same_text
from .capitals import Run, Word, cased, runs_of, sentences_end, words_of
from .languages import LANGUAGES, language_of
from .patterns import Named, Names

__all__ = ["Found", "candidates", "find_subject", "look"]

_MOST = 5  # candidates
_LONGEST = 20_000  # characters that are looked at: what is asked stands at the end
_QUOTED = re.compile(
    r"[\"“«„‹「『《]([^\"“”«»„‹›「」『』《》]{2,}?)[\"”»“›」』》]"
    r"|(?<!\w)['‘]((?:[^'‘’]|(?<=\w)['’](?=\w)){2,}?)['’](?!\w)"
)
_FORMULA = re.compile(r"(?<!\S)[^\s?!,;:]+(?:\s[=+\-−×·*/^<>≈]\s[^\s?!,;:]+)+")
_EAST = re.compile("[\u3041-\u30ff\u3400-\u9fff]")
# What stands between the names of Chinese and Japanese questions.
_EAST_SMALL = re.compile(
    r"什么|甚麼|哪里|哪裡|哪儿|哪个|哪一?年|多少|为什么|怎么|何时|ですか|でしょうか|ますか|どこ|だれ|いつ|なに|なん|どの|どれ|"
    r"[的是在了写寫谁誰哪几吗呢和与由位于何はがをのにへでともか]|[\s、。，？！：；?!,.:;「」『』《》“”（）()]+"
)
_TO = re.compile(r"\s+to(?:\s+the)?\s+")


class Found(NamedTuple):
    """The subject of a prompt, if it is plain, and what else it could be, the likeliest first."""

    subject: str | None
    candidates: tuple[str, ...]


def find_subject(prompt: str) -> str | None:
    """The subject of a prompt that names one thing only: a quoted title, or a capitalised run of words.

    A run may hold small words between its names ("Bank of England") and numbers after them ("Boeing 747").
    Question words, what is asked for ("Capital"), dates, and words that have a capital because they open a
    sentence are left out. ``None`` where there is no such run, where there are several, or where the language
    is not known or does not show where a name ends; see `candidates`.
    """
    return look(prompt).subject


def candidates(prompt: str) -> tuple[str, ...]:
    """What a prompt could be about, where that is not plain; see `find_subject`."""
    return look(prompt).candidates


def look(prompt: str) -> Found:
    """The subject, or the candidates for it."""
    prompt = prompt[-_LONGEST:]
    if _EAST.search(prompt):
        return _east(prompt)
    return _Look(prompt).found()


def _letters(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _only(texts: Iterable[str], prompt: str) -> tuple[str, ...]:
    """Each once, those that can be given as a subject."""
    kept = dict.fromkeys(text.strip() for text in texts)
    return tuple(text for text in kept if text and place_of(prompt, text) is not None)[:_MOST]


def _east(prompt: str) -> Found:
    """A title in quotation marks before which nothing is named; else what stands between small words."""
    quotes = list(_QUOTED.finditer(prompt))
    if len(quotes) == 1 and not _EAST_SMALL.sub("", prompt[: quotes[0].start()]):
        return Found(_title(quotes[0]) or None, ())
    pieces = (piece for piece in _EAST_SMALL.split(prompt) if len(piece) > 1)
    named = (piece for piece in pieces if _EAST.search(piece) or cased(piece))
    return Found(None, _only([*map(_title, quotes), *named], prompt))


class _Look:
    """One look at a prompt."""

    def __init__(self, prompt: str) -> None:
        self.prompt, self.words = prompt, words_of(prompt)
        outside = _QUOTED.sub(" ", prompt)  # a title may be in another language than the question
        self.language = language_of(_letters(outside)) or language_of(_letters(prompt))
        self.names = Names(prompt, self.words, self.language)
        self.like = self.names.like

    def found(self) -> Found:
        titles = [m for m in _QUOTED.finditer(self.prompt) if self._is_title(_title(m))]
        named = [
            one
            for run in runs_of(self.words, self.language)
            if not any(m.start() < run.end and run.begin < m.end() for m in titles)
            and (one := self.names.of(run)) is not None
        ]
        quoted = list(dict.fromkeys(map(_title, titles)))
        if len(quoted) == 1 and all(one.weak for one in named):
            return Found(quoted[0], ())
        named = self._joined(named)
        strong = [one for one in named if not one.weak]
        plain = {same_text(self.prompt[one.begin : one.end]): one for one in strong}
        doubt = any(one.doubt for one in named) or self._written_alike() or self.language is None
        formula = _FORMULA.search(self.prompt)
        if len(plain) == 1 and not (doubt or quoted or formula):
            (one,) = plain.values()
            if not all(other.opening for other in strong) or self._is_named(one):
                return Found(self.prompt[one.begin : one.end], ())
        formulas = [formula.group().strip("\"'().")] if formula else []
        return Found(None, _only([*quoted, *formulas, *self._choices(named)], self.prompt))

    def _is_title(self, text: str) -> bool:
        """Whether what stands in quotation marks is a title, and no sentence that waits for its end."""
        last = next(reversed(words_of(text)), None)
        small = self.like.grammar | self.like.weak
        return bool(text) and not (last is not None and last.text.islower() and last.among(small))

    def _written_alike(self) -> bool:
        """Whether all words have capitals, so that they tell nothing."""
        words = [word for word in self.words if word.text.lower() != word.text.upper()]
        small = self.like.no_names | self.like.makers
        return len(words) > 2 and all(w.is_name for w in words) and any(w.among(small) for w in words[1:])

    def _is_named(self, one: Named) -> bool:
        """Whether the one word that opens a sentence is a name, by the verb or mark behind it."""
        word = self.words[one.run.last - 1]
        if word.behind or one.run.last == len(self.words):
            return bool(word.behind)
        after = self.words[one.run.last]
        if after.text.islower() and after.among(self.like.grammar | self.like.verbs | self.like.weak):
            return True
        return self.like.name == "en" and re.search("(?:s|ed)$", after.text) is not None

    def _joined(self, named: list[Named]) -> list[Named]:
        """Runs that are surely parts of one title made one; where they may be, that is another choice."""
        found: list[Named] = []
        for one in named:
            last = found[-1] if found else None
            gap = self.prompt[last.end : one.begin] if last is not None else ""
            if last is None or not self._is_small(gap):
                found.append(one)
                continue
            first = self.words[last.run.first]
            titled = self.names.makes(last.run.first) or (first.among(self.like.articles) and not first.opens)
            if titled and not last.doubt and (re.fullmatch(r"['’]s\s+", gap) or _TO.fullmatch(gap)):
                run = Run(last.run.first, one.run.last, last.begin, one.end)
                others = [*last.others, *one.others]
                found[-1] = Named(last.begin, one.end, run, doubt=one.doubt, others=others)
                continue
            if not one.weak and (last.doubt or not last.weak):
                last.others.append(self.prompt[last.begin : one.end])
            found.append(one)
        return found

    def _is_small(self, gap: str) -> bool:
        words = re.sub(r"^['’]s?|[,:]", " ", gap).split()
        small = self.like.grammar | self.like.weak | self.like.joiners
        return len(words) < 4 and "\n" not in gap and all(word in small for word in words)

    # ------------------------------------------------------------------ candidates

    def _choices(self, named: list[Named]) -> Iterator[str]:
        """What the prompt could be about, the likeliest first."""
        if self._written_alike():
            yield from self._lower()
        begins = [one for one in named if one.doubt or not one.weak]
        if begins and self.names.makes(begins[0].run.first):
            yield self._tail(begins[0])
        pairs = pairwise(begins)
        if len(begins) > 1 and all(self._is_small(self.prompt[a.end : b.begin]) for a, b in pairs):
            first = begins[0]
            whole = self.words[first.run.first].among(self.like.articles)
            yield self.prompt[first.run.begin if whole else first.begin : begins[-1].end]
        for one in sorted(named, key=lambda one: one.weak):
            size = one.end - one.begin
            yield from (other for other in one.others if len(other) > size)
            yield self.prompt[one.begin : one.end]
        for one in named:
            yield from one.others
        if all(one.weak for one in named):
            yield from self._lower()

    def _tail(self, one: Named) -> str:
        """From a name to the end of its sentence: a title that has no capitals inside."""
        end = one.end
        for word in self.words[one.run.last - 1 :]:
            end = word.end if word.text else end
            if sentences_end(word.behind):
                break
        return self.prompt[one.begin : end]

    def _lower(self) -> Iterator[str]:
        """Runs of words that neither ask nor say what is asked; single words where there are no capitals."""
        used = frozenset[str]().union(*(one.no_names | one.verbs | one.makers for one in LANGUAGES))
        spelled = any(word.text.lower() != word.text.upper() for word in self.words)
        run: list[Word] = []
        for word in self.words:
            if word.text and not word.among(used):
                run.append(word)
                if spelled and not word.behind and word is not self.words[-1]:
                    continue
            if run:
                yield self.prompt[run[0].begin : run[-1].end]
            run = []


def _title(match: re.Match[str]) -> str:
    return (match.group(1) or match.group(2) or "").strip()
