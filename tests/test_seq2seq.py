"""Encoder-decoders: what the encoder reads is the prompt, what the decoder says is edited."""

from __future__ import annotations

import copy

import pytest
import torch
from seq2seq_tiny import CASES, FACTS, FAMILIES, answers, build, encode, logits, tokenizer
from test_contract import Trace
from transformers import WhisperConfig, WhisperForConditionalGeneration

import memplug
from benchmarks.stressing import Asked, Stress, changes
from memplug.edits import Edit
from memplug.interface import Fits
from memplug.methods import METHODS, SEQ2SEQ
from memplug.methods.answers import read_answers
from memplug.methods.hypernet.features import requests
from memplug.methods.unlearned import unlearned
from memplug.model.hooks import capture_input, resume
from memplug.retrieval.samples import sample_texts, text_rows
from memplug.text.tokens import Text, TokenizerError

PROMPT, TARGET, SUBJECT = FACTS[0].prompt, "Tarn", FACTS[0].subject
TEXTS = [PROMPT, FACTS[9].other, FACTS[17].prompt]
_FITTED = {"rank": 4, "fit_steps": 2, "fit_batch": 2, "trajectory": (1, 2), "steps": 5, "inner_lr": 0.02}
QUICK = {
    "finetune": {"steps": 60, "lr": 0.2, "bound": None, "max_change": 1e3, "guard_every": 0},
    "lora": {"lr": 0.02, "epochs": 60},
    "ultraedit": {"statistics": "stream", "protect": 0.0, "guard_every": 0, "max_change": 1e3},
    **dict.fromkeys(("malmen", "rledit", "hiedit", "smedit"), _FITTED),
    "mend": _FITTED | {"inner_lr": 0.1},
    "grace": {"scope": "radius", "steps": 200, "stop_loss": 0.1, "train_stop": True, "epsilon": 0.03},
}


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tok):
    """A random model; what changes it takes a copy."""
    return build(request.param, len(tok))


def host_of(model, tok):
    """What methods are handed."""
    with memplug.attach(model, tok, "lora") as plug:
        return plug._host


# ---------------------------------------------------------------------- rows


def test_a_row_is_what_the_decoder_says_and_its_source_what_the_encoder_reads(made, tok):
    text = Text(made, tok)
    pair = text.pair(PROMPT, TARGET, stop=True)
    begin = made.generation_config.decoder_start_token_id
    assert pair.ids == [begin, *tok(text_target=TARGET)["input_ids"]]
    assert pair.start == 1
    assert list(pair.source) == tok(PROMPT)["input_ids"]
    assert pair.source[-1] == tok.eos_token_id  # which ends what is read
    assert text.pair(PROMPT, TARGET).ids == pair.ids[:-1]
    assert text.row(text.encode(PROMPT)) == pair.prompt
    with pytest.raises(TokenizerError, match="tokenizes to nothing"):
        text.pair(PROMPT, " ")
    assert (
        requests(text, Edit(PROMPT, TARGET, SUBJECT), [PROMPT], "both")[0].at
        == [0, 1, 2][: len(pair.ids) - 2]
    )


def test_what_a_tokenizer_puts_in_front_of_labels_is_said_and_what_is_forced_as_well(tok):
    model = build("bart", len(tok))
    fronted = tokenizer("<s>")
    plain = Text(model, tok).pair(PROMPT, TARGET)
    begin = model.generation_config.decoder_start_token_id
    assert Text(model, fronted).pair(PROMPT, TARGET).ids == [begin, 1, *plain.ids[1:]]
    model.generation_config.forced_bos_token_id = 1
    assert Text(model, tok).pair(PROMPT, TARGET).ids == [begin, 1, *plain.ids[1:]]
    assert Text(model, fronted).pair(PROMPT, TARGET).ids == [begin, 1, *plain.ids[1:]]


def test_a_model_that_names_no_first_token_is_told_what_to_set(tok):
    model = build("t5", len(tok))
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(TokenizerError, match=r"set model\.generation_config\.decoder_start_token_id"):
        memplug.attach(model, tok, "finetune")


def test_losses_are_the_models_own_and_a_row_alone_is_as_in_the_batch(made, tok):
    model = copy.deepcopy(made).double()
    host = host_of(model, tok)
    pairs = [host.text.pair(fact.prompt, fact.answer, stop=True) for fact in FACTS[:5]]
    every = torch.arange(len(pairs))
    for layer in range(4):
        found = read_answers(host, layer, pairs).losses(every)
        for pair, loss in zip(pairs, found, strict=True):
            labels = torch.tensor([pair.ids[1:]])
            with torch.no_grad():
                own = model(input_ids=torch.tensor([pair.source]), labels=labels).loss
            assert float(loss) == pytest.approx(float(own), abs=1e-6)


