"""The cases of a comparison: which are edited under which seed, which an editor is fitted on, what was odd.

A locality or same-subject probe that asks what a drawn edit changes (its prompt or one of its rephrasings) is
not asked: to answer it as before would be wrong. Such probes are counted.

Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..chat import Prompt, canonical, show
from ..data import DataError, Loaded, load_cases, sift
from ..edits import Case, Probe

__all__ = ["Casebook", "Drawn", "open_casebook", "open_fitting"]

WORLD = "world"
_WORLD_EDITS = 100
_NAMED = 20  # of the skipped lines, at most
_REASON = 200  # characters of a reason, at most


@dataclass(frozen=True)
class Drawn:
    """The cases of one seed, in the order they are edited.

    Attributes:
        cases: the cases.
        truths: of each, the answers before the edit according to the data set; often empty.
        changed: probes that an edit among them changes, which is why they are not among the cases.
    """

    cases: tuple[Case, ...]
    truths: tuple[tuple[str, ...], ...]
    changed: int = 0


@dataclass(frozen=True)
class Casebook:
    """Where cases come from.

    Attributes:
        name: how it is called in the results.
        loaded: all cases there are; None for the made-up world, which draws them anew for each seed.
        probes: how many probes of a kind a case keeps at most; None keeps all.
        chat: whether every prompt that is a text becomes a single user turn.
    """

    name: str
    loaded: Loaded | None
    probes: int | None = None
    chat: bool = False

    def size(self, edits: int | None) -> int:
        """How many edits a run has.

        Raises:
            ValueError: more are wanted than there are.
        """
        if edits is not None and (isinstance(edits, bool) or not isinstance(edits, int) or edits < 1):
            raise ValueError(f"edits is {edits!r}; give a whole number of at least 1, or None for all cases")
        if self.loaded is None:
            return _WORLD_EDITS if edits is None else edits
        there = len(self.loaded.cases)
        if edits is not None and edits > there:
            raise ValueError(f"edits is {edits}, but {self.name} has {there} cases; ask for {there} at most")
        return there if edits is None else edits

    def draw(self, n: int, seed: int) -> Drawn:
        """``n`` cases in the order of ``seed``; the same for the same seed.

        Probes that one of the ``n`` edits changes are left out, then ``probes`` of each kind are drawn.
        """
        if self.loaded is None:
            from .. import world

            found = world.cases(n, seed)
            truths: tuple[tuple[str, ...], ...] = ((),) * n
        else:
            order = self._order(seed)[:n]
            found = [self.loaded.cases[i] for i in order]
            truths = tuple(self.loaded.true_targets[i] for i in order)
        cases, changed = _unchanged(found)
        return Drawn(self._turned(self._thinned(cases, seed)), truths, changed)

    def _thinned(self, cases: Sequence[Case], seed: int) -> tuple[Case, ...]:
        """The cases with at most ``probes`` probes of a kind: drawn, as their order may mean something."""
        if self.probes is None:
            return tuple(cases)
        draw, most = random.Random(f"probes {seed}"), self.probes

        def some(probes: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(probes[i] for i in sorted(draw.sample(range(len(probes)), min(most, len(probes)))))

        return tuple(
            Case(
                case.edit,
                some(case.rephrases),
                some(case.locality),
                some(case.same_subject),
                some(case.portability),
            )
            for case in cases
        )

    def _turned(self, cases: Sequence[Case]) -> tuple[Case, ...]:
        return tuple(case.in_chat() for case in cases) if self.chat else tuple(cases)

    def targets(self) -> list[str]:
        """All targets that may be asked for, each once; none of the made-up world, where all are short."""
        cases = self.loaded.cases if self.loaded else ()
        probes = ((case.locality, case.same_subject, case.portability) for case in cases)
        others = (probe.target for kinds in probes for kind in kinds for probe in kind)
        return list(dict.fromkeys([*(case.edit.target for case in cases), *others]))

    def fitting(self, wanted: int | str | Path | Sequence[Case], n: int, seed: int) -> list[Case]:
        """Cases to fit an editor on: none shares a subject with the ``n`` that are edited under ``seed``.

        Args:
            wanted: as for `open_fitting`; a number means other cases of this source.

        Raises:
            ValueError: none is left, or ``wanted`` cannot be opened.
        """
        opened = open_fitting(wanted)
        edited = {_subject(case) for case in self.draw(n, seed).cases}
        if not isinstance(opened, int):
            left = [case for case in opened or () if _subject(case) not in edited]
        elif self.loaded is None:
            from .. import world

            left = world.cases(opened, seed, split="train")
        else:
            others = [self.loaded.cases[i] for i in self._order(seed)[n:]]
            left = [case for case in others if _subject(case) not in edited][:opened]
        if not left:
            raise ValueError(
                f"no case is left to fit on that shares no subject with the {n} edits; give more of them "
                "(--fit-cases FILE), or make fewer edits"
            )
        return list(self._turned(left))

    def _order(self, seed: int) -> list[int]:
        order = list(range(len(self.loaded.cases if self.loaded else ())))
        random.Random(f"order {seed}").shuffle(order)
        return order

    def account(self, n: int, seeds: Iterable[int]) -> dict[str, Any]:
        """The ``data`` part of the results: a digest of the cases, how many were read and what was odd.

        Where there are any, also ``skipped``, the first of the skipped lines with the reason of each;
        ``empty_probes``, those without a prompt or an answer; and ``changed_probes`` by seed, see `Drawn`.
        """
        drawn = {seed: self.draw(n, seed) for seed in seeds}
        told: dict[str, Any] = {"sha256": _digest(drawn), **self._counts(n)}
        if self.loaded is not None and self.loaded.skipped:
            named = self.loaded.skipped[:_NAMED]
            told["skipped"] = [{"line": bad.line, "reason": _short(bad.reason)} for bad in named]
        if self.loaded is not None and self.loaded.empty_probes:
            told["empty_probes"] = self.loaded.empty_probes
        if any(one.changed for one in drawn.values()):
            told["changed_probes"] = {str(seed): one.changed for seed, one in drawn.items()}
        return told

    def identity(self, n: int, seeds: Iterable[int]) -> dict[str, Any]:
        """What tells these cases from others.

        Returns:
            ``data``, counts that are the same for all seeds, and ``orders``, a digest of each seed's cases.
        """
        orders = {str(seed): _digest({seed: self.draw(n, seed)}) for seed in seeds}
        return {"data": self._counts(n), "orders": orders}

    def _counts(self, n: int) -> dict[str, int]:
        loaded = self.loaded
        counts = {"no_op": 0, "repeated": 0, "contradicting": 0, "left_out": 0, "skipped_lines": 0}
        read = n
        if loaded is not None:
            counts = {
                "no_op": loaded.noops,
                "repeated": loaded.repeats,
                "contradicting": loaded.conflicts,
                "left_out": loaded.left_out,
                "skipped_lines": len(loaded.skipped),
            }
            read = len(loaded.cases) + loaded.left_out + len(loaded.skipped)
        return {"read": read, "used": n, **counts}


def open_casebook(
    cases: str | Path | Loaded | Sequence[Case],
    *,
    drop: Collection[str] = (),
    skip_bad: bool = False,
    probes: int | None = None,
    chat: bool = False,
) -> Casebook:
    """Open a source of cases.

    Args:
        cases: ``"world"``, a source as for `load_cases`, what that gave, or cases.
        drop: oddities to leave out: no-op, repeated, contradicting. They are counted in any case.
        skip_bad: count broken rows instead of raising at the first.
        probes: how many probes of a kind a case keeps at most; None keeps all.
        chat: make a single user turn of every prompt that is a text.

    Raises:
        ValueError: nothing to read, an unknown oddity, or ``probes`` below 1.
    """
    if probes is not None and (isinstance(probes, bool) or not isinstance(probes, int) or probes < 1):
        raise ValueError(f"probes is {probes!r}; give a whole number of at least 1, or None for all of them")
    if isinstance(cases, str) and cases == WORLD:
        return Casebook(WORLD, None, probes, chat)
    if isinstance(cases, str | Path):
        return Casebook(str(cases), load_cases(cases, drop=drop, skip_bad=skip_bad), probes, chat)
    if isinstance(cases, Loaded):
        return Casebook("cases", cases, probes, chat)
    found = _checked(cases, "compare on")
    return Casebook("cases", sift(found, [()] * len(found), drop=drop), probes, chat)


def open_fitting(
    wanted: int | str | Path | Sequence[Case] | None, *, skip_bad: bool = False
) -> int | list[Case] | None:
    """What editors are fitted on, read whole, so that a mistake in it is known before anything is run.

    Args:
        wanted: how many further cases of the compared source at most, another source as for `load_cases`,
            cases, or None to fit none.
        skip_bad: leave out broken rows of that source instead of raising at the first.

    Returns:
        The number, the cases, or None.

    Raises:
        DataError: a number below 1, or a source that cannot be read.
        ValueError: no cases, or something else than cases.
    """
    if isinstance(wanted, str) and re.fullmatch(r"[+-]?\d+", wanted.strip()):
        wanted = int(wanted)
    if wanted is None or (isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 1):
        return wanted
    if isinstance(wanted, str | Path):
        return list(load_cases(wanted, skip_bad=skip_bad).cases)
    if not isinstance(wanted, Iterable):
        raise DataError(
            f"fit_cases is {wanted!r}; give a whole number of at least 1, a file of cases, cases, or None to "
            "fit none (on the command line: --fit-cases none)"
        )
    return _checked(wanted, "fit on")


def _checked(cases: Iterable[Any], purpose: str) -> list[Case]:
    found = list(cases)
    for case in found:
        if not isinstance(case, Case):
            raise ValueError(f"expected a Case, got {type(case).__name__}; wrap an edit: Case(edit)")
    if not found:
        raise ValueError(f"there are no cases to {purpose}; give at least one Case")
    return found


def _unchanged(cases: Sequence[Case]) -> tuple[list[Case], int]:
    """The cases without the probes that one of their edits changes, and how many those were."""
    asked = {_plain(prompt) for case in cases for prompt in (case.edit.prompt, *case.rephrases)}
    count = 0

    def left(probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
        nonlocal count
        kept = tuple(probe for probe in probes if _plain(probe.prompt) not in asked)
        count += len(probes) - len(kept)
        return kept

    found = [
        replace(case, locality=left(case.locality), same_subject=left(case.same_subject)) for case in cases
    ]
    return found, count


def _subject(case: Case) -> str:
    return _plain(case.edit.subject or case.edit.prompt)


def _plain(prompt: Prompt) -> str:
    """The prompt without regard to letter case, blanks, and whether a text is asked in a chat."""
    return " ".join(show(canonical(prompt)).split()).casefold()


def _digest(drawn: Mapping[int, Drawn]) -> str:
    plain = {seed: [[asdict(case) for case in one.cases], one.truths] for seed, one in drawn.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= _REASON else f"{text[: _REASON - 3]}..."
