"""Saving and loading: the same bits, crashes at every moment, and every kind of damage named."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from families import TEXTS, attach_llp, lexical
from test_contract import Trace, encode

import memplug
from memplug.saving.manifest import sealed
from memplug.saving.plugs import FORMAT, LoadError, SaveError, fingerprint

BORN, FOUNDED = "Where was Ada Quill born?", "Who founded the Orlo Bridge Company?"


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def base(tokenizer):
    return lexical("llama", len(tokenizer))


@pytest.fixture(scope="module", params=["row", "answer"])
def plug(base, tokenizer, request):
    with attach_llp(copy.deepcopy(base), tokenizer, request.param) as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company")
        yield plug


def logits(model, tokenizer):
    with torch.no_grad():
        return model(**encode(tokenizer, BORN, FOUNDED)).logits


def test_the_same_logits_to_the_bit(plug, base, tokenizer, tmp_path):
    plug.save(tmp_path / "facts")
    with memplug.load(tmp_path / "facts", copy.deepcopy(base), tokenizer) as loaded:
        assert torch.equal(logits(loaded.model, tokenizer), logits(plug.model, tokenizer))
        assert dict(loaded.edits) == dict(plug.edits)
        assert loaded.method.config == plug.method.config
        assert loaded.edit("Who is Tam Wickes?", "Ada", "Tam Wickes").id == "e3"  # ids go on


def test_switches_are_saved(plug, base, tokenizer, tmp_path):
    plug.disable("e1")
    try:
        plug.save(tmp_path)
        with memplug.load(tmp_path, copy.deepcopy(base), tokenizer) as loaded:
            assert not loaded.edits.enabled("e1")
            assert torch.equal(logits(loaded.model, tokenizer), logits(plug.model, tokenizer))
            plug.enable("e1")
            loaded.enable("e1")
            assert torch.equal(logits(loaded.model, tokenizer), logits(plug.model, tokenizer))
    finally:
        plug.enable("e1")


def test_another_base_model_is_refused(plug, base, tokenizer, tmp_path):
    plug.save(tmp_path)
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    for wrong in (other, copy.deepcopy(base).to(torch.bfloat16)):
        trace = Trace(wrong)
        with pytest.raises(LoadError, match=f"fingerprint {fingerprint(base)}.* has {fingerprint(wrong)}"):
            memplug.load(tmp_path, wrong, tokenizer)
        trace.check(wrong)


class Crash(BaseException):
    """The process dies here."""


def test_a_crash_at_any_moment_leaves_a_whole_save(plug, base, tokenizer, tmp_path, monkeypatch):
    """Fails at the n-th call into the file system, for every n that a save makes."""
    folder, model = tmp_path / "facts", copy.deepcopy(base)
    plug.save(folder)
    earlier = logits(plug.model, tokenizer)
    plug.disable("e2")
    later = logits(plug.model, tokenizer)
    moments = 0
    try:
        for moment in range(100):
            with monkeypatch.context() as patch:
                left = [moment]
                for name in ("replace", "fsync", "open", "unlink"):
                    patch.setattr(os, name, _dying(getattr(os, name), left))
                patch.setattr(Path, "open", _dying(Path.open, left))
                try:
                    plug.save(folder)
                    break
                except Crash:
                    moments += 1
            with memplug.load(folder, model, tokenizer) as loaded:
                got = logits(model, tokenizer)
                assert torch.equal(got, earlier if loaded.edits.enabled("e2") else later)
        with memplug.load(folder, model, tokenizer):
            assert torch.equal(logits(model, tokenizer), later)
    finally:
        plug.enable("e2")
    assert moments >= 6  # two files, each written, flushed and moved
    assert len(list(folder.iterdir())) == 3  # the two and the lock; nothing is left over


def test_a_first_save_that_was_broken_off_is_in_nobodys_way(plug, base, tokenizer, tmp_path, monkeypatch):
    """At any moment: what it leaves is no save, and the next one goes into the same folder."""
    for moment in range(100):
        folder = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            left = [moment]
            for name in ("replace", "fsync"):
                patch.setattr(os, name, _dying(getattr(os, name), left))
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the process is gone
            try:
                plug.save(folder)
            except Crash:
                assert any(folder.iterdir())
            else:
                break
        if not (folder / "plug.json").exists():
            refuse(folder, base, tokenizer, "is not a saved plug")
        (folder / "tensors-of-mine.safetensors").write_text("")
        if not (folder / "plug.json").exists():
            with pytest.raises(SaveError, match="files that are not a saved plug"):
                plug.save(folder)
            (folder / "tensors-of-mine.safetensors").unlink()
        plug.save(folder)
        memplug.load(folder, copy.deepcopy(base), tokenizer).detach()
        names = {path.name for path in folder.iterdir()} - {"tensors-of-mine.safetensors"}
        assert len(names) == 3, names  # the two files and the lock
    assert moment >= 6


def test_who_may_read_a_save_is_for_the_umask_to_say(plug, tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    plug.save(tmp_path / "facts")
    for file in (tmp_path / "facts").iterdir():
        assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode, file


def test_files_are_on_the_disk_before_they_are_named(plug, tmp_path, monkeypatch):
    """Flush, move, then flush the folder's own list: so for the tensors, and after them for the manifest."""
    done = []
    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(os, name, _noting(name, getattr(os, name), done))
    plug.save(tmp_path)
    kinds = [name for name, *_ in done]
    assert kinds[:6] == ["fsync", "replace", "fsync"] * 2
    assert [str(places[1]).rpartition("/")[2][:4] for name, *places in done if name == "replace"] == [
        "tens",
        "plug",
    ]


