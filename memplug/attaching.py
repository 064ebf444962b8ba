"""Attach a new plug to a loaded model, or one that was saved."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .attached import check_free
from .configs import SavedPath, from_json
from .methods import choose, find_method
from .methods.editors import check_constants, read_editor, shipped_editor, unlike
from .model.architecture import UnsupportedModelError, learning
from .plugin import Plug
from .saving import plugs as storage
from .saving.hub import fetched, is_repository
from .saving.manifest import Manifest
from .store.opening import open_database
from .text.printable import brief, printable
from .text.tokens import TokenizerError

__all__ = ["attach", "load"]


def attach(
    model: Any,
    tokenizer: Any,
    method: str | Any | None = None,
    *,
    preset: str = "default",
    layers: str | None = None,
    editor: str | Path | None = None,
    store: str | Path | None = None,
    **config: Any,
) -> Plug:
    """Give a loaded model an editable memory.

    The model object stays the caller's. It gets hooks and one attribute (``_memplug_plug``), and the methods
    that edit weights write them with the first edit; `Plug.detach` takes all of that back. The class of a KV
    cache that is used with it is replaced by a subclass of the same name, which keeps what was decided.

    Args:
        model: a Hugging Face causal language model or encoder-decoder, on any device, in any dtype.
        tokenizer: its tokenizer.
        method: a method's name, or a config object such as ``LLPConfig(value_steps=20)``; llp if left out.
        preset: ``"default"``, or ``"paper"`` for the published constants.
        layers: dotted name of the list of decoder layers, where it cannot be found by rule.
        editor: file of a fitted editor, for methods that learn to edit; its constants are the defaults, also
            of another `Plug.fit`. Left out, a model for which one ships (the embedded one, SmolLM2) gets it,
            unless constants of the networks or of fitting are given that are not that editor's.
        store: a database that every change is in before its call returns: the path of an SQLite file, or a
            URL (``sqlite:///facts.db``, ``postgresql+psycopg://user@host/name``). A new one is made. One that
            holds edits gives the plug these, with the method and the constants that it was made with: they
            need not be named, and others are refused. See `Plug.history`, `Plug.rollback`, `Plug.store`.
        **config: constants of the method by name.

    Raises:
        ValueError: no such method, preset or constant; a second plug on one model; a tokenizer that
            does not fit (TokenizerError); a model that cannot be edited (UnsupportedModelError); a store that
            was made with another method or other constants.
        StoreError: the store cannot be opened, read or written, or is from a newer memplug.
        LoadError: it is damaged, or belongs to another base model (both fingerprints are named).
        ImportError: the extra ``store`` is not installed.
    """
    if store is not None:
        asked = {"method": method, "preset": preset, "layers": layers, "editor": editor, **config}
        return _stored(store, model, tokenizer, asked)
    method = "llp" if method is None else method
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
        path: the folder that `Plug.save` wrote; or the id of a repository of the Hugging Face Hub that
            `Plug.push_to_hub` wrote, "user/facts" or "user/facts@revision", where no folder is called so.
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
    if isinstance(path, str) and is_repository(path):
        with fetched(path) as folder:
            saved = storage.read(folder, model)
        return _restored(saved, path, model, tokenizer, paths)
    saved = storage.read(Path(path), model)
    plug = _restored(saved, str(path), model, tokenizer, paths)
    plug.saves.add(Path(path), saved.version)
    return plug


def _restored(saved: storage.Saved, where: str, model: Any, tokenizer: Any, paths: dict[str, Any]) -> Plug:
    """A plug with what was saved; ``where``, for messages."""
    said = saved.said
    try:
        kind = find_method(said.method).config
        oldest = getattr(kind, "oldest_format", 1)
        constants = from_json(kind, said.config) if said.format >= oldest else {}
    except (TypeError, ValueError) as error:
        raise storage.LoadError(
            f"{where} does not fit this memplug ({printable(error)}); take a copy that is whole"
        ) from error
    if said.format < oldest:
        raise storage.LoadError(
            f"{where} was saved by an earlier memplug (format {said.format}), and {said.method!r} is read "
            f"from format {oldest} on; make its edits again with a new plug"
        )
    names = getattr(kind, "paths", ())
    other = sorted(paths.keys() - set(names))
    if other:
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise ValueError(f"{other[0]} is no path of {said.method!r}; {known}")
    config = _opened(where, kind, constants, paths)
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
    except BaseException:
        plug.detach()
        raise
    return plug


def _stored(where: str | Path, model: Any, tokenizer: Any, asked: dict[str, Any]) -> Plug:
    """A plug that is kept in a store, a new one or one that is there; ``asked`` are `attach`'s arguments."""
    check_free(model)
    database = open_database(where)
    try:
        from .store.store import Store, newest

        base = storage.fingerprint(model)
        saved, at = newest(database, base, model)
        if saved is None:
            plug = attach(model, tokenizer, **asked)
        else:
            _check_asked(database.name, saved.said, **asked)
            names = getattr(find_method(saved.said.method).config, "paths", ())
            given = {name: asked.get(name, getattr(asked["method"], name, None)) for name in names}
            paths = {name: path for name, path in given.items() if path is not None}
            plug = _restored(saved, database.name, model, tokenizer, paths)
        try:
            plug.store = Store(plug, database, base, at)
            if plug.store.at:
                return plug
        except BaseException:
            plug.detach()
            raise
        plug.detach()
    except BaseException:
        database.close()
        raise
    return _stored(where, model, tokenizer, asked)  # another process made the first revision meanwhile


def _check_asked(
    where: str,
    said: Manifest,
    /,
    method: str | Any | None,
    preset: str,
    layers: str | None,
    editor: str | Path | None,
    **config: Any,
) -> None:
    """What a user has named beside a store is what it was made with; what was left open fits anything.

    Raises:
        ValueError: it is not.
    """
    registered, chosen = choose(said.method if method is None else method, preset, config)
    kept = json.loads(json.dumps(said.config)) | {"method": said.method, "layers": said.layers}
    plain, paths = json.loads(json.dumps(asdict(chosen))), getattr(registered.config, "paths", ())
    asked = {"method": registered.name, "layers": layers}
    if registered.name == said.method:
        asked |= unlike(chosen, registered.config()) | {name: plain[name] for name in config}
    for name, value in asked.items():
        if name not in paths and value not in (None, kept.get(name)):
            raise ValueError(
                f"{where} was made with {name}={brief(kept.get(name))}, not {brief(value)}; leave it out, or "
                "name another store"
            )
    if editor is not None:
        raise ValueError(f"{where} holds its editor; leave {editor} out, or name another store")


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
