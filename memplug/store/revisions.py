"""What the tables hold: revisions, in order and never changed, and the blobs of their tensors.

A revision's manifest is the one that `Plug.save` writes. In place of a tensor file it names a blob by its
SHA-256, the index: by tensor its dtype, its shape, and the SHA-256 of each of its blocks (`blocks`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, update
from torch import Tensor

from ..saving.checked import many, names, table, text, whole
from ..saving.files import LoadError
from ..saving.manifest import Manifest, manifest_of, parsed, sealed, tensor_file
from .blocks import checked, cut, digest, joined
from .errors import StoreError
from .tables import BLOBS, REVISIONS

__all__ = ["Author", "Revision", "append", "history", "latest", "manifest_at", "prune", "tensors_of"]

_BATCH = 16  # blobs that are read or written together


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
    """All revisions, the first one first."""
    r = REVISIONS.c
    asked = select(r.number, r.time, r.who, r.why, r.action, r.edits, r.manifest.is_not(None))
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
    asked = select(REVISIONS.c.manifest).where(REVISIONS.c.number == number)
    found = connection.execute(asked).first()
    if found is None or found[0] is None:
        newest = latest(connection)
        what = "was pruned" if found else f"is not there; the newest is {newest}"
        raise StoreError(f"revision {number} of {where} {what}; see plug.history()")
    return manifest_of(found[0].encode(), f"revision {number} of {where}")


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
    index: dict[str, Any] = {}
    blobs: dict[str, bytes | memoryview] = {}
    for name, tensor in tensors.items():
        blocks = [(digest(block), block) for block in cut(tensor)]
        index[name] = [
            str(tensor.dtype).removeprefix("torch."),
            list(tensor.shape),
            [sha for sha, _ in blocks],
        ]
        blobs |= dict(blocks)
    whole_index = json.dumps(index, separators=(",", ":")).encode()
    blobs[digest(whole_index)] = whole_index
    there = {sha for some in _batches(blobs) for sha in _there(connection, some)}
    for some in _batches([sha for sha in blobs if sha not in there]):
        connection.execute(insert(BLOBS), [{"sha256": sha, "data": bytes(blobs[sha])} for sha in some])
    named = {"file": tensor_file(digest(whole_index)), "sha256": digest(whole_index)}
    connection.execute(
        insert(REVISIONS).values(
            number=number,
            time=datetime.now(UTC),
            who=author.who,
            why=author.why,
            action=action,
            edits=json.dumps(list(edits)),
            manifest=sealed({**values, "tensors": named}).decode(),
        )
    )


def tensors_of(connection: Connection, said: Manifest, held: Mapping[str, memoryview]) -> dict[str, Tensor]:
    """The tensors of a manifest, each block under its checksum.

    Args:
        connection: to the store.
        said: the manifest.
        held: blocks by SHA-256 that need not be read.

    Raises:
        LoadError: one is missing or damaged.
    """
    try:
        index = _index(connection, said.sha256)
        blocks: dict[str, Any] = dict(held)
        blocks |= _blobs(connection, {sha for *_, own in index.values() for sha in own if sha not in held})
        return {
            name: joined(kind, shape, [blocks[sha] for sha in own])
            for name, (kind, shape, own) in index.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"the store is damaged ({error}); take a copy that is whole") from error


def prune(connection: Connection, keep: int) -> int:
    """Let go of all revisions but the newest ``keep``, and of the blobs that only they need.

    Returns:
        How many revisions were let go of; their rows stay, without a manifest.
    """
    oldest = latest(connection) - keep
    r = REVISIONS.c
    gone = connection.execute(
        update(REVISIONS).where(r.number <= oldest, r.manifest.is_not(None)).values(manifest=None)
    ).rowcount
    needed = set[str]()
    for number in connection.scalars(select(r.number).where(r.manifest.is_not(None))).all():
        sha256 = manifest_at(connection, number, "the store").sha256
        needed |= {sha256, *(sha for *_, own in _index(connection, sha256).values() for sha in own)}
    unneeded = [sha for sha in connection.scalars(select(BLOBS.c.sha256)) if sha not in needed]
    for some in _batches(unneeded):
        connection.execute(delete(BLOBS).where(BLOBS.c.sha256.in_(some)))
    return gone


def _index(connection: Connection, sha256: str) -> dict[str, tuple[str, list[int], list[str]]]:
    """By tensor its dtype, its shape, and its blocks."""
    found = {}
    for name, given in table(parsed(_blobs(connection, [sha256])[sha256]), "the index").items():
        kind, shape, own = many(given, "a tensor", 3)
        sizes = [whole(size, "a size") for size in many(shape, "a shape")]
        found[name] = (
            text(kind, "a dtype"),
            sizes,
            [text(sha, "a checksum") for sha in many(own, "the blocks")],
        )
    return found


def _blobs(connection: Connection, wanted: Iterable[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for some in _batches(wanted):
        asked = select(BLOBS.c.sha256, BLOBS.c.data).where(BLOBS.c.sha256.in_(some))
        found |= {sha: checked(bytes(data), sha) for sha, data in connection.execute(asked)}
        lacking = next((sha for sha in some if sha not in found), None)
        if lacking is not None:
            raise ValueError(f"the blob {lacking[:16]} is missing")
    return found


def _there(connection: Connection, some: Sequence[str]) -> Iterable[str]:
    return connection.scalars(select(BLOBS.c.sha256).where(BLOBS.c.sha256.in_(some)))


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    left = iter(items)
    while some := list(islice(left, _BATCH)):
        yield some
