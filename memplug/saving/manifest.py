"""``plug.json``: what it says, under a checksum of its own. Data alone: nothing in it is followed or run.

format    version of the files
method, config, layers, model, edits, off, count, meta
tensors   the tensor file's name and SHA-256
sha256    of all that stands above it, from format 3 on
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..edits import Edit, EditTable
from ..text.chat import to_json
from ..text.printable import brief, printable
from .checked import many, names, table, text, whole
from .files import LoadError, open_plain

__all__ = [
    "FORMAT",
    "MANIFEST",
    "TENSORS",
    "Manifest",
    "edits_of",
    "manifest_of",
    "parsed",
    "read_manifest",
    "sealed",
    "tensor_file",
    "version_of",
]

FORMAT = 4
"""Version of the files; a newer one is refused. Since 2 a prompt may be a list of messages, since 3 the
manifest is under a checksum, since 4 ELDER keeps its experts otherwise; older ones are read, but for those
that a method's config refuses (``oldest_format``)."""

MANIFEST = "plug.json"
TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
"""Names of tensor files: the beginning of their SHA-256."""

_SEALED = 3
_DEPTH = 64  # of lists in lists; the deepest that is ever written is 8
_MOST = 1 << 30  # bytes of a manifest; 100,000 edits take a tenth


class Manifest(NamedTuple):
    """What a manifest says, checked as far as it can be without a model.

    Attributes:
        method, config, layers: what the plug was attached with.
        model: the base model's class and fingerprint.
        edits: the edits, and which are switched off.
        learned: edits ever learned.
        meta: the method's own values.
        file, sha256: the tensor file's name and checksum.
        format: see `FORMAT`.
    """

    method: str
    config: dict[str, Any]
    layers: str
    model: tuple[str, str]
    edits: EditTable
    learned: int
    meta: dict[str, Any]
    file: str
    sha256: str
    format: int


def sealed(values: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest with these values."""
    return json.dumps({**values, "sha256": _seal(values)}, indent=1, ensure_ascii=False).encode()


def _seal(values: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in values.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def tensor_file(digest: str) -> str:
    """The name of the tensor file with this SHA-256."""
    return f"tensors-{digest[:16]}.safetensors"


def edits_of(edits: EditTable) -> list[dict[str, Any]]:
    """The edits as plain values for JSON."""
    return [{**asdict(edit), "prompt": to_json(edit.prompt)} for edit in edits.values()]


def version_of(folder: Path) -> str | None:
    """A name for the save that is in ``folder``, the same for the same bytes; None where there is none."""
    try:
        with open_plain(folder / MANIFEST) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a saved plug, and the version that it is; see `version_of`.

    Raises:
        LoadError: there is none, it is no plain file, is damaged, or was written by a newer version.
    """
    path = folder / MANIFEST
    try:
        with open_plain(path) as file:
            data = file.read(_MOST + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise LoadError(
            f"{folder} is not a saved plug (no {MANIFEST} in it); give the folder that save() wrote"
        ) from None
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror}); see who may read it") from error
    return manifest_of(data, path), hashlib.sha256(data).hexdigest()


def manifest_of(data: bytes, where: object) -> Manifest:
    """What the bytes of a manifest say; ``where`` they are from is for the message of an error.

    Raises:
        LoadError: it is damaged, or was written by a newer version.
    """
    try:
        if len(data) > _MOST:
            raise ValueError(f"it has more than {_MOST} bytes")
        values = table(parsed(data), "it")
        _check_format(where, values["format"])
        under_seal = values["format"] >= _SEALED or "sha256" in values
        if under_seal and values.get("sha256") != _seal(values):
            raise ValueError("what it says is not what was saved: wrong SHA-256")
        return _checked(values)
    except LoadError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if type(error) is KeyError else str(error)
        raise LoadError(f"{where} is damaged ({printable(reason)}); take a copy that is whole") from error


def parsed(data: bytes | str) -> Any:
    """The values in JSON text.

    Raises:
        ValueError: it is none, or lists stand in lists more than 64 deep.
    """
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError("lists stand in lists without end") from None
    level = [values]
    for _ in range(_DEPTH):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return values
    raise ValueError(f"lists stand in lists more than {_DEPTH} deep")


def _check_format(where: object, version: Any) -> None:
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise LoadError(
            f"{where} has format {brief(version)}, this memplug reads up to {FORMAT}; upgrade memplug"
        )


def _checked(values: Mapping[str, Any]) -> Manifest:
    edits: dict[str, Edit] = {}
    for item in many(values["edits"], "the list of edits"):
        edit = Edit(**table(item, "an edit"))
        if edit.id is None or edit.id in edits:
            raise ValueError(f"the id {brief(edit.id)} of an edit is missing or used twice")
        edits[edit.id] = edit
    off = names(values["off"], "the list of edits that are off")
    if not edits.keys() >= set(off):
        raise ValueError("an edit that is off is not in the list of edits")
    model, named = table(values["model"], "the model"), table(values["tensors"], "the tensor file")
    file, sha256 = text(named["file"], "the tensor file"), text(named["sha256"], "its checksum")
    if not TENSORS.fullmatch(file) or file[8:24] != sha256[:16]:
        raise ValueError(f"{brief(file)} is no tensor file's name")
    return Manifest(
        text(values["method"], "the method"),
        table(values["config"], "the config"),
        text(values["layers"], "the name of the layers"),
        (text(model["class"], "the model's class"), text(model["fingerprint"], "its fingerprint")),
        EditTable(edits, off),
        whole(values["count"], "the count of edits"),
        table(values["meta"], "the method's values"),
        file,
        sha256,
        values["format"],
    )
