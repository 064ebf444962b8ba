"""Batched answers and teacher forcing against one row at a time, written out."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from memplug.edits import Probe
from memplug.evaluation.probing import answer, prefer, teacher_force
from memplug.text.tokens import Text

PROMPTS = [
    "Who leads Tilden?",
    "In which of the many old towns by the river was Mara Voss born?",
    "Mara Voss is",
]
TARGETS = ["Oren Fisk", "Tilden", "a maker of very small clocks"]
PROBES = [Probe(*pair) for pair in zip(PROMPTS, TARGETS, strict=True)]


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer([*PROMPTS, *TARGETS])


def _gpt2(vocab_size):
    """Absolute positions: padding shifts them if it is done wrong."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tokenizer, make_llama):
    return make_llama(len(tokenizer)) if request.param == "llama" else _gpt2(len(tokenizer))


@torch.no_grad()
def _greedy_ids(model, tokenizer, prompt, steps):
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return ids[start:]


def _greedy_by_hand(model, tokenizer, prompt, steps):
    return tokenizer.decode(_greedy_ids(model, tokenizer, prompt, steps), skip_special_tokens=True).strip()


def test_answers_are_greedy_whatever_the_batch(model, tokenizer):
    expected = [_greedy_by_hand(model, tokenizer, prompt, 8) for prompt in PROMPTS]
    for size in (1, 2, 3):
        assert answer(model, tokenizer, PROMPTS, batch_size=size, max_new_tokens=8) == expected
    assert answer(model, tokenizer, [*PROMPTS[::-1], PROMPTS[0]], max_new_tokens=8) == [
        *expected[::-1],
        expected[0],
    ]


def test_answer_stops_at_the_models_own_end_token(model, tokenizer):
    prompt = PROMPTS[0]
    free = _greedy_by_hand(model, tokenizer, prompt, 6)
    third = _greedy_ids(model, tokenizer, prompt, 3)[-1]
    assert third not in _greedy_ids(model, tokenizer, prompt, 2)
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(third)]})
    model.generation_config.eos_token_id = [2, third]
    assert answer(model, tokenizer, [prompt], max_new_tokens=6) == [
        _greedy_by_hand(model, tokenizer, prompt, 2)
    ]
    assert answer(model, tokenizer, [prompt], max_new_tokens=6) != [free]


def test_answer_sets_the_models_sampling_and_penalties_aside(model, tokenizer):
    expected = answer(model, tokenizer, PROMPTS, max_new_tokens=8)
    model.generation_config.update(
        do_sample=True,
        min_new_tokens=3,
        temperature=5.0,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        num_beams=3,
    )
    assert answer(model, tokenizer, PROMPTS, max_new_tokens=8) == expected
    assert model.generation_config.repetition_penalty == 9.0


def test_equal_prompts_are_run_once(model, tokenizer, monkeypatch):
    rows = []
    original = type(model).generate

    def counting(self, **kwargs):
        rows.append(len(kwargs["input_ids"]))
        return original(self, **kwargs)

    monkeypatch.setattr(type(model), "generate", counting)
    found = answer(model, tokenizer, [PROMPTS[0]] * 5 + [PROMPTS[1]], max_new_tokens=2, batch_size=4)
    assert rows == [2]
    assert len(set(found[:5])) == 1


def test_mode_and_padding_settings_are_left_as_they_were(model, tokenizer):
    model.train()
    tokenizer.padding_side = "right"
    expected = teacher_force(model, tokenizer, PROBES)
    answer(model, tokenizer, PROMPTS, max_new_tokens=2)
    assert model.training
    assert tokenizer.padding_side == "right"
    model.eval()
    assert teacher_force(model, tokenizer, PROBES) == expected  # dropout was off


