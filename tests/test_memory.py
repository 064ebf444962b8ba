"""The key memory against a brute force written out in loops."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memplug.memory import Hits, KeyMemory, MatchState

R, D = 3, 8


@dataclass
class Oracle:
    """The definition of a match, one entry, layer, row and position at a time."""

    threshold: float = 0.7
    top_k: int = 3
    quorum: int = 2
    order: str = "similarity"
    keys: dict[int, np.ndarray] = field(default_factory=dict)  # in order of insertion
    limit: dict[int, float] = field(default_factory=dict)
    off: set[int] = field(default_factory=set)
    since: dict[int, int] = field(default_factory=dict)  # position from which on windows may end

    def add(self, id: int, key: Tensor, threshold: float | None = None) -> None:
        unit = key.float() / key.float().norm(dim=-1, keepdim=True)
        self.keys[id] = unit.half().double().numpy()
        self.limit[id] = self.threshold if threshold is None else threshold

    def remove(self, id: int) -> None:
        del self.keys[id], self.limit[id]
        self.off.discard(id)

    def similarity(self, id: int, layer: int, row: Tensor, valid: list[bool]) -> tuple[float, int]:
        """Of one row (R, T, D), and where the best window ends."""
        key, text = self.keys[id][layer], row[layer].double().numpy()
        length = np.linalg.norm(text, axis=1, keepdims=True)
        cosines = (text @ key.T / np.where(length > 0, length, 1)).astype(np.float32)  # token, key token
        best, where = -1.0, -1
        for end in range(max(len(key) - 1, self.since.get(id, 0)), len(text)):
            window = range(end - len(key) + 1, end + 1)
            if all(valid[t] for t in window):
                smallest = min(float(cosines[t, i]) for i, t in enumerate(window))
                if where < 0 or smallest > best:
                    best, where = smallest, end
        return best, where

    def winner(self, row: Tensor, valid: Tensor) -> tuple[int, int, float]:
        """Id (-1 for none), votes and mean similarity of one row (R, T, D)."""
        votes: dict[int, list[tuple[int, float]]] = {}
        valid = valid.tolist()
        for layer in range(R):
            passing = []
            for age, id in enumerate(self.keys):
                similarity, _ = self.similarity(id, layer, row, valid)
                if id not in self.off and similarity > np.float32(self.limit[id]):
                    passing.append((-similarity, age, id))
            for negative, _, id in sorted(passing)[: self.top_k]:
                votes.setdefault(id, []).append((layer, -negative))
        ranked = []
        for age, id in enumerate(self.keys):
            mine = votes.get(id, [])
            if mine and len(mine) >= self.quorum:
                total = math.fsum(similarity for _, similarity in mine)
                tie = -total if self.order == "similarity" else mine[0][0]
                ranked.append((-len(mine), tie, age, id, total))
        if not ranked:
            return -1, 0, 0.0
        negative, _, _, id, total = min(ranked)
        return id, -negative, float(np.float32(total / -negative))

    def check(self, hits: Hits, queries: Tensor, valid: Tensor) -> None:
        expected = [self.winner(queries[:, b], valid[b]) for b in range(queries.shape[1])]
        got = list(zip(hits.winner.tolist(), hits.votes.tolist(), hits.similarity.tolist(), strict=True))
        assert got == expected


class World:
    """Words whose states differ a little from mention to mention, so that spans match sometimes."""

    def __init__(self, seed: int, n_words: int = 6, noise: float = 0.3, dim: int = D):
        self.random = torch.Generator().manual_seed(seed)
        self.words = torch.randn(n_words, R, dim, generator=self.random)
        self.noise, self.dim = noise, dim

    def states(self, words: list[int]) -> Tensor:
        """(R, T, D)"""
        noise = self.noise * torch.randn(R, len(words), self.dim, generator=self.random)
        if not words:
            return noise
        return torch.stack([self.words[w] for w in words], dim=1) + noise

    def draw(self, n: int, low: int = 0) -> list[int]:
        return torch.randint(low, len(self.words), (n,), generator=self.random).tolist()


def both(**settings) -> tuple[KeyMemory, Oracle]:
    kwargs = {"threshold": 0.7, "top_k": 3, "quorum": 2, "order": "similarity"} | settings
    scan = kwargs.pop("scan", "auto")
    return KeyMemory(R, D, scan=scan, **kwargs), Oracle(**kwargs)


def filled(world: World, memory: KeyMemory, oracle: Oracle, n: int, longest: int = 5) -> None:
    """`n` entries of 1..longest tokens; half of them end in the same word."""
    for id in range(n):
        length = 1 + int(torch.randint(longest, (), generator=world.random))
        words = world.draw(length)
        if id % 2:
            words[-1] = 0
        key = world.states(words)
        limit = [None, None, 0.5, 0.85][int(torch.randint(4, (), generator=world.random))]
        memory.add(id * 7 % 1009, key, threshold=limit)
        oracle.add(id * 7 % 1009, key, limit)


def batch(world: World, n_rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Queries (R, B, T, D) and validity: rows of different lengths, padded left, right or both."""
    queries = torch.stack([world.states(world.draw(length)) for _ in range(n_rows)], dim=1)
    valid = torch.ones(n_rows, length, dtype=torch.bool)
    for b in range(n_rows):
        left, right = torch.randint(0, length // 2 + 1, (2,), generator=world.random).tolist()
        valid[b, :left] = False
        valid[b, length - right :] = False
    return queries, valid


@pytest.mark.parametrize("scan", ["exact", "sign"])
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


def test_saved_and_loaded_memory_finds_the_same():
    world = World(9)
    memory, oracle = both()
    filled(world, memory, oracle, 30)
    for id in (0, 7, 70):
        memory.remove(id)
    memory.set_enabled(21, False)
    saved = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    other = KeyMemory(R, D)
    other.add(0, torch.ones(R, 1, D))
    other.load_state_dict(saved)
    assert other.ids() == memory.ids()
    assert not other.enabled(21)
    for id in memory.ids():
        assert torch.equal(other.get(id), memory.get(id))
    queries, valid = batch(world, 8, 10)
    for mine, theirs in zip(memory.search(queries, valid)[0], other.search(queries, valid)[0], strict=True):
        assert torch.equal(mine, theirs)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, saved[name])
    other.remove(21)
    other.add(21, world.states([1, 2, 3]))
    assert other.ids()[-1] == 21
    assert torch.equal(saved["last"], memory.state_dict()["last"]), "loading shared its tensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("id"), "saved keys hold"),
        (lambda s: s.update(last=s["last"].float()), "saved last is torch.float32"),
        (lambda s: s.update(last=s["last"][:2]), "saved last is"),
        (lambda s: s.update(rest=s["rest"][:, 1:]), "saved rest is"),
        (lambda s: s["last"][0, 0].mul_(0.5), "not of length 1"),
        (lambda s: s["rest"][1, 0].fill_(float("nan")), "not of length 1"),
        (lambda s: s["id"].copy_(s["id"][:1].expand(3)), "not all different"),
        (lambda s: s["id"].sub_(100), "a saved id is"),
        (lambda s: s["length"].copy_(torch.tensor([0, 3, 2])), "a saved length is 0"),
        (lambda s: s["threshold"].fill_(2.0), "a saved threshold"),
    ],
)
def test_loading_damaged_tensors_is_refused(change, message):
    world = World(1)
    memory = KeyMemory(R, D)
    for id, length in enumerate((1, 2, 2)):
        memory.add(id, world.states(world.draw(length)))
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    saved = {name: tensor.clone() for name, tensor in before.items()}
    change(saved)
    version = memory.version
    with pytest.raises(ValueError, match=message):
        memory.load_state_dict(saved)
    assert memory.version == version
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory.state_dict().items())


