"""The plug: edits of one subject, switches, replacement, two plugs at once, threads."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from families import METHODS, attach_llp
from plug_facts import BORN, FOUNDED, TAUGHT, logits, text_of
from test_contract import answers

import memplug
from memplug.plugin import Plug


def test_the_version_changes_with_the_edits_in_force(plug, monkeypatch):
    """A forward between the change and the plug's own table must not go on with a cache of the old edits."""
    versions, take_over = [], Plug.take_over
    monkeypatch.setattr(Plug, "take_over", lambda *given: versions.append(plug.version) or take_over(*given))
    for change in (plug.disable, plug.enable, plug.delete):
        before = plug.version
        change("e1")
        assert versions[-1] is not before
        assert versions[-1] is plug.version
    with plug.paused():
        pass
    assert plug.version is versions[-1]


def test_an_edit_whose_asking_fails_is_kept_and_told(plug, monkeypatch):
    def fail(_edits):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(plug, "unlearned", fail)
    with pytest.warns(UserWarning, match="whether they were learned could not be asked: no room"):
        edit = plug.edit(TAUGHT, "Marrow", "Ada Quill")
    assert edit.id in plug.edits


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


def test_two_plugs_on_two_models_do_not_touch_each_other(model, tokenizer, saved):
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    plain = logits(model, tokenizer, BORN, FOUNDED)
    with memplug.load(saved, one, tokenizer) as first, memplug.load(saved, two, tokenizer) as second:
        both = logits(one, tokenizer, BORN, FOUNDED)
        second.delete("e1", "e2")
        assert torch.equal(logits(two, tokenizer, BORN, FOUNDED), plain)
        assert torch.equal(logits(one, tokenizer, BORN, FOUNDED), both)
        first.detach()
        second.edit(TAUGHT, "Marrow", "Ada Quill")
        assert text_of(tokenizer, answers(two, tokenizer, TAUGHT)[0]) == "Marrow"
        assert torch.equal(logits(one, tokenizer, BORN, FOUNDED), plain)


def test_two_plugs_used_from_two_threads(model, tokenizer, saved):
    models = [copy.deepcopy(model) for _ in range(2)]
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


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["llp", "elder", "lora"])
def test_edits_where_the_caller_works_without_gradients(model, tokenizer, method, without):
    quick = {
        "llp": METHODS["llp"] | {"value_steps": 2, "stop_loss": 1e3},
        "elder": METHODS["elder"] | {"steps": 2},
        "lora": {"epochs": 1, "keep_pool": 2},
    }
    model = copy.deepcopy(model)
    with without(), memplug.attach(model, tokenizer, method, **quick[method]) as plug:
        edit = plug.edit(BORN, "Zarnow", "Ada Quill")
        logits(model, tokenizer, BORN)
        plug.disable(edit)
        plug.enable(edit)
        plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company")
        assert len(plug.edits) == 2


def test_edits_from_several_threads_are_made_one_after_the_other(model, tokenizer):
    with attach_llp(copy.deepcopy(model), tokenizer, value_steps=1, stop_loss=1e3) as plug:
        names = [f"Ada Quill{i}" for i in range(6)]

        def learn(name):
            plug.edit(f"Where was {name} born?", "Zarnow", name)

        threads = [threading.Thread(target=learn, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(str(edit.subject) for edit in plug.edits.values()) == names
        assert set(plug.method.entries) == set(names)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_model_with_a_plug_is_not_copied(plug, copied):
    with pytest.raises(ValueError, match=r"cannot be copied or pickled; call plug.detach\(\) first"):
        copied(plug.model)
    plug.detach()
    assert copied(plug.model)
