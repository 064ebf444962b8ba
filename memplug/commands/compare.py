"""``memplug compare``: methods side by side, from a shell; ``memplug report``: their report made anew."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..text.printable import printable
from .shared import Device, Dtype, Model, explained, load_model

__all__ = ["compare", "report"]


def compare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results, report and editors.")],
    methods: Annotated[
        str,
        typer.Option(help="Names with commas between, also name:preset and label=name: llp,x=elder:paper."),
    ] = "llp,elder,ultraedit",
    model: Model = "world",
    cases: Annotated[
        str,
        typer.Option(
            help="world, FILE.jsonl, FILE.csv, zsre:FILE, counterfact:FILE, selfcheckgpt:FILE, hub:NAME."
        ),
    ] = "world",
    edits: Annotated[int | None, typer.Option(help="Edits of a run; all cases if left out.")] = None,
    batch: Annotated[int, typer.Option(help="Edits made together.")] = 1,
    seed: Annotated[str, typer.Option("--seed", help="One or several, such as 0,1,2.")] = "0",
    points: Annotated[
        str | None, typer.Option(help="Edits at which early ones are looked at again: 100,500.")
    ] = None,
    general: Annotated[
        str | None,
        typer.Option(
            help="General abilities: skills, skills:N, FILE.jsonl of choices, lm-eval TASK or TASK:N; "
            "`skills` for the embedded model if left out, `none` for none."
        ),
    ] = None,
    fit_cases: Annotated[
        str,
        typer.Option(
            help="What editors without a shipped one are fitted on: so many other cases at most, FILE, or "
            "`none`."
        ),
    ] = "500",
    fit_steps: Annotated[int | None, typer.Option(help="Steps of such a fitting.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A constant, as llp.value_steps=20; the method may be a label. Repeatable."
        ),
    ] = None,
    drop: Annotated[
        str | None, typer.Option(help="Leave out odd edits: no-op,repeated,contradicting (counted anyway).")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Count broken lines instead of stopping at one.")] = False,
    probes: Annotated[
        int | None,
        typer.Option(help="Ask at most so many of a kind about a case; all if left out."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put every plain prompt of the cases into the chat template.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Where answers are cut off (0: none made); what targets need if left out."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts scored at once.")] = 32,
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    retry: Annotated[bool, typer.Option(help="Run again what failed before.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Make the same edits with several methods and judge all alike; goes on where it was stopped.

    The exit code is 1 where no run could be finished, 2 where nothing was begun.

    Several processes share the runs, on a machine without GPUs too:
    accelerate launch --multi_gpu --num_processes 2 -m memplug compare ...
    """
    with explained():
        from ..comparison.model_state import NotRestoredError
        from ..comparison.processes import Processes
        from ..comparison.runner import compare as run
        from ..comparison.specs import parse_constants

        here = Processes.here()
        skills = ["skills"] if model == "world" else []
        given: dict[str, Any] = {
            "methods": _parts(methods),
            "edits": edits,
            "batch": batch,
            "seeds": _numbers(seed, "seed"),
            "points": None if points is None else _numbers(points, "points"),
            "general": skills if general is None else [] if general == "none" else _parts(general),
            "fit_cases": None if fit_cases == "none" else _whole(fit_cases),
            "fit_steps": fit_steps,
            "constants": parse_constants(set_ or []),
            "drop": _parts(drop or ""),
            "skip_bad": skip_bad,
            "probes": probes,
            "chat": chat,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "level": level,
            "retry": retry,
        }
        loaded = load_model(model, here.device(device), dtype)
        command = shlex.join(["memplug", *sys.argv[1:]])
        try:
            comparison = run(*loaded, cases, out=out, name=model, command=command, **given)
        except NotRestoredError as error:
            raise ValueError(str(error)) from error
        if here.rank == 0:
            _show(comparison, out)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison.", show_default=False)],
    png: Annotated[bool, typer.Option("--png", help="Draw the figures as PNG files, too.")] = False,
) -> None:
    """Make a comparison's report.html and report.md anew from its results.json; needs no model."""
    with explained():
        from ..comparison.result import Comparison

        comparison = Comparison.load(folder)
        folder = folder if folder.is_dir() else folder.parent
        written = _write(comparison, folder)
        if png:
            comparison.figures(folder / "figures")
            written.append("figures")
    _tell(written, folder)


def _show(comparison: Any, out: Path) -> None:
    from rich.console import Console

    Console().print(comparison.table())
    written: list[str] = []
    try:
        written = _write(comparison, out)
    except ImportError as error:
        typer.secho(f"no report: {printable(error)}", fg="yellow", err=True)
    _tell([*written, "results.json"], out)
    if not comparison.done:
        typer.secho("error: no run was finished; the table says why", fg="red", err=True)
        raise typer.Exit(1)


def _write(comparison: Any, folder: Path) -> list[str]:
    comparison.to_html(folder / "report.html")
    comparison.to_markdown(folder / "report.md")
    return ["report.html", "report.md"]


def _tell(written: list[str], folder: Path) -> None:
    typer.echo(f"{', '.join(written)} are in {folder}")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _numbers(text: str, what: str) -> list[int]:
    for part in _parts(text):
        if not part.isdigit():
            raise ValueError(f"{what} has {part!r}; give whole numbers with commas between, such as 0,1,2")
    return [int(part) for part in _parts(text)]