@pytest.mark.parametrize(
    ("id", "key", "threshold", "message"),
    [
        (1, torch.ones(R, 1, D), None, r"id 1 is in use; remove\(1\) first"),
        (-1, torch.ones(R, 1, D), None, "give an integer from 0"),
        ("a", torch.ones(R, 1, D), None, "give an integer from 0"),
        (2, torch.ones(R, D), None, r"shape \(3, 8\)"),
        (2, torch.ones(R + 1, 1, D), None, r"shape \(4, 1, 8\)"),
        (2, torch.ones(R, 1, D + 1), None, r"shape \(3, 1, 9\)"),
        (2, torch.ones(R, 0, D), None, "S >= 1"),
        (2, torch.ones(R, 1, D, dtype=torch.long), None, "torch.int64"),
        (2, torch.full((R, 1, D), float("nan")), None, "not finite"),
        (2, torch.full((R, 1, D), float("inf")), None, "not finite"),
        (2, torch.zeros(R, 1, D), None, "zero row"),
        (2, torch.ones(R, 1, D), 1.0, "threshold is 1.0"),
        (2, torch.ones(R, 1, D), -0.1, "threshold is -0.1"),
    ],
)
def test_bad_entries_change_nothing(id, key, threshold, message):
    memory = KeyMemory(R, D)
    memory.add(1, torch.ones(R, 1, D))
    version = memory.version
    with pytest.raises(ValueError, match=message):
        memory.add(id, key, threshold=threshold)
    assert (memory.ids(), memory.version) == ([1], version)


