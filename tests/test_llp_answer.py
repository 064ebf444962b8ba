"""LLP as it edits by default, on tiny models: promises to users beyond the contract's."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from chats import BRACKETS, CHATML, chatting
from families import TEXTS, attach_llp, lexical
from plug_facts import BORN, FOUNDED, TAUGHT, assert_same, logits, state_of
from test_contract import Trace, answers, encode
from transformers import DynamicCache

import memplug
from memplug.text.chat import Message, in_chat

FIRST = "Ada Quill was born in"
SHORT = {"value_steps": 40, "n_others": 1, "n_fronts": 1}


def told(plug, *texts):
    """What follows each text, alone, and that company and a cache make no difference."""
    alone = [answers(plug.model, plug.tokenizer, text)[0] for text in texts]
    assert answers(plug.model, plug.tokenizer, *texts) == alone
    assert answers(plug.model, plug.tokenizer, *texts, use_cache=False) == alone
    return [plug.tokenizer.decode(row, skip_special_tokens=True).strip() for row in alone]


def attach(model, tokenizer, **given):
    return attach_llp(copy.deepcopy(model), tokenizer, "answer", **(SHORT | given))


@pytest.fixture(scope="module")
def plugged(model, tokenizer):
    """Two edits of one subject and one of another, made together."""
    with attach(model, tokenizer) as plug:
        plug.edit(
            [
                memplug.Edit(BORN, "Zarnow", "Ada Quill"),
                memplug.Edit(TAUGHT, "Marrow", "Ada Quill"),
                memplug.Edit(FOUNDED, "Tam", "Orlo Bridge Company"),
            ],
            progress=False,
        )
        yield plug


def test_each_prompt_has_its_own_answer(plugged):
    assert len(plugged.method.entries) == 2
    assert told(plugged, BORN, TAUGHT, FOUNDED) == ["Zarnow", "Marrow", "Tam"]
    for prompt, ids in ((BORN, {"e1"}), (TAUGHT, {"e2"}), (FOUNDED, {"e3"})):
        assert {edit.id for edit in plugged.explain(prompt).recalled.edits} == ids


def test_what_names_nobody_has_the_base_models_logits(plugged, tokenizer):
    texts = ("What is the capital of Vestland?", "Who", "Tam Wickes did.")
    edited = logits(plugged.model, tokenizer, *texts)
    with plugged.paused():
        assert torch.equal(logits(plugged.model, tokenizer, *texts), edited)


def test_before_a_subject_is_named_a_row_is_the_base_models(plugged, tokenizer):
    """One prefix widens the attention of all tokens, so the last bits may differ; what is seen does not."""
    text = f"Who taught Tam? {BORN}"
    ids = encode(tokenizer, text)
    named = len(encode(tokenizer, "Who taught Tam? Where was")["input_ids"][0])
    with torch.no_grad():
        edited = plugged.model(**ids).logits
        with plugged.paused():
            base = plugged.model(**ids).logits
    torch.testing.assert_close(edited[:, :named], base[:, :named], atol=2e-5, rtol=1e-4)
    assert float((edited[:, -1] - base[:, -1]).abs().max()) > 0.1


def test_switching_and_deleting_one_of_a_subjects_edits(model, tokenizer):
    with attach(model, tokenizer) as plug:
        base = logits(plug.model, tokenizer, BORN, TAUGHT)
        first = plug.edit(BORN, "Zarnow", "Ada Quill")
        alone = logits(plug.model, tokenizer, BORN)
        second = plug.edit(TAUGHT, "Marrow", "Ada Quill")
        plug.disable(second)
        assert torch.equal(logits(plug.model, tokenizer, BORN), alone)
        plug.enable(second)
        plug.delete(second)
        assert torch.equal(logits(plug.model, tokenizer, BORN), alone)
        plug.delete(first)
        assert torch.equal(logits(plug.model, tokenizer, BORN, TAUGHT), base)
        assert not plug.method.active
        assert len(plug.method.memory) == 0


def test_an_edit_made_again_replaces_the_first(model, tokenizer):
    with attach(model, tokenizer) as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        plug.edit(BORN, "Marrow", "Ada Quill")
        assert len(plug.edits) == 1
        assert told(plug, BORN) == ["Marrow"]


def test_saved_and_loaded_to_the_bit(plugged, model, tokenizer, tmp_path):
    texts = (BORN, FOUNDED, "Who")
    want = logits(plugged.model, tokenizer, *texts)
    plugged.save(tmp_path / "facts")
    with memplug.load(tmp_path / "facts", copy.deepcopy(model), tokenizer) as plug:
        assert torch.equal(logits(plug.model, tokenizer, *texts), want)
        assert str(plug.explain(BORN)) == str(plugged.explain(BORN))
        for name, tensor in plugged.method.state().tensors.items():
            assert torch.equal(tensor, plug.method.state().tensors[name]), name
        assert plug.method.state().meta["closes"] == plugged.method.state().meta["closes"]
        plug.edit("Who is Tam Wickes?", "Vestland", "Tam Wickes")  # its calibration came along
        assert torch.equal(logits(plug.model, tokenizer, *texts), want)


def test_damaged_saves_are_named(plugged, model, tokenizer):
    tensors, meta = plugged.method.state()
    edits = plugged.edits
    with attach(model, tokenizer) as plug:
        before = state_of(plug)
        without = {name: t for name, t in tensors.items() if not name.startswith("question.")}
        cut = tensors | {"question.e1.vectors": tensors["question.e1.vectors"][:, :-1]}
        blind = {name: t for name, t in tensors.items() if not name.startswith("calibration.")}
        said = {"question.e1.chat' is missing": without, "question.e1.vectors is": cut, "is missing": blind}
        for what, wrong in said.items():
            with pytest.raises(ValueError, match=what):
                plug.method.restore(wrong, meta, edits)
        torn = tensors | {"calibration.mean": tensors["calibration.mean"][:-1]}
        with pytest.raises(ValueError, match="the saved calibration is damaged"):
            plug.method.restore(torn, meta, edits)
        with pytest.raises(ValueError, match="an edit that ends a word is not in the list"):
            plug.method.restore(tensors, meta | {"closes": ["e9"]}, edits)
        short = tensors | {"value.0.0": tensors["value.0.0"][:-1]}
        with pytest.raises(ValueError, match="value.0.0 is torch.float16 of shape"):
            plug.method.restore(short, meta, edits)
        assert_same(before, state_of(plug))


class Failure(Exception):
    """Raised on purpose."""


@pytest.mark.parametrize(
    "where",
    [
        "retrieval.room.calibrated",
        "methods.llp.learning.lessons_of",
        "methods.llp.learning.Learner._read",
        "methods.llp.method.teach",
        "methods.llp.method.warn_unlearned",
    ],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_a_failure_changes_nothing(model, tokenizer, monkeypatch, where, fresh):
    with attach(model, tokenizer, value_steps=1, stop_loss=1e3) as plug:
        if not fresh:
            plug.edit(FOUNDED, "Tam", "Orlo Bridge Company")
        before, trace = state_of(plug), Trace(plug.model)
        bits = logits(plug.model, tokenizer, BORN, FOUNDED)

        def failing(*_args, **_given):
            raise Failure

        monkeypatch.setattr(f"memplug.{where}", failing)
        if where == "retrieval.room.calibrated" and not fresh:
            return  # it is done once
        with pytest.raises(Failure):
            plug.edit(BORN, "Zarnow", "Ada Quill")
        assert_same(before, state_of(plug))
        trace.check(plug.model)
        assert torch.equal(logits(plug.model, tokenizer, BORN, FOUNDED), bits)
        monkeypatch.undo()
        plug.edit(BORN, "Zarnow", "Ada Quill")


def test_a_failure_while_keys_are_stored_changes_nothing(model, tokenizer, monkeypatch):
    with attach(model, tokenizer, value_steps=1, stop_loss=1e3) as plug:
        before = state_of(plug)
        add, count = plug.method.memory.add, [0]

        def failing(number, key, **given):
            count[0] += 1
            if count[0] == 2:
                raise Failure
            add(number, key, **given)

        monkeypatch.setattr(plug.method.memory, "add", failing)
        with pytest.raises(Failure):
            plug.edit([memplug.Edit(BORN, "Ada", "Ada Quill"), memplug.Edit(FOUNDED, "Ada", "Orlo Bridge")])
        assert_same(before, state_of(plug))


def test_warnings_as_errors_change_nothing(model, tokenizer):
    with attach(model, tokenizer, value_steps=0) as plug, warnings.catch_warnings():
        warnings.simplefilter("error")
        before = state_of(plug)
        with pytest.raises(UserWarning, match="1 of 1 were not learned well"):
            plug.edit(BORN, "Zarnow", "Ada Quill")
        assert_same(before, state_of(plug))


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_a_subject_at_the_beginning_of_a_text(make_tokenizer, family, add_bos):
    tokenizer = make_tokenizer(TEXTS, add_bos=add_bos)
    tokenizer.padding_side = "left"
    with attach(lexical(family, len(tokenizer)), tokenizer) as plug:
        plug.edit(FIRST, "Zarnow", "Ada Quill")
        assert told(plug, FIRST, "Who taught Ada")[0] == "Zarnow"
        behind = f"Tam Wickes did. {FIRST}"
        assert plug.explain(behind).recalled.subject == "Ada Quill"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(tokenizer, dtype):
    with attach(lexical("llama", len(tokenizer)).to(dtype), tokenizer) as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        alone = answers(plug.model, tokenizer, BORN)[0]
        assert tokenizer.decode(alone, skip_special_tokens=True).strip() == "Zarnow"
        text = "What is the capital of Vestland?"
        edited = logits(plug.model, tokenizer, text)
        with plug.paused():
            assert torch.equal(logits(plug.model, tokenizer, text), edited)


def test_a_tokenizer_without_offsets(make_tokenizer, tokenizer):
    class Slow:
        """The same without the fast tokenizer's offsets."""

        is_fast = False

        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def __call__(self, *args, **given):
            assert not given.pop("return_offsets_mapping", False)
            return self._inner(*args, **given)

        def __len__(self):
            return len(self._inner)

    with attach(lexical("llama", len(tokenizer)), Slow(tokenizer)) as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        row = answers(plug.model, tokenizer, BORN)[0]
        assert tokenizer.decode(row, skip_special_tokens=True).strip() == "Zarnow"


