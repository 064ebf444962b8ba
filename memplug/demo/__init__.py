"""The demo: edit facts that everybody knows on a real chat model; each claim is checked while it is shown."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from .stages import Clock

__all__ = ["run"]


def run(
    model: str | None = None,
    edits: int | None = None,
    seed: int = 0,
    compared: int | None = None,
    out: Path | None = None,
) -> int:
    """Show it all.

    Args:
        model: ``world``, the embedded model; ``smollm2``, or a path or hub id of another chat model. None:
            SmolLM2 where it is at hand, else the embedded model.
        edits: facts to edit; by default a dozen, or 100 of the embedded model's.
        seed: which facts (the embedded model).
        compared: edits of the comparison (the embedded model: 20); 0 leaves the comparison out.
        out: the comparison's folder (the embedded model); by default a new one in the current folder.

    Returns:
        0 if all that has to hold to the bit does, 1 if not.

    Raises:
        ValueError: more facts than there are.
        ImportError: a model was asked for whose package is missing.
    """
    console = Console()
    clock = Clock(console)
    if model != "world":
        from . import real

        with clock("loading"):
            found = _load(console, model)
        if found is not None:
            return real.run(*found, console, clock, edits, compare=compared != 0)
    from . import embedded

    return embedded.run(edits or 100, seed, 20 if compared is None else compared, out)


def _load(console: Console, name: str | None) -> tuple[object, object] | None:
    """A model and its tokenizer; None, and a sentence, where none was asked for and SmolLM2 cannot be had."""
    from ..commands.shared import load_model
    from ..pretrained import PretrainedError

    try:
        return load_model(name or "smollm2", "cpu", "auto")
    except (ImportError, PretrainedError) as error:
        if name is not None:
            raise
        console.print(
            f"SmolLM2 is not at hand ({escape(' '.join(str(error).split()))}), so this is the demo on the "
            "small model that comes with memplug, and on its made-up world.\n"
        )
        return None