@torch.no_grad()
def _forced_by_hand(model, tokenizer, probe):
    prompt = tokenizer(probe.prompt)["input_ids"]
    full = tokenizer(f"{probe.prompt} {probe.target}")["input_ids"]
    assert full[: len(prompt)] == prompt
    logits = model(torch.tensor([full])).logits[0].log_softmax(dim=-1)
    positions = range(len(prompt), len(full))
    return (
        tuple(full[len(prompt) :]),
        tuple(int(logits[i - 1].argmax()) for i in positions),
        [float(logits[i - 1, full[i]]) for i in positions],
        int(logits[-1].argmax()) == tokenizer.eos_token_id,
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_teacher_forcing_equals_one_row_at_a_time(model, tokenizer, size):
    for probe, found in zip(PROBES, teacher_force(model, tokenizer, PROBES, batch_size=size), strict=True):
        target, predicted, log_probs, stopped = _forced_by_hand(model, tokenizer, probe)
        assert found.target == target
        assert found.predicted == predicted
        assert found.log_probs == pytest.approx(log_probs, abs=1e-5)
        assert found.stopped is stopped
        assert found.rival_log_probs is None


def test_teacher_forcing_sees_the_stop(model, tokenizer):
    first = teacher_force(model, tokenizer, PROBES[:1])[0]
    assert not first.stopped
    probe = PROBES[0]
    full = tokenizer(f"{probe.prompt} {probe.target}")["input_ids"]
    after = int(model(torch.tensor([full])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = after
    assert teacher_force(model, tokenizer, PROBES[:1])[0].stopped


@torch.no_grad()
def test_rivals_are_scored_after_the_targets_own_beginning(model, tokenizer):
    rivals = ["Mara Voss and others", "Fisk", "a clock"]
    found = teacher_force(model, tokenizer, PROBES, rivals=rivals)
    for probe, rival, forced in zip(PROBES, rivals, found, strict=True):
        text = Text(model, tokenizer)
        ids, start, _ = text.pair(*probe)
        tail = ids[start:]
        other = text.pair(probe.prompt, rival)
        other = other.ids[other.start :]
        logits = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        common = min(len(tail), len(other))
        expected = [float(logits[start + i - 1, other[i]]) for i in range(common)]
        assert forced.rival_log_probs == pytest.approx(expected, abs=1e-5)


def test_prefer_compares_in_both_senses(model, tokenizer):
    true = ["Mara Voss and others", "Fisk", "a clock"]
    found = prefer(model, tokenizer, PROMPTS, TARGETS, true, batch_size=2)
    for i, preference in enumerate(found):
        new_scores = _forced_by_hand(model, tokenizer, PROBES[i])[2]
        true_scores = _forced_by_hand(model, tokenizer, Probe(PROMPTS[i], true[i]))[2]
        mean_new, mean_true = sum(new_scores) / len(new_scores), sum(true_scores) / len(true_scores)
        assert preference.sequence is (mean_new > mean_true)
        forced = teacher_force(model, tokenizer, [PROBES[i]], rivals=[true[i]])[0]
        wins = [a > b for a, b in zip(forced.log_probs, forced.rival_log_probs, strict=False)]
        assert preference.positionwise == pytest.approx(sum(wins) / len(wins))
    with pytest.raises(ValueError, match="3 prompts, 2 new"):
        prefer(model, tokenizer, PROMPTS, TARGETS[:2], true)


def test_a_broken_model_gives_no_probability(model, tokenizer):
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    found = teacher_force(model, tokenizer, PROBES)
    assert all(value == float("-inf") for forced in found for value in forced.log_probs)


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu(model, tokenizer):
    expected = answer(model, tokenizer, PROMPTS, max_new_tokens=8)
    forced = teacher_force(model, tokenizer, PROBES, rivals=TARGETS[::-1])
    model.to("cuda")
    assert answer(model, tokenizer, PROMPTS, max_new_tokens=8) == expected
    for here, there in zip(
        forced, teacher_force(model, tokenizer, PROBES, rivals=TARGETS[::-1]), strict=True
    ):
        assert here.predicted == there.predicted
        assert here.log_probs == pytest.approx(there.log_probs, abs=1e-3)
        assert here.rival_log_probs == pytest.approx(there.rival_log_probs, abs=1e-3)


def test_bad_input_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        answer(model, tokenizer, ["Who?", " "])
    with pytest.raises(ValueError, match="batch_size is 0"):
        answer(model, tokenizer, PROMPTS, batch_size=0)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        answer(model, tokenizer, PROMPTS, max_new_tokens=0)
    with pytest.raises(ValueError, match="leaves no room for 1000 more in the model's context"):
        answer(model, tokenizer, PROMPTS, max_new_tokens=1000)
    with pytest.raises(ValueError, match="the target of .'Who\\?', ''. is empty"):
        teacher_force(model, tokenizer, [Probe("Who?", "")])
    with pytest.raises(ValueError, match="1 rivals for 3 probes"):
        teacher_force(model, tokenizer, PROBES, rivals=["x"])
    assert answer(model, tokenizer, []) == []
    assert teacher_force(model, tokenizer, []) == []
