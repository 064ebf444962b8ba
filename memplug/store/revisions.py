"""What the tables hold: revisions, in order and never changed, and the blobs of their tensors.

A revision's manifest is the one that `Plug.save` writes. In place of a tensor file it names, by its SHA-256,
the index: of each tensor the name, the dtype, the shape, and the SHA-256 of each block. Manifest and index
are cut into blocks like tensors (`blocks`), so that a revision writes what is new in it; its row lists them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, update
from torch import Tensor

from ..saving.checked import many, names, text, whole
from ..saving.files import LoadError
from ..saving.manifest import Manifest, manifest_of, parsed, sealed, tensor_file
from ..text.printable import printable
from .blocks import checked, cut, cut_text, digest, joined
from .errors import StoreError
from .tables import BLOBS, REVISIONS

__all__ = ["Author", "Revision", "append", "history", "latest", "manifest_at", "prune", "tensors_at"]

_MOVED, _ASKED = 16, 1000  # blobs that are read or written together; that are asked for by name


class Author(NamedTuple):
    """Who makes changes, and why; None where nobody said."""

    who: str | None = None
    why: str | None = None


class Revision(NamedTuple):
    """A state of the store, and how it came about.

    Attributes:
        number: from 1 on.
        time: when it was stored, UTC.
        who, why: see `Store.by`.
        action: "attach", "edit", "delete", "disable", "enable", "fit", or "rollback to N".
        edits: ids of the edits that came, went or were switched.
        kept: whether it can be gone back to; see `Store.prune`.
    """

    number: int
    time: datetime
    who: str | None
    why: str | None
    action: str
    edits: tuple[str, ...]
    kept: bool


def latest(connection: Connection) -> int:
    """The number of the newest revision, 0 where there is none."""
    return connection.scalar(select(func.max(REVISIONS.c.number))) or 0


def history(connection: Connection) -> list[Revision]:
    """All revisions, the first one first.

    Raises:
        LoadError: one is damaged.
    """
    r = REVISIONS.c
    asked = select(r.number, r.time, r.who, r.why, r.action, r.edits, r.manifest.is_not(None))
    with _whole():
        return [
            Revision(
                n, time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC), who, why, action, ids, bool(kept)
            )
            for n, time, who, why, action, edits, kept in connection.execute(asked.order_by(r.number))
            for ids in [names(parsed(edits), "a revision's edits")]
        ]


def manifest_at(connection: Connection, number: int, where: str) -> Manifest:
    """The manifest of a revision.

    Raises:
        StoreError: there is no such revision, or it is pruned.
        LoadError: it is damaged.
    """
    with _whole():
        data = _text(connection, _parts(connection, number, where)[0])
    return manifest_of(data, f"revision {number} of {where}")


def tensors_at(
    connection: Connection, number: int, where: str, sha256: str, held: Mapping[str, memoryview]
) -> dict[str, Tensor]:
    """The tensors of a revision, each block under its checksum.

    Args:
        connection: to the store.
        number, where: as for `manifest_at`.
        sha256: of the index, as the manifest has it.
        held: blocks by SHA-256 that need not be read.

    Raises:
        LoadError: one is missing or damaged.
    """
    with _whole():
        data = checked(_text(connection, _parts(connection, number, where)[1]), sha256)
        index = _index(data)
        lacking = {sha for one in index for sha in one.blocks if sha not in held}
        blocks: dict[str, Any] = {**held, **_blobs(connection, lacking)}
        return {one.name: joined(one.dtype, one.shape, [blocks[sha] for sha in one.blocks]) for one in index}


def append(
    connection: Connection,
    number: int,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    author: Author,
    action: str,
    edits: Iterable[str],
) -> None:
    """Add a revision, and the blobs that are not there yet.

    Args:
        connection: in a writer's turn.
        number: the one after the `latest`.
        values: of its manifest, but for the tensors; see `saving.plugs.described`.
        tensors: the state's.
        author, action, edits: see `Revision`.
    """
    blobs: dict[str, bytes | memoryview] = {}

    def named(blocks: Iterable[bytes | memoryview]) -> list[str]:
        found = [(digest(block), block) for block in blocks]
        blobs.update(found)
        return [sha for sha, _ in found]

    rows = [
        json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), named(cut(tensor))])
        for name, tensor in tensors.items()
    ]
    index = "[\n{}\n]".format(",\n".join(rows)).encode()
    manifest = sealed({**values, "tensors": {"file": tensor_file(digest(index)), "sha256": digest(index)}})
    lists = json.dumps(named(cut_text(manifest))), json.dumps(named(cut_text(index)))
    for some in _batches(blobs, _ASKED):
        there = set(connection.scalars(select(BLOBS.c.sha256).where(BLOBS.c.sha256.in_(some))))
        for new in _batches([sha for sha in some if sha not in there], _MOVED):
            connection.execute(insert(BLOBS), [{"sha256": sha, "data": bytes(blobs[sha])} for sha in new])
    connection.execute(
        insert(REVISIONS).values(
            number=number,
            time=datetime.now(UTC),
            who=author.who,
            why=author.why,
            action=action,
            edits=json.dumps(list(edits)),
            manifest=lists[0],
            tensors=lists[1],
        )
    )


def prune(connection: Connection, keep: int, where: str) -> int:
    """Let go of the states of all revisions but the newest ``keep``, and of the blobs that only they need.

    Returns:
        How many revisions were let go of.
    """
    r = REVISIONS.c
    old = update(REVISIONS).where(r.number <= max(0, latest(connection) - keep), r.manifest.is_not(None))
    gone = connection.execute(old.values(manifest=None, tensors=None)).rowcount
    needed = set[str]()
    for number in connection.scalars(select(r.number).where(r.manifest.is_not(None))).all():
        with _whole():
            manifest, tensors = _parts(connection, number, where)
            needed.update(manifest, tensors)
            needed.update(sha for one in _index(_text(connection, tensors)) for sha in one.blocks)
    unneeded = [sha for sha in connection.scalars(select(BLOBS.c.sha256)) if sha not in needed]
    for some in _batches(unneeded, _ASKED):
        connection.execute(delete(BLOBS).where(BLOBS.c.sha256.in_(some)))
    return gone


class _Stored(NamedTuple):
    """A tensor in an index."""

    name: str
    dtype: str
    shape: list[int]
    blocks: list[str]


def _index(data: bytes) -> list[_Stored]:
    found = []
    for row in many(parsed(data), "the index"):
        name, dtype, shape, blocks = many(row, "a tensor", 4)
        sizes = [whole(size, "a size") for size in many(shape, "a shape")]
        shas = [text(sha, "a checksum") for sha in many(blocks, "the blocks")]
        found.append(_Stored(text(name, "a name"), text(dtype, "a dtype"), sizes, shas))
    return found


def _parts(connection: Connection, number: int, where: str) -> tuple[list[str], list[str]]:
    """The blocks of a revision's manifest, and those of its index."""
    asked = select(REVISIONS.c.manifest, REVISIONS.c.tensors).where(REVISIONS.c.number == number)
    could_be = type(number) is int and 0 < number < 1 << 63  # what a database takes
    found = connection.execute(asked).first() if could_be else None
    if found is None or found[0] is None:
        what = "was pruned" if found else f"is not there; the newest is {latest(connection)}"
        raise StoreError(f"revision {number} of {where} {what}; see plug.history()")
    manifest, tensors = ([text(sha, "a checksum") for sha in many(parsed(part), "blocks")] for part in found)
    return manifest, tensors


def _text(connection: Connection, blocks: Sequence[str]) -> bytes:
    found = _blobs(connection, blocks)
    return b"".join(found[sha] for sha in blocks)


def _blobs(connection: Connection, wanted: Iterable[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for some in _batches(wanted, _MOVED):
        asked = select(BLOBS.c.sha256, BLOBS.c.data).where(BLOBS.c.sha256.in_(some))
        found |= {sha: checked(bytes(data), sha) for sha, data in connection.execute(asked)}
        lacking = next((sha for sha in some if sha not in found), None)
        if lacking is not None:
            raise ValueError(f"the blob {lacking[:16]} is missing")
    return found


@contextmanager
def _whole() -> Iterator[None]:
    """What is found wrong inside the ``with`` is told as a LoadError."""
    try:
        yield
    except (StoreError, LoadError):
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"the store is damaged ({printable(error)}); take a copy that is whole") from error


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    left = iter(items)
    while some := list(islice(left, size)):
        yield some