def test_a_forward_goes_on_from_every_layer(made, tok):
    model = copy.deepcopy(made).double()
    host = host_of(model, tok)
    batch = host.text.batch([host.text.pair(fact.prompt, fact.answer) for fact in FACTS[:4]])
    with torch.no_grad():
        whole = host.forward(model, batch).logits
        alone = model(**encode(tok, FACTS[1].prompt), decoder_input_ids=batch.ids[1:2]).logits[0]
        assert torch.allclose(whole[1], alone, atol=1e-12)
        for layer in range(4):

            def run():
                return host.forward(host.architecture.decoder, batch)

            hidden = capture_input(host.architecture, layer, run)
            flat = torch.arange(batch.ids.numel())
            found = resume(model, host.architecture, layer, hidden, lambda: host.forward(model, batch), flat)
            assert torch.allclose(found.view_as(whole), whole, atol=1e-12)


def test_ordinary_text_is_what_the_model_says_to_neutral_questions(made, tok):
    text = Text(made, tok)
    asked = sample_texts(text, 6, 24, 20, 1)
    rows = text_rows(text, asked, 1)
    assert asked == sample_texts(text, 6, 24, 20, 1)
    assert rows == text_rows(text, asked, 1)
    assert [list(row.source) for row in rows] == [text.encode(one) for one in asked]
    assert all(row.start == 1 and row.ids[0] == text.begins[0] for row in rows)


def test_prompts_are_asked_whatever_lies_beside_them(made, tok):
    text = Text(made, tok)
    rows = [text.encode(one) for one in (PROMPT, "Who?")]
    both = text.generate(rows, 5)
    assert both == [text.generate([row], 5)[0] for row in rows]
    out = made.generate(**encode(tok, PROMPT), max_new_tokens=5, do_sample=False)[0].tolist()
    assert out[1 : len(both[0]) + 1] == both[0]


# ---------------------------------------------------------------------- the contract


@pytest.mark.parametrize(
    ("family", "method"),
    [("t5", method) for method in QUICK] + [("bart", m) for m in ("finetune", "lora", "rledit", "grace")],
)
def test_an_edit_from_attach_to_detach(family, method, tok, tmp_path):
    made = build(family, len(tok))
    trace, base = Trace(made), logits(made, tok, *TEXTS)
    base_answers = answers(made, tok, *TEXTS)
    plug = memplug.attach(made, tok, method, **QUICK[method])
    if isinstance(plug.method, Fits):
        plug.fit(CASES[1:7], progress=False)
    assert torch.equal(logits(made, tok, *TEXTS), base)
    edit = plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
    edited = logits(made, tok, *TEXTS)
    together = answers(made, tok, *TEXTS)
    assert not torch.equal(edited[0], base[0])
    assert together[0] != base_answers[0]
    if method == "grace":
        assert together[1:] == base_answers[1:]
    for text, said in zip(TEXTS, together, strict=True):
        assert answers(made, tok, text) == [said]
    assert answers(made, tok, *TEXTS, use_cache=False) == together
    assert answers(made, tok, *TEXTS, num_beams=2) == answers(made, tok, *TEXTS, num_beams=2, use_cache=False)
    assert edit.id in str(plug.edits) or TARGET in str(plug.edits)
    assert PROMPT in str(plug.explain(PROMPT))

    plug.save(tmp_path)
    plug.detach()
    trace.check(made)
    with memplug.load(tmp_path, made, tok) as plug:
        assert torch.equal(logits(made, tok, *TEXTS), edited)
        plug.disable(edit.id)
        assert torch.equal(logits(made, tok, *TEXTS), base)
        plug.enable(edit.id)
        assert torch.equal(logits(made, tok, *TEXTS), edited)
        for left in (plug.paused, plug.base):
            with left():
                assert torch.equal(logits(made, tok, *TEXTS), base)
        plug.delete(edit.id)
        assert torch.equal(logits(made, tok, *TEXTS), base)
    trace.check(made)
    assert torch.equal(logits(made, tok, *TEXTS), base)


@pytest.mark.parametrize("method", ["finetune", "lora", "rledit"])
def test_a_merged_model_is_an_ordinary_one(method, tok):
    model = build("t5", len(tok))
    plug = memplug.attach(model, tok, method, **QUICK[method])
    if isinstance(plug.method, Fits):
        plug.fit(CASES[1:7], progress=False)
    plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
    edited = logits(model, tok, *TEXTS)
    assert plug.merge() is model
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.allclose(logits(model, tok, *TEXTS), edited, atol=1e-4)


def test_an_adapter_is_its_dense_products(made, tok):
    model = copy.deepcopy(made).double()
    with memplug.attach(model, tok, "lora", **QUICK["lora"]) as plug:
        plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
        edited, changes_ = logits(model, tok, *TEXTS), plug.method.adapter.changes()
    assert all(name.startswith(plug.layers) for name in changes_)
    for name, change in changes_.items():
        model.get_submodule(name).weight.data += change.T.double()
    assert torch.allclose(logits(model, tok, *TEXTS), edited, atol=1e-6)


