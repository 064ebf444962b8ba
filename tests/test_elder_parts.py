"""ELDER's parts: experts against naive loops, Adam against torch's, codes, deferral."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from memplug.methods.elder.codes import blocked, distances, draw, nearest
from memplug.methods.elder.config import ELDERConfig
from memplug.methods.elder.experts import Experts, Used, mix, parameter_count
from memplug.methods.places import Place


def places(count: int, p: int, o: int, device: str = "cpu") -> list[Place]:
    return [Place(i, "linear", nn.Linear(p, o, device=device), p, o) for i in range(count)]


def experts(n: int = 5, k: int = 2, rank: int = 3, count: int = 2) -> Experts:
    made = Experts(places(count, 6, 4), 7, n, k, rank, False, seed=1)
    draw_ = torch.Generator().manual_seed(2)
    for up in made.up:
        up.copy_(torch.randn(up.shape, generator=draw_))
    return made


@pytest.mark.parametrize(
    ("p", "o", "expected"),
    [(11008, 4096, 3_164_184), (1600, 6400, 1_574_424)],  # LLaMA2-7B's down_proj, GPT2-XL's c_fc
)
def test_parameters_are_as_many_as_the_formula_says(p, o, expected):
    made = Experts(places(6, p, o, "meta"), p, 4, 2, 8, True, seed=0)
    assert (
        sum(tensor.numel() for tensor in made.tensors) == expected == parameter_count([(p, o)] * 6, p, 4, 8)
    )


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
        got = mix(x, made.down[i], made.up[i], routing.picks[i], routing.weights[i])
        torch.testing.assert_close(got, naive)
        rows = torch.tensor([1, 2]).repeat_interleave(4)  # those in use
        used = Used(torch.arange(4, 12), routing.picks[:, rows], routing.weights[:, rows])
        for shape in ((3, 4), (12,)):  # flattened in some models
            out = used.apply(made, i, x.view(*shape, 6), torch.ones(*shape, 4)).view(3, 4, 4)
            torch.testing.assert_close(out[1:], 1 + naive[1:])
            assert torch.equal(out[0], torch.ones(4, 4))


def test_allocations_are_distinct_and_follow_from_seed_and_fact():
    taken: list = []
    for i in range(30):
        taken.append(draw(set(taken), 2, 4, 2, 0, f"fact {i}"))
    assert len(set(taken)) == 30  # of 36 there are
    assert draw((), 2, 4, 2, 0, "fact 0") == taken[0] != draw((), 2, 4, 2, 1, "fact 0")
    assert all(len(set(picks)) == 2 and max(picks) < 4 for found in taken for picks in found)


def codes(count: int, linears: int = 6, n: int = 4, seed: int = 0) -> torch.Tensor:
    rng = random.Random(seed)
    return torch.tensor([[sorted(rng.sample(range(n), 2)) for _ in range(count)] for _ in range(linears)])


def test_distances_are_those_of_the_bits():
    one, other = codes(3, n=5), codes(4, n=5, seed=1)
    bits = [
        [{(i, e) for i in range(6) for e in some[i, row].tolist()} for row in range(some.shape[1])]
        for some in (one, other)
    ]
    assert distances(one, other, 5).tolist() == [[len(a ^ b) for b in bits[1]] for a in bits[0]]


@pytest.mark.parametrize(("count", "low", "high"), [(4, 0.6, 0.95), (20, 0.99, 1.0)])
def test_published_epsilon_accepts_nearly_every_random_code(count, low, high):
    scope = nearest(codes(2000, seed=1), codes(count), 4).distance < 12
    assert low <= float(scope.float().mean()) <= high


def test_the_nearest_code_is_found():
    picks = codes(1, linears=2)
    other = picks.clone()
    other[0, 0] = torch.tensor([i for i in range(4) if i not in picks[0, 0].tolist()])
    near = nearest(torch.cat([picks, other], dim=1), torch.cat([other, picks, picks], dim=1), 4)
    assert near.distance.tolist() == [0, 0]
    assert near.place.tolist() == [1, 0]
    assert nearest(picks, other, 4).distance.tolist() == [4]


def test_queries_of_removed_edits_are_kept_out():
    queries = torch.eye(8)[:3]
    assert blocked(queries, [], [*queries]).tolist() == [False] * 3
    assert blocked(queries, [queries[0], queries[1]], [queries[2]]).tolist() == [True, True, False]
    assert blocked(queries, [queries[1]], []).tolist() == [False, True, False]
    # The same prompt is edited again, and another one is not like enough.
    assert blocked(queries, [queries[0], queries[1] + queries[2]], [queries[0]]).tolist() == [False] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_k": 5, "n_experts": 4}, "top_k is 5, but there are 4 experts"),
        ({"lr": 0}, "lr is 0; choose a value"),
        ({"edit_layers": ()}, "name each layer once"),
        ({"scope": "rows"}, "scope is 'rows'; choose one of"),
    ],
)
def test_constants_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ELDERConfig(**given)


def test_layers_follow_the_depth():
    paper = ELDERConfig.preset("paper")
    assert paper.resolve(32).edit_layers == (21, 22, 23, 24, 25, 26)
    assert paper.resolve(32).first == 21
    assert paper.resolve(12).edit_layers == (6, 7, 8, 9, 10, 11)
    assert paper.resolve(3).edit_layers == (1, 2)
    assert ELDERConfig(edit_layers=(3, 2)).resolve(4).edit_layers == (2, 3)
    with pytest.raises(ValueError, match="layer 0 is among the edited ones"):
        ELDERConfig(edit_layers=(0,)).resolve(4)
    with pytest.raises(ValueError, match="no field 'size'"):
        ELDERConfig.preset("paper", size=1)
