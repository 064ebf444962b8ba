"""The key memory against a brute force written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_oracle import D, R, World, batch, both, filled

from memplug.memory import KeyMemory


@pytest.mark.parametrize("scan", ["auto", "exact", "sign"])
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 30),
    n_rows=st.integers(1, 4),
    length=st.integers(1, 12),
    top_k=st.integers(1, 3),
    quorum=st.integers(1, 3),
    order=st.sampled_from(["similarity", "paper"]),
)
@settings(max_examples=60, deadline=None)
def test_search_is_the_brute_force(scan, seed, n, n_rows, length, top_k, quorum, order):
    world = World(seed)
    memory, oracle = both(scan=scan, top_k=top_k, quorum=quorum, order=order)
    filled(world, memory, oracle, n)
    queries, valid = batch(world, n_rows, length)
    hits, _ = memory.search(queries, valid)
    oracle.check(hits, queries, valid)


def test_the_brute_force_test_sees_winners_and_misses():
    """The test above compares something: its worlds give both, with ties of votes among them."""
    winners = []
    for seed in range(30):
        world = World(seed)
        memory, oracle = both()
        filled(world, memory, oracle, 20)
        queries, valid = batch(world, 4, 10)
        winners += memory.search(queries, valid)[0].winner.tolist()
    assert 20 < sum(w >= 0 for w in winners) < 110
    assert len(set(winners)) > 10


@given(seed=st.integers(0, 10_000), steps=st.lists(st.integers(0, 5), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_any_sequence_of_changes_is_the_brute_force(seed, steps):
    world = World(seed)
    memory, oracle = both()
    for step, action in enumerate(steps):
        ids = list(oracle.keys)
        if action <= 2 or not ids:
            key = world.states(world.draw(1 + step % 3))
            memory.add(step, key)
            oracle.add(step, key)
        elif action == 3:
            victim = ids[world.draw(1)[0] % len(ids)]
            memory.remove(victim)
            oracle.remove(victim)
        elif action == 4:
            which = ids[world.draw(1)[0] % len(ids)]
            memory.set_enabled(which, which in oracle.off)
            oracle.off ^= {which}
        else:
            queries, valid = batch(world, 2, 6)
            oracle.check(memory.search(queries, valid)[0], queries, valid)
        assert memory.ids() == list(oracle.keys)
        assert len(memory) == len(oracle.keys)
        assert all(memory.enabled(id) == (id not in oracle.off) for id in oracle.keys)
    for id, key in oracle.keys.items():
        assert torch.equal(memory.get(id), torch.from_numpy(key).float())
    queries, valid = batch(world, 3, 8)
    oracle.check(memory.search(queries, valid)[0], queries, valid)


def test_a_row_does_not_depend_on_the_rows_beside_it_or_on_padding():
    world = World(3)
    memory, oracle = both()
    filled(world, memory, oracle, 40)
    queries, _ = batch(world, 24, 9)
    together, _ = memory.search(queries)
    for b in range(24):
        alone, _ = memory.search(queries[:, b : b + 1])
        padded = torch.cat(
            [world.states([0] * 4)[:, None], queries[:, b : b + 1], world.states([0] * 3)[:, None]], 2
        )
        valid = torch.tensor([[False] * 4 + [True] * 9 + [False] * 3])
        for other in (alone, memory.search(padded, valid)[0]):
            assert [x.item() for x in other] == [x[b].item() for x in together]
    assert len(set(together.winner.tolist())) > 3


def test_winners_are_those_of_a_float32_product():
    """At a width and size where the scan's rounding matters, against plain tensor code."""
    torch.manual_seed(0)
    n_layers, dim, n = 4, 96, 700
    keys = torch.nn.functional.normalize(torch.randn(n, n_layers, dim), dim=-1)
    memory = KeyMemory(n_layers, dim)
    for id in range(n):
        memory.add(id, keys[id, :, None])
    rows = 40
    noise = torch.nn.functional.normalize(torch.randn(n_layers, rows, dim), dim=-1)
    queries = keys[torch.arange(rows) * 3].transpose(0, 1) + noise * torch.linspace(0.5, 1.4, rows)[:, None]
    similarity = torch.nn.functional.normalize(queries, dim=-1) @ torch.stack(
        [memory.get(id)[:, 0] for id in range(n)], 1
    ).transpose(1, 2)
    top, at = similarity.topk(3)
    votes = torch.zeros(rows, n, dtype=torch.long)
    for layer in range(n_layers):
        votes.scatter_add_(1, at[layer], (top[layer] > 0.7).long())
    count, winner = votes.max(dim=1)
    hits, _ = memory.search(queries[:, :, None])
    assert torch.equal(hits.winner, torch.where(count >= 2, winner, -1))
    assert torch.equal(hits.votes, torch.where(count >= 2, count, 0))
    assert 5 < (count >= 2).sum() < rows


