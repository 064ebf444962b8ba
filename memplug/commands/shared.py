"""What the commands share: options, how mistakes are told, how a model is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..text.printable import printable

if TYPE_CHECKING:
    from ..edits import EditTable
    from ..plugin import Plug

__all__ = [
    "Device",
    "Dtype",
    "Folder",
    "Model",
    "explained",
    "has_plug",
    "keep",
    "load_model",
    "new_plug",
    "open_plug",
    "peek",
    "quiet",
]

Folder = Annotated[
    str,
    typer.Argument(
        help="Folder of the saved plug; or a store: a file FILE.db, or the URL of a database.",
        show_default=False,
    ),
]

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="The base model: a path, a hub id, `world`, the embedded one, or `smollm2`, a real small chat "
        "model (see `memplug.pretrained`).",
    ),
]
Device = Annotated[str, typer.Option(help="Where it runs: cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16, or auto: as it was saved, but float16 becomes float32 on a CPU."
    ),
]


@contextmanager
def explained() -> Iterator[None]:
    """Mistakes a user can mend are told in one line; anything else keeps its traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.secho(f"error: {printable(' '.join(str(error).split()))}", fg="red", err=True)
        raise typer.Exit(2) from None


def quiet() -> None:
    """No bar for a model that loads in a moment; what the commands themselves report stays."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """The model and tokenizer called ``name``: ``world``, one of `pretrained.NAMES`, a path or a hub id.

    Raises:
        ValueError: no such dtype or device; a name that is nearly one of ours; see `pretrained.load`.
        ImportError: see `pretrained.load`.
        OSError: nothing is found under that path or hub id.
    """
    import torch

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in (*types, "auto"):
        raise ValueError(f"dtype is {dtype!r}; choose one of {', '.join(types)}, auto")
    _check_device(device)
    quiet()
    if name == "world":
        from .. import world

        return world.load(types.get(dtype, torch.float32), device)
    from .. import pretrained

    if name in pretrained.NAMES:
        return pretrained.load(name, types.get(dtype, torch.float32), device)
    near = difflib.get_close_matches(name.lower(), ["world", *pretrained.NAMES], n=1, cutoff=0.8)
    if near and not Path(name).exists():
        raise ValueError(f"there is no model folder {name!r}; did you mean {near[0]!r}?")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    both = getattr(AutoConfig.from_pretrained(name), "is_encoder_decoder", False)
    maker = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
    model = maker.from_pretrained(name, dtype=types.get(dtype, "auto"))
    if dtype == "auto" and model.dtype == torch.float16 and torch.device(device).type == "cpu":
        model = model.float()  # float16 products are several times slower than float32 on a CPU
    return model.to(device).eval(), AutoTokenizer.from_pretrained(name)


def is_store(where: str) -> bool:
    """Whether this names a store, and not a folder."""
    return "://" in where or (where.endswith(".db") and not Path(where).is_dir())


def has_plug(where: str) -> bool:
    """Whether something is there, be it a plug or not: False for a new or empty folder or store."""
    if not is_store(where):
        path = Path(where)
        return path.exists() and not (path.is_dir() and not any(path.iterdir()))
    from ..store.opening import is_empty

    return not is_empty(where)


def peek(where: str) -> tuple[str, EditTable]:
    """The method and the edits of a saved plug or a store, without a model; raises LoadError, StoreError."""
    from ..saving import plugs
    from ..store import opening

    return opening.peek(where) if is_store(where) else plugs.peek(Path(where))


def new_plug(where: str, model: Any, tokenizer: Any, method: str | None, preset: str) -> Plug:
    """A plug without edits, in a new store if that is what ``where`` names."""
    from ..attaching import attach

    store = where if is_store(where) else None
    return attach(model, tokenizer, method or "llp", preset=preset, store=store)


def open_plug(where: str, model: Any, tokenizer: Any) -> Plug:
    """The plug of a folder or a store; raises LoadError, StoreError."""
    from ..attaching import attach, load

    if not is_store(where):
        return load(where, model, tokenizer)
    peek(where)  # one that is not there is not made
    return attach(model, tokenizer, store=where)


def keep(plug: Plug, where: str) -> None:
    """Save what was changed; in a store it is already."""
    if plug.store is None:
        plug.save(where, overwrite=False)


def _check_device(name: str) -> None:
    import torch

    try:
        asked = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device is {name!r}, which torch does not know; give cpu, cuda or cuda:1"
        ) from error
    there = torch.cuda.device_count()
    if asked.type == "cuda" and (asked.index or 0) >= there:
        raise ValueError(
            f"device is {name!r}, and torch sees {there} GPUs here; give --device cpu, or another"
        )
