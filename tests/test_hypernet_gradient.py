"""The gradient that reaches the networks, against plain differentiation, and what editors are judged by."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypernet_tiny import CASES, asked_of, make_hosts, random_editor
from torch.func import functional_call

from memplug.edits import Case, Edit
from memplug.interface import Host
from memplug.methods.hiedit import HiEditConfig
from memplug.methods.hypernet.config import FitConfig
from memplug.methods.hypernet.editor import Editor
from memplug.methods.hypernet.features import capture
from memplug.methods.hypernet.samples import draw_batches, sample_of, weighted
from memplug.methods.hypernet.trajectory import Trajectory
from memplug.methods.inweights.rows import flat_rows
from memplug.model.architecture import evaluating, frozen
from memplug.weights.originals import OriginalWeights


@pytest.fixture(scope="module")
def make_host(make_tokenizer: Callable[..., Any], make_llama: Callable[..., Any]) -> Callable[..., Host]:
    return make_hosts(make_tokenizer, make_llama)


# ---------------------------------------------------------------- gradients


def _direct_loss(
    host: Host, editor: Editor, made: Any, judged: Any, config: FitConfig, inputs: Any = None
) -> torch.Tensor:
    """The outer loss by whole matrices, whole forwards and autograd: no factors, no leaves, no caches.
    ``inputs``: by module, those of earlier edits."""
    weights, norm = {}, torch.zeros((), dtype=torch.float64)
    for index, site in enumerate(editor.sites):
        eye = torch.eye(site.d_k, dtype=torch.float64)
        metric = torch.linalg.inv(editor.usual[index](eye))  # type: ignore[operator]
        if inputs is not None:
            metric = metric + config.remember / config.steps * inputs[index].T @ inputs[index]
        total = torch.zeros(site.d_k, site.d_v, dtype=torch.float64)
        for step in made.steps:
            keys, values = step[index].keys[0], step[index].values[0]
            if step[index].log_ridge is None:
                total = total + keys.T @ values
            else:
                system = keys.T @ keys + step[index].log_ridge.exp() * metric
                total = total + torch.linalg.solve(system, keys.T @ values)
        total = total if made.choice is None else made.choice.mask[index] * total
        weights[f"{site.name}.weight"] = site.weight.detach() + site.stored(total)
        norm = norm + total.square().sum()
    loss = config.norm_weight * norm
    for item, weight in judged:
        for pair, kept in ((item.asked, False), (item.kept, True)):
            ids = torch.tensor([pair.ids[:-1]])
            logp = functional_call(host.model, weights, (ids,)).logits[0].log_softmax(-1)
            at = flat_rows([pair], ids.shape[1], ids.device)
            if kept:
                base = host.model(ids).logits[0].log_softmax(-1).detach()[at.flat]
                rows = F.kl_div(logp[at.flat], base, reduction="none", log_target=True).sum(-1)
                loss = loss + weight * config.locality_weight * (rows / at.size).sum()
            else:
                loss = loss + weight * F.nll_loss(logp[at.flat], at.target)
    return loss


@pytest.mark.parametrize("style", ["joint", "outer"])
@pytest.mark.parametrize("tokens", ["answer", "all"])
@pytest.mark.parametrize(
    ("family", "gate", "steps"), [("llama", False, 2), ("gpt2", False, 1), ("llama", True, 1)]
)
def test_the_gradient_at_the_networks_is_the_exact_one(
    make_host: Callable[..., Host], family: str, style: Any, tokens: Any, gate: bool, steps: int
) -> None:
    config = HiEditConfig(
        rank=3, n_blocks=2, hidden=5, style=style, tokens=tokens, steps=steps, norm_weight=0.1,
        back_depth=3, inner_lr=0.02, micro_batch=3,
        ranges=(("gate", 0.25, 0.75), ("down", 0.5, 1.0)),
    )  # fmt: skip
    host = make_host(family)
    editor = random_editor(host, config, gate=gate)
    rng = random.Random(0)
    samples = [sample_of(host, case, config, (), rng) for case in CASES]
    with evaluating(host.model), frozen(host.model):
        asked = [sample.edit[0] for sample in samples]
        editor.observe(capture(host, editor.sites, asked), 0)
        if steps > 1:
            editor.observe(capture(host, editor.sites, asked[::-1]), 1)
        editor.study([rows[:9] for rows in capture(host, editor.sites, asked_of(host, "all")).keys])
        run = Trajectory(host, editor, samples, rng)
        run.history = [samples[:2]]
        inputs = capture(host, editor.sites, asked_of(host)[:2]).keys
        for past, rows in zip(run.past or (), inputs, strict=True):
            past.add(rows)
        before = deepcopy(run.past)
        statistics = {n: b.clone() for n, b in editor.named_buffers()}
        done = run.step(samples[2:])
        ours = {n: p.grad.clone() for n, p in editor.named_parameters() if p.grad is not None}
        editor.zero_grad()
        observed = {n: b.clone() for n, b in editor.named_buffers()}
        assert any(not torch.equal(observed[n], statistics[n]) for n in observed)
        made = editor.make(host, asked[2:], train=True, past=before)
        loss = _direct_loss(host, editor, made, weighted(run.history, config, rng), config, inputs)
        loss.backward()
    assert done.losses.total(config) == pytest.approx(float(loss.detach()), rel=1e-8)
    theirs = {n: p.grad for n, p in editor.named_parameters() if p.grad is not None}
    used = {n for n in theirs if not (style == "outer" and "log_ridge" in n)}
    assert set(ours) >= used
    assert len(used) > 8
    for name in used:
        assert float(theirs[name].abs().max()) > 0, name
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-9, msg=name)


def test_unrelated_answers_may_be_held_to_those_before_the_step(make_host: Callable[..., Host]) -> None:
    """The first step's divergence is that from the base model; the second's is from what the first left."""
    config = FitConfig(
        rank=3, inner_lr=0.02, norm_weight=0.1, locality="previous", back_depth=3, remember=0.0, steps=1,
        ranges=(("down", 0.0, 1.0),),
    )  # fmt: skip
    host = make_host("llama")
    editor, rng = random_editor(host, config), random.Random(0)
    samples = [sample_of(host, case, config, (), rng) for case in CASES]
    with evaluating(host.model), frozen(host.model):
        editor.observe(capture(host, editor.sites, [s.edit[0] for s in samples]), 0)
        run = Trajectory(host, editor, samples, rng)
        run.commit(run.step(samples[:2]))
        editor.zero_grad()
        done = run.step(samples[2:])
        ours = {n: p.grad.clone() for n, p in editor.named_parameters() if p.grad is not None}
        editor.zero_grad()
        originals = OriginalWeights({site.name: site for site in editor.sites})
        originals.write(run.total)
        made = editor.make(host, [s.edit[0] for s in samples[2:]], train=True)
        loss = _direct_loss(host, editor, made, weighted(run.history, config, rng), config)
        loss.backward()
        originals.restore()
    assert done.losses.kept > 1e-4
    assert done.losses.total(config) == pytest.approx(float(loss.detach()), rel=1e-8)
    for name, parameter in editor.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_linear_and_conv1d_are_edited_alike(make_host: Callable[..., Host]) -> None:
    """The same map, stored the other way round, is changed to the same map."""
    host = make_host("gpt2")
    config = FitConfig(rank=3, inner_lr=0.05, modules=("transformer.h.1.mlp.c_fc",))
    editor = random_editor(host, config)
    asked = asked_of(host)
    with evaluating(host.model), frozen(host.model):
        conv = editor.make(host, asked, observe=True).factors(editor.sites)["transformer.h.1.mlp.c_fc"]
        old = host.model.transformer.h[1].mlp.c_fc
        linear = torch.nn.Linear(*old.weight.shape).double()
        with torch.no_grad():
            linear.weight.copy_(old.weight.T)
            linear.bias.copy_(old.bias)
        host.model.transformer.h[1].mlp.c_fc = linear
        again = random_editor(host, config)
        assert again.sites[0].flipped
        assert not editor.sites[0].flipped
        other = again.make(host, asked, observe=True).factors(again.sites)["transformer.h.1.mlp.c_fc"]
    torch.testing.assert_close(conv[0] @ conv[1], other[0] @ other[1], rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- samples


def test_targets_are_traded_between_cases_that_ask_the_same() -> None:
    pool = {case.edit.target for case in CASES}
    other = Case(Edit("Who rules Ankaria?", "a king", "Ankaria"))
    seen = set()
    for seed in range(20):
        batches = draw_batches([*CASES, other], 5, 2, random.Random(seed))
        flat = [case for batch in batches for case in batch]
        assert len(flat) == 5
        assert [len(batch) for batch in batches] == [2, 2, 1]
        for case in flat:
            assert case.edit.target in (pool if case.edit.prompt != other.edit.prompt else {"a king"})
            seen.add((case.edit.subject, case.edit.target))
    assert len(seen) > len(CASES) + 3


def test_drawn_history_stands_for_the_whole() -> None:
    history: Any = [[f"{b}.{i}" for i in range(5)] for b in range(4)]
    whole = FitConfig(back_depth=4, back_decay=0.5, back_samples=1 << 20)
    exact = dict(weighted(history, whole, random.Random(0)))
    assert sum(exact.values()) == pytest.approx(1.0)
    assert exact["1.4"] / exact["3.0"] == pytest.approx(0.25)
    part = FitConfig(back_depth=4, back_decay=0.5, back_samples=6)
    mean: dict[str, float] = {}
    rng = random.Random(0)
    for _ in range(3000):
        drawn = weighted(history, part, rng)
        assert 5 < len(drawn) <= 5 + 6
        assert len({item for item, _ in drawn}) == len(drawn)  # none is run twice
        assert sum(weight for _, weight in drawn) == pytest.approx(1.0)
        for item, weight in drawn:
            mean[str(item)] = mean.get(str(item), 0.0) + weight / 3000
    assert all(mean[name] == pytest.approx(value, rel=0.25) for name, value in exact.items())