def test_labels_and_a_first_piece_of_the_answer_are_read_as_the_same_text(made, tok):
    given = encode(tok, *TEXTS)
    begin = made.generation_config.decoder_start_token_id
    labels = torch.tensor([[7, 9, 11]] * 3)
    said = torch.cat([torch.full((3, 1), begin), labels], 1)
    for method in ("lora", "grace"):
        with memplug.attach(made, tok, method, **QUICK[method]) as plug, torch.no_grad():
            plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
            whole = made(**given, decoder_input_ids=said, use_cache=False).logits
            assert torch.allclose(made(**given, labels=labels).logits, whole[:, :3], atol=1e-4)
            first = made(**given, decoder_input_ids=said[:, :2], use_cache=True)
            kept = {"encoder_outputs": (first.encoder_last_hidden_state,)}
            kept |= {"attention_mask": given["attention_mask"], "past_key_values": first.past_key_values}
            rest = made(**kept, decoder_input_ids=said[:, 2:]).logits
            assert torch.allclose(torch.cat([first.logits, rest], 1), whole, atol=1e-4)


@pytest.mark.parametrize("method", ["finetune", "lora", "grace"])
def test_a_cache_that_was_filled_without_the_edit_is_filled_again(made, method, tok):
    given, begin = encode(tok, *TEXTS), made.generation_config.decoder_start_token_id
    said = torch.tensor([[begin, 7, 9]]).expand(3, -1)
    with memplug.attach(made, tok, method, **QUICK[method]) as plug, torch.no_grad():
        first = made(**given, decoder_input_ids=said[:, :2], use_cache=True)
        plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
        kept = {"encoder_outputs": (first.encoder_last_hidden_state,)}
        kept |= {"attention_mask": given["attention_mask"], "past_key_values": first.past_key_values}
        rest = made(**kept, decoder_input_ids=said[:, 2:]).logits
        assert torch.allclose(rest[:, 0], made(**given, decoder_input_ids=said).logits[:, 2], atol=1e-5)


@pytest.mark.parametrize("method", ["finetune", "lora", "grace"])
def test_threads_see_one_state_each_and_leave_nothing(method, tok):
    facts = [Edit(fact.prompt, "Tarn", fact.subject) for fact in FACTS[:2]]
    asked = [Asked("forward", (fact.prompt,)) for fact in FACTS[1:3]]
    asked += [Asked("generate", (PROMPT, FACTS[9].prompt)), Asked("explain", (PROMPT,))]
    quick = {
        "finetune": {"steps": 5, "keep": 0},
        "lora": {"epochs": 2, "keep_pool": 4},
        "grace": {"steps": 60},
    }

    def attach(model, tok):
        return memplug.attach(model, tok, method, **QUICK[method] | quick[method])

    made = changes(len(facts), 7, seed=1)
    outcome = Stress(build("t5", len(tok)), tok, attach, facts, asked, made).run(threads=4, calls=40)
    assert outcome.errors == []
    assert outcome.wrong == 0
    assert outcome.learned
    assert outcome.clean


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("method", [*METHODS, "llp:paper", "icl", "memit:rome"])
def test_other_methods_say_which_ones_work(method, tok):
    name, _, preset = method.partition(":")
    model = build("t5", len(tok))
    if name in SEQ2SEQ:
        memplug.attach(model, tok, name).detach()
        return
    match = rf"is an encoder-decoder, and '{name}' looks .* choose finetune, .*or grace with preset"
    with pytest.raises(memplug.UnsupportedModelError, match=match):
        memplug.attach(model, tok, name, preset=preset or "default")
    assert not hasattr(model, "_memplug_plug")


def test_encoders_of_sound_are_refused(tok):
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
    sizes |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = WhisperConfig(vocab_size=len(tok), **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with pytest.raises(memplug.UnsupportedModelError, match=r"its encoder \(WhisperEncoder\) reads no text"):
        memplug.attach(WhisperForConditionalGeneration(config).eval(), tok, "finetune")


def test_modules_of_the_encoder_are_not_edited(tok):
    model = build("t5", len(tok))
    with pytest.raises(ValueError, match="no linear module of a decoder layer"):
        memplug.attach(model, tok, "finetune", modules=("encoder.block.0.layer.1.DenseReluDense.wo",))


def test_a_model_inside_peft_is_edited(tok):
    import peft

    adapted = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q", "v"])
    model = peft.get_peft_model(build("t5", len(tok)), adapted).eval()
    base = logits(model, tok, *TEXTS)
    with memplug.attach(model, tok, "finetune", **QUICK["finetune"]) as plug:
        edit = plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
        assert answers(model, tok, PROMPT)[0].startswith(TARGET)
        assert not unlearned(plug._host, [edit])
    assert torch.equal(logits(model, tok, *TEXTS), base)
