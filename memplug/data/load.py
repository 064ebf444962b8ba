"""Cases from a file or a hub data set, and an account of what is odd in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..edits import Case
from ..text.chat import Prompt, canonical, show
from .formats import COLUMNS, FORMATS, Record, alternative, parse
from .rows import DataError, Row, read_file, read_hub

__all__ = ["ODDITIES", "BadRow", "Loaded", "load_cases", "sift"]

ODDITIES = {"no-op": "noops", "repeated": "repeats", "contradicting": "conflicts"}
"""What can be odd about an edit, and its count in `Loaded`."""


class BadRow(NamedTuple):
    """A row that was skipped.

    Attributes:
        source: the file's name, or the hub data set's.
        line: counted from 1.
        reason: what is wrong with it.
    """

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.reason}"


@dataclass(frozen=True)
class Loaded:
    """The cases of a data set.

    Attributes:
        cases: in the order of the source.
        true_targets: of each case, the answers before the edit; empty where the data set gives none.
        skipped: rows that could not be read.
        noops: edits whose target is already true according to the data set.
        repeats: edits that an earlier row asks for in the same words.
        conflicts: edits for which an earlier row asks another target of the same prompt.
        left_out: how many of these three are not among the cases.
        empty_probes: probes without a prompt or an answer; they are never among the cases.
    """

    cases: tuple[Case, ...]
    true_targets: tuple[tuple[str, ...], ...]
    skipped: tuple[BadRow, ...] = ()
    noops: int = 0
    repeats: int = 0
    conflicts: int = 0
    left_out: int = 0
    empty_probes: int = 0

    def __str__(self) -> str:
        counts = {
            "rows skipped": len(self.skipped),
            "already true": self.noops,
            "repeated": self.repeats,
            "contradicting": self.conflicts,
            "of these left out": self.left_out,
            "empty probes dropped": self.empty_probes,
        }
        return ", ".join([f"{len(self.cases)} cases", *(f"{n} {what}" for what, n in counts.items() if n)])


def load_cases(
    spec: str | Path,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    clean: bool = False,
    drop: Collection[str] = (),
) -> Loaded:
    """Read cases.

    Args:
        spec: ``FILE`` (JSONL, JSON, CSV or TSV; the format is told by the fields), ``zsre:FILE``,
            ``counterfact:FILE``, ``selfcheckgpt:FILE``, ``plain:FILE``, or ``hub:NAME``,
            ``hub:NAME:SPLIT``, ``hub:NAME:SPLIT:CONFIG`` through the ``datasets`` library. In plain rows
            a prompt may be a list of messages, {role, content}. A ZsRE row without ``alt`` is broken where
            other rows of the source have one.
        limit: how many cases to take, from the start; None takes all.
        skip_bad: count rows that cannot be read instead of raising at the first.
        clean: leave out edits that are already true, repeated or contradict an earlier one; letter case
            and blanks aside.
        drop: leave out only some of these: "no-op", "repeated", "contradicting".

    Raises:
        DataError: the source cannot be read, a row is broken (named by file and line), ``limit`` is
            below 1, ``drop`` names something else, or no case is left.
        ImportError: a hub data set without the ``datasets`` library.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit is {limit!r}; it must be a whole number of at least 1, or None for all")
    sieve = _Sieve(ODDITIES if clean else drop)
    format, source, rows = _open(spec)
    skipped: list[BadRow] = []
    alternatives: bool | None = None  # whether the source has any
    for row in rows:
        record, reason = _parsed(row, format)
        if record is not None and alternative(row.values, format) == "":
            alternatives = _has_alternatives(spec) if alternatives is None else alternatives
            if alternatives:
                record, reason = None, "alt is empty, but other rows have one"
        if record is None:
            bad = BadRow(source, row.line, reason)
            if not skip_bad:
                raise DataError(
                    f"{bad}; mend the row, or leave such rows out with skip_bad=True (on the command line: "
                    "--skip-bad)"
                )
            skipped.append(bad)
            continue
        sieve.take(record)
        if limit is not None and len(sieve.kept) == limit:
            break
    if not sieve.kept:
        first = f"; the first: {skipped[0]}" if skipped else ""
        raise DataError(
            f"no case in {str(spec)!r} ({len(skipped)} rows skipped, {sieve.left_out} left out{first})"
        )
    return sieve.loaded(skipped)


