"""A saved plug is data: whatever is in it, it loads as it was saved, or is refused in a sentence."""

from __future__ import annotations

import contextlib
import json
import random
import shutil

import damage
import pytest
import torch
from damage import BORN, FOUNDED, KINDS, WHO
from test_contract import Trace, encode

import memplug
from memplug.methods import find_method
from memplug.saving.plugs import LoadError, peek

TRIED = 25
"""Kinds of damage of each sort tried on each method. Some hundreds more were, by hand."""


@pytest.fixture(scope="module")
def saves(model, tokenizer, tmp_path_factory):
    """The saved plug of a method with three edits, one of them off; made once."""
    folders = {}

    def get(kind):
        if kind not in folders:
            folders[kind] = damage.made(kind, model, tokenizer, tmp_path_factory.mktemp(kind) / "facts")
        return folders[kind]

    return get


@pytest.fixture
def folder(saves, tmp_path):
    return shutil.copytree(saves("icl"), tmp_path / "facts")


def told(plug):
    """All that a plug holds, and what it makes of three prompts."""
    with torch.no_grad():
        logits = plug.model(**encode(plug.tokenizer, BORN, FOUNDED, WHO)).logits
    tensors, meta = plug.method.state()
    return [logits, *(tensors[name].clone() for name in sorted(tensors))], (
        meta,
        repr(plug.edits),
        plug.count,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_are_refused(kind, saves, model, tokenizer, tmp_path):
    draw, trace = random.Random(kind), Trace(model)
    with memplug.load(saves(kind), model, tokenizer) as plug:
        tensors, rest = told(plug)
    for number in range(2 * TRIED):
        folder = shutil.copytree(saves(kind), tmp_path / "damaged")
        file = folder / "plug.json" if number % 2 else next(folder.glob("tensors-*"))
        damage.break_bytes(file, draw)
        with contextlib.suppress(LoadError), memplug.load(folder, model, tokenizer) as plug:
            now, other = told(plug)
            assert other == rest
            assert all(map(torch.equal, tensors, now))
        shutil.rmtree(folder)
    trace.check(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_values_that_somebody_made_up_are_refused_or_harmless(kind, saves, model, tokenizer, tmp_path):
    """Under checksums of their own. What is loaded all the same answers, explains, is saved and edited."""
    draw, trace, refused = random.Random(kind), Trace(model), 0
    for number in range(2 * TRIED):
        folder = shutil.copytree(saves(kind), tmp_path / "made up")
        values, tensors = damage.read(folder)
        if number % 2:
            damage.break_values(values, draw)
        else:
            damage.break_tensors(tensors, draw)
        damage.write(folder, values, None if number % 2 else tensors)
        try:
            plug = memplug.load(folder, model, tokenizer)
        except (LoadError, memplug.UnsupportedModelError):
            refused += 1
        else:
            with plug:
                plug.model.generate(**encode(tokenizer, BORN, WHO), max_new_tokens=2)
                assert str(plug.explain(BORN))
                plug.save(tmp_path / "again")
                if plug.edits:
                    plug.delete(next(iter(plug.edits)))
                told(plug)
        shutil.rmtree(folder)
        trace.check(model)
    assert refused > TRIED


@pytest.mark.parametrize(
    ("kind", "name", "row"),
    [
        ("ultraedit", ":owner", 1 << 40),
        ("ultraedit", ":owner", -1),
        ("memit", ":owner", 7),
        ("llp", "key.id", 99),
    ],
)
def test_numbers_out_of_range(kind, name, row, saves, model, tokenizer, tmp_path):
    folder = shutil.copytree(saves(kind), tmp_path / "facts")
    values, tensors = damage.read(folder)
    tensor = next(tensor for key, tensor in tensors.items() if key.endswith(name))
    tensor[0] = row
    damage.write(folder, values, tensors)
    refuse(
        folder, model, tokenizer, "the saved plug is damaged .*(belong to no edit|not those that are held)"
    )


def test_keys_of_no_edit(saves, model, tokenizer, tmp_path):
    """They loaded, and every forward raised."""
    folder = shutil.copytree(saves("llp"), tmp_path / "facts")
    values, _ = damage.read(folder)
    values["meta"]["entries"][0]["keys"] = [5]
    damage.write(folder, values)
    refuse(folder, model, tokenizer, "the keys of the entries are not those that are held")


def refuse(folder, model, tokenizer, match):
    trace = Trace(model)
    with pytest.raises(LoadError, match=match):
        memplug.load(folder, model, tokenizer)
    trace.check(model)


# ---------------------------------------------------------------------- the manifest


def test_one_flipped_bit_is_not_another_edit(folder, model, tokenizer):
    text = (folder / "plug.json").read_bytes()
    (folder / "plug.json").write_bytes(text.replace(b'"Zarnow"', b'"Zarnov"'))
    for read in (peek, lambda path: memplug.load(path, model, tokenizer)):
        with pytest.raises(
            LoadError, match="plug.json is damaged .what it says is not what was saved: wrong SHA"
        ):
            read(folder)


def test_what_a_method_cannot_read_any_more_is_named(folder, model, tokenizer, monkeypatch):
    """ELDER's saves of before; here it is said of the method that saved this one."""
    method = json.loads((folder / "plug.json").read_text())["method"]
    monkeypatch.setattr(find_method(method).config, "oldest_format", 5, raising=False)
    refuse(folder, model, tokenizer, r"saved by an earlier memplug .format 4., .* read from format 5 on")
    assert find_method("elder").config.oldest_format == 4


@pytest.mark.parametrize("version", [1, 2])
def test_earlier_formats_are_read_without_a_checksum(version, folder, model, tokenizer):
    values = json.loads((folder / "plug.json").read_text())
    del values["sha256"]
    (folder / "plug.json").write_text(json.dumps(values | {"format": version}))
    with memplug.load(folder, model, tokenizer) as plug:
        assert len(plug.edits) == 3
        plug.save(folder)
    assert json.loads((folder / "plug.json").read_text())["format"] == 4
    (folder / "plug.json").write_text(json.dumps(values))  # of this format, it has to have one
    refuse(folder, model, tokenizer, "wrong SHA-256")


@pytest.mark.parametrize("deep", [70, 100_000])
def test_lists_in_lists(deep, folder, model, tokenizer):
    for text in ("[" * deep + "]" * deep, '{"format": 3, "meta": ' + '{"a":' * deep + "1" + "}" * deep + "}"):
        (folder / "plug.json").write_text(text)
        refuse(folder, model, tokenizer, "plug.json is damaged .lists stand in lists")


@pytest.mark.parametrize(
    "change",
    [
        {"edits": [{"prompt": BORN, "target": "x"}]},
        {"edits": [{"prompt": BORN, "target": "x", "subject": "Ada", "id": "e1"}] * 2},
        {"edits": [{"prompt": BORN, "target": "x", "subject": "Ada", "id": "e1", "more": 1}]},
        {"edits": {}}, {"edits": [1]}, {"off": ["e9"]}, {"off": "e1"}, {"count": 1.5}, {"count": 1 << 70},
        {"count": True}, {"meta": []}, {"config": []}, {"model": "m"}, {"layers": 1}, {"method": []},
        {"tensors": {"file": "a", "sha256": "b"}},
        {"tensors": {"file": "../tensors-0000000000000000.safetensors", "sha256": "0" * 64}},
    ],
)  # fmt: skip
def test_kinds_of_values(change, folder, model, tokenizer):
    values, _ = damage.read(folder)
    damage.write(folder, values | change)
    refuse(folder, model, tokenizer, "plug.json is damaged .*; take a copy that is whole")
    with pytest.raises(LoadError, match="is damaged"):
        peek(folder)


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("k", "1"),
        ("k", 1 << 40),
        ("chat_end", [2]),
        ("template", "{prompt:>9999999999} {target}"),
        ("front", 1),
    ],
)
def test_kinds_of_constants(constant, value, folder, model, tokenizer):
    values, _ = damage.read(folder)
    values["config"][constant] = value
    damage.write(folder, values)
    refuse(folder, model, tokenizer, f"does not fit this memplug .*{constant}")
