"""The cases of a comparison: which are edited under which seed, which an editor is fitted on, what was odd.

Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data import Loaded, load_cases, sift
from ..edits import Case

__all__ = ["Casebook", "Drawn", "open_casebook"]

WORLD = "world"
_WORLD_EDITS = 100


@dataclass(frozen=True)
class Drawn:
    """The cases of one seed, in the order they are edited.

    Attributes:
        cases: the cases.
        truths: of each, the answers before the edit according to the data set; often empty.
    """

    cases: tuple[Case, ...]
    truths: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Casebook:
    """Where cases come from.

    Attributes:
        name: how it is called in the results.
        loaded: all cases there are; None for the made-up world, which draws them anew for each seed.
        probes: how many probes of a kind a case keeps at most; None keeps all.
    """

    name: str
    loaded: Loaded | None
    probes: int | None = None

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
        """``n`` cases in the order of ``seed``; the same for the same seed."""
        if self.loaded is None:
            from .. import world

            return Drawn(self._thinned(world.cases(n, seed), seed), ((),) * n)
        order = self._order(seed)[:n]
        cases = self._thinned([self.loaded.cases[i] for i in order], seed)
        return Drawn(cases, tuple(self.loaded.true_targets[i] for i in order))

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

    def targets(self) -> list[str]:
        """All targets that may be asked for, each once; none of the made-up world, where all are short."""
        cases = self.loaded.cases if self.loaded else ()
        probes = ((case.locality, case.same_subject, case.portability) for case in cases)
        others = (probe.target for kinds in probes for kind in kinds for probe in kind)
        return list(dict.fromkeys([*(case.edit.target for case in cases), *others]))

    def fitting(self, wanted: int | str | Sequence[Case], n: int, seed: int) -> list[Case]:
        """Cases to fit an editor on: none shares a subject with the ``n`` that are edited under ``seed``.

        Args:
            wanted: a number (of other cases of this source), a source as for `load_cases`, or cases.

        Raises:
            ValueError: none is left.
        """
        edited = {_subject(case) for case in self.draw(n, seed).cases}
        if not isinstance(wanted, int):
            cases = list(load_cases(wanted).cases) if isinstance(wanted, str) else list(wanted)
            left = [case for case in cases if _subject(case) not in edited]
        elif self.loaded is None:
            from .. import world

            left = world.cases(wanted, seed, split="train")
        else:
            others = [self.loaded.cases[i] for i in self._order(seed)[n:]]
            left = [case for case in others if _subject(case) not in edited][:wanted]
        if not left:
            raise ValueError(
                f"no case is left to fit on that shares no subject with the {n} edits; give more of them "
                "(--fit-cases FILE), or make fewer edits"
            )
        return left

    def _order(self, seed: int) -> list[int]:
        order = list(range(len(self.loaded.cases if self.loaded else ())))
        random.Random(f"order {seed}").shuffle(order)
        return order

    def account(self, n: int, seeds: Iterable[int]) -> dict[str, Any]:
        """The ``data`` part of the results."""
        loaded, seeds = self.loaded, list(seeds)
        drawn = {seed: [asdict(case) for case in self.draw(n, seed).cases] for seed in seeds}
        text = json.dumps(drawn, sort_keys=True, ensure_ascii=False)
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
        digest = hashlib.sha256(text.encode()).hexdigest()
        return {"sha256": digest, "read": read, "used": n, **counts}


def open_casebook(
    cases: str | Path | Loaded | Sequence[Case],
    *,
    drop: Collection[str] = (),
    skip_bad: bool = False,
    probes: int | None = None,
) -> Casebook:
    """Open a source of cases.

    Args:
        cases: ``"world"``, a source as for `load_cases`, what that gave, or cases.
        drop: oddities to leave out: no-op, repeated, contradicting. They are counted in any case.
        skip_bad: count broken rows instead of raising at the first.
        probes: how many probes of a kind a case keeps at most; None keeps all.

    Raises:
        ValueError: nothing to read, an unknown oddity, or ``probes`` below 1.
    """
    if probes is not None and (isinstance(probes, bool) or not isinstance(probes, int) or probes < 1):
        raise ValueError(f"probes is {probes!r}; give a whole number of at least 1, or None for all of them")
    if isinstance(cases, str) and cases == WORLD:
        return Casebook(WORLD, None, probes)
    if isinstance(cases, str | Path):
        return Casebook(str(cases), load_cases(cases, drop=drop, skip_bad=skip_bad), probes)
    if isinstance(cases, Loaded):
        return Casebook("cases", cases, probes)
    found = list(cases)
    for case in found:
        if not isinstance(case, Case):
            raise ValueError(f"expected a Case, got {type(case).__name__}; wrap an edit: Case(edit)")
    if not found:
        raise ValueError("there are no cases to compare on; give at least one Case")
    return Casebook("cases", sift(found, [()] * len(found), drop=drop), probes)


def _subject(case: Case) -> str:
    return " ".join((case.edit.subject or case.edit.prompt).split()).casefold()
