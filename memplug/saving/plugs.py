"""Saving and loading a plug: safetensors and JSON in a folder, one atomic switch, nothing unpickled.

The folder holds ``plug.json``, which names the tensor file it belongs to with its SHA-256. A save writes
a new tensor file under a new name, then replaces ``plug.json`` in one step, then removes what is left
over, so that a crash at any moment leaves the earlier or the later save, whole. Saves into one folder take
turns; loading waits for nobody.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..edits import EditTable
from ..text.printable import printable
from .files import (
    LOCK,
    WRITING,
    LoadError,
    SaveError,
    digest_of,
    load_tensors,
    locked,
    move,
    new_file,
    saving,
    write_atomically,
)
from .manifest import (
    FORMAT,
    MANIFEST,
    TENSORS,
    Manifest,
    edits_of,
    read_manifest,
    sealed,
    tensor_file,
    version_of,
)

if TYPE_CHECKING:
    from ..plugin import Plug

__all__ = [
    "FORMAT",
    "LoadError",
    "SaveError",
    "Saved",
    "check_base",
    "damage",
    "described",
    "fill",
    "fingerprint",
    "peek",
    "read",
    "save",
]

_PROBES = 64  # elements of each tensor that go into a fingerprint
_TRIES = 5  # readings of a folder that is saved into meanwhile


class Saved(NamedTuple):
    """A saved plug, read and checked, not yet attached.

    Attributes:
        said: what its manifest says.
        version: which save it is.
        tensors: all tensors by name.
    """

    said: Manifest
    version: str
    tensors: dict[str, Tensor]


def fingerprint(model: Any, tokenizer: Any = None) -> str:
    """A name for a base model: its class, its parameters' names, shapes and types, and a sample of each.

    Takes `_PROBES` evenly spaced elements of each parameter, so that it costs milliseconds on a large
    model and still tells any two that were trained, quantised or cast differently.

    Args:
        tokenizer: where it is given, the name is that of both: its vocabulary and chat template count.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.device.type != "meta" and tensor.numel():
            flat = tensor.detach().reshape(-1)
            at = torch.linspace(0, flat.numel() - 1, min(_PROBES, flat.numel()), dtype=torch.float64).long()
            digest.update(flat[at.to(flat.device)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    if tokenizer is not None:
        known = sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)
        digest.update(repr(known).encode())
    return digest.hexdigest()[:16]


def save(folder: Path, plug: Plug, allowed: Set[str] | None) -> None:
    """Write ``plug`` into ``folder``, made if it is not there.

    Args:
        folder: the folder.
        plug: the plug.
        allowed: versions of earlier saves that may be replaced; None is any.

    Raises:
        SaveError: ``folder`` is a file, has other things in it, holds a save that may not be replaced, or
            cannot be written; what was there before is as it was.
    """
    with saving(folder):
        _make(folder)
    tensors, meta = plug.method.state()
    with plug.alone():  # a method may have changed weights; the name is the base model's
        base = fingerprint(plug.model)
    values = described(plug, meta, base)
    with saving(folder), locked(folder):
        _check_turn(folder, allowed)
        file, digest = _write_tensors(folder, tensors)
        data = sealed({**values, "tensors": {"file": file, "sha256": digest}})
        version = hashlib.sha256(data).hexdigest()
        # Before it is made: where that is broken off, it may be there all the same.
        plug.saves.tried.add(version)
        try:
            write_atomically(folder / MANIFEST, data)
        except OSError:
            with suppress(LoadError, OSError):  # the new tensors are in the way on a full disk
                _tidy(folder, read_manifest(folder)[0].file if (folder / MANIFEST).exists() else None)
            raise
        _tidy(folder, file)
    plug.saves.add(folder, version)


def described(plug: Plug, meta: Mapping[str, Any], base: str) -> dict[str, Any]:
    """What a manifest says of a plug, but for its tensors.

    Args:
        plug: the plug.
        meta: of its method's state.
        base: the base model's `fingerprint`.
    """
    return {
        "format": FORMAT,
        "method": plug.name,
        "config": asdict(plug.method.config),
        "layers": plug.layers,
        "model": {"class": type(plug.model).__name__, "fingerprint": base},
        "edits": edits_of(plug.edits),
        "off": [id for id in plug.edits if not plug.edits.enabled(id)],
        "count": plug.count,
        "meta": meta,
    }


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SaveError(f"{folder} is a file; name a folder")
    there = list(folder.iterdir()) if folder.is_dir() else []  # listed once: another may save just now
    saved = any(path.name == MANIFEST and path.is_file() for path in there)
    if not saved and not all(map(_ours, there)):
        raise SaveError(f"{folder} has files that are not a saved plug; name an empty or a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"{folder} cannot be made ({error.strerror}); name a folder you can write to"
        ) from error


def _check_turn(folder: Path, allowed: Set[str] | None) -> None:
    if allowed is None:
        return
    try:
        now = version_of(folder)
    except LoadError as error:
        raise SaveError(f"{error}, or name another folder") from error
    if now is not None and now not in allowed:
        raise SaveError(
            f"{folder} was saved by another process or plug since this one was loaded, and its edits would "
            "be lost; load it again and edit that (in a shell: give the command again), save into another "
            "folder, or replace it with save(folder, overwrite=True)"
        )


def _tidy(folder: Path, file: str | None) -> None:
    """Remove what saves left, but not this tensor file. What cannot be removed is left to the next save."""
    with suppress(OSError):
        for left in filter(_ours, folder.iterdir()):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            elif left.name not in (file, LOCK):
                left.unlink(missing_ok=True)


def _ours(path: Path) -> bool:
    """Whether saving wrote this, be it one that was broken off."""
    return path.name == LOCK or path.name.startswith(WRITING) or TENSORS.fullmatch(path.name) is not None


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write a tensor file that is named by its SHA-256; both are returned. It is not built in memory."""
    with new_file(folder) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the umask's; the library's files are the owner's alone
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.chmod(mode)
        digest, _ = digest_of(temporary)
        name = tensor_file(digest)
        move(temporary, folder / name)
    return name, digest


def read(folder: Path, model: Any) -> Saved:
    """Read and check a saved plug for ``model``.

    Raises:
        LoadError: see `memplug.load`.
    """
    said, version = read_manifest(folder)
    check_base(said, model, fingerprint(model), folder)
    for _ in range(_TRIES):
        try:
            return Saved(said, version, _tensors(folder / said.file, said.sha256))
        except LoadError:
            # A save may have come between, and taken the file away.
            before, (said, version) = version, read_manifest(folder)
            if version == before:
                raise
            check_base(said, model, fingerprint(model), folder)
    return Saved(said, version, _tensors(folder / said.file, said.sha256))


def check_base(said: Manifest, model: Any, ours: str, where: object) -> None:
    """Raises LoadError for a manifest of another base model than this one, whose fingerprint is ``ours``."""
    kind, theirs = said.model
    if theirs != ours:
        raise LoadError(
            f"{where} was saved on a {printable(kind)} with the fingerprint {printable(theirs)}; this "
            f"model, a {type(model).__name__} in {getattr(model, 'dtype', '?')}, has {ours}. Load the same "
            "base model in the same dtype"
        )


def peek(folder: Path) -> tuple[str, EditTable]:
    """The method and the edits of a saved plug, without a model.

    Raises:
        LoadError: ``folder`` is no saved plug, or is damaged.
    """
    said, _ = read_manifest(folder)
    return said.method, said.edits


def _tensors(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        found, size = digest_of(path)
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror}); take a copy that is whole") from error
    if found != digest:
        raise LoadError(f"{path} is not the file that was saved ({size} bytes, wrong SHA-256); take a copy")
    try:
        return load_tensors(path)
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{path} is no safetensors file ({error})") from error


def damage(error: Exception) -> LoadError:
    """What is raised where taking over saved values failed with ``error``."""
    reason = f"it lacks {error}" if type(error) is KeyError else " ".join(str(error).split())
    return LoadError(
        f"the saved plug is damaged ({printable(reason or type(error).__name__)}); take a copy that is whole"
    )


def fill(plug: Plug, saved: Saved) -> None:
    """Give an attached plug what was saved.

    Raises:
        LoadError: tensors and edits do not fit together.
    """
    said = saved.said
    try:
        plug.method.restore(saved.tensors, said.meta, said.edits)
    except torch.OutOfMemoryError:  # a fault of the machine's
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise damage(error) from error
    plug.take_over(said.edits, (id for id in said.edits if not said.edits.enabled(id)), said.learned)
