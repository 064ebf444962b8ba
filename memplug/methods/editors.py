"""Fitted editors as files of their own: one safetensors file, with JSON in its header.

Holds the networks with their running statistics, the method and its constants, and the fingerprint of the
base model that they were fitted for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ..configs import without_former
from ..saving.files import LoadError, saving, write_atomically
from ..saving.manifest import FORMAT, parsed
from ..saving.plugs import fingerprint
from . import find_method

__all__ = ["SavedEditor", "check_constants", "read_editor", "shipped_editor", "unlike", "write_editor"]

_KEY = "memplug"
_SHIPPED = Path(__file__).parent / "fitted"


class SavedEditor(NamedTuple):
    """A fitted editor: the method's name, its constants, its tensors."""

    method: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def write_editor(
    path: Path, method: str, config: Any, tensors: Mapping[str, Tensor], model: Any, half: bool = False
) -> None:
    """Write an editor that was fitted for ``model``, which must be the base model as it is.

    A crash leaves what was there before. With ``half``, float32 matrices are stored in float16 (those that it
    can hold; statistics, vectors and numbers stay as they are).

    Raises:
        SaveError: the file cannot be written.
    """
    head = {
        "format": FORMAT,
        "method": method,
        "config": asdict(config),
        "model": {"class": type(model).__name__, "fingerprint": fingerprint(model)},
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if half:
        plain = {name: _halved(tensor) for name, tensor in plain.items()}
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump_tensors(plain, metadata={_KEY: json.dumps(head, ensure_ascii=False)}))


def _halved(tensor: Tensor) -> Tensor:
    small = tensor.half() if tensor.dtype == torch.float32 and tensor.dim() > 1 else tensor
    return small if bool(torch.isfinite(small).all()) else tensor


def read_editor(path: Path, model: Any) -> SavedEditor:
    """Read and check an editor for ``model``.

    Raises:
        LoadError: the file is no editor, is damaged, is from a newer version, or was fitted for another base
            model (both fingerprints are named).
    """
    if not path.is_file():
        raise LoadError(f"{path} is not a file; give the file that plug.save_editor(path) wrote")
    head, saved = _read(path)
    ours = fingerprint(model)
    if head["model"]["fingerprint"] != ours:
        raise LoadError(
            f"{path} was fitted for a {head['model'].get('class')} with the fingerprint "
            f"{head['model']['fingerprint']}; this model, a {type(model).__name__} in "
            f"{getattr(model, 'dtype', '?')}, has {ours}. Load the same base model in the same "
            "dtype, or fit anew"
        )
    return saved


def shipped_editor(method: str, model: Any, config: Any, named: Collection[str] = ()) -> Path | None:
    """The editor that memplug brings for ``model``, if there is one and ``config`` suits it.

    Constants that say how to fit, or what, ask for an editor of their own where they are not the editor's:
    those that are not the defaults, and those that the user has ``named``.
    """
    for path in sorted(_SHIPPED.glob(f"{method}*.safetensors")):
        head, saved = _read(path)
        plain = json.loads(json.dumps(asdict(config)))
        asked = {*unlike(config, type(config)()), *named} - set(getattr(config, "while_editing", ()))
        other = [name for name in asked if saved.config.get(name) != plain[name]]
        if not other and head["model"]["fingerprint"] == fingerprint(model):
            return path
    return None


def unlike(config: Any, other: Any) -> dict[str, Any]:
    """The constants of ``config`` that are not those of ``other``, as they are in a file."""
    mine, theirs = (json.loads(json.dumps(asdict(one))) for one in (config, other))
    return {name: value for name, value in mine.items() if value != theirs[name]}


def check_constants(saved: SavedEditor, constants: Mapping[str, Any]) -> None:
    """The constants that someone wants to edit with fit the networks.

    Raises:
        ValueError: one says what the networks are, and they are not.
    """
    fixed: frozenset[str] = getattr(find_method(saved.method).config, "of_networks", frozenset())
    for name in sorted(fixed & constants.keys()):
        if json.loads(json.dumps(constants[name])) != saved.config.get(name):
            raise ValueError(
                f"{name} is {constants[name]!r}, but the editor was fitted with {saved.config.get(name)!r}; "
                "leave it out, or fit anew"
            )


def _read(path: Path) -> tuple[dict[str, Any], SavedEditor]:
    try:
        with safe_open(path, "pt") as file:
            head = parsed((file.metadata() or {})[_KEY])
            if not isinstance(head["format"], int) or head["format"] > FORMAT:
                raise LoadError(
                    f"{path} has format {head['format']}, this memplug reads up to {FORMAT}; upgrade memplug"
                )
            _ = head["model"]["fingerprint"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            config = without_former(find_method(head["method"]).config, head["config"])
            return head, SavedEditor(head["method"], config, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(
            f"{path} is no fitted editor, or damaged ({error!r}); take a copy that is whole"
        ) from error
