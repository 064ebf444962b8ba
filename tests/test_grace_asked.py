"""GRACE by what is asked: values against literal replacement and literal descent; nothing else is touched."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from chats import CHATML, chatting
from families import METHODS, TEXTS, lexical
from test_contract import Trace, answers, encode

import memplug
from memplug.hooks import Hook, HookSet

PROMPT, OTHER, FAR = "Where was Ada Quill born?", "Who taught Tam Wickes?", "Marrow is."


@pytest.fixture(scope="module")
def base(tokenizer):
    return lexical("llama", len(tokenizer))


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    tokenizer = make_tokenizer(TEXTS)
    tokenizer.padding_side = "left"
    return tokenizer


def attach(model, tokenizer, **config):
    given = METHODS["grace-asked"] | {"train_stop": False} | config
    return memplug.attach(copy.deepcopy(model), tokenizer, "grace", **given)


def logits(plug, tokenizer, *texts):
    with torch.no_grad():
        return plug.model(**encode(tokenizer, *texts)).logits


def test_the_value_is_said_at_the_tokens_that_answer(base, tokenizer):
    """Against a hook that puts it there: from the question's last token on, while the target is said."""
    text, module = f"{PROMPT} Zarnow is", "model.layers.2.mlp.down_proj"
    with attach(base, tokenizer, steps=3) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        room = plug.method._finder.room  # half the question, which is like all of it, is not to ask
        room.calibration = replace(room.calibration, relation=(0.95, 0.95))
        got = logits(plug, tokenizer, text)[0]
        (value,) = plug.method._values.values()
        pair = plug._text.pair(PROMPT, "Zarnow")

        def after(_m, _a, _k, output):
            output = output.clone()
            output[:, pair.start - 1 : len(pair.ids) - 1] = value
            return output

        with plug.paused(), HookSet([Hook(plug.model.get_submodule(module), "after", after)]):
            expected = logits(plug, tokenizer, text)[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_training_is_literal_descent(base, tokenizer):
    """On the prompt in plain text and in a chat, from what the MLP says at the end of the plain one."""
    talking = chatting(tokenizer, CHATML)
    with attach(base, talking, steps=4, stop_loss=0.0, lr=0.05) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        (got,) = plug.method._values.values()
        pairs = [plug._text.pair(prompt, "Zarnow") for prompt in plug._text.forms(PROMPT)]
    assert len(pairs) == 2
    model = copy.deepcopy(base).requires_grad_(False)
    module, seen = model.model.layers[2].mlp.down_proj, []
    with HookSet([Hook(module, "after", lambda _m, _a, _k, out: seen.append(out))]):
        for pair in pairs:
            model(input_ids=torch.tensor([pair.ids]))
    ends = torch.stack([out[0, pair.start - 1] for out, pair in zip(seen, pairs, strict=True)])
    begin, unit = ends[0], ends.square().mean(-1).sqrt().median()
    moved = torch.zeros_like(begin, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=0.05)
    for _ in range(4):
        loss = 0.0
        for pair in pairs:

            def after(_m, _a, _k, output, pair=pair):
                at = torch.arange(output.shape[1])[:, None] >= pair.start - 1
                return torch.where(at, begin + unit * moved, output)

            ids = torch.tensor([pair.ids])
            with HookSet([Hook(module, "after", after)]):
                out = model(input_ids=ids).logits[0, pair.start - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(out, ids[0, pair.start :]) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(got, (begin + unit * moved).detach(), atol=1e-4, rtol=1e-3)


def test_with_and_without_a_cache_in_company_and_in_chat(base, tokenizer):
    talking = chatting(tokenizer, CHATML)
    with attach(base, talking) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        texts = (PROMPT, "Who", OTHER)
        together = answers(plug.model, talking, *texts)
        assert talking.decode(together[0]).strip().startswith("Zarnow")
        assert answers(plug.model, talking, *texts, use_cache=False) == together
        for text, row in zip(texts, together, strict=True):
            assert answers(plug.model, talking, text) == [row]
        with plug.paused():
            assert answers(plug.model, talking, *texts)[1:] == together[1:]
        (said,) = plug._text.generate([plug._text.encode(plug._text.forms(PROMPT)[1])], 4)
        assert talking.decode(said).strip().startswith("Zarnow")


def test_nothing_asked_is_the_base_model_to_the_bit(base, tokenizer):
    trace = Trace(base)
    with attach(base, tokenizer, steps=2) as plug:
        with plug.paused():
            bare = logits(plug, tokenizer, FAR, OTHER)
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        with plug.paused():
            asked = logits(plug, tokenizer, PROMPT)
        assert torch.equal(logits(plug, tokenizer, FAR, OTHER), bare)
        edited = logits(plug, tokenizer, PROMPT)
        assert not torch.equal(edited, asked)
        plug.disable("e1")
        assert torch.equal(logits(plug, tokenizer, PROMPT), asked)
        plug.enable("e1")
        assert torch.equal(logits(plug, tokenizer, PROMPT), edited)
        plug.delete("e1")
        assert torch.equal(logits(plug, tokenizer, PROMPT), asked)
        assert not plug.method._values
    trace.check(base)


def test_saved_and_loaded_to_the_bit(base, tokenizer, tmp_path):
    with attach(base, tokenizer, steps=3) as plug:
        plug.edit([memplug.Edit(PROMPT, "Zarnow"), memplug.Edit(OTHER, "Marrow")])
        plug.disable("e2")
        plug.save(tmp_path)
        expected, told = logits(plug, tokenizer, PROMPT, OTHER), str(plug.explain(PROMPT))
        with memplug.load(tmp_path, copy.deepcopy(base), tokenizer) as loaded:
            assert torch.equal(logits(loaded, tokenizer, PROMPT, OTHER), expected)
            assert str(loaded.explain(PROMPT)) == told
            for one in (plug, loaded):
                one.enable("e2")
            again = [logits(one, tokenizer, PROMPT, OTHER) for one in (plug, loaded)]
            assert torch.equal(*again)


def test_scores_are_shown(base, tokenizer):
    with attach(base, tokenizer, steps=1) as plug:
        assert "no edit is in force" in str(plug.explain(PROMPT))
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        found = plug.explain(PROMPT)
        assert found.recalled.edits[0].id == "e1"
        assert "asked for: likeness 1.000, to be exceeded: " in str(found)
        assert plug.explain(FAR).recalled is None
        with pytest.raises(ValueError, match="the prompt is empty"):
            plug.explain("")


def test_a_failure_changes_nothing(base, tokenizer):
    with attach(base, tokenizer, steps=2) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        before, trace = logits(plug, tokenizer, PROMPT), Trace(plug.model)
        with torch.no_grad():
            head = plug.model.lm_head.weight.clone()
            plug.model.lm_head.weight.fill_(torch.nan)
        with pytest.raises(memplug.EditError, match="loss that is not finite.*lower lr"):
            plug.edit(OTHER, "Marrow", "Tam Wickes")
        with torch.no_grad():
            plug.model.lm_head.weight.copy_(head)
        assert list(plug.method._finder.entries) == ["Ada Quill"]
        assert torch.equal(logits(plug, tokenizer, PROMPT), before)
        trace.check(plug.model)
