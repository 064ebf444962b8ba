"""Saving and loading a plug: safetensors and JSON in a folder, one atomic switch, nothing unpickled.

The folder holds ``plug.json``, which names the tensor file it belongs to with its SHA-256. A save writes
a new tensor file under a new name, then replaces ``plug.json`` in one step, then removes what is left
over, so that a crash at any moment leaves the earlier or the later save, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .chat import to_json
from .edits import Edit, EditTable

if TYPE_CHECKING:
    from .plugin import Plug

__all__ = ["FORMAT", "LoadError", "SaveError", "Saved", "fill", "fingerprint", "peek", "read", "save"]

FORMAT = 2
"""Version of the files; a newer one is refused. Since 2 a prompt may be a list of messages."""

_MANIFEST = "plug.json"
_WRITING = ".writing-"  # begins the name of a folder with a file that is not whole yet
_TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
_PROBES = 64  # elements of each tensor that go into a fingerprint


class LoadError(ValueError):
    """A folder that is not a saved plug, or not one for this model."""


class SaveError(ValueError):
    """A folder that a plug cannot be saved into."""


class Saved(NamedTuple):
    """A saved plug, read and checked, not yet attached."""

    method: str
    config: dict[str, Any]
    layers: str
    edits: dict[str, Edit]
    off: list[str]
    learned: int
    meta: dict[str, Any]
    tensors: dict[str, Tensor]


def fingerprint(model: Any) -> str:
    """A name for a base model: its class, its parameters' names, shapes and types, and a sample of each.

    Takes `_PROBES` evenly spaced elements of each parameter, so that it costs milliseconds on a large
    model and still tells any two that were trained, quantised or cast differently.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.device.type != "meta" and tensor.numel():
            flat = tensor.detach().reshape(-1)
            at = torch.linspace(0, flat.numel() - 1, min(_PROBES, flat.numel()), dtype=torch.float64).long()
            digest.update(flat[at.to(flat.device)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save(folder: Path, plug: Plug) -> None:
    """Write ``plug`` into ``folder``, made if it is not there.

    Raises:
        SaveError: ``folder`` is a file, has other things in it, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise SaveError(f"{folder} is a file; name a folder")
    if folder.is_dir() and not (folder / _MANIFEST).is_file() and not all(map(_ours, folder.iterdir())):
        raise SaveError(f"{folder} has files that are not a saved plug; name an empty or a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"{folder} cannot be made ({error.strerror}); name a folder you can write to"
        ) from error
    tensors, meta = plug.method.state()
    with plug.alone():  # a method may have changed weights; the name is the base model's
        base = fingerprint(plug.model)
    file, digest = _write_tensors(folder, tensors)
    manifest = {
        "format": FORMAT,
        "method": plug.name,
        "config": asdict(plug.method.config),
        "layers": plug.layers,
        "model": {"class": type(plug.model).__name__, "fingerprint": base},
        "edits": [{**asdict(edit), "prompt": to_json(edit.prompt)} for edit in plug.edits.values()],
        "off": [id for id in plug.edits if not plug.edits.enabled(id)],
        "count": plug.count,
        "meta": meta,
        "tensors": {"file": file, "sha256": digest},
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    write_atomically(folder / _MANIFEST, text)
    for left in filter(_ours, folder.iterdir()):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif left.name != file:
            left.unlink(missing_ok=True)


def _ours(path: Path) -> bool:
    """Whether saving wrote this, be it one that was broken off."""
    return path.name.startswith(_WRITING) or _TENSORS.fullmatch(path.name) is not None


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write a tensor file that is named by its SHA-256; both are returned. It is not built in memory."""
    with _new_file(folder) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the umask's; the library's files are the owner's alone
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.chmod(mode)
        digest = _digest(temporary)
        name = f"tensors-{digest[:16]}.safetensors"
        _move(temporary, folder / name)
    return name, digest


def write_atomically(path: Path, data: bytes) -> None:
    """Write all of ``data`` beside ``path`` and move it there in one step, flushed to the disk before.

    Who may read it is for the umask to say, as of any other file (one of `tempfile`'s is the owner's alone).
    """
    with _new_file(path.parent) as temporary:
        with temporary.open("xb") as file:
            file.write(data)
        _move(temporary, path)


@contextmanager
def _new_file(folder: Path) -> Iterator[Path]:
    """A name for a file that is not whole yet, in a folder of its own, which is removed in the end."""
    own = folder / f"{_WRITING}{secrets.token_hex(8)}"
    own.mkdir()
    try:
        yield own / "file"
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _move(file: Path, path: Path) -> None:
    """Flush a file to the disk, give it its name, and flush the folder's list."""
    _flush(file)
    os.replace(file, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(folder: Path, model: Any) -> Saved:
    """Read and check a saved plug for ``model``.

    Raises:
        LoadError: see `memplug.load`.
    """
    manifest = _manifest(folder)
    try:
        theirs = manifest["model"]
        named = manifest["tensors"]
        saved = Saved(
            manifest["method"],
            manifest["config"],
            manifest["layers"],
            {item["id"]: Edit(**item) for item in manifest["edits"]},
            list(manifest["off"]),
            int(manifest["count"]),
            manifest["meta"],
            {},
        )
        print_, file, digest = theirs["fingerprint"], folder / Path(named["file"]).name, named["sha256"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoadError(f"{folder / _MANIFEST} is damaged ({error!r}); take a copy that is whole") from error
    ours = fingerprint(model)
    if print_ != ours:
        raise LoadError(
            f"{folder} was saved on a {theirs.get('class')} with the fingerprint {print_}; this model, a "
            f"{type(model).__name__} in {getattr(model, 'dtype', '?')}, has {ours}. Load the same base model "
            "in the same dtype"
        )
    return saved._replace(tensors=_tensors(file, digest))


def peek(folder: Path) -> tuple[str, EditTable]:
    """The method and the edits of a saved plug, without a model.

    Raises:
        LoadError: ``folder`` is no saved plug, or is damaged.
    """
    manifest = _manifest(folder)
    try:
        edits = {item["id"]: Edit(**item) for item in manifest["edits"]}
        return str(manifest["method"]), EditTable(edits, manifest["off"])
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{folder / _MANIFEST} is damaged ({error!r}); take a copy that is whole") from error


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise LoadError(
            f"{folder} is not a saved plug (no {_MANIFEST} in it); give the folder that save() wrote"
        )
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise LoadError(f"{path} is damaged ({error}); take a copy that is whole") from error
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise LoadError(f"{path} has format {version!r}, this memplug reads up to {FORMAT}; upgrade memplug")
    return dict(manifest)


def _tensors(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        found, size = _digest(path), path.stat().st_size
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror}); take a copy that is whole") from error
    if found != digest:
        raise LoadError(f"{path} is not the file that was saved ({size} bytes, wrong SHA-256); take a copy")
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise LoadError(f"{path} is no safetensors file ({error})") from error


def fill(plug: Plug, saved: Saved) -> None:
    """Give an attached plug what was saved.

    Raises:
        LoadError: tensors and edits do not fit together.
    """
    try:
        plug.method.restore(saved.tensors, saved.meta, saved.edits)
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"the saved plug is damaged: {error}; take a copy that is whole") from error
    plug.take_over(saved.edits, saved.off, saved.learned)