def sift(
    cases: Iterable[Case], true_targets: Iterable[Sequence[str]], *, drop: Collection[str] = ()
) -> Loaded:
    """The same account of cases that are there already.

    Args:
        cases: the cases.
        true_targets: of each, its answers before the edit, where they are known.
        drop: as for `load_cases`.

    Raises:
        DataError: ``drop`` names something else, or no case is left.
    """
    sieve = _Sieve(drop)
    for case, truths in zip(cases, true_targets, strict=True):
        sieve.take(Record(case, tuple(truths), 0))
    if not sieve.kept:
        raise DataError(f"no case is left of {sieve.left_out}; drop fewer kinds")
    return sieve.loaded()


class _Sieve:
    """Counts what is odd, and leaves out what is to be dropped."""

    def __init__(self, drop: Collection[str]) -> None:
        unknown = sorted(set(drop) - set(ODDITIES))
        if unknown:
            raise DataError(f"drop has {unknown[0]!r}; the kinds are {', '.join(ODDITIES)}")
        self.drop = {ODDITIES[name] for name in drop}
        self.kept: list[Record] = []
        self.counts = dict.fromkeys(ODDITIES.values(), 0)
        self.left_out = 0
        self._targets: dict[str, set[str]] = {}  # of each prompt so far

    def take(self, record: Record) -> None:
        odd = _oddity(record, self._targets)
        if odd is not None:
            self.counts[odd] += 1
            if odd in self.drop:
                self.left_out += 1
                return
        edit = record.case.edit
        self._targets.setdefault(_key(edit.prompt), set()).add(_key(edit.target))
        self.kept.append(record)

    def loaded(self, skipped: Sequence[BadRow] = ()) -> Loaded:
        return Loaded(
            cases=tuple(record.case for record in self.kept),
            true_targets=tuple(record.true_targets for record in self.kept),
            skipped=tuple(skipped),
            left_out=self.left_out,
            empty_probes=sum(record.empty_probes for record in self.kept),
            **self.counts,
        )


def _open(spec: str | Path) -> tuple[str | None, str, Iterator[Row]]:
    """The format (None: by the fields), the source's name, and its rows."""
    text = str(spec)
    prefix, colon, rest = text.partition(":")
    if not (rest if prefix in FORMATS and colon else text).strip():
        raise DataError(f"{text!r} names no file; write {prefix if colon else 'zsre'}:FILE, or FILE alone")
    if isinstance(spec, str) and prefix == "hub" and colon:
        name, *more = rest.split(":")
        if not name or len(more) > 2:
            raise DataError(
                f"{spec!r} is no hub data set; write hub:NAME, hub:NAME:SPLIT or hub:NAME:SPLIT:CONFIG"
            )
        return None, f"hub:{name}", read_hub(name, *(part or None for part in more))
    if isinstance(spec, str) and colon and prefix in FORMATS:
        path = Path(rest).expanduser()
        return prefix, path.name, read_file(path, COLUMNS)
    path = Path(text).expanduser()
    # A single letter is a drive's.
    if isinstance(spec, str) and colon and len(prefix) > 1 and not path.exists():
        raise DataError(
            f"{spec!r}: no such file, and {prefix!r} is no format; the formats are {[*FORMATS, 'hub']}"
        )
    return None, path.name, read_file(path, COLUMNS)


def _has_alternatives(spec: str | Path) -> bool:
    format, _, rows = _open(spec)
    return any(alternative(row.values, format) for row in rows)


def _parsed(row: Row, format: str | None) -> tuple[Record | None, str]:
    if row.broken is not None:
        return None, row.broken
    try:
        return parse(row.values, format), ""
    except ValueError as error:
        return None, str(error)


def _oddity(record: Record, targets: dict[str, set[str]]) -> str | None:
    """Which of the counts of `Loaded` an edit belongs to; the first that fits."""
    target = _key(record.case.edit.target)
    earlier = targets.get(_key(record.case.edit.prompt), set())
    if target in earlier:
        return "repeats"
    if earlier:
        return "conflicts"
    return "noops" if target in map(_key, record.true_targets) else None


def _key(prompt: Prompt) -> str:
    return " ".join(show(canonical(prompt)).split()).casefold()
