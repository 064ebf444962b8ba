"""Files that are written whole or not at all, and files that are read only where they are plain ones.

Knows nothing about what is in them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

__all__ = [
    "LOCK",
    "WRITING",
    "LoadError",
    "SaveError",
    "digest_of",
    "load_tensors",
    "locked",
    "move",
    "new_file",
    "open_plain",
    "saving",
    "write_atomically",
]

WRITING = ".writing-"
"""Begins the name of a folder with a file that is not whole yet."""

LOCK = ".lock"
"""The file that is locked while a folder is written. It stays: removing it would let two hold it at once."""

_PATIENCE = 600.0  # seconds to wait for another process


class LoadError(ValueError):
    """A folder or file that was not saved by memplug, is damaged, or is for another model."""


class SaveError(ValueError):
    """Something that cannot be saved where it was asked for; what was there before is as it was."""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Faults of the machine inside the ``with`` are told as a `SaveError` that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise SaveError(
            f"{path} could not be saved ({_reason(error)}); what was there before is as it was. Make room, "
            "or name a place that you can write to, and save again"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return " ".join(str(error).split())


@contextmanager
def locked(folder: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Inside the ``with`` no other process is in one for the same folder.

    The lock is the system's own, so that it ends with the process that holds it, however that ends.

    Args:
        folder: one that exists.
        patience: seconds to wait for another process.

    Raises:
        SaveError: another process held it all the time, or this file system has no locks.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise SaveError(
            f"another process has been saving into {folder} for {patience:.0f} seconds; wait for it, end it, "
            "or name another folder"
        ) from error
    except NotImplementedError as error:
        raise SaveError(f"{folder} cannot be locked ({error}); name a folder on another disk") from error
    try:
        yield
    finally:
        lock.release()


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file for reading. Links are not followed, and nothing else is ever read from.

    Raises:
        LoadError: it is a link, a folder, a device, a pipe or a socket.
        OSError: it is not there, or cannot be opened.
    """
    _check_plain(path, os.lstat(path).st_mode)
    # Should it have been replaced meanwhile: a link is not followed, a pipe does not block.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        opened = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.errno == errno.ELOOP:
            _check_plain(path, stat.S_IFLNK)
        raise
    try:
        _check_plain(path, os.fstat(opened).st_mode)
        return os.fdopen(opened, "rb")
    except BaseException:
        os.close(opened)
        raise


def _check_plain(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    raise LoadError(
        f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a plain file, and is not read; put the "
        "file itself there"
    )


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in memory of their own.

    In the file they begin at any byte, and products with what is aligned otherwise differ in their last bits:
    a loaded plug would not learn as the saved one does.

    Raises:
        SafetensorError, OSError: it is none, or cannot be read.
    """
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of a plain file.

    Raises:
        LoadError, OSError: as for `open_plain`.
    """
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size


def write_atomically(path: Path, data: bytes) -> None:
    """Write all of ``data`` beside ``path`` and move it there in one step, flushed to the disk before.

    Who may read it is for the umask to say, as of any other file (one of `tempfile`'s is the owner's alone).
    """
    with new_file(path.parent) as temporary:
        with temporary.open("xb") as file:
            file.write(data)
        move(temporary, path)


@contextmanager
def new_file(folder: Path) -> Iterator[Path]:
    """A name for a file that is not whole yet, in a folder of its own, which is removed in the end."""
    own = folder / f"{WRITING}{secrets.token_hex(8)}"
    own.mkdir()
    try:
        yield own / "file"
    finally:
        shutil.rmtree(own, ignore_errors=True)


def move(file: Path, path: Path) -> None:
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