def test_a_shared_last_word_does_not_crowd_out_the_right_entry():
    """Twenty subjects end in one word, and nineteen of them say it more clearly than the text does."""
    torch.manual_seed(1)
    memory = KeyMemory(R, 64)
    last = torch.randn(R, 64)
    first = torch.randn(20, R, 64)
    for id in range(20):
        blur = 0.5 if id == 19 else 0.1
        memory.add(id, torch.stack([first[id], last + blur * torch.randn(R, 64)], dim=1))
    text = torch.stack([torch.randn(R, 64), first[19], last], dim=1)
    assert memory.search(text[:, None])[0].winner.tolist() == [19]
    backwards = torch.stack([torch.randn(R, 64), last, first[19]], dim=1)
    assert memory.search(backwards[:, None])[0].winner.tolist() == [-1]
    assert memory.search(text[:, None, -1:])[0].winner.tolist() == [-1], "half a subject is no subject"


def test_no_window_reaches_across_padding():
    key = torch.randn(R, 2, D)
    memory = KeyMemory(R, D)
    memory.add(5, key)
    text = torch.stack([key[:, 0], torch.zeros(R, D), key[:, 1]], dim=1)[:, None]
    assert memory.search(text, torch.tensor([[True, False, True]]))[0].winner.tolist() == [-1]
    _, state = memory.search(key[:, None, :1])
    assert memory.search(key[:, None, 1:], None, state)[0].winner.tolist() == [5]
    _, state = memory.search(text[:, :, :2], torch.tensor([[True, False]]))
    assert memory.search(key[:, None, 1:], None, state)[0].winner.tolist() == [-1]


def test_strange_queries_match_nothing():
    memory = KeyMemory(R, D, threshold=0.0)
    memory.add(0, torch.ones(R, 1, D))
    for value in (float("nan"), float("inf"), -1.0, 0.0):
        assert memory.search(torch.full((R, 1, 2, D), value))[0].winner.tolist() == [-1]
    mixed = torch.ones(R, 1, 3, D)
    mixed[:, :, 0] = float("nan")
    assert memory.search(mixed)[0].winner.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_queries_and_keys_of_other_dtypes(dtype):
    world = World(8)
    memory, oracle = both()
    for id in range(10):
        key = world.states(world.draw(2)).to(dtype)
        memory.add(id, key)
        oracle.add(id, key)
    queries, valid = batch(world, 6, 8)
    queries = queries.to(dtype)
    hits, _ = memory.search(list(queries), valid)
    oracle.check(hits, queries, valid)
    assert (hits.winner >= 0).any()


@pytest.mark.parametrize("scan", ["auto", "exact", "sign"])
def test_a_threshold_has_to_be_exceeded(scan):
    across, along = torch.eye(64)[:2]  # their cosine is 0 to the bit
    memory = KeyMemory(R, 64, threshold=0.0, top_k=1, quorum=1, scan=scan)
    memory.add(7, along.expand(R, 1, 64))
    assert memory.search(across.expand(R, 1, 1, 64))[0].winner.tolist() == [-1]
    assert memory.search((across + 0.01 * along).expand(R, 1, 1, 64))[0].winner.tolist() == [7]


def test_ties_go_to_the_older_entry_also_after_a_removal():
    memory = KeyMemory(R, D)
    key = torch.randn(R, 1, D)
    for id in (9, 4, 7):
        memory.add(id, key)
    assert memory.search(key[:, None])[0].winner.tolist() == [9]
    memory.remove(9)  # 7 moves into its place, but 4 stays older
    assert memory.search(key[:, None])[0].winner.tolist() == [4]
    assert memory.ids() == [4, 7]