def test_two_plugs_on_two_models(model, tokenizer):
    with attach(model, tokenizer) as one, attach(model, tokenizer) as two:
        base = logits(two.model, tokenizer, BORN)
        one.edit(BORN, "Zarnow", "Ada Quill")
        assert torch.equal(logits(two.model, tokenizer, BORN), base)
        end = encode(tokenizer, " Zarnow")["input_ids"][:, 1:]
        with torch.no_grad():  # what another plug's listener held does not count
            cache = one.model(**encode(tokenizer, BORN), use_cache=True).past_key_values
            got = two.model(end, past_key_values=copy.deepcopy(cache)).logits
            with two.paused():
                assert torch.equal(two.model(end, past_key_values=copy.deepcopy(cache)).logits, got)


CHATS = [
    in_chat(BORN),
    in_chat(BORN, "Be brief."),
    (Message("user", "Who?"), Message("assistant", "Tam."), Message("user", BORN)),
]


@pytest.mark.parametrize("template", [CHATML, BRACKETS], ids=["chatml", "brackets"])
def test_in_a_chat_the_answer_is_spoken_where_the_turn_begins(model, tokenizer, template):
    talking = chatting(tokenizer, template)
    with attach(model, talking, value_steps=80, products="model") as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        for prompt in CHATS if template is CHATML else (CHATS[0], CHATS[2]):
            ids = plug._text.encode(prompt)
            assert plug.explain(prompt).recalled.subject == "Ada Quill"
            if prompt is CHATS[0]:
                assert plug._text.decode(plug._text.generate([ids], 4)[0]) == "Zarnow"
            # Token by token as in one forward.
            cache = DynamicCache(config=plug.model.config)
            with torch.no_grad():
                whole = plug.model(torch.tensor([ids])).logits[0, -1]
                for token in ids:
                    last = plug.model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
            torch.testing.assert_close(last, whole, atol=1e-4, rtol=1e-3)


