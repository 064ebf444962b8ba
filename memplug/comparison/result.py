"""What a comparison gives back: the rows of its runs, the results as a table and as reports."""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import SaveError, write_atomically
from ..shown import printable
from .contenders import Contender
from .folder import plain

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["FORMAT", "VERSION", "Comparison", "failed", "is_failure", "named"]

FORMAT, VERSION = "memplug comparison", 1
_NONE = "–"


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
            is_one = results["format"] == FORMAT
            version = int(results["version"])
            whole = {"settings", "data", "base", "runs"} <= results.keys()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} holds no comparison ({error}); name a results.json") from error
        if not is_one or version > VERSION:
            raise ValueError(
                f"{path} has format {results['format']!r} {version}, this memplug reads "
                f"{FORMAT!r} up to {VERSION}; upgrade memplug"
            )
        if not whole:
            raise ValueError(f"{path} is damaged (no runs or no settings in it); take a copy that is whole")
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

        write_html(self.results, Path(path))

    def to_markdown(self, path: str | Path) -> None:
        """Write a Markdown table."""
        from .report import write_markdown

        write_markdown(self.results, Path(path))

    def figures(self, folder: str | Path) -> None:
        """Write figures as PNG files."""
        from .report import write_figures

        write_figures(self.results, Path(folder))

    def table(self, title: str | None = None) -> Table:
        """A rich table: a row a method, means over the seeds in percent; failed methods with their error.

        Whole answers as the model generates them, or teacher forced (marked) where nothing was generated.
        Specificity and same subject are counted against the base model.
        """
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        settings = self.results["settings"]
        how = "generated" if settings["max_new_tokens"] else "whole"
        general = sorted({name for run in self.results["runs"] for name in run["general"]})
        table = Table(title=title, caption=self._caption(how), caption_justify="left", box=SIMPLE_HEAD)
        table.padding = (0, 1, 0, 0)
        table.add_column("%", overflow="fold", min_width=9)
        for heading in (*_HEADINGS, "first", *general, "s/edit", "fwd"):
            table.add_column(heading, justify="right", no_wrap=True)
        base = list(self.results["base"].values())
        cells = [_mean([b["scores"][key][how] for b in base]) for key in _GROUPS]
        table.add_row(
            "base model", *cells, _NONE, *(_mean([b["general"].get(g) for b in base]) for g in general)
        )
        for label in dict.fromkeys(run["method"] for run in self.results["runs"]):
            runs = [run for run in self.results["runs"] if run["method"] == label]
            done = [run for run in runs if run["status"] == "done"]
            if not done:
                table.add_row(escape(printable(label)), "[red]failed[/red]")
                continue
            cells = [_mean([run["final"][key][how] for run in done]) for key in _GROUPS]
            cells.append(_mean([run["first"]["efficacy"][how] for run in done]))
            cells += [_mean([run["general"].get(name) for run in done]) for name in general]
            cells.append(_plain_mean([run["cost"]["seconds_per_edit"] for run in done], "{:.2f}"))
            forwards = [forward for run in done if (forward := run["cost"].get("forward"))]
            cells.append(_plain_mean([forward["ratio"] for forward in forwards], "{:.2f}"))
            mark = f" ({len(runs) - len(done)} of {len(runs)} failed)" if len(done) < len(runs) else ""
            table.add_row(escape(printable(label)) + mark, *cells)
        return table

    def _caption(self, how: str) -> str:
        settings = self.results["settings"]
        asked = "whole answers as generated" if how == "generated" else "whole answers, teacher forced"
        several = len(settings["seeds"]) > 1
        text = (
            f"{settings['edits']} edits in batches of {settings['batch']}, seed{'s' * several} "
            f"{', '.join(map(str, settings['seeds']))}. Efficacy, generalization, specificity, other facts "
            f"about the same subjects, portability: {asked}, the third and fourth against the base model. "
            "First: efficacy of the first edits after all. Seconds an edit; a forward's time over the base's"
        )
        if settings.get("chat"):
            text += ". Asked in the chat template"
        errors = {run["method"]: run["error"] for run in self.failed}
        lines = [
            printable(f"{label}: {e['type']}: {' '.join(e['message'].split())}")
            for label, e in errors.items()
        ]
        return "\n".join([text, *lines]).replace("[", r"\[")

    def __repr__(self) -> str:
        labels = list(dict.fromkeys(run["method"] for run in self.results["runs"]))
        runs = len(self.results["runs"])
        return f"<Comparison of {printable(', '.join(labels))}: {runs} runs, {len(self.failed)} failed>"


def named(contender: Contender, seed: int) -> dict[str, Any]:
    """What the row of a run begins with."""
    return {
        "method": contender.label,
        "name": contender.name,
        "family": contender.family,
        "seed": seed,
        "asked": contender.asked(),
    }


def failed(contender: Contender, seed: int, error: BaseException) -> dict[str, Any]:
    """The row of a run that raised."""
    empty = ("fit", "cost", "immediate", "final", "first", "preference", "answers")
    return plain(
        {
            **named(contender, seed),
            "status": "failed",
            "error": {
                "type": type(error).__name__,
                "message": " ".join([str(error), *(f"({note})" for note in getattr(error, "__notes__", ()))]),
                "traceback": "".join(traceback.format_exception(error)),
            },
            "config": json.loads(json.dumps(asdict(contender.chosen()), default=str)),
            **dict.fromkeys(empty),
            "curve": [],
            "general": {},
            "details": {},
        }
    )


def is_failure(error: Exception) -> bool:
    """Whether an exception says something about the method, and not about the disk."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return not full and not isinstance(error, SaveError)


_HEADINGS = ("eff.", "gen.", "spec.", "same", "port.")
_GROUPS = ("efficacy", "generalization", "specificity", "same_subject", "portability")


def _mean(scores: list[Mapping[str, Any] | None]) -> str:
    values = [score["value"] for score in scores if score is not None and score["value"] is not None]
    return f"{100 * sum(values) / len(values):.0f}" if values else _NONE


def _plain_mean(values: list[float], form: str) -> str:
    return form.format(sum(values) / len(values)) if values else _NONE
