"""Bad input: what was given, what is allowed, what to do next; and nothing has changed."""

from __future__ import annotations

import copy

import pytest
import torch
from families import TEXTS, attach_llp, build, lexical
from test_contract import Trace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2Model,
    MambaConfig,
    MambaForCausalLM,
)

import memplug
from memplug.methods.llp import LLPConfig
from memplug.text.tokens import TokenizerError

BORN = "Where was Ada Quill born?"


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def base(tokenizer):
    return lexical("llama", len(tokenizer))


@pytest.fixture(scope="module")
def plug(base, tokenizer):
    with attach_llp(copy.deepcopy(base), tokenizer, value_steps=2, value_lr=1e-3, stop_loss=1e3) as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        yield plug


@pytest.fixture
def unchanged(plug):
    """The plug; afterwards it is checked to be as it was."""
    before, trace = repr(plug.edits), Trace(plug.model)
    yield plug
    assert repr(plug.edits) == before
    trace.check(plug.model)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (("", "Zarnow"), "prompt is empty"),
        (("  ", "Zarnow"), "prompt is empty"),
        ((BORN, ""), "target is empty"),
        ((BORN, "\n"), "target is empty"),
        ((BORN, "Zarnow", ""), "subject is empty"),
        ((BORN, 3), "target must be a string, got int: 3"),
        ((BORN, "Zarnow", 3), "subject must be a string, got int"),
        ((BORN, None), "no target for 'Where was Ada Quill born.'; call edit"),
        ((BORN, "Zarnow", "Ada Quil l"), "'Ada Quil l' is not in the prompt.* copy it"),
        (("who is it?", "Zarnow"), "no subject found in 'who is it.'.*subject=..."),
        (([],), "the list of edits is empty"),
        (([memplug.Edit(BORN, "x", "Ada")], "Zarnow"), "target and subject belong to a single prompt"),
        (([{"role": "user", "content": BORN}],), r"no target for \[{'role': 'user'.*call edit"),
        (([{"role": "user", "content": BORN}], "Zarnow", "Tam"), "'Tam' is not in the prompt .chat. user"),
        ((["Where?"],), "expected an Edit or a Case, got str: 'Where.'; give Edit"),
        (({"prompt": BORN, "target": "Zarnow"},), "expected an Edit or a Case, got str: 'prompt'"),
        ((BORN, "Zar\ud83d"), "target is no text .*mend its encoding"),
        ((7,), "cannot edit 7; give a prompt"),
        (([memplug.Edit(p, "x", "Ada", id="a") for p in ("Ada?", "Ada!")],), "id 'a' is used twice"),
    ],
)  # fmt: skip
def test_edits(unchanged, edit, match):
    with pytest.raises(memplug.EditError, match=match):
        unchanged.edit(*edit)


def test_a_target_without_tokens(base, make_tokenizer):
    tokenizer = make_tokenizer(TEXTS)
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("☃", "")
    with attach_llp(copy.deepcopy(base), tokenizer) as plug:
        with pytest.raises(TokenizerError, match="target '☃' tokenizes to nothing"):
            plug.edit(BORN, "☃", "Ada Quill")
        with pytest.raises(TokenizerError, match="'☃' in .* leaves no token of its own; name a subject"):
            plug.edit("Where is ☃ born?", "Zarnow", "☃")
        assert not plug.edits


def test_a_prompt_longer_than_the_context(unchanged):
    with pytest.raises(
        TokenizerError, match="tokens long, the model's context holds 128; shorten the prompt"
    ):
        unchanged.edit("Where was Ada Quill born? " * 40 + "Where?", "Zarnow", "Ada Quill")