def _noting(name, function, done):
    def call(*args, **kwargs):
        done.append((name, *args))
        return function(*args, **kwargs)

    return call


def _dying(function, left):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise Crash
        return function(*args, **kwargs)

    return call


@pytest.fixture
def folder(plug, tmp_path):
    plug.save(tmp_path / "facts")
    return tmp_path / "facts"


def manifest_with(folder, **changes):
    """Another manifest, under its own checksum; None takes a part out."""
    path = folder / "plug.json"
    values = json.loads(path.read_text()) | changes
    path.write_bytes(sealed({name: value for name, value in values.items() if value is not None}))


def refuse(folder, base, tokenizer, match):
    model = copy.deepcopy(base)
    trace = Trace(model)
    with pytest.raises(LoadError, match=match):
        memplug.load(folder, model, tokenizer)
    trace.check(model)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_truncated_tensors(folder, base, tokenizer, keep):
    (path,) = folder.glob("tensors-*")
    path.write_bytes(path.read_bytes()[:keep])
    refuse(folder, base, tokenizer, rf"is not the file that was saved \({keep} bytes, wrong SHA-256\)")


def test_tampered_tensors(folder, base, tokenizer):
    (path,) = folder.glob("tensors-*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refuse(folder, base, tokenizer, "wrong SHA-256")


def test_missing_tensors(folder, base, tokenizer):
    (path,) = folder.glob("tensors-*")
    path.unlink()
    refuse(folder, base, tokenizer, "cannot be read")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_manifest(folder, base, tokenizer, share):
    path = folder / "plug.json"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refuse(folder, base, tokenizer, "is damaged")


@pytest.mark.parametrize("name", ["model", "edits", "tensors", "count", "meta", "config", "method", "off"])
def test_a_manifest_that_lacks_something(folder, base, tokenizer, name):
    manifest_with(folder, **{name: None})
    refuse(folder, base, tokenizer, f"is damaged .it lacks '{name}'")


@pytest.mark.parametrize(
    "changes",
    [{"edits": []}, {"method": "lllp"}, {"config": {"colour": 1}}, {"meta": {}}],
)
def test_a_manifest_that_does_not_fit(folder, base, tokenizer, changes):
    manifest_with(folder, **changes)
    refuse(folder, base, tokenizer, "is damaged|does not fit this memplug")


def test_a_newer_version(folder, base, tokenizer):
    manifest_with(folder, format=FORMAT + 1)
    refuse(folder, base, tokenizer, f"format {FORMAT + 1}, this memplug reads up to {FORMAT}; upgrade")


def test_no_plug_there(tmp_path, base, tokenizer):
    refuse(tmp_path / "nowhere", base, tokenizer, "is not a saved plug")
    refuse(tmp_path, base, tokenizer, "is not a saved plug")
    (tmp_path / "file").write_text("text")
    refuse(tmp_path / "file", base, tokenizer, "is not a saved plug")


def test_folders_that_hold_something_else_are_refused(plug, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SaveError, match="files that are not a saved plug"):
        plug.save(tmp_path)
    with pytest.raises(SaveError, match="is a file; name a folder"):
        plug.save(tmp_path / "letter.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