def test_order_decides_between_entries_with_as_many_votes():
    """Entry 0 is clearer, entry 1 earlier: votes of layers {1, 2} and {0, 1}."""
    torch.manual_seed(4)
    base, other = torch.randn(R, 1, D), torch.randn(R, 1, D)
    clear = torch.stack([-other[0], base[1], base[2]])
    early = torch.stack([base[0], base[1] + 0.4 * other[1], -other[2]])
    winners = {}
    for order in ("similarity", "paper"):
        memory = KeyMemory(R, D, order=order)
        memory.add(0, clear)
        memory.add(1, early)
        winners[order] = memory.search(base[:, None])[0].winner.item()
    assert winners == {"similarity": 0, "paper": 1}


def test_scores_explain_the_winner():
    world = World(6)
    memory, oracle = both()
    filled(world, memory, oracle, 25)
    memory.set_enabled(14, False)
    oracle.off.add(14)
    queries, valid = batch(world, 5, 9)
    hits, _ = memory.search(queries, valid)
    for b in range(5):
        scores = memory.scores(queries[:, b], valid[b])
        assert scores.ids.tolist() == memory.ids()
        for e, id in enumerate(memory.ids()):
            for layer in range(R):
                similarity, position = oracle.similarity(id, layer, queries[:, b], valid[b].tolist())
                assert scores.similarity[layer, e].item() == pytest.approx(similarity, abs=1e-6)
                assert scores.position[layer, e].item() == position
        votes = scores.voted.sum(0)
        if hits.winner[b] >= 0:
            assert votes[memory.ids().index(hits.winner[b].item())] == hits.votes[b]
        assert votes.max() >= memory.quorum or hits.winner[b] == -1
    assert (hits.winner >= 0).any()


def test_scores_of_a_text_shorter_than_a_key():
    memory, gen = KeyMemory(R, D), torch.Generator().manual_seed(0)
    long, short = (torch.randn(R, tokens, D, generator=gen) for tokens in (9, 5))
    memory.add(0, long)
    memory.add(1, short)
    scores = memory.scores(short)
    assert scores.position[:, 0].tolist() == [-1] * R
    assert scores.voted.tolist() == [[False, True]] * R


@pytest.mark.parametrize("scan", ["auto", "exact", "sign"])
def test_an_entry_with_a_lower_threshold_than_all_before_it(scan):
    torch.manual_seed(0)
    memory = KeyMemory(R, 64, threshold=0.9, scan=scan)
    memory.add(0, torch.randn(R, 1, 64))
    key, noise = torch.randn(2, R, 1, 64)
    assert memory.search((key + noise)[:, None])[0].winner.tolist() == [-1]
    memory.add(1, key)
    assert memory.search((key + noise)[:, None])[0].winner.tolist() == [-1]
    memory.add(2, key, threshold=0.5)
    assert memory.search((key + noise)[:, None])[0].winner.tolist() == [2]
    memory.remove(2)
    assert memory.search((key + noise)[:, None])[0].winner.tolist() == [-1]


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    length=st.integers(0, 12),
    floor=st.sampled_from([0.05, 0.7]),
)
@settings(max_examples=40, deadline=None)
def test_what_is_found_is_what_brute_force_finds(seed, n, length, floor):
    world = World(seed)
    memory, oracle = both(scan=("auto", "exact")[seed % 2], threshold=floor)
    filled(world, memory, oracle, n)
    if n > 3:
        memory.set_enabled(7, False)
    queries, valid = batch(world, 3, length)
    found = memory.found(queries, valid)
    got = dict(
        zip(
            zip(found.row.tolist(), found.layer.tolist(), found.id.tolist(), strict=True),
            found.sim,
            strict=True,
        )
    )
    assert len(got) == len(found.row)
    wanted = {}
    for b in range(3):
        scores = memory.scores(queries[:, b], valid[b])
        for i, id in enumerate(scores.ids.tolist()):
            for layer in range(R):
                if scores.similarity[layer, i] > np.float32(oracle.limit[id]) and memory.enabled(id):
                    wanted[b, layer, id] = float(scores.similarity[layer, i])
    assert got == pytest.approx(wanted, abs=1e-3)
    per_row = {b: sum(key[0] == b for key in wanted) for b in range(3)}
    assert all(value == np.float32(wanted[key]) for key, value in got.items() if per_row[key[0]] > 1)
