"""``memplug fit``: teach a method to edit a model, and keep what it learned in a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..text.printable import printable
from .shared import Device, Dtype, Model, explained, load_model

__all__ = ["fit"]


def fit(
    out: Annotated[Path, typer.Argument(help="File of the editor to write.", show_default=False)],
    cases: Annotated[
        str, typer.Option(help="What to fit on: FILE.jsonl, FILE.csv, zsre:FILE, counterfact:FILE, ...")
    ],
    method: Annotated[str, typer.Option(help="rledit, hiedit, smedit, malmen or mend.")] = "rledit",
    limit: Annotated[int | None, typer.Option(help="Take the first so many cases.")] = None,
    skip_bad: Annotated[bool, typer.Option(help="Count broken lines instead of stopping at one.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A constant: KEY=VALUE. Repeatable.")
    ] = None,
    model: Model = "world",
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Fit an editor to a model; ``attach(..., editor=OUT)`` takes it up. Goes on where it was stopped.

    The bar shows losses and the time left. What was done so far lies in OUT.checkpoint until it is finished.
    """
    with explained():
        from ..attaching import attach
        from ..comparison.specs import parse_constants
        from ..data import load_cases
        from ..interface import Fits
        from ..methods import find_method

        read = load_cases(cases, limit=limit, skip_bad=skip_bad)
        if read.skipped:
            typer.echo(f"left out {len(read.skipped)} broken rows", err=True)
        # All constants are named, so that none comes from an editor that is shipped for this model.
        defaults = asdict(find_method(method).config())
        given = parse_constants(
            [text if "." in text.split("=")[0] else f"{method}.{text}" for text in set_ or ()]
        )
        if given.keys() - {method}:
            raise ValueError(f"--set names {sorted(given.keys() - {method})[0]!r}, but {method!r} is fitted")
        plug = attach(*load_model(model, device, dtype), method, **defaults | given.get(method, {}))
        if not isinstance(plug.method, Fits):
            raise ValueError(f"{method!r} needs no fitting; choose rledit, hiedit, smedit, malmen or mend")
        checkpoint = out.with_name(f"{out.name}.checkpoint")
        report = plug.fit(read.cases, checkpoint=checkpoint)
        plug.save_editor(out, half=True)
        checkpoint.unlink(missing_ok=True)
        last = report.losses[-10:]
        edit, kept = (sum(loss[i] for loss in last) / max(1, len(last)) for i in (0, 1))
        typer.echo(
            f"{printable(str(out))}: {out.stat().st_size / 1e6:.1f} MB, {report.steps} steps in "
            f"{report.seconds:.0f} s; loss of the last steps {edit:.2f}, divergence {kept:.3f}"
        )
