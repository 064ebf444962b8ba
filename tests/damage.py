"""Damage to a saved plug: bits, truncations, other values and tensors, with and without fresh checksums."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch
from families import METHODS, method_of
from safetensors.torch import load_file, save_file
from saver import QUICK

import memplug
from memplug.saving.manifest import sealed

BORN, FOUNDED, WHO = "Where was Ada Quill born?", "Who founded the Orlo Bridge Company?", "Who is Tam Wickes?"
LOCATE = {"max_change": 1e8, "max_perplexity": 1e11, "covariance_texts": 8, "steps": 2, "n_prefixes": 0}
KINDS = {
    "llp": METHODS["llp"],
    "llp-answer": METHODS["llp-answer"] | {"value_steps": 5},
    "elder": METHODS["elder"] | {"steps": 5},
    "elder-row": METHODS["elder-row"] | {"steps": 5},
    "grace": METHODS["grace"] | {"steps": 2},
    "grace-asked": METHODS["grace-asked"] | {"steps": 2},
    "icl": QUICK,
    "lora": {},
    "finetune": {"steps": 2, "keep": 0},
    "memit": LOCATE,
    "ultraedit": {},
}
"""Methods, with constants that make them quick."""

VALUES: list[Any] = [
    *(None, True, 0, -1, 3, 1 << 40, 1 << 70, 1e308, -0.5, float("nan"), float("inf")),
    *("", "x", "e1", "e9", [], {}, [0], ["e1"], {"a": 1}, [[[[1]]]]),
]
DTYPES = [torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.bfloat16]


def made(kind: str, base: Any, tokenizer: Any, folder: Path) -> Path:
    """A plug of this kind with three edits, one of them off, saved in the folder."""
    with memplug.attach(base, tokenizer, method_of(kind), **KINDS[kind]) as plug:
        edits = [(BORN, "Zarnow", "Ada Quill"), (FOUNDED, "Marrow", "Orlo Bridge Company")]
        plug.edit([memplug.Edit(*edit) for edit in edits], progress=False)
        plug.edit(WHO, "Ada", "Tam Wickes")
        plug.disable("e3")
        plug.save(folder)
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The manifest and the tensors."""
    return json.loads((folder / "plug.json").read_text()), load_file(next(folder.glob("tensors-*")))


def write(folder: Path, values: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Put them there with checksums of their own, as somebody would who means harm."""
    values = {name: value for name, value in values.items() if name != "sha256"}
    if tensors is not None:
        for old in folder.glob("tensors-*"):
            old.unlink()
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / "new")
        digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()
        file = f"tensors-{digest[:16]}.safetensors"
        (folder / "new").rename(folder / file)
        values["tensors"] = {"file": file, "sha256": digest}
    (folder / "plug.json").write_bytes(sealed(values))


def break_bytes(file: Path, draw: random.Random) -> None:
    """Flip a bit of a file, or cut it."""
    data = bytearray(file.read_bytes())
    if draw.random() < 0.7:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    else:
        data = data[: draw.randrange(len(data))]
    file.write_bytes(data)


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(place for key, part in items for place in _places(part, (*at, key)))]


def _at(values: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        values = values[key]
    return values


def break_values(values: dict[str, Any], draw: random.Random) -> None:
    """Change, remove, wrap or exchange a value anywhere in a manifest, mostly in the method's own."""
    part = draw.choice(["meta", "meta", "config", None])
    places = [(part, *place) for place in _places(values[part])] if part else _places(values)
    place = draw.choice(places)
    parent, key, how = _at(values, place[:-1]), place[-1], draw.randrange(4)
    if how == 0:
        parent[key] = copy.deepcopy(draw.choice(VALUES))
    elif how == 1:
        del parent[key]
    elif how == 2:
        parent[key] = [parent[key]]
    else:
        other = draw.choice(places)
        there = _at(values, other[:-1])
        one, two = copy.deepcopy(parent[key]), copy.deepcopy(there[other[-1]])
        parent[key] = two
        if other[: len(place)] != place and place[: len(other)] != other:
            there[other[-1]] = one


def break_tensors(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    """Exchange, remove, reshape, cast or poison a tensor."""
    name = draw.choice(sorted(tensors))
    tensor, how = tensors[name].clone(), draw.randrange(7)
    if how == 0:
        other = draw.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif how == 1:
        del tensors[name]
    elif how == 2:
        tensors[name] = tensor[..., :-1] if tensor.ndim else tensor[None]
    elif how == 3:
        tensors[name] = torch.cat([tensor, tensor]) if tensor.ndim else tensor[None]
    elif how == 4:
        tensors[name] = tensor.to(draw.choice(DTYPES))
    elif how == 5:
        tensors[f"{name}9"] = tensor
    elif tensor.numel():
        poison = [float("nan"), float("inf")] if tensor.is_floating_point() else [255, 7, 99]
        tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice(poison)
        tensors[name] = tensor