def test_texts_with_more_characters_than_a_context_has_room_for_are_not_tokenised(unchanged, monkeypatch):
    """Making tokens of ten million characters took half a minute, to say the same."""
    kind = type(unchanged.tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__call__", lambda *_, **__: pytest.fail("tokens were made"))
        for edit in ((BORN, "Zarnow " * 100_000, "Ada Quill"), (BORN * 10_000, "Zarnow", "Ada Quill")):
            with pytest.raises(TokenizerError, match="characters, more than the 2048 that are taken for"):
                unchanged.edit(*edit)
        with pytest.raises(TokenizerError, match="characters, more than the 2048"):
            unchanged.explain(BORN * 1_000_000)


@pytest.mark.parametrize("method", ["llp", "ultraedit"])
def test_a_prompt_that_just_fits_the_context(method, tokenizer):
    """What the library itself asks beside it must not run out of positions."""
    model = build("gpt2", vocab_size=len(tokenizer))
    quick = {"llp": {"value_steps": 1, "stop_loss": 1e3}, "ultraedit": {}}[method]
    prompt = BORN
    while len(tokenizer(prompt)["input_ids"]) < 115:
        prompt += " Marrow."
    with memplug.attach(model, tokenizer, method, **quick) as plug:
        plug.edit(prompt, "Zarnow", "Ada Quill")
        plug.explain(prompt)


@pytest.mark.parametrize("action", ["delete", "disable", "enable"])
def test_unknown_ids(unchanged, action):
    for id, match in (
        ("e11", "no edit has the id 'e11'; did you mean 'e1'"),
        ("qq", r"no edit has the id .qq.; there are 1 edits \(e1\)"),
    ):
        with pytest.raises(memplug.UnknownEditError, match=match):
            getattr(unchanged, action)(id)
    for id in (1, -1, None):
        with pytest.raises(memplug.UnknownEditError, match=f"no edit has the id '{id}'"):
            getattr(unchanged, action)(id)
    with pytest.raises(
        memplug.UnknownEditError, match="'e1' is the edit of 'Where was Ada.*not of 'Who is Ada"
    ):
        getattr(unchanged, action)(memplug.Edit("Who is Ada?", "Zarnow", "Ada", id="e1"))
    with pytest.raises(memplug.EditError, match="no edit was named"):
        getattr(unchanged, action)()
    with pytest.raises(memplug.UnknownEditError, match="no edit has the id .?None"):
        getattr(unchanged, action)(memplug.Edit(BORN, "Zarnow", "Ada Quill"))


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        (" ", "the prompt is empty"),
        (None, "the prompt must be a string or a list of messages, got NoneType"),
        ([{"role": "user", "content": BORN}], "no chat template; give a plain prompt, or set"),
        ([{"role": "assistant", "content": BORN}], "no user turn, only assistant"),
        ([], "the prompt has no messages"),
        (BORN * 40, "tokens long, the model's context holds 128; shorten the prompt"),
    ],
)
def test_prompts_that_cannot_be_explained(unchanged, prompt, match):
    with pytest.raises(ValueError, match=match):
        unchanged.explain(prompt)


def test_a_tokenizer_that_does_not_fit(base, make_tokenizer):
    model = copy.deepcopy(base)
    trace = Trace(model)
    larger = make_tokenizer(TEXTS)
    larger.add_tokens([f"<extra{i}>" for i in range(50)])
    rows = base.get_input_embeddings().weight.shape[0]
    with pytest.raises(TokenizerError, match=f"{len(larger)} tokens, the model only {rows}.*resize_token"):
        memplug.attach(model, larger)
    trace.check(model)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"recall_layer": 4}, "recall_layer is 4, but the model has layers 0 to 3"),
        ({"recall_layer": -1}, "recall_layer is -1, but the model has layers 0 to 3"),
        ({"think_layers": (7,)}, "a think layer is 7|think layer 7"),
        ({"think_layers": (0, 2), "recall_layer": 2}, "think layer 2 is not below the recall layer 2"),
        ({"think_layers": ()}, "at least one"),
        ({"think_layers": (0, 0)}, "each layer once"),
        ({"think_layer": (0,)}, "no field 'think_layer'.*think_layers"),
        ({"n_values": 0}, "n_values is 0; choose a whole number from 1 to 64"),
        ({"threshold": 1.5}, "threshold is 1.5; choose a value from 0.0 to 1.0"),
        ({"order": "random"}, r"order is 'random'; choose one of \('similarity', 'paper'\)"),
        ({"preset": "papper"}, "no preset 'papper'.*paper"),
        ({"method": "lpp"}, "no method 'lpp'; did you mean 'llp'"),
        ({"method": 3}, "method is a int; give one of"),
        ({"method": LLPConfig(), "n_values": 1}, "a config object comes with its constants"),
        ({"layers": "model.nowhere"}, "no list of layers at 'model.nowhere'; the model has .*model.layers"),
        ({"n_values": "three"}, "n_values is 'three'; choose a whole number"),
        ({"n_values": 2.5}, "n_values is 2.5; choose a whole number"),
        ({"value_lr": None}, "value_lr is None; choose a value"),
        ({"think_layers": 3}, "think_layers is 3; give several"),
    ],
)  # fmt: skip
def test_constants(base, tokenizer, config, match):
    model = copy.deepcopy(base)
    trace = Trace(model)
    with pytest.raises(ValueError, match=match):
        memplug.attach(model, tokenizer, **config)
    trace.check(model)


