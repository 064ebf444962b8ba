"""``memplug history`` and ``memplug rollback``: the revisions of a store."""

from __future__ import annotations

from typing import Annotated

import typer

from ..text.printable import printable
from .shared import Device, Dtype, Model, explained, load_model, open_plug

__all__ = ["history", "rollback"]

Store = Annotated[str, typer.Argument(help="A file FILE.db, or the URL of a database.", show_default=False)]


def history(store: Store) -> None:
    """Show what was done to the edits of a store, by whom and why; needs no model."""
    with explained():
        from ..store.opening import read_history

        for one in read_history(store):
            what = " ".join([one.action, *one.edits[:8], *(["..."] if len(one.edits) > 8 else [])])
            said = ", ".join(filter(None, (one.who, one.why)))
            line = f"{one.number:>5}  {one.time:%Y-%m-%d %H:%M:%S} UTC  {what}{f'  ({said})' if said else ''}"
            typer.echo(printable(line + ("" if one.kept else "  [pruned]")))


def rollback(
    store: Store,
    revision: Annotated[int, typer.Argument(help="See `memplug history`.", show_default=False)],
    model: Model = "world",
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Bring back the edits of an earlier revision, as a new revision."""
    with explained():
        plug = open_plug(store, *load_model(model, device, dtype))
        plug.rollback(revision)
        typer.echo(repr(plug.edits))
