"""Statistics and the metric of the weight editors, each against the plain way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypernet_tiny import asked_of, make_hosts

from memplug.interface import Host
from memplug.methods.hypernet.config import FitConfig
from memplug.methods.hypernet.editor import Editor
from memplug.methods.hypernet.features import capture
from memplug.methods.hypernet.metric import InputCovariance, PastInputs
from memplug.methods.hypernet.nets import EditNet, Normaliser
from memplug.weights.modules import find_sites


@pytest.fixture(scope="module")
def make_host(make_tokenizer: Callable[..., Any], make_llama: Callable[..., Any]) -> Callable[..., Host]:
    return make_hosts(make_tokenizer, make_llama)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [5, 1, 7], [20]])
def test_statistics_are_those_of_all_rows(sizes: list[int]) -> None:
    rows = np.random.default_rng(0).normal(3.0, [0.001] * 4 + [50.0] * 3, (sum(sizes), 7))
    normaliser = Normaliser(4, 3, floor=0.0)
    for part in np.split(rows, np.cumsum(sizes)[:-1]):
        normaliser.update(torch.tensor(part))
    np.testing.assert_allclose(normaliser.mean.numpy(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normaliser.std.numpy(), rows.std(0, ddof=1), rtol=1e-9)
    want = (rows - rows.mean(0)) / rows.std(0, ddof=1)
    np.testing.assert_allclose(normaliser(torch.tensor(rows)).numpy(), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rank", [6, 40])
def test_the_metric_is_the_second_moment_cut_to_its_principal_directions(rank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 12, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, 12)
    covariance = InputCovariance(12, protect=7.0, rank=rank).double()
    keys = torch.randn(3, 12, generator=draw, dtype=torch.float64)
    assert torch.equal(covariance(keys), keys)  # nothing is known yet
    covariance.study(inputs)
    second = inputs.T @ inputs / len(inputs)
    values, axes = torch.linalg.eigh(second / second.diagonal().mean())
    values[: 12 - min(rank, 12)] = 0
    metric = torch.eye(12, dtype=torch.float64) + 7.0 * axes @ torch.diag(values) @ axes.T
    torch.testing.assert_close(covariance(keys), keys @ torch.linalg.inv(metric))
    covariance.study(inputs[:2])  # fewer inputs than directions
    assert int((covariance.held > 0).sum()) == 2


@pytest.mark.parametrize("protect", [0.0, 7.0])
@pytest.mark.parametrize("sizes", [[2, 3], [3, 1, 9, 4]])  # fewer and more inputs than the module is wide
def test_inputs_of_earlier_edits_count_in_the_metric(sizes: list[int], protect: float) -> None:
    draw = torch.Generator().manual_seed(0)
    covariance = InputCovariance(12, protect, rank=5).double()
    covariance.study(torch.randn(50, 12, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, 12))
    keys = torch.randn(1, 3, 12, generator=draw, dtype=torch.float64)
    before = torch.linalg.inv(covariance(torch.eye(12, dtype=torch.float64)))
    past = PastInputs(0.25)
    assert torch.equal(covariance(keys, past), covariance(keys))  # no edit was made yet
    for size in sizes:
        rows = torch.randn(size, 12, generator=draw, dtype=torch.float64)
        past.add(rows)
        before = before + 0.25 * rows.T @ rows
        torch.testing.assert_close(covariance(keys, past), keys @ torch.linalg.inv(before))


@pytest.mark.parametrize("style", ["joint", "outer"])
def test_changes_keep_clear_of_the_usual_inputs(make_host: Callable[..., Host], style: str) -> None:
    host = make_host("llama")
    sites = find_sites(host.model, host.architecture, [("gate", 0.25, 0.5), ("down", 0.5, 1.0)])
    asked = asked_of(host)
    ordinary = capture(host, sites, asked_of(host, "all")[1:])
    moved: dict[float, float] = {}
    for protect in (0.0, 1e6):
        config = FitConfig(
            style=style,  # type: ignore[arg-type]
            protect=protect,
            protect_rank=4,
            inner_lr=1e-2,
            steps=1,
            enough=1.0,
        )
        editor = Editor(sites, config, gate=False).double()
        editor.observe(capture(host, sites, asked), 0)
        editor.study(ordinary.keys)
        made = editor.make(host, asked[:1])
        factors = made.factors(sites)
        parts = {part.site: part.factors() for part in made.parts(sites)}
        for name, (a, b) in factors.items():  # the ledger's change is the one that was judged
            kept = (parts[name][0] @ parts[name][1]).double()
            torch.testing.assert_close(kept, a @ b, rtol=1e-4, atol=1e-7)
        moved[protect] = sum(
            float(((x @ a @ b).norm() / (a @ b).norm()).detach())
            for (a, b), x in zip(factors.values(), ordinary.keys, strict=True)
        )
    assert moved[1e6] < 0.8 * moved[0.0]


def test_a_constant_feature_is_not_blown_up() -> None:
    normaliser = Normaliser(2, 2, floor=0.05)
    rows = torch.randn(50, 4)
    rows[:, 1] = 1.0
    normaliser.update(rows)
    assert float(normaliser(torch.tensor([[0.0, 1.01, 0.0, 0.0]]))[0, 1]) < 1.0
    before = {name: value.clone() for name, value in normaliser.state_dict().items()}
    normaliser(rows)
    assert all(torch.equal(before[name], value) for name, value in normaliser.state_dict().items())


def test_features_unlike_all_that_were_seen_are_scaled_down() -> None:
    """Each row by itself and each half by its size; rows that are usual stay as they are, to the bit."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 12, generator=draw)
    plain, limited = Normaliser(8, 4, floor=0.0), Normaliser(8, 4, floor=0.0, limit=5.0)
    plain.update(rows)
    limited.update(rows)
    assert torch.equal(limited(rows), plain(rows))
    odd = rows[:3].clone()
    odd[1, 8:] *= 1e4
    found, want = limited(odd), plain(odd)
    assert torch.equal(found[[0, 2]], want[[0, 2]])
    assert torch.equal(found[1, :8], want[1, :8])
    assert float(found[1, 8:].square().mean().sqrt()) == pytest.approx(5.0)
    torch.testing.assert_close(F.cosine_similarity(found[1, 8:], want[1, 8:], dim=0), torch.tensor(1.0))


def test_a_late_step_cannot_make_an_edit_that_is_not_learned_break_the_model() -> None:
    """Its statistics are of slopes of nearly learned edits; a thousand times those asks for no more than the
    largest that are usual."""
    draw = torch.Generator().manual_seed(0)
    keys, slopes = torch.randn(1, 40, 8, generator=draw), 1e-3 * torch.randn(1, 40, 4, generator=draw)
    sizes = {}
    for limit in (0.0, 5.0):
        net = EditNet(8, 4, 1, rank=2, n_blocks=1, inner_lr=0.1, ridge=1.0, floor=0.05, limit=limit, seed=0)
        net.normalise.update(torch.cat([keys[0], slopes[0]], dim=1))
        usual, odd = net(keys, slopes, "joint"), net(keys[:, :1], 1e3 * slopes[:, :1], "joint")
        sizes[limit] = float((odd.values.norm() / usual.values.norm(dim=-1).max()).detach())
    assert sizes[0.0] > 50
    assert sizes[5.0] < 5
