"""The cases of a comparison: which are edited under which seed, which an editor is fitted on, what was odd.

A locality or same-subject probe that asks what a drawn edit changes (its prompt or one of its rephrasings) is
not asked: to answer it as before would be wrong. Such probes are counted. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data import DataError, Loaded, load_cases, sift
from ..edits import Case
from ..text.chat import Prompt, canonical, show

__all__ = ["CaseSource", "Drawn", "open_cases", "open_fitting"]

_WORLD_EDITS = 100
_NAMED = 20  # of the skipped lines, at most
_REASON = 200  # characters of a reason, at most
_KINDS = ("rephrases", "locality", "same_subject", "portability")


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
class CaseSource:
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
        if edits is not None:
            _check_count("edits", edits, "all cases")
        there = _WORLD_EDITS if self.loaded is None else len(self.loaded.cases)
        if self.loaded is not None and edits is not None and edits > there:
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
        asked = {_plain(prompt) for case in found for prompt in (case.edit.prompt, *case.rephrases)}
        cases, changed, draw = [], 0, random.Random(f"probes {seed}")
        for case in found:
            probes: dict[str, Any] = {kind: getattr(case, kind) for kind in _KINDS}
            for kind in ("locality", "same_subject"):
                kept = tuple(probe for probe in probes[kind] if _plain(probe.prompt) not in asked)
                changed += len(probes[kind]) - len(kept)
                probes[kind] = kept
            if self.probes is not None:  # drawn, as their order may mean something
                for kind, its in probes.items():
                    chosen = draw.sample(range(len(its)), min(self.probes, len(its)))
                    probes[kind] = tuple(its[i] for i in sorted(chosen))
            case = replace(case, **probes)
            cases.append(case.in_chat() if self.chat else case)
        return Drawn(tuple(cases), truths, changed)

    def targets(self) -> list[str]:
        """All targets that may be asked for, each once; none of the made-up world, where all are short."""
        cases = self.loaded.cases if self.loaded else ()
        probes = (probe for case in cases for kind in _KINDS[1:] for probe in getattr(case, kind))
        return list(dict.fromkeys([*(case.edit.target for case in cases), *(p.target for p in probes)]))

    def fitting(self, wanted: int | Sequence[Case], n: int, seed: int) -> list[Case]:
        """Cases to fit an editor on: none shares a subject with the ``n`` that are edited under ``seed``.

        Args:
            wanted: the cases, or how many further ones of this source at most.

        Raises:
            ValueError: none is left.
        """
        edited = {_subject(case) for case in self.draw(n, seed).cases}
        if isinstance(wanted, int) and self.loaded is None:
            from .. import world

            left = world.cases(wanted, seed, split="train")
        else:
            there = self.loaded.cases if self.loaded else ()
            offered = [there[i] for i in self._order(seed)[n:]] if isinstance(wanted, int) else wanted
            left = [case for case in offered if _subject(case) not in edited]
        if not left:
            raise ValueError(
                f"no case is left to fit on that shares no subject with the {n} edits; give more of them "
                "(--fit-cases FILE), or make fewer edits"
            )
        left = left[:wanted] if isinstance(wanted, int) else left
        return [case.in_chat() for case in left] if self.chat else left

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
        """What tells these cases from others: ``data``, counts that are the same for all seeds, and
        ``orders``, a digest of each seed's cases."""
        orders = {str(seed): _digest({seed: self.draw(n, seed)}) for seed in seeds}
        return {"data": self._counts(n), "orders": orders}

    def _counts(self, n: int) -> dict[str, int]:
        loaded = self.loaded or Loaded((), ())
        read = len(loaded.cases) + loaded.left_out + len(loaded.skipped) if self.loaded else n
        return {
            "read": read,
            "used": n,
            "no_op": loaded.noops,
            "repeated": loaded.repeats,
            "contradicting": loaded.conflicts,
            "left_out": loaded.left_out,
            "skipped_lines": len(loaded.skipped),
        }


def open_cases(
    cases: str | Path | Loaded | Sequence[Case],
    *,
    drop: Collection[str] = (),
    skip_bad: bool = False,
    probes: int | None = None,
    chat: bool = False,
) -> CaseSource:
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
    if probes is not None:
        _check_count("probes", probes, "all of them")
    if isinstance(cases, str | Path):
        loaded = None if cases == "world" else load_cases(cases, drop=drop, skip_bad=skip_bad)
        return CaseSource(str(cases), loaded, probes, chat)
    if not isinstance(cases, Loaded):
        found = _checked(cases, "compare on")
        cases = sift(found, [()] * len(found), drop=drop)
    return CaseSource("cases", cases, probes, chat)


def open_fitting(
    wanted: int | str | Path | Sequence[Case] | None, *, skip_bad: bool = False
) -> int | list[Case] | None:
    """What editors are fitted on, read whole, so that a mistake in it is known before anything is run.

    Args:
        wanted: how many further cases of the compared source at most, another source as for `load_cases`,
            cases, or None to fit none.
        skip_bad: leave out broken rows of that source instead of raising at the first.

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


def _check_count(name: str, value: Any, none: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a whole number of at least 1, or None for {none}")


def _subject(case: Case) -> str:
    return _plain(case.edit.subject or case.edit.prompt)


def _plain(prompt: Prompt) -> str:
    """The prompt without regard to letter case, blanks, and whether a text is asked in a chat."""
    return " ".join(show(canonical(prompt)).split()).casefold()


def _digest(drawn: dict[int, Drawn]) -> str:
    plain = {seed: [[asdict(case) for case in one.cases], one.truths] for seed, one in drawn.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= _REASON else f"{text[: _REASON - 3]}..."
