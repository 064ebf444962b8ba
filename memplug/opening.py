"""Attach a new plug to a loaded model, or one that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import storage
from .editors import check_constants, read_editor, shipped_editor, unlike
from .layers import learning
from .methods import choose, find_method
from .plugin import Plug

__all__ = ["attach", "load"]


def attach(
    model: Any,
    tokenizer: Any,
    method: str | Any = "llp",
    *,
    preset: str = "default",
    layers: str | None = None,
    editor: str | Path | None = None,
    **config: Any,
) -> Plug:
    """Give a loaded model an editable memory.

    Args:
        model: a Hugging Face causal language model, on any device, in any dtype.
        tokenizer: its tokenizer.
        method: a method's name, or a config object such as ``LLPConfig(threshold=0.8)``.
        preset: ``"default"``, or ``"paper"`` for the published constants.
        layers: dotted name of the list of decoder layers, where it cannot be found by rule.
        editor: file of a fitted editor, for methods that learn to edit; its constants are the defaults, also
            of another `Plug.fit`. Left out, the embedded model gets the one that ships for it, unless
            constants of the networks or of fitting are set.
        **config: constants of the method by name.

    Raises:
        ValueError: no such method, preset or constant; a second plug on one model; a tokenizer that
            does not fit (TokenizerError); a model that cannot be edited (UnsupportedModelError).
    """
    fitted = read_editor(Path(editor), model) if editor is not None else None
    if fitted:
        check_constants(fitted, config)
    registered, chosen = choose(method, preset, (fitted.config if fitted else {}) | config)
    if editor is None and preset == "default":
        shipped = shipped_editor(registered.name, model, chosen)
        if shipped is not None:
            fitted = read_editor(shipped, model)
            asked = unlike(chosen, registered.config())
            registered, chosen = choose(registered.name, preset, fitted.config | asked | config)
    plug = Plug(model, tokenizer, registered, chosen, layers)
    if fitted:
        try:
            plug.take_editor(fitted)
        except BaseException:
            plug.detach()
            raise
    return plug


def load(path: str | Path, model: Any, tokenizer: Any) -> Plug:
    """Attach a plug that was saved, with its method, constants and edits, to the same base model.

    Raises:
        LoadError: the folder is no saved plug, is damaged, was written by a newer version, or belongs to
            another base model (both fingerprints are named).
    """
    saved = storage.read(Path(path), model)
    try:
        config = find_method(saved.method).config(**saved.config)
    except (TypeError, ValueError) as error:
        raise storage.LoadError(
            f"{path} does not fit this memplug ({error}); take a copy that is whole"
        ) from error
    plug = attach(model, tokenizer, config, layers=saved.layers)
    try:
        with learning():
            storage.fill(plug, saved)
    except BaseException:
        plug.detach()
        raise
    return plug