def test_a_second_attach(unchanged, tokenizer):
    with pytest.raises(ValueError, match="has a plug already; call detach"):
        memplug.attach(unchanged.model, tokenizer)


def test_a_detached_plug(base, tokenizer, tmp_path):
    plug = attach_llp(copy.deepcopy(base), tokenizer)
    plug.detach()
    plug.detach()  # twice is fine
    actions = (
        lambda: plug.edit(BORN, "Zarnow", "Ada Quill"),
        lambda: plug.delete("e1"),
        lambda: plug.explain(BORN),
        lambda: plug.save(tmp_path / "facts"),
    )
    for action in actions:
        with pytest.raises(ValueError, match="this plug was detached; attach a new one"):
            action()
    assert "detached" in repr(plug)
    attach_llp(plug.model, tokenizer).detach()


def small(config, kind):
    with torch.random.fork_rng(devices=[]):
        return kind(config).eval()


def test_encoders_are_refused(tokenizer):
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    with pytest.raises(memplug.UnsupportedModelError, match="BertForMaskedLM cannot generate.*AutoModelFor"):
        memplug.attach(small(config, BertForMaskedLM), tokenizer)


def test_models_without_a_head_are_refused(tokenizer):
    config = GPT2Config(vocab_size=400, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    with pytest.raises(memplug.UnsupportedModelError, match="GPT2Model cannot generate.*language-model head"):
        memplug.attach(small(config, GPT2Model), tokenizer)


def test_state_space_models_are_refused(tokenizer):
    config = MambaConfig(vocab_size=400, hidden_size=32, state_size=8, num_hidden_layers=3)
    with pytest.raises(
        memplug.UnsupportedModelError, match="no cache of keys and values.*a method that needs none"
    ):
        memplug.attach(small(config, MambaForCausalLM), tokenizer)


@pytest.mark.parametrize("family", ["jamba", "bamba"])
def test_hybrids_are_refused(tokenizer, family):
    extra = {
        "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "num_experts": 2,  # noqa: E501
                  "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
        "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1,
                  "mamba_d_state": 8},
    }[family]  # fmt: skip
    config = AutoConfig.for_model(
        family, vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, **extra,
    )  # fmt: skip
    model = small(config, AutoModelForCausalLM.from_config)
    trace = Trace(model)
    with pytest.raises(memplug.UnsupportedModelError, match="attention"):
        attach_llp(model, tokenizer)
    trace.check(model)


def test_other_attention_is_refused(tokenizer):
    model = build("llama", vocab_size=400)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(memplug.UnsupportedModelError, match="has 'flex_attention'.*set_attn_implementation"):
        attach_llp(model, tokenizer)
    model.config._attn_implementation = "sdpa"
    attach_llp(model, tokenizer).detach()


def test_a_module_that_is_no_language_model(tokenizer):
    with pytest.raises(memplug.UnsupportedModelError, match="Linear has no config"):
        memplug.attach(torch.nn.Linear(2, 2), tokenizer)
