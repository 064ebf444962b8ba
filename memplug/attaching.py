"""Attach a new plug to a loaded model, or one that was saved."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .configs import SavedPath, from_json
from .methods import choose, find_method
from .methods.editors import check_constants, read_editor, shipped_editor, unlike
from .model.architecture import UnsupportedModelError, learning
from .plugin import Plug, check_free
from .saving import plugs as storage
from .text.printable import brief, printable
from .text.tokens import TokenizerError

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
            of another `Plug.fit`. Left out, a model for which one ships (the embedded one, SmolLM2) gets it,
            unless constants of the networks or of fitting are given that are not that editor's.
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
        shipped = shipped_editor(registered.name, model, chosen, config)
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


def load(path: str | Path, model: Any, tokenizer: Any, **paths: Any) -> Plug:
    """Attach a plug that was saved, with its method, constants and edits, to the same base model.

    Args:
        path: the folder that `Plug.save` wrote.
        model: the base model.
        tokenizer: its tokenizer.
        **paths: constants that name files or folders (``cache_dir`` and ``covariance`` of memit and
            alphaedit). Those in the saved config are not followed unless they are given again here: a saved
            plug is data.

    Raises:
        LoadError: the folder is no saved plug, is damaged, was written by a newer version, or belongs to
            another base model (both fingerprints are named).
        ValueError: a path for which the saved method has no use; otherwise as `attach`.
    """
    check_free(model)
    saved = storage.read(Path(path), model)
    said = saved.said
    try:
        kind = find_method(said.method).config
        oldest = getattr(kind, "oldest_format", 1)
        constants = from_json(kind, said.config) if said.format >= oldest else {}
    except (TypeError, ValueError) as error:
        raise storage.LoadError(
            f"{path} does not fit this memplug ({printable(error)}); take a copy that is whole"
        ) from error
    if said.format < oldest:
        raise storage.LoadError(
            f"{path} was saved by an earlier memplug (format {said.format}), and {said.method!r} is read "
            f"from format {oldest} on; make its edits again with a new plug"
        )
    names = getattr(kind, "paths", ())
    other = sorted(paths.keys() - set(names))
    if other:
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise ValueError(f"{other[0]} is no path of {said.method!r}; {known}")
    config = _opened(path, kind, constants, paths)
    try:
        plug = attach(model, tokenizer, config, layers=said.layers)
    except (UnsupportedModelError, TokenizerError, torch.OutOfMemoryError):  # not the save's fault
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise storage.damage(error) from error
    try:
        with learning():
            storage.fill(plug, saved)
        plug.saves.add(Path(path), saved.version)
    except BaseException:
        plug.detach()
        raise
    return plug


def _opened(path: str | Path, kind: type[Any], constants: dict[str, Any], paths: dict[str, Any]) -> Any:
    """The config, with the paths that were given; those that were not are marked as not to be followed."""
    names = getattr(kind, "paths", ())
    held = {
        name: SavedPath(constants[name])
        for name in names
        if name not in paths and isinstance(constants.get(name), str)
    }
    for name, value in held.items():
        warnings.warn(
            f"the plug in {path} was saved with {name}={brief(value)}, which is not looked at; if you "
            f"want it to be, load(..., {name}=...)",
            stacklevel=3,
        )
    try:
        config = kind(**constants | held)
    except (TypeError, ValueError) as error:
        raise storage.LoadError(
            f"{path} does not fit this memplug ({printable(error)}); take a copy that is whole"
        ) from error
    return replace(config, **paths) if paths else config
