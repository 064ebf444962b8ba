"""The key memory against a brute force written out in loops."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_oracle import D, R, World, batch, both, filled

from memplug.memory import KeyMemory, agreed, count_votes, quorum_of, span_similarity, unit_rows
from memplug.memory.votes import enough_layers


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
    winner, _ = memory.search(queries, valid)
    oracle.check(winner, queries, valid)


def test_the_brute_force_test_sees_winners_and_misses():
    """The test above compares something: its worlds give both, with ties of votes among them."""
    winners = []
    for seed in range(30):
        world = World(seed)
        memory, oracle = both()
        filled(world, memory, oracle, 20)
        queries, valid = batch(world, 4, 10)
        winners += memory.search(queries, valid)[0].tolist()
    assert 20 < sum(w >= 0 for w in winners) < 110
    assert len(set(winners)) > 10


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
            assert other.item() == together[b]
    assert len(set(together.tolist())) > 3


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
    assert memory.search(text[:, None])[0].tolist() == [19]
    backwards = torch.stack([torch.randn(R, 64), last, first[19]], dim=1)
    assert memory.search(backwards[:, None])[0].tolist() == [-1]
    assert memory.search(text[:, None, -1:])[0].tolist() == [-1], "half a subject is no subject"


def test_no_window_reaches_across_padding():
    key = torch.randn(R, 2, D)
    memory = KeyMemory(R, D)
    memory.add(5, key)
    text = torch.stack([key[:, 0], torch.zeros(R, D), key[:, 1]], dim=1)[:, None]
    assert memory.search(text, torch.tensor([[True, False, True]]))[0].tolist() == [-1]
    _, state = memory.search(key[:, None, :1])
    assert memory.search(key[:, None, 1:], None, state)[0].tolist() == [5]
    _, state = memory.search(text[:, :, :2], torch.tensor([[True, False]]))
    assert memory.search(key[:, None, 1:], None, state)[0].tolist() == [-1]


def test_strange_queries_match_nothing():
    memory = KeyMemory(R, D, threshold=0.0)
    memory.add(0, torch.ones(R, 1, D))
    for value in (float("nan"), float("inf"), -1.0, 0.0):
        assert memory.search(torch.full((R, 1, 2, D), value))[0].tolist() == [-1]
    mixed = torch.ones(R, 1, 3, D)
    mixed[:, :, 0] = float("nan")
    assert memory.search(mixed)[0].tolist() == [0]


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
    winner, _ = memory.search(list(queries), valid)
    oracle.check(winner, queries, valid)
    assert (winner >= 0).any()


@pytest.mark.parametrize("scan", ["auto", "exact", "sign"])
def test_a_threshold_has_to_be_exceeded(scan):
    across, along = torch.eye(64)[:2]  # their cosine is 0 to the bit
    memory = KeyMemory(R, 64, threshold=0.0, top_k=1, quorum=1, scan=scan)
    memory.add(7, along.expand(R, 1, 64))
    assert memory.search(across.expand(R, 1, 1, 64))[0].tolist() == [-1]
    assert memory.search((across + 0.01 * along).expand(R, 1, 1, 64))[0].tolist() == [7]


def test_ties_go_to_the_older_entry_also_after_a_removal():
    memory = KeyMemory(R, D)
    key = torch.randn(R, 1, D)
    for id in (9, 4, 7):
        memory.add(id, key)
    assert memory.search(key[:, None])[0].tolist() == [9]
    memory.remove(9)  # 7 moves into its place, but 4 stays older
    assert memory.search(key[:, None])[0].tolist() == [4]
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
        winners[order] = memory.search(base[:, None])[0].item()
    assert winners == {"similarity": 0, "paper": 1}


@pytest.mark.parametrize("scan", ["auto", "exact", "sign"])
def test_an_entry_with_a_lower_threshold_than_all_before_it(scan):
    torch.manual_seed(0)
    memory = KeyMemory(R, 64, threshold=0.9, scan=scan)
    memory.add(0, torch.randn(R, 1, 64))
    key, noise = torch.randn(2, R, 1, 64)
    assert memory.search((key + noise)[:, None])[0].tolist() == [-1]
    memory.add(1, key)
    assert memory.search((key + noise)[:, None])[0].tolist() == [-1]
    memory.add(2, key, threshold=0.5)
    assert memory.search((key + noise)[:, None])[0].tolist() == [2]
    memory.remove(2)
    assert memory.search((key + noise)[:, None])[0].tolist() == [-1]


@given(seed=st.integers(0, 10_000), n=st.integers(0, 30), length=st.integers(0, 10), quorum=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_what_is_named_is_what_brute_force_finds(seed, n, length, quorum):
    world = World(seed)
    memory, oracle = both(quorum=quorum)
    filled(world, memory, oracle, n)
    for id in list(oracle.keys)[3::5]:
        memory.set_enabled(id, False)
        oracle.off.add(id)
    queries, valid = batch(world, 3, length)
    for seen in {0, length // 2}:
        got = memory.named(queries, valid, seen)
        assert len(set(got)) == len(got)
        for b in range(3):
            wanted = [place for place in oracle.named(queries[:, b], valid[b]) if place[0] >= seen]
            assert sorted(place for row, *place in got if row == b) == [list(one) for one in wanted]


def test_what_is_named_needs_the_quorum_at_one_token():
    memory = KeyMemory(R, D)
    key = torch.randn(R, 1, D)
    memory.add(6, key)
    text = torch.randn(R, 1, 3, D)
    text[0, 0, 0] = text[1, 0, 1] = key[0, 0]
    text[1, 0, 1] = key[1]
    assert memory.named(text) == []
    assert memory.search(text)[0].tolist() == [6], "of a whole text two tokens count"
    text[1, 0, 0] = key[1]
    assert memory.named(text) == [(0, 0, 6)]


def test_span_similarity_is_the_smallest_cosine_in_the_window():
    world = World(6)
    _, oracle = both()
    filled(world, KeyMemory(R, D), oracle, 20)
    queries, valid = batch(world, 2, 9)
    for b in range(2):
        states = unit_rows(queries[:, b], torch.float64)
        for id, key in oracle.keys.items():
            got = span_similarity(states, valid[b], torch.from_numpy(key))
            wanted = [oracle.windows(id, layer, queries[:, b], valid[b].tolist()) for layer in range(R)]
            torch.testing.assert_close(got.float(), torch.tensor(wanted), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("n_layers", "quorum", "layers"), [(1, 1, 1), (4, 2, 3), (5, 5, 1), (8, 4, 5)])
def test_the_rule_says_how_many_layers_decide_and_where_enough_agree(n_layers, quorum, layers):
    assert enough_layers(n_layers, quorum) == layers
    similarity = torch.rand(n_layers, 50)
    best = agreed(similarity, quorum)
    assert torch.equal(best, similarity.sort(0, descending=True).values[quorum - 1])
    votes, enough = count_votes(similarity > 0.5, quorum)
    assert torch.equal(enough, best > 0.5)
    assert votes.tolist() == [sum(layer > 0.5 for layer in one) for one in similarity.T]


@pytest.mark.parametrize(
    ("share", "n_layers", "quorum"), [(0.5, 8, 4), (0.5, 3, 2), (0.0, 3, 1), (1.0, 3, 3)]
)
def test_a_share_of_the_layers_is_rounded_up(share, n_layers, quorum):
    assert quorum_of(share, n_layers) == quorum


# ---------------------------------------------------------------------- texts in pieces


@given(
    seed=st.integers(0, 10_000),
    pieces=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_pieces_with_changes_between_them_are_one_long_search(seed, pieces):
    """An entry is matched from the piece after its addition on, also under an id that another one had;
    removed ones are gone; switches hold for the whole text; rows that are left out are padding to a piece. A
    text that begins now is searched with all that is held."""
    world = World(seed, n_words=4)
    memory, oracle = both()
    for id in (1000, 1001):  # the longest span is two tokens from the beginning
        key = world.states(world.draw(2))
        memory.add(id, key)
        oracle.add(id, key)
    text, valid = batch(world, 2, sum(length for length, _ in pieces))
    state, end, gone = None, 0, []
    for step, (length, change) in enumerate(pieces):
        ids = list(oracle.keys)
        chosen = ids[world.draw(1)[0] % len(ids)] if ids else None
        if change == 0 and ids:
            memory.remove(chosen)
            oracle.remove(chosen)
            gone.append(chosen)
        elif change == 1 and ids:
            memory.set_enabled(chosen, chosen in oracle.off)
            oracle.off ^= {chosen}
        elif change < 5:
            key, id = world.states(world.draw(1 + step % 2)), gone.pop() if gone else step
            memory.add(id, key)
            oracle.add(id, key)
            oracle.since[id] = end
        assert memory.ids() == list(oracle.keys)
        assert len(memory) == len(oracle.keys)
        for id, key in oracle.keys.items():
            assert memory.enabled(id) == (id not in oracle.off)
            assert torch.equal(memory.get(id), torch.from_numpy(key).float())
        start, end = end, end + length
        rows = torch.tensor([True, change % 3 > 0])
        winner, state = memory.search(text[:, :, start:end], valid[:, start:end], state, rows)
        valid[:, start:end] &= rows[:, None]
        oracle.check(winner, text[:, :, :end], valid[:, :end])
    oracle.since.clear()
    oracle.check(memory.search(text, valid)[0], text, valid)


def test_select_reorders_repeats_and_drops_rows():
    world = World(11)
    memory, oracle = both()
    filled(world, memory, oracle, 30)
    queries, valid = batch(world, 4, 10)
    _, state = memory.search(queries[:, :, :6], valid[:, :6])
    for _ in range(2):  # a state is not changed by what goes on from it
        oracle.check(memory.search(queries[:, :, 6:], valid[:, 6:], state)[0], queries, valid)
    assert len(state.found.row), "nothing found: this would test nothing"
    rows = torch.tensor([2, 0, 2, 3])
    chosen, chosen_valid = queries[:, rows], valid[rows]
    winner, _ = memory.search(chosen[:, :, 6:], chosen_valid[:, 6:], state.select(rows))
    oracle.check(winner, chosen, chosen_valid)
    winner, _ = memory.search(
        queries[:, 1:2, 6:], valid[1:2, 6:], copy.deepcopy(state).select(torch.tensor([1]))
    )
    oracle.check(winner, queries[:, 1:2], valid[1:2])
