"""A text that comes in pieces is searched like the whole of it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_oracle import D, R, World, batch, both, filled

from memplug.memory import KeyMemory, MatchState


@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 4), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_pieces_are_one_long_search(seed, cuts):
    world = World(seed)
    memory, oracle = both()
    filled(world, memory, oracle, 12)
    queries, valid = batch(world, 2, sum(cuts))
    state, end = None, 0
    for cut in cuts:
        start, end = end, end + cut
        hits, state = memory.search(queries[:, :, start:end], valid[:, start:end], state)
        oracle.check(hits, queries[:, :, :end], valid[:, :end])


@given(
    seed=st.integers(0, 10_000),
    pieces=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=8),
    n_waiting=st.sampled_from([0, 1, 3, 100]),
    n_bytes=st.sampled_from([0, 200, 1 << 24]),
)
@settings(max_examples=40, deadline=None)
def test_pieces_with_changes_between_them(seed, pieces, n_waiting, n_bytes):
    """An entry is matched from the piece after its addition on; removed ones are gone; switches hold for
    the whole text. Whatever waits unsearched, and however much of it, makes no difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memplug.memory.stream._PIECES", n_waiting)
        patch.setattr("memplug.memory.stream._WAITING", n_bytes)
        world = World(seed, n_words=4)
        memory, oracle = both()
        for id in (1000, 1001):  # the longest span is two tokens from the beginning
            key = world.states(world.draw(2))
            memory.add(id, key)
            oracle.add(id, key)
        state, text = None, torch.zeros(R, 2, 0, D)
        for step, (length, change) in enumerate(pieces):
            ids = list(oracle.keys)
            if change == 0 and ids:
                memory.remove(ids[0])
                oracle.remove(ids[0])
            elif change == 1 and ids:
                memory.set_enabled(ids[-1], ids[-1] in oracle.off)
                oracle.off ^= {ids[-1]}
            else:
                key = world.states(world.draw(1 + step % 2))
                memory.add(step, key)
                oracle.add(step, key)
                oracle.since[step] = text.shape[2]
            piece = torch.stack([world.states(world.draw(length)) for _ in range(2)], dim=1)
            text = torch.cat([text, piece], dim=2)
            hits, state = memory.search(piece, None, state)
            oracle.check(hits, text, torch.ones(text.shape[1:3], dtype=torch.bool))


def test_what_waits_keeps_what_its_windows_reach_back_to(monkeypatch):
    """The subject's first token is searched in the late layer, its second waits there."""
    torch.manual_seed(0)
    memory, oracle = both()
    key = torch.randn(R, 2, D)
    memory.add(3, key)
    oracle.add(3, key)
    text = torch.randn(R, 1, 6, D)
    text[2, 0, :2] = key[2]  # the late layer sees the subject at the beginning,
    text[0, 0, 4:] = key[0]  # an early one at the end
    monkeypatch.setattr("memplug.memory.stream._WAITING", -1)
    _, state = memory.search(text[:, :, :1])
    assert state.waiting == 0
    monkeypatch.undo()
    monkeypatch.setattr("memplug.memory.stream._PIECES", 0)
    for t in range(1, 6):
        hits, state = memory.search(text[:, :, t : t + 1], None, state)
        assert state.waiting == (t if t < 5 else 0)
        oracle.check(hits, text[:, :, : t + 1], torch.ones(1, t + 1, dtype=torch.bool))
    assert hits.winner.tolist() == [3]


def test_an_entry_is_not_matched_with_what_waited_before_it():
    torch.manual_seed(0)
    memory = KeyMemory(R, D)
    memory.add(0, torch.randn(R, 1, D))
    key = torch.randn(R, 1, D)
    late, early = torch.randn(R, 1, 1, D), torch.randn(R, 1, 1, D)
    late[2, 0], early[0, 0] = key[2], key[0]
    _, state = memory.search(late)
    assert state.waiting == 1
    memory.add(1, key)
    hits, after = memory.search(early, None, state)
    assert hits.winner.tolist() == [-1]
    hits, _ = memory.search(late, None, after)
    assert hits.winner.tolist() == [1]


def test_select_reorders_repeats_and_drops_rows():
    world = World(11)
    memory, oracle = both()
    filled(world, memory, oracle, 30)
    queries, valid = batch(world, 4, 10)
    _, state = memory.search(queries[:, :, :6], valid[:, :6])
    assert len(state.found.row), "nothing found: this would test nothing"
    rows = torch.tensor([2, 0, 2, 3])
    chosen, chosen_valid = queries[:, rows], valid[rows]
    hits, _ = memory.search(chosen[:, :, 6:], chosen_valid[:, 6:], state.select(rows))
    oracle.check(hits, chosen, chosen_valid)
    hits, _ = memory.search(
        queries[:, 1:2, 6:], valid[1:2, 6:], copy.deepcopy(state).select(torch.tensor([1]))
    )
    oracle.check(hits, queries[:, 1:2], valid[1:2])


def test_rows_left_out_are_not_searched():
    world = World(5)
    memory = KeyMemory(R, D)
    key = world.states([1, 2])
    memory.add(1, key)
    queries = torch.stack([key, key], dim=1)
    hits, state = memory.search(queries, rows=torch.tensor([False, True]))
    assert hits.winner.tolist() == [-1, 1]
    hits, _ = memory.search(queries[:, :, :0], None, state)
    assert hits.winner.tolist() == [-1, 1], "what was found stays with the state"


def test_changes_between_two_pieces():
    world = World(2)
    memory = KeyMemory(R, D)
    key, other = world.states([1]), world.states([2])
    memory.add(1, key)
    _, state = memory.search(key[:, None])
    nothing = other[:, None, :0]
    memory.set_enabled(1, False)
    hits, state = memory.search(nothing, None, state)
    assert hits.winner.tolist() == [-1]
    memory.set_enabled(1, True)
    hits, state = memory.search(nothing, None, state)
    assert hits.winner.tolist() == [1]
    memory.remove(1)
    memory.add(1, other)
    hits, state = memory.search(nothing, None, state)
    assert hits.winner.tolist() == [-1], "the new entry inherited what was found of the old one"
    assert memory.search(other[:, None], None, state)[0].winner.tolist() == [1]


def test_a_state_can_be_taken_up_again():
    world = World(13)
    memory, oracle = both()
    filled(world, memory, oracle, 20)
    queries, valid = batch(world, 2, 9)
    valid[:] = True
    _, state = memory.search(queries[:, :, :3])
    assert isinstance(state, MatchState)
    for _ in range(2):
        hits, _ = memory.search(queries[:, :, 3:], None, state)
        oracle.check(hits, queries, valid)
