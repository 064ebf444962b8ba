"""Saved plugs on the Hugging Face Hub, against a stand-in of its HTTP interface."""

from __future__ import annotations

import pytest
import torch
from families import METHODS
from hub_stand_in import serving
from huggingface_hub import constants
from test_contract import encode

import memplug
from memplug.saving.files import LoadError, SaveError

ASKED = "Where was Ada Quill born?"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving() as (address, files):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(tmp_path)
        yield files


def test_a_plug_is_pushed_and_loaded(hub, model, tokenizer):
    with memplug.attach(model, tokenizer, "llp", **METHODS["llp-answer"]) as plug:
        plug.edit(ASKED, "Zarnow", "Ada Quill")
        edited = model(**encode(tokenizer, ASKED)).logits
        assert "/commit/" in plug.push_to_hub("user/facts", token="x")
        first = {name for name in hub["user/facts"] if name.endswith(".safetensors")}
        plug.edit("Who *rules* | Elba?", "<b>Ann</b>", "Elba")
        plug.push_to_hub("user/facts", token="x", message="one more")
    names = set(hub["user/facts"])
    assert {"plug.json", "README.md"} < names
    assert len(names) == 3
    assert not first & names  # a push replaces what was there
    card = hub["user/facts"]["README.md"].decode()
    assert "# 2 edits of LlamaForCausalLM" in card
    assert 'memplug.load("user/facts", model, tokenizer)' in card
    assert r"| Who \*rules\* \| Elba? | \<b\>Ann\</b\> | Elba | on |" in card
    with memplug.load("user/facts", model, tokenizer) as plug:
        assert [edit.target for edit in plug.edits.values()] == ["Zarnow", "<b>Ann</b>"]
        plug.delete("e2")
        assert torch.equal(model(**encode(tokenizer, ASKED)).logits, edited)
    with memplug.load("user/facts@main", model, tokenizer) as plug:
        assert len(plug.edits) == 2


def test_what_cannot_be_had_or_written_is_told(hub, model, tokenizer, tmp_path, monkeypatch):
    with pytest.raises(LoadError, match=r"user/nothing is no folder here, and could not be had from the Hub"):
        memplug.load("user/nothing", model, tokenizer)
    hub["user/other"] = {"config.json": b"{}"}
    with pytest.raises(LoadError, match="is not a saved plug"):
        memplug.load("user/other", model, tokenizer)
    with pytest.raises(LoadError, match="nothing is not a saved plug"):
        memplug.load("../nothing", model, tokenizer)
    with pytest.raises(LoadError, match="nothing is not a saved plug"):
        memplug.load(tmp_path / "user" / "nothing", model, tokenizer)  # a path is a path
    with memplug.attach(model, tokenizer, "icl") as plug:
        with pytest.raises(SaveError, match="not/a/name could not be written"):
            plug.push_to_hub("not/a/name", token="x")
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
        with pytest.raises(SaveError, match="user/facts could not be written"):
            plug.push_to_hub("user/facts", token="x")
        plug.save(tmp_path / "user" / "facts")
    with memplug.load("user/facts", model, tokenizer) as plug:  # a folder that is there comes first
        assert plug.name == "icl"
