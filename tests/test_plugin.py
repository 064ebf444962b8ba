"""The plug: edits of one subject, switches, replacement, failures that change nothing, two plugs at once."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from families import TEXTS, attach_llp, lexical
from test_contract import Trace, answers, encode

import memplug

BORN, TAUGHT, FOUNDED = (
    "Where was Ada Quill born?",
    "Who taught Ada Quill?",
    "Who founded the Orlo Bridge Company?",
)


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    tokenizer = make_tokenizer(TEXTS)
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.fixture(scope="module")
def base(tokenizer):
    return lexical("llama", len(tokenizer))


@pytest.fixture(scope="module")
def saved(base, tokenizer, tmp_path_factory):
    """A saved plug with two edits, trained once for all tests here."""
    path = tmp_path_factory.mktemp("plug") / "facts"
    with attach_llp(copy.deepcopy(base), tokenizer) as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company")
        plug.save(path)
    return path


@pytest.fixture
def plug(base, tokenizer, saved):
    with memplug.load(saved, copy.deepcopy(base), tokenizer) as plug:
        yield plug


def logits(model, tokenizer, *texts):
    with torch.no_grad():
        return model(**encode(tokenizer, *texts)).logits


def state_of(plug):
    tensors, meta = plug.method.state()
    return (
        {name: tensor.clone() for name, tensor in tensors.items()},
        meta,
        dict(plug.edits),
        repr(plug.edits),
    )


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name
    assert before[1:] == after[1:]


def text_of(tokenizer, row):
    return tokenizer.decode(row, skip_special_tokens=True).strip()


def test_edits_of_one_subject_share_an_entry(plug, tokenizer):
    alone = plug.method.entries["Ada Quill"].values[("e1",)].clone()
    second = plug.edit(TAUGHT, "Marrow", "Ada Quill")
    assert list(plug.method.entries["Ada Quill"].edits) == ["e1", second.id]
    rows = answers(plug.model, tokenizer, BORN, TAUGHT)
    assert [text_of(tokenizer, row) for row in rows] == ["Zarnow", "Marrow"]
    both = logits(plug.model, tokenizer, BORN, TAUGHT)

    plug.disable(second)  # the value of the first alone comes back, bit for bit: it was kept
    assert torch.equal(plug.method.entries["Ada Quill"].values[("e1",)], alone)
    assert text_of(tokenizer, answers(plug.model, tokenizer, BORN)[0]) == "Zarnow"
    plug.enable(second)
    assert torch.equal(logits(plug.model, tokenizer, BORN, TAUGHT), both)

    plug.delete("e1")  # trained anew from what is left
    assert list(plug.method.entries["Ada Quill"].values) == [(second.id,)]
    assert text_of(tokenizer, answers(plug.model, tokenizer, TAUGHT)[0]) == "Marrow"


def test_deleted_is_gone_and_the_others_stay_to_the_bit(plug, tokenizer):
    before = logits(plug.model, tokenizer, FOUNDED)
    number = plug.method.entries["Orlo Bridge Company"].keys[0]
    key, value = (
        plug.method.memory.get(number),
        plug.method.entries["Orlo Bridge Company"].values[("e2",)].clone(),
    )
    gone = plug.method.entries["Ada Quill"].keys
    plug.delete("e1")
    with plug.paused():
        unedited = logits(plug.model, tokenizer, BORN)
    assert torch.equal(logits(plug.model, tokenizer, BORN), unedited)
    assert not any(key in plug.method.memory for key in gone)
    assert "Ada Quill" not in str(plug.method.state().meta)
    assert torch.equal(plug.method.memory.get(number), key)
    assert torch.equal(plug.method.entries["Orlo Bridge Company"].values[("e2",)], value)
    assert torch.equal(logits(plug.model, tokenizer, FOUNDED), before)
    assert list(plug.edits) == ["e2"]


def test_a_second_edit_of_a_prompt_replaces_the_first(plug, tokenizer):
    with pytest.warns(UserWarning, match="replaced e1: the same prompt was edited again"):
        edit = plug.edit(BORN, "Marrow", "Ada Quill")
    assert list(plug.edits) == ["e2", edit.id]
    assert edit.id == "e3"
    assert text_of(tokenizer, answers(plug.model, tokenizer, BORN)[0]) == "Marrow"
    assert list(plug.method.entries["Ada Quill"].edits) == ["e3"]


def test_a_prompt_twice_in_one_list_counts_once(plug):
    edits = [memplug.Edit("Who is Tam Wickes?", answer, "Tam Wickes") for answer in ("Zarnow", "Marrow")]
    with pytest.warns(UserWarning, match="1 edits repeat a prompt"):
        learned = plug.edit(edits)
    assert [edit.target for edit in learned] == ["Marrow"]


def test_the_table_of_edits(plug):
    assert plug.edits["e1"].target == "Zarnow"
    assert plug.edits.enabled("e1")
    plug.disable("e1")
    assert not plug.edits.enabled("e1")
    lines = repr(plug.edits).splitlines()
    assert lines[0] == "2 edits, 1 in force"
    assert lines[2].split()[:2] == ["e1", "off"]
    assert "Zarnow" in lines[2]
    assert "LlamaForCausalLM" in repr(plug)


def test_disabling_all_leaves_the_model_alone(plug, tokenizer):
    with plug.paused():
        base = logits(plug.model, tokenizer, BORN, FOUNDED)
    edited = logits(plug.model, tokenizer, BORN, FOUNDED)
    assert not torch.equal(edited, base)
    plug.disable(plug.edits.values())
    assert not plug.method.active
    assert torch.equal(logits(plug.model, tokenizer, BORN, FOUNDED), base)
    plug.enable("e1", "e2")
    assert torch.equal(logits(plug.model, tokenizer, BORN, FOUNDED), edited)


def test_leaving_by_an_error_detaches(base, tokenizer, saved):
    model = copy.deepcopy(base)
    trace = Trace(model)
    with pytest.raises(RuntimeError, match="inside"), memplug.load(saved, model, tokenizer):
        raise RuntimeError("inside")
    trace.check(model)


def test_a_failing_attach_leaves_nothing(base, tokenizer):
    model = copy.deepcopy(base)
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

    def failing(number, key):
        count[0] += 1
        if count[0] == 2:
            raise Failure
        add(number, key)

    monkeypatch.setattr(plug.method.memory, "add", failing)
    with pytest.raises(Failure):
        plug.edit([memplug.Edit("Who is Tam Wickes?", "Ada"), memplug.Edit("Where is Vestland now?", "Ada")])
    assert count[0] == 2
    assert_same(before, state_of(plug))


def test_warnings_as_errors_change_nothing(base, tokenizer):
    with attach_llp(copy.deepcopy(base), tokenizer, value_steps=0) as plug, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="1 of 1 subjects were not learned well"):
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


def test_two_plugs_on_two_models_do_not_touch_each_other(base, tokenizer, saved):
    one, two = copy.deepcopy(base), copy.deepcopy(base)
    plain = logits(base, tokenizer, BORN, FOUNDED)
    with memplug.load(saved, one, tokenizer) as first, memplug.load(saved, two, tokenizer) as second:
        both = logits(one, tokenizer, BORN, FOUNDED)
        second.delete("e1", "e2")
        assert torch.equal(logits(two, tokenizer, BORN, FOUNDED), plain)
        assert torch.equal(logits(one, tokenizer, BORN, FOUNDED), both)
        first.detach()
        second.edit(TAUGHT, "Marrow", "Ada Quill")
        assert text_of(tokenizer, answers(two, tokenizer, TAUGHT)[0]) == "Marrow"
        assert torch.equal(logits(one, tokenizer, BORN, FOUNDED), plain)


def test_two_plugs_used_from_two_threads(base, tokenizer, saved):
    models = [copy.deepcopy(base) for _ in range(2)]
    plugs = [memplug.load(saved, model, tokenizer) for model in models]
    plugs[1].disable("e1")
    expected = [logits(model, tokenizer, BORN, FOUNDED) for model in models]
    assert not torch.equal(*expected)
    wrong = []

    def serve(model, right):
        wrong.extend(1 for _ in range(15) if not torch.equal(logits(model, tokenizer, BORN, FOUNDED), right))

    threads = [threading.Thread(target=serve, args=pair) for pair in zip(models, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_model_served_by_two_threads(plug, tokenizer):
    """Rows of one thread's forward do not leak into the other's."""
    texts = {BORN: None, "Who": None}
    expected = {text: logits(plug.model, tokenizer, text) for text in texts}
    wrong = []

    def serve(text):
        wrong.extend(
            1 for _ in range(15) if not torch.equal(logits(plug.model, tokenizer, text), expected[text])
        )

    threads = [threading.Thread(target=serve, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_mode_and_gradient_flags_are_restored(plug):
    model = plug.model
    model.train()
    model.model.layers[1].eval()
    model.model.norm.weight.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    flags = [p.requires_grad for p in model.parameters()]
    plug.edit("Who is Tam Wickes?", "Ada", "Tam Wickes")
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
