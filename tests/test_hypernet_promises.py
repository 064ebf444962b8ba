"""What every editor with a ledger promises, to the bit: undo, switching, saving, replay, merging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from weights_tiny import (
    EDITS,
    METHODS,
    bits,
    clean,
    logits,
    same,
)

import memplug
from memplug.edits import Edit, EditError
from memplug.saving.plugs import LoadError


@pytest.mark.parametrize("method", METHODS)
def test_edit_switch_delete_pause_detach(tiny_plug: Callable[..., Any], method: str) -> None:
    plug = tiny_plug(method)
    base = bits(plug.model)
    one, two, three = plug.edit(EDITS[:3], progress=False)
    edited = bits(plug.model)
    changed = {name for name in base if not torch.equal(base[name], edited[name])}
    assert changed
    assert changed <= {f"{site.name}.weight" for site in plug.method.sites}
    plug.disable(two)
    assert not same(bits(plug.model), edited)
    with plug.paused():
        assert same(bits(plug.model), base)
    plug.enable(two)
    assert same(bits(plug.model), edited)
    plug.delete(one)
    plug.disable(two, three)
    assert same(bits(plug.model), base)
    plug.enable(three)
    assert not same(bits(plug.model), base)
    plug.detach()
    assert same(bits(plug.model), base)
    assert clean(plug.model)


@pytest.mark.parametrize("method", METHODS)
def test_side_mode_equals_the_written_weights(tiny_plug: Callable[..., Any], method: str) -> None:
    merged, side = tiny_plug(method), tiny_plug(method, mode="side")
    base, untouched = bits(side.model), logits(side)
    for plug in (merged, side):
        plug.edit(EDITS[:4], progress=False)
        plug.disable("e3")
    assert same(bits(side.model), base)
    torch.testing.assert_close(logits(side), logits(merged), rtol=1e-3, atol=1e-4)
    assert not torch.equal(logits(side), untouched)
    with side.paused():
        assert torch.equal(logits(side), untouched)
    side.disable("e1", "e2", "e4")
    assert torch.equal(logits(side), untouched)
    side.enable("e1")
    given = side.merge()
    assert given is side.model
    assert clean(given)
    assert not same(bits(given), base)


def test_merge_gives_an_ordinary_model(tiny_plug: Callable[..., Any], tmp_path: Path) -> None:
    plug = tiny_plug("rledit")
    plug.edit(EDITS[:2], progress=False)
    want = logits(plug)
    model = plug.merge()
    assert clean(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = again(**plug.tokenizer(EDITS[0].prompt, return_tensors="pt")).logits
    assert torch.equal(found, want)
    with pytest.raises(ValueError, match="detached"):
        plug.merge()


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load_give_the_same_bits(
    tiny_plug: Callable[..., Any], tiny_model: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    plug = tiny_plug(method)
    plug.edit(EDITS[:3], progress=False)
    plug.disable("e2")
    plug.save(tmp_path / "p")
    loaded = memplug.load(tmp_path / "p", *tiny_model())
    assert same(bits(loaded.model), bits(plug.model))
    for one in (plug, loaded):
        one.enable("e2")
        one.edit(EDITS[3], progress=False)
    assert same(bits(loaded.model), bits(plug.model))
    with pytest.raises(LoadError, match="fingerprint"):
        memplug.load(tmp_path / "p", *tiny_model(seed=5))


@pytest.mark.parametrize("method", METHODS)
def test_replay_is_the_model_in_which_the_edit_had_never_been_made(
    tiny_plug: Callable[..., Any], method: str
) -> None:
    plug, other = tiny_plug(method), tiny_plug(method)
    plug.edit([EDITS[0], EDITS[1]], progress=False)
    plug.edit([EDITS[2], EDITS[3]], progress=False)
    plug.edit(EDITS[4], progress=False)
    plug.disable("e1")
    plug.delete("e3", replay=True)
    other.edit([EDITS[0], EDITS[1]], progress=False)
    other.edit(EDITS[3], progress=False)
    other.edit(EDITS[4], progress=False)
    other.disable("e1")
    assert list(plug.edits) == ["e1", "e2", "e4", "e5"]
    mine, theirs = (one.method.ledger for one in (plug, other))
    assert all(torch.equal(mine.change(site), theirs.change(site)) for site in mine.sites)
    assert same(bits(plug.model), bits(other.model))


def test_a_second_edit_of_a_prompt_replaces_the_first(tiny_plug: Callable[..., Any]) -> None:
    plug = tiny_plug("ultraedit")
    plug.edit(EDITS[0])
    with pytest.warns(UserWarning, match="replaced e1"):
        plug.edit(EDITS[0].prompt, "Hol", EDITS[0].subject)
    assert [entry.ids for entry in plug.method.ledger.entries] == [("e2",)]


@pytest.mark.parametrize("statistics", ["frozen", "stream"])
def test_a_failing_edit_changes_nothing(
    tiny_plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, statistics: str
) -> None:
    plug = tiny_plug("ultraedit", statistics=statistics)
    plug.edit(EDITS[0])
    before = bits(plug.model)
    state = {n: t.clone() for n, t in plug.method.editor.state_dict().items()}
    look, calls = plug.method._guard.look, []

    def fail() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no room")
        look()

    monkeypatch.setattr(plug.method._guard, "look", fail)
    with pytest.raises(MemoryError):
        plug.edit([*EDITS[1:5], Edit(EDITS[0].prompt, "Dor", EDITS[0].subject)], progress=False)
    assert same(bits(plug.model), before)
    assert list(plug.edits) == ["e1"]
    assert all(torch.equal(state[n], t) for n, t in plug.method.editor.state_dict().items())
    with plug.paused(), pytest.raises(EditError, match="the plug is paused"):
        plug.edit(EDITS[1])


@pytest.mark.parametrize("method", ["ultraedit", "hiedit"])
def test_later_edits_keep_clear_of_those_in_force_alone(tiny_plug: Callable[..., Any], method: str) -> None:
    """What is remembered of an edit follows from the ledger: not from edits that are gone or off."""
    plug, fresh, forgetful = tiny_plug(method), tiny_plug(method), tiny_plug(method)
    forgetful.method.config = replace(forgetful.method.config, remember=0.0)
    one, two = plug.edit(EDITS[:2], progress=False)
    plug.delete(one)
    plug.disable(two)
    plug.edit(EDITS[2])
    for other in (fresh, forgetful):
        other.edit(EDITS[2])
    assert same(bits(plug.model), bits(fresh.model))
    assert same(bits(fresh.model), bits(forgetful.model))  # nothing was there to be remembered
    for other in (fresh, forgetful):
        other.edit(EDITS[3])
    assert not same(bits(fresh.model), bits(forgetful.model))
    past = fresh.method._past_inputs()
    assert sum(one.count for one in past) == sum(
        len(part.keys) for entry in fresh.method.ledger.entries for part in entry.parts
    )


def test_edits_do_not_touch_another_model(tiny_plug: Callable[..., Any]) -> None:
    one, two = tiny_plug("ultraedit"), tiny_plug("ultraedit")
    one.edit(EDITS[0])
    want = bits(one.model)
    two.edit(EDITS[1:3], progress=False)
    two.detach()
    assert same(bits(one.model), want)
