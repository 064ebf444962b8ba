"""A failing edit, attach or forward changes nothing."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from families import attach_llp
from plug_facts import BORN, FOUNDED, TAUGHT, assert_same, logits, state_of
from test_contract import Trace

import memplug


def test_leaving_by_an_error_detaches(model, tokenizer, saved):
    model = copy.deepcopy(model)
    trace = Trace(model)
    with pytest.raises(RuntimeError, match="inside"), memplug.load(saved, model, tokenizer):
        raise RuntimeError("inside")
    trace.check(model)


def test_a_failing_attach_leaves_nothing(model, tokenizer):
    model = copy.deepcopy(model)
    trace = Trace(model)
    for wrong in (
        {"recall_layer": 9},
        {"think_layers": (0, 3), "recall_layer": 2},
        {"layers": "model.nowhere"},
    ):
        with pytest.raises(ValueError, match="layer"):
            attach_llp(model, tokenizer, **wrong)
    trace.check(model)


def test_a_raising_forward_leaves_the_next_one_alone(plug, tokenizer):
    before = logits(plug.model, tokenizer, BORN)

    def fail(*_args):
        raise RuntimeError("in a layer")

    handle = plug.model.model.layers[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in a layer"):
        logits(plug.model, tokenizer, BORN)
    handle.remove()
    assert torch.equal(logits(plug.model, tokenizer, BORN), before)


class Failure(Exception):
    """Stands for running out of memory."""


@pytest.mark.parametrize("calls", [0, 3, 8, 20, 60])
def test_an_edit_that_runs_out_of_memory_changes_nothing(plug, tokenizer, monkeypatch, calls):
    before, texts = state_of(plug), (BORN, FOUNDED, TAUGHT)
    trace, bits = Trace(plug.model), logits(plug.model, tokenizer, *texts)
    left = [calls]
    original = type(plug.model.model.layers[2].mlp).forward

    def forward(self, *args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise Failure
        return original(self, *args, **kwargs)

    edits = [memplug.Edit(TAUGHT, "Marrow", "Ada Quill"), memplug.Edit("Who is Tam Wickes?", "Ada")]
    with monkeypatch.context() as patch:
        patch.setattr(type(plug.model.model.layers[2].mlp), "forward", forward)
        with pytest.raises(Failure):
            plug.edit(edits)
    assert_same(before, state_of(plug))
    trace.check(plug.model)
    assert torch.equal(logits(plug.model, tokenizer, *texts), bits)


def test_an_edit_whose_loss_is_not_finite_changes_nothing(plug, tokenizer, monkeypatch):
    before, trace, bits = state_of(plug), Trace(plug.model), logits(plug.model, tokenizer, BORN)
    with monkeypatch.context() as patch:
        head = type(plug.model.lm_head)
        original = head.forward
        patch.setattr(
            head, "forward", lambda self, x: original(self, x) * (torch.nan if self.out_features > 100 else 1)
        )
        with pytest.raises(memplug.EditError, match="loss that is not finite; nothing was changed"):
            plug.edit(TAUGHT, "Marrow", "Ada Quill")
    assert_same(before, state_of(plug))
    trace.check(plug.model)
    assert torch.equal(logits(plug.model, tokenizer, BORN), bits)


def test_a_failure_while_keys_are_stored_changes_nothing(plug, monkeypatch):
    before = state_of(plug)
    add, count = plug.method.memory.add, [0]

    def failing(number, key, **given):
        count[0] += 1
        if count[0] == 2:
            raise Failure
        add(number, key, **given)

    monkeypatch.setattr(plug.method.memory, "add", failing)
    with pytest.raises(Failure):
        plug.edit([memplug.Edit("Who is Tam Wickes?", "Ada"), memplug.Edit("Where is Vestland now?", "Ada")])
    assert count[0] == 2
    assert_same(before, state_of(plug))


def test_warnings_as_errors_change_nothing(model, tokenizer):
    with attach_llp(copy.deepcopy(model), tokenizer, value_steps=0) as plug, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="1 of 1 were not learned well"):
            plug.edit(BORN, "Zarnow", "Ada Quill")
        assert not plug.edits
        assert not plug.method.active


def test_bad_edits_change_nothing(plug):
    before = state_of(plug)
    good = memplug.Edit("Who is Tam Wickes?", "Ada", "Tam Wickes")
    for bad in ("text", 3, None):
        with pytest.raises(memplug.EditError, match="expected an Edit or a Case"):
            plug.edit([good, bad])
    with pytest.raises(memplug.EditError, match="the id 'e2' is used twice"):
        plug.edit([good, memplug.Edit("Who saw Tam Wickes?", "Ada", "Tam Wickes", id="e2")])
    with pytest.raises(KeyError, match="no edit has the id 'e11'; did you mean 'e1'"):
        plug.delete("e2", "e11")
    assert_same(before, state_of(plug))