@pytest.mark.parametrize("call", ["remove", "get", "enabled"])
def test_an_unknown_id_is_named(call):
    memory = KeyMemory(R, D)
    with pytest.raises(ValueError, match="no entry has the id 3; the memory holds 0 entries, it is empty"):
        getattr(memory, call)(3)
    memory.add(5, torch.ones(R, 1, D))
    with pytest.raises(ValueError, match=r"no entry has the id 3; .* the nearest are \[5\]"):
        getattr(memory, call)(3)
    assert 5 in memory
    assert 3 not in memory


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"top_k": 0}, "top_k is 0"),
        ({"quorum": 4}, "quorum is 4, but only 3 layers vote"),
        ({"quorum": 0}, "quorum is 0"),
        ({"scan": "quick"}, "scan is 'quick'; choose one of 'auto', 'exact', 'sign', 'faiss'"),
        ({"order": "newest"}, "order is 'newest'"),
        ({"scan": "sign", "device": "meta"}, 'scan="sign" works on the CPU, not on meta'),
        ({"scan": "faiss"}, 'scan="faiss" works on a CUDA device, not on cpu'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        KeyMemory(R, D, **settings)


@pytest.mark.parametrize("scan", ["exact", "sign"])
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


def test_queries_that_do_not_fit():
    memory = KeyMemory(R, D)
    queries = torch.ones(R, 2, 4, D)
    for bad, message in (
        (queries[:2], "2 layers"),
        (queries[..., :5], "shape"),
        (queries.long(), "torch.int64"),
        (queries[:, 0], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            memory.search(bad)
    with pytest.raises(ValueError, match=r"valid is torch.bool of shape \(2, 3\)"):
        memory.search(queries, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"valid is .*int64"):
        memory.search(queries, torch.ones(2, 4, dtype=torch.long))
    _, state = memory.search(queries)
    with pytest.raises(ValueError, match=r"the state has 2 rows.* state.select"):
        memory.search(queries[:, :1], None, state)


def test_version_counts_changes_and_only_changes():
    memory = KeyMemory(R, D)
    seen = [memory.version]
    memory.add(0, torch.ones(R, 1, D))
    seen.append(memory.version)
    memory.set_enabled(0, False)
    seen.append(memory.version)
    memory.set_enabled(0, False)
    memory.search(torch.ones(R, 1, 1, D))
    assert memory.version == seen[-1]
    memory.load_state_dict(memory.state_dict())
    seen.append(memory.version)
    memory.remove(0)
    seen.append(memory.version)
    assert seen == sorted(set(seen))


def test_memory_grows_with_the_keys_and_frees_what_spans_leave():
    world = World(0)
    memory = KeyMemory(R, D)
    assert memory.nbytes == 0
    for round_ in range(5):
        for id in range(100):
            memory.add(id, world.states(world.draw(4)))
        if round_ == 0:
            size = memory.nbytes
        for id in range(100):
            memory.remove(id)
    assert memory.nbytes == size


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
