"""Training: the published procedure step by step, batches, seeds, and the loss that parts keys."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from families import TEXTS, attach_llp, lexical

import memplug
from memplug.methods.llp import LLPConfig
from memplug.model.hooks import Hook, HookSet, capture_input, skipping_below
from memplug.retrieval.keys import contrast

BORN, TARGET, SUBJECT = "Where was Ada Quill born?", "Zarnow Marrow", "Ada Quill"
EDITS = [
    memplug.Edit(BORN, "Zarnow", SUBJECT),
    memplug.Edit("Who founded the Orlo Bridge Company?", "Tam Wickes", "Orlo Bridge Company"),
    memplug.Edit("What is the capital of Vestland?", "Marrow", "Vestland"),
]


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def base(tokenizer):
    return lexical("llama", len(tokenizer)).requires_grad_(False)


def literal_logits(model, architecture, z, ids, value):
    """The value stands in front of the tokens at the input of layer z, as published."""
    hidden = capture_input(architecture, z, lambda: model(input_ids=ids))
    joined = torch.cat([value[None], hidden], dim=1)

    def replace(_m, args, kwargs):
        bound = architecture.bind(args, kwargs)
        del bound[next(iter(bound))]
        return (joined,), bound

    dummy = torch.zeros(1, joined.shape[1], dtype=torch.long)
    with skipping_below(architecture, z), HookSet([Hook(architecture.layers[z], "before", replace)]):
        return model(input_ids=dummy, use_cache=False).logits[0, len(value) :]


@pytest.mark.parametrize("steps", [1, 6, 200])
def test_the_paper_preset_is_the_published_procedure(base, tokenizer, steps):
    """Adam at 5e-2 on prompts behind 3 sampled texts, the norm's penalty over its own alias, and a test
    of the total loss after the update (200 steps: it stops by that test, at what a random model reaches)."""
    model = copy.deepcopy(base)
    config = LLPConfig.preset(
        "paper", think_layers=(0, 1), recall_layer=2, value_steps=steps,
        value_lr=5e-1 if steps == 200 else 5e-2,
        norm_penalty=0.02 if steps == 200 else 0.5,
        stop_loss=7.0 if steps == 200 else 0.05,
    )  # fmt: skip
    with memplug.attach(model, tokenizer, config) as plug, pytest.MonkeyPatch.context() as patch:
        patch.setattr("memplug.methods.llp.published.warn_unlearned", lambda *_: None)
        plug.edit(BORN, TARGET, SUBJECT)
        architecture, prefixes = plug.method._host.architecture, plug.method._contexts()
        got = plug.method.entries[SUBJECT].values[("e1",)]
    assert len(prefixes) == 3

    whole = torch.tensor([tokenizer(f"{BORN} {TARGET}")["input_ids"]])
    with torch.no_grad():
        value = model(input_ids=whole, output_hidden_states=True).hidden_states[2][0, -1:].clone()
    value.requires_grad_(True)
    optimizer = torch.optim.Adam([value], lr=config.value_lr)
    taken = 0
    while taken < steps:
        taken += 1
        losses = []
        for prefix in prefixes:
            ids = torch.tensor([tokenizer(f"{prefix} {BORN} {TARGET}".strip())["input_ids"]])
            begin = len(tokenizer(f"{prefix} {BORN}".strip())["input_ids"])
            logits = literal_logits(model, architecture, 2, ids, value)
            losses.append(F.cross_entropy(logits[begin - 1 : -1], ids[0, begin:]))
        loss = torch.stack(losses).mean() + config.norm_penalty * value.norm() / value.detach().norm() ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < config.stop_loss:
            break
    assert (taken < steps) is (steps == 200)
    torch.testing.assert_close(got, value.detach(), atol=2e-3 if steps == 200 else 2e-4, rtol=1e-3)


def values_of(plug):
    return {subject: next(iter(entry.values.values())) for subject, entry in plug.method.entries.items()}


def test_a_batch_is_each_edit_alone(base, tokenizer):
    given = {"value_steps": 15, "n_prefixes": 2, "prefix_tokens": 4, "value_lr": 0.05, "key_steps": 0}
    alone = {}
    for edit in EDITS:
        with attach_llp(copy.deepcopy(base), tokenizer, **given) as plug:
            plug.edit([edit], progress=False)
            alone |= values_of(plug)
    with attach_llp(copy.deepcopy(base), tokenizer, **given) as plug:
        plug.edit(EDITS, progress=False)
        together = values_of(plug)
    assert together.keys() == alone.keys()
    for subject, value in together.items():
        torch.testing.assert_close(value, alone[subject], atol=2e-3, rtol=1e-3)


def test_training_is_deterministic_and_leaves_the_global_generator_alone(base, tokenizer):
    given = {"value_steps": 4, "n_prefixes": 2, "prefix_tokens": 6}
    results = []
    for seed, torch_seed in ((0, 1), (0, 2), (7, 2)):
        torch.manual_seed(torch_seed)
        before = torch.random.get_rng_state()
        with attach_llp(copy.deepcopy(base), tokenizer, seed=seed, **given) as plug:
            plug.edit(EDITS[:2], progress=False)
            results.append((plug.method._contexts(), values_of(plug)))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert results[0][0] == results[1][0] != results[2][0]
    for subject, value in results[0][1].items():
        assert torch.equal(value, results[1][1][subject])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_in_half_precision(base, tokenizer, dtype):
    with attach_llp(copy.deepcopy(base).to(dtype), tokenizer) as plug:
        plug.edit(BORN, "Zarnow", SUBJECT)
        ids = tokenizer(BORN, return_tensors="pt")["input_ids"]
        out = plug.model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.decode(out, skip_special_tokens=True).strip() == "Zarnow"
        assert values_of(plug)[SUBJECT].dtype == torch.float32


def keys_and_states(seed):
    generator = torch.Generator().manual_seed(seed)
    states = F.normalize(torch.randn(3, 2, 1, 8, generator=generator), dim=-1)
    others = [F.normalize(torch.randn(2, 1, 8, generator=generator), dim=-1) for _ in range(5)]
    return states, others


@pytest.mark.parametrize("seed", range(3))
def test_keys_follow_the_contrastive_formula(seed):
    """-log(P / (P + N)): P the mean over contexts, N over other keys, of exp(cos / tau); layer by layer."""
    config = LLPConfig(key_steps=3, key_lr=0.05, temperature=0.2)
    states, others = keys_and_states(seed)
    got = contrast(states, others, config)
    for layer in range(2):
        key = states[:, layer, 0].mean(0).clone().requires_grad_(True)
        optimizer = torch.optim.Adam([key], lr=0.05)
        for _ in range(3):
            positive = torch.stack(
                [(F.cosine_similarity(key, s[layer, 0], dim=0) / 0.2).exp() for s in states]
            )
            negative = torch.stack(
                [(F.cosine_similarity(key, o[layer, 0], dim=0) / 0.2).exp() for o in others]
            )
            loss = -(positive.mean() / (positive.mean() + negative.mean())).log()
            if loss < 0.05:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(got[layer, 0], key.detach(), atol=1e-5, rtol=1e-4)


def test_keys_that_need_nothing_are_the_mean_of_their_contexts():
    states, _ = keys_and_states(0)
    far = [-states[0]]
    assert torch.equal(contrast(states[:1], far, LLPConfig()), states[0])
    assert torch.equal(contrast(states, [], LLPConfig()), states.mean(0))
    assert torch.equal(contrast(states, [], LLPConfig(mean_key=False)), states[-1])
