"""What a comparison gives back: its results, which are read here and nowhere else, as reports and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation import Answer
from ..saving.files import write_atomically
from ..text.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["FORMAT", "VERSION", "Comparison", "Run", "checked"]

FORMAT, VERSION = "memplug comparison", 1


@dataclass(frozen=True)
class Run:
    """One method with one seed, as it stands in the results; what is not there is empty.

    Attributes:
        method: its label; ``name`` is the registered method, ``family`` where its edits are kept.
        seed: of the run.
        status: "done" or "failed"; then ``error`` has a type, a message and a traceback.
        config: the method's constants.
        final, immediate, first: scores after all edits, of each edit right after its batch, and of the first
            edits after all; by property, measure and value, low, high, n.
        retained, preference, general, cost, fit: further scores and plain numbers.
        curve: the same at the points on the way: edits, first, recent, general.
        details: what the method told about its decisions, see `decisions`.
        answers: rows of `Answer.to_dict` by moment, "immediate" and "final".
        warnings: what the method warned of.
        environment: versions and machine.
    """

    method: str
    seed: int
    name: str = ""
    family: str = "–"
    status: str = "done"
    error: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    immediate: Mapping[str, Any] = field(default_factory=dict)
    first: Mapping[str, Any] = field(default_factory=dict)
    retained: Mapping[str, Any] = field(default_factory=dict)
    preference: Mapping[str, Any] = field(default_factory=dict)
    general: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Mapping[str, Any]] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)
    warnings: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Run:
        """The run of a row of the results."""
        names = [one.name for one in fields(cls)]
        return cls(**{name: row[name] for name in names if row.get(name) is not None})

    def said(self, moment: str) -> list[Answer]:
        """The answers of a moment, "immediate" or "final"."""
        return [Answer.of(row) for row in self.answers.get(moment) or ()]

    @property
    def problem(self) -> str:
        """Why it failed, in a line."""
        return f"{self.error.get('type') or 'failed'}: {self.error.get('message') or 'no message'}"


def checked(results: Any) -> Mapping[str, Any]:
    """The results, if they are some.

    Raises:
        ValueError: they are none, are damaged, or were written by a newer memplug.
    """
    found = results.get("format") if isinstance(results, Mapping) else type(results).__name__
    if found != FORMAT:
        raise ValueError(
            f"format is {found!r}; a report needs the results of a comparison ({FORMAT!r}), which "
            "`memplug compare` writes to results.json"
        )
    version = results.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"version is {version!r}, this memplug reads {FORMAT!r} up to {VERSION}; upgrade memplug"
        )
    if not {"settings", "data", "base", "runs"} <= results.keys():
        raise ValueError(
            "the results are damaged (no runs or no settings in them); take a copy that is whole"
        )
    return results


@dataclass(frozen=True)
class Comparison:
    """Methods that made the same edits on the same model.

    Attributes:
        results: settings, environment, data, the base model's scores, and every run with its raw answers;
            plain values, as in ``results.json``.
    """

    results: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read a ``results.json``, or the one in a comparison's folder.

        Raises:
            ValueError: it is none, or was written by a newer memplug.
        """
        path = Path(path)
        path = path / "results.json" if path.is_dir() else path
        try:
            results = json.loads(path.read_bytes())
            checked(results)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} holds no comparison ({error}); name a results.json") from error
        return cls(results)

    @property
    def done(self) -> list[dict[str, Any]]:
        """The runs that were finished."""
        return [run for run in self.results["runs"] if run["status"] == "done"]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The runs that failed."""
        return [run for run in self.results["runs"] if run["status"] == "failed"]

    def to_json(self, path: str | Path) -> None:
        """Write the results."""
        text = json.dumps(self.results, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(Path(path), text.encode())

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page."""
        from .report import write_html

        write_html(self.results, path)

    def to_markdown(self, path: str | Path) -> None:
        """Write a Markdown table."""
        from .report import write_markdown

        write_markdown(self.results, path)

    def figures(self, folder: str | Path) -> None:
        """Write figures as PNG files."""
        from .report import write_figures

        write_figures(self.results, folder)

    def table(self, title: str | None = None) -> Table:
        """A rich table: a row a method, means over the seeds in percent; failed methods with their error.

        Whole answers as the model generates them, or teacher forced (marked) where nothing was generated.
        Specificity and same subject are counted against the base model.
        """
        from .report import rich_table

        return rich_table(self.results, title)

    def __repr__(self) -> str:
        labels = list(dict.fromkeys(run["method"] for run in self.results["runs"]))
        runs = len(self.results["runs"])
        return f"<Comparison of {printable(', '.join(labels))}: {runs} runs, {len(self.failed)} failed>"
