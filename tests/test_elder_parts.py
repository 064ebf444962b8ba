"""ELDER's parts: experts against naive loops, Adam against torch's, codes, deferral, calibration."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from memplug.methods.elder.active import Active, Adam
from memplug.methods.elder.allocation import draw, draw_spread, hot, pack
from memplug.methods.elder.calibration import Closeness, _choose
from memplug.methods.elder.config import ELDERConfig
from memplug.methods.elder.deferral import Deferral, hamming
from memplug.methods.elder.experts import Experts, Routing, mix_rows, parameter_count
from memplug.methods.elder.places import Place

CPU = torch.device("cpu")


def places(count: int, p: int, o: int, device: str = "cpu") -> list[Place]:
    return [Place(i, "linear", nn.Linear(p, o, device=device), p, o) for i in range(count)]


def experts(n: int = 5, k: int = 2, rank: int = 3, count: int = 2) -> Experts:
    made = Experts(places(count, 6, 4), 7, n, k, rank, "input", seed=1)
    draw_ = torch.Generator().manual_seed(2)
    for up in made.up:
        up.copy_(torch.randn(up.shape, generator=draw_))
    return made


@pytest.mark.parametrize(
    ("p", "o", "expected"),
    [(11008, 4096, 3_164_184), (1600, 6400, 1_574_424)],  # LLaMA2-7B's down_proj, GPT2-XL's c_fc
)
def test_parameters_are_as_many_as_the_formula_says(p, o, expected):
    made = Experts(places(6, p, o, "meta"), p, 4, 2, 8, "published", seed=0)
    assert made.count == expected == parameter_count([(p, o)] * 6, p, 4, 8)


def test_routing_takes_the_scores_of_the_best_as_they_are():
    made, query = experts(), torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    picks, weights = made.route(query)
    for i in range(2):
        scores = (query @ made.gates[i].T + made.bias[i]).softmax(-1)
        for row in range(3):
            chosen = sorted(scores[row].argsort(descending=True)[:2].tolist())
            assert picks[i, row].tolist() == chosen
            torch.testing.assert_close(weights[i, row], scores[row, chosen])
    assert float(weights.sum(-1).max()) < 1  # not renormalised


def test_ties_go_to_the_lower_expert():
    made = experts()
    made.gates.zero_()
    made.bias.zero_()
    assert made.route(torch.ones(1, 7)).picks.tolist() == [[[0, 1]], [[0, 1]]]


def test_two_products_are_the_sum_over_experts():
    made, draw_ = experts(), torch.Generator().manual_seed(3)
    x, query = torch.randn(3, 4, 6, generator=draw_), torch.randn(3, 7, generator=draw_)
    routing = made.route(query)
    for i in range(2):
        naive = torch.zeros(3, 4, 4)
        for row in range(3):
            for expert, weight in zip(routing.picks[i, row], routing.weights[i, row], strict=True):
                naive[row] += weight * (x[row] @ made.down[i][expert].T @ made.up[i][expert])
        assert naive.abs().max() > 0.1
        weights = torch.zeros(3, 5).scatter_(-1, routing.picks[i], routing.weights[i])
        torch.testing.assert_close(made.mix(i, x, weights), naive)
        torch.testing.assert_close(made.mixers(routing)[i](x), naive)
        torch.testing.assert_close(made.mixers(routing, torch.tensor([2]))[i](x[2:]), naive[2:])


def test_linears_of_different_shapes_are_looked_up_one_by_one():
    apart = [*places(1, 6, 4), *places(1, 5, 4)]
    mixed = Experts(apart, 7, 5, 2, 3, "input", seed=1)
    alone = Experts(apart[:1], 7, 5, 2, 3, "input", seed=1)
    draw_ = torch.Generator().manual_seed(3)
    for made in (mixed, alone):
        made.up[0].copy_(torch.ones(made.up[0].shape))
    x, query = torch.randn(3, 4, 6, generator=draw_), torch.randn(3, 7, generator=draw_)
    routing = mixed.route(query)
    only = Routing(routing.picks[:1], routing.weights[:1])
    for rows in (None, torch.tensor([2, 0])):
        got, wanted = mixed.mixers(routing, rows), alone.mixers(only, rows)
        assert [part.down.shape[-1] for part in got] == [6, 5]
        some = x if rows is None else x[rows]
        torch.testing.assert_close(got[0](some), wanted[0](some))
        torch.testing.assert_close(got[0].add(some, torch.ones(len(some), 4, 4)), 1 + wanted[0](some))


@pytest.mark.parametrize("n", [5, 40])  # all experts at once, or each row's own
def test_mixing_by_rows_is_mixing_all_with_zeros(n):
    made = experts(n)
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(3))
    picks, weights = (
        torch.tensor([[0, 3], [1, 2], [0, 1]]),
        torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
    )
    every = torch.zeros(3, n).scatter_(-1, picks, weights)
    for i in range(2):
        got = mix_rows(x, made.down[i], made.up[i], picks, weights)
        torch.testing.assert_close(got, made.mix(i, x, every))


def test_training_only_the_experts_in_use_is_adam_on_all_of_them():
    ours, theirs = experts(), experts()
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(4))
    for tensor in theirs.loras:
        tensor.requires_grad_(True)
    reference = torch.optim.Adam(theirs.loras, lr=1e-2)
    active = Active(ours)
    adam = Adam(active.tensors, [1e-2] * 4)
    for picks in ([[0, 3], [0, 1]], [[0, 3], [2, 3]], [[0, 1], [0, 1]]):  # experts come in and drop out
        chosen = torch.tensor(picks)[None].expand(2, -1, -1)
        weights = torch.full((2, 2), 0.5)
        active.take_in(chosen, adam)
        loss = sum(active.mix(i, x, chosen[i], weights).square().sum() for i in range(2))
        adam.step(torch.autograd.grad(loss, adam.tensors, allow_unused=True))
        reference.zero_grad()
        every = hot(chosen[0], 5) * 0.5
        sum(theirs.mix(i, x, every).square().sum() for i in range(2)).backward()
        reference.step()
    before = [tensor.clone() for tensor in ours.loras]
    active.write_back()
    for mine, old, wanted in zip(ours.loras, before, theirs.loras, strict=True):
        assert not torch.equal(mine, old)
        torch.testing.assert_close(mine, wanted.detach())


def test_allocations_are_distinct_and_follow_from_seed_and_fact():
    taken: list = []
    for i in range(30):
        taken.append(draw(set(taken), 2, 4, 2, 0, f"fact {i}"))
    assert len(set(taken)) == 30  # of 36 there are
    assert draw((), 2, 4, 2, 0, "fact 0") == taken[0] != draw((), 2, 4, 2, 1, "fact 0")
    assert all(len(set(picks)) == 2 and max(picks) < 4 for found in taken for picks in found)


def test_spread_allocations_keep_their_distance():
    def least(make):
        taken: list = []
        for i in range(40):
            taken.append(make(set(taken), 6, 4, 2, 0, str(i)))
        codes = pack(torch.tensor(taken).transpose(0, 1), 4)
        return np.sort(hamming(codes, codes) + 99 * np.eye(40, dtype=np.int64), axis=1)[:, 0]

    assert least(draw_spread).min() > least(draw).min()
    assert least(draw_spread).mean() > least(draw).mean()


def test_codes_are_bits_of_the_picks():
    picks = torch.tensor([[[0, 2], [1, 3]], [[0, 1], [2, 3]]])  # two linears, two rows
    codes = pack(picks, 5)
    assert np.unpackbits(codes, axis=1)[:, :10].tolist() == [
        [1, 0, 1, 0, 0, 1, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0, 0, 1, 1, 0],
    ]
    assert hamming(codes, codes).tolist() == [[0, 8], [8, 0]]


def deferral(count: int, epsilon: int, linears: int = 6, n: int = 4) -> Deferral:
    made = Deferral(8, n, epsilon, 0.9, CPU)
    rng = random.Random(0)
    picks = torch.tensor([[sorted(rng.sample(range(n), 2)) for _ in range(count)] for _ in range(linears)])
    made.add(list(range(count)), torch.eye(8)[torch.arange(count) % 8], picks)
    return made


@pytest.mark.parametrize(("count", "low", "high"), [(4, 0.6, 0.95), (20, 0.99, 1.0)])
def test_published_epsilon_accepts_nearly_every_random_code(count, low, high):
    rng = random.Random(1)
    picks = torch.tensor([[sorted(rng.sample(range(4), 2)) for _ in range(2000)] for _ in range(6)])
    scope = deferral(count, 12).decide(torch.ones(2000, 8), picks).scope
    assert low <= float(scope.mean()) <= high


def test_the_nearest_code_decides_strictly():
    made = deferral(1, 4, linears=2)
    own = torch.from_numpy(np.unpackbits(made.codes, axis=1)[:, :8].reshape(1, 2, 4))
    picks = torch.stack([row.nonzero()[:, 0] for row in own[0]])[:, None]
    other = picks.clone()
    other[0, 0] = torch.tensor([i for i in range(4) if i not in picks[0, 0].tolist()])
    decision = made.decide(torch.ones(2, 8), torch.cat([picks, other], dim=1))
    assert decision.distance.tolist() == [0, 4]
    assert decision.scope.tolist() == [True, False]
    assert decision.nearest.tolist() == [0, 0]


def test_similarity_decides_where_it_is_asked_for():
    made = deferral(3, 100)
    made.limit(100, 0.8)
    queries = torch.stack([torch.eye(8)[1], torch.eye(8)[1] + 0.5 * torch.eye(8)[5], torch.eye(8)[6]])
    picks = torch.zeros(6, 3, 2, dtype=torch.long)
    picks[..., 1] = 1
    decision = made.decide(queries, picks)
    assert decision.scope.tolist() == [True, True, False]
    assert decision.similar.tolist() == [1, 1, -1]
    made.limit(100, 0.95)  # 1 / sqrt(1.25) is 0.894
    assert made.decide(queries, picks).scope.tolist() == [True, False, False]


@pytest.mark.parametrize("gated", [True, False])
def test_queries_of_removed_edits_are_kept_out(gated):
    made = deferral(3, 100)
    made.limit(100, 0.5 if gated else None)
    queries = torch.eye(8)[:3]
    picks = torch.zeros(6, 3, 2, dtype=torch.long)
    picks[..., 1] = 1
    assert made.decide(queries, picks).scope.tolist() == [True] * 3
    made.switch([0], False)
    made.remove([1], block=True)
    decision = made.decide(queries, picks)
    assert decision.scope.tolist() == [False, False, True]
    assert decision.blocked.tolist() == [True, True, False]
    made.switch([0], True)
    assert made.decide(queries, picks).scope.tolist() == [True, False, True]
    made.add([7], torch.eye(8)[1:2], picks[:, :1])  # the same prompt is edited again
    decision = made.decide(queries, picks)
    assert decision.scope.tolist() == [True] * 3
    assert int(decision.similar[1]) == (7 if gated else -1)


def test_without_edits_nothing_is_in_scope():
    made = deferral(1, 100)
    made.remove([0], block=False)
    picks = torch.zeros(6, 1, 2, dtype=torch.long)
    assert made.decide(torch.ones(1, 8), picks).scope.tolist() == [False]


def near(distance, similarity):
    return [Closeness(np.array(distance), np.array(similarity))]


def test_codes_decide_alone_where_they_keep_the_rate():
    found = _choose(near([14, 16, 16, 18], [0.9] * 4), 0.0, None, None, True, 24)
    assert (found.epsilon, found.threshold, found.accepted) == (14, None, 0.0)


def test_a_similarity_is_asked_for_where_codes_do_not():
    found = _choose(near([2, 4, 6, 20], [0.9, 0.7, 0.5, 0.99]), 0.25, None, None, True, 24)
    assert (found.epsilon, found.threshold, found.accepted) == (18, 0.7, 0.25)
    alone = _choose(near([2, 4, 6, 20], [0.9, 0.7, 0.5, 0.99]), 0.25, None, None, False, 24)
    assert (alone.epsilon, alone.threshold, alone.accepted) == (4, None, 0.25)


def test_limits_hold_for_each_kind_of_prompt():
    easy, hard = near([6] * 4, [0.1, 0.2, 0.3, 0.4]), near([6] * 4, [0.5, 0.6, 0.7, 0.8])
    strict = _choose([*easy, *hard], 0.25, None, None, True, 24)
    assert (strict.epsilon, strict.threshold, strict.accepted) == (18, 0.7, 0.25)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 5, "n_experts": 4}, "top_k is 5, but there are 4 experts"),
        ({"lr": 0}, "lr is 0; choose a value"),
        ({"allocation": "best"}, "allocation is 'best'; choose one of"),
        ({"edit_layers": ()}, "name each layer once"),
        ({"gate": "off", "threshold": 0.5}, "the gate is off"),
    ],
)
def test_constants_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ELDERConfig(**given)


def test_layers_follow_the_depth():
    paper = ELDERConfig.preset("paper")
    assert paper.resolve(32).edit_layers == (21, 22, 23, 24, 25, 26)
    assert paper.resolve(32).query_layer == 20
    assert paper.resolve(12).edit_layers == (6, 7, 8, 9, 10, 11)
    assert paper.resolve(3).edit_layers == (1, 2)
    assert ELDERConfig(edit_layers=(3, 2), query_layer=0).resolve(4).edit_layers == (2, 3)
    with pytest.raises(ValueError, match="query layer 2 is not below"):
        ELDERConfig(edit_layers=(2,), query_layer=2).resolve(4)
    with pytest.raises(ValueError, match="no field 'size'"):
        ELDERConfig.preset("paper", size=1)


def test_mixers_weigh_what_they_mix():
    made = experts()
    routing = Routing(torch.tensor([[[0, 1]], [[0, 1]]]), torch.tensor([[[0.0, 0.0]], [[0.5, 0.0]]]))
    x = torch.ones(1, 2, 6)
    assert not made.mixers(routing, torch.tensor([0]))[0](x).any()
    torch.testing.assert_close(
        made.mixers(routing, torch.tensor([0]))[1](x), 0.5 * (x @ made.down[1][0].T @ made.up[1][0])
    )