def test_nothing_of_a_plug_is_left_on_a_model(model, tokenizer):
    bare = copy.deepcopy(model)
    trace = Trace(bare)
    plug = attach_llp(bare, tokenizer, "answer", value_steps=1, stop_loss=1e3)
    plug.edit(BORN, "Zarnow", "Ada Quill")
    answers(bare, tokenizer, BORN, num_beams=2)
    plug.detach()
    trace.check(bare)


def test_explanations(plugged, tokenizer):
    told = plugged.explain(BORN)
    assert told.recalled.subject == "Ada Quill"
    assert told.recalled.votes == 2 >= told.quorum
    assert told.reason == "Ada Quill is named (2 votes, 1 needed) and asked for"
    ids = tokenizer(BORN)["input_ids"]
    assert told.tokens == tuple(tokenizer.decode([i]) for i in ids)
    assert told.recalled.heat.shape == (2, len(ids))
    assert bool(told.recalled.heat[:, 0].isnan().all())  # nothing is matched against the BOS
    for vote in told.recalled.layers:
        assert vote.voted is (vote.similarity > told.threshold)
        assert "".join(told.tokens[: vote.position + 1]).endswith("Ada Quill")
    assert told.runner_up.subject == "Orlo Bridge Company"
    short = plugged.explain("Who")  # shorter than any subject
    assert short.recalled is None
    assert short.reason.startswith("nothing is recalled; the closest subject, ")
    assert {(vote.position, vote.token, vote.voted) for vote in short.runner_up.layers} == {(-1, "", False)}
    assert str(told).splitlines()[1] == "  recalled: Ada Quill (2 votes of 2)"


def test_explanations_where_a_subject_is_not_asked_about(plugged, monkeypatch):
    calibration = plugged.method._room.calibration
    strict = type(calibration)(**{**vars(calibration), "relation": (2.0, 2.0)})
    monkeypatch.setattr(plugged.method._room, "calibration", strict)
    told = plugged.explain(BORN)
    assert told.recalled is None
    assert told.reason.startswith(
        "nothing is recalled; Ada Quill is named, but its edits are not asked for (likeness "
    )
    plugged.disable(*plugged.edits)
    try:
        assert plugged.explain(BORN).reason == "no edit is in force"
    finally:
        plugged.enable(*plugged.edits)
