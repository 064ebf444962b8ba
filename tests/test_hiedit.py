"""The gate: which modules it chooses, and that the choice is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import memplug
from memplug.edits import Case, Edit, Probe
from memplug.methods.hiedit import HiEditConfig
from memplug.methods.hypernet.features import Features
from memplug.methods.hypernet.module_selector import Gate
from memplug.methods.hypernet.trajectory import Trajectory
from memplug.weights.modules import LinearModule

CASES = [
    Case(Edit(f"The capital of {n} is", t, n), (f"What town rules {n}?",), (Probe("The river is", "long"),))
    for n, t in [("Ankaria", "Bel"), ("Borland", "Castle"), ("Curia", "Dor"), ("Dagmar", "Efra")]
]


def _sites(count: int = 4) -> list[LinearModule]:
    return [LinearModule(f"m{i}", torch.nn.Linear(4, 3 + i % 2), i, 4, 3 + i % 2, True) for i in range(count)]


def _features(sites: list[LinearModule], owner: list[int], seed: int = 0) -> Features:
    draw = torch.Generator().manual_seed(seed)
    keys = tuple(torch.randn(len(owner), s.d_k, generator=draw) for s in sites)
    gradients = tuple(torch.randn(len(owner), s.d_v, generator=draw) for s in sites)
    return Features(keys, gradients, torch.tensor(owner), torch.ones(len(set(owner))))


def test_the_k_best_are_chosen_and_all_scores_get_the_slope() -> None:
    sites = _sites()
    gate = Gate(sites, HiEditConfig(n_selected=0.5, hidden=6))
    features = _features(sites, [0, 0, 1])
    gate.observe(features)
    choice = gate(features)
    assert choice.mask.sum() == 2
    assert set((choice.mask > 0.5).nonzero()[:, 0].tolist()) == set(choice.scores.topk(2).indices.tolist())
    slope = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (choice.mask * slope).sum().backward()
    torch.testing.assert_close(gate.head.bias.grad, slope)


def test_requests_weigh_the_same_however_many_tokens_they_have() -> None:
    sites = _sites()
    gate = Gate(sites, HiEditConfig(hidden=6))
    features = _features(sites, [0, 0, 0, 1])
    gate.observe(features)
    alone = []
    for i in (0, 1):
        mine = features.owner == i
        keys, gradients = (tuple(x[mine] for x in kind) for kind in features[:2])
        alone.append(gate.scores(Features(keys, gradients, features.owner[mine], torch.ones(1))))
    torch.testing.assert_close(gate.scores(features), (alone[0] + alone[1]) / 2)


@pytest.fixture
def make_plug(
    make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> Callable[..., memplug.Plug]:
    def make(**config: Any) -> memplug.Plug:
        tokenizer = make_tokenizer([c.edit.prompt for c in CASES], 300)
        model = make_llama(len(tokenizer), hidden_size=16, intermediate_size=24, initializer_range=0.3)
        tiny: dict[str, Any] = {
            "ranges": (("gate", 0.0, 1.0),),
            "rank": 4,
            "hidden": 8,
            "fit_steps": 6,
            "fit_batch": 2,
            "trajectory": (2, 3),
            "batch_size": 1,
        }
        return memplug.attach(model, tokenizer, "hiedit", **(tiny | config))

    return make


def test_the_gate_is_trained_at_every_step(
    make_plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = make_plug()
    grads = []
    step = Trajectory.step

    def watch(self: Any, *args: Any) -> Any:
        done = step(self, *args)
        grads.append(self.editor.gate.head.bias.grad.clone())
        return done

    monkeypatch.setattr(Trajectory, "step", watch)
    report = plug.fit(CASES, progress=False)
    assert len(grads) == 6
    # The gradient reaches the modules that were chosen and those that were not.
    assert all(bool((grad != 0).all()) for grad in grads)
    assert sum(report.chosen.values()) == 6 * 2
    assert list(report.chosen) == [site.name for site in plug.method.sites]


def test_only_chosen_modules_are_changed_and_explain_tells_which(make_plug: Callable[..., Any]) -> None:
    plug = make_plug(n_selected=0.5)
    plug.fit(CASES, progress=False)
    before = {site.name: site.weight.detach().clone() for site in plug.method.sites}
    plug.edit(CASES[0].edit)
    changed = {n for n, site in plug.method.ledger.sites.items() if not torch.equal(site.weight, before[n])}
    told = plug.explain(CASES[0].edit.prompt).edits[0]
    assert len(changed) == 2
    assert changed == set(told.chosen) == {one.module for one in told.touched}
    assert set(told.scores) == set(before)
    assert min(told.scores[n] for n in told.chosen) >= max(told.scores[n] for n in set(before) - changed)
