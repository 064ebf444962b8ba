"""The ledger's promises, to the bit, under any sequence of operations."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from memplug.weights import ledger as ledger_module
from memplug.weights.entries import Entry, LowRankUpdate
from memplug.weights.ledger import Ledger
from memplug.weights.modules import LinearModule

WIDTHS = {"a": (6, 5), "b": (5, 7)}


def _sites(dtype: torch.dtype = torch.float32, conv: bool = False) -> list[LinearModule]:
    torch.manual_seed(0)
    sites = []
    for name, (d_k, d_v) in WIDTHS.items():
        module: nn.Module = Conv1D(d_v, d_k) if conv else nn.Linear(d_k, d_v)
        sites.append(LinearModule(name, module.to(dtype), 0, d_k, d_v, not conv))
    return sites


def _part(name: str, edits: int, rows: int, ridge: float | None, directed: bool, seed: int) -> LowRankUpdate:
    draw = torch.Generator().manual_seed(seed)
    owner = torch.arange(edits).repeat_interleave(rows)
    keys, values = (torch.randn(len(owner), width, generator=draw) for width in WIDTHS[name])
    if not directed:
        return LowRankUpdate(name, keys, values, owner, ridge)
    usual = torch.randn(9, keys.shape[1], generator=draw)
    metric = torch.eye(keys.shape[1]) + usual.T @ usual
    return LowRankUpdate(name, keys, values, owner, ridge, torch.linalg.solve(metric, keys.T).T.contiguous())


def _entry(ids: tuple[str, ...], seed: int = 0, ridge: float | None = 0.5, rows: int = 2) -> Entry:
    parts = (_part(name, len(ids), rows, ridge, False, seed + 7919 * i) for i, name in enumerate(WIDTHS))
    return Entry(ids, tuple(parts))


def _drawn(ids: tuple[str, ...], seed: int) -> Entry:
    """As the library's methods make them: steps, directions, outer products; which, the seed says."""
    draw = random.Random(seed)
    parts: list[LowRankUpdate] = []
    for step in range(draw.randint(1, 3)):
        for name in WIDTHS:
            kind = draw.choice(["joint", "directed", "outer"])
            ridge = None if kind == "outer" else draw.choice([0.5, 2.0])
            rows = draw.randint(1, 3)  # three rows of three edits are more than a module has inputs
            part = _part(name, len(ids), rows, ridge, kind == "directed", seed + 7919 * len(parts))
            parts.append(part.kept(half=draw.random() < 0.5))
        if step and draw.random() < 0.3:
            parts.pop()  # modules that are not chosen have no part
    return Entry(ids, tuple(parts))


def _bits(ledger: Ledger) -> list[torch.Tensor]:
    return [site.weight.detach().clone() for site in ledger.sites.values()]


def _same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conv", [False, True])
def test_weights_are_the_original_ones_plus_the_solved_change(dtype: torch.dtype, conv: bool) -> None:
    sites = _sites(dtype, conv)
    before = {site.name: site.weight.detach().clone() for site in sites}
    ledger, entry = Ledger(sites), _entry(("x", "y"))
    ledger.add(entry)
    for site, part in zip(sites, entry.parts, strict=True):
        keys, values = part.keys.double(), part.values.double()
        change = torch.linalg.solve(keys.T @ keys + 0.5 * torch.eye(site.d_k).double(), keys.T @ values)
        change = change if conv else change.T
        want = (before[site.name].double() + change).float()
        exact = before[site.name].double() + site.stored(ledger.change(site.name)).double()
        assert dtype != torch.float64 or torch.equal(site.weight, exact)  # no detour through float32
        torch.testing.assert_close(
            site.weight.float(), want, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5
        )
    ledger.delete(["x", "y"])
    assert all(torch.equal(site.weight, before[site.name]) for site in sites)


@pytest.mark.parametrize("ridge", [0.5, None])
def test_an_edit_taken_out_of_a_batch_leaves_the_smaller_solve(ridge: float | None) -> None:
    whole, alone = Ledger(_sites()), Ledger(_sites())
    entry = _entry(("x", "y", "z"), ridge=ridge)
    whole.add(entry)
    joint = _bits(whole)
    whole.delete(["y"])
    keep = torch.tensor([0, 1, 4, 5])
    parts = [
        p._replace(keys=p.keys[keep], values=p.values[keep], owner=torch.tensor([0, 0, 1, 1]))
        for p in entry.parts
    ]
    alone.add(Entry(("x", "z"), tuple(parts)))
    assert _same(_bits(whole), _bits(alone))
    assert not _same(_bits(whole), joint)


def test_side_mode_leaves_the_weights_and_gives_the_same_change() -> None:
    merged, side = Ledger(_sites()), Ledger(_sites(), "side")
    before = _bits(side)
    for ledger in (merged, side):
        ledger.add(_entry(("x", "y")))
        ledger.add(_entry(("z",), seed=1))
        ledger.switch(["y"], on=False)
    assert _same(_bits(side), before)
    for name in WIDTHS:
        a, b = side.branch(name)  # type: ignore[misc]
        torch.testing.assert_close(a @ b, merged.change(name))
    with side.paused():
        assert side.branch("a") is None
    side.switch(["x", "z"], on=False)
    assert side.branch("a") is None
    assert not side.active


def test_paused_shows_the_original_bits_and_comes_back() -> None:
    ledger = Ledger(_sites())
    before = _bits(ledger)
    ledger.add(_entry(("x",)))
    edited = _bits(ledger)
    with ledger.paused():
        with ledger.paused():
            assert _same(_bits(ledger), before)
        assert _same(_bits(ledger), before)
    with pytest.raises(RuntimeError, match="body"), ledger.paused():
        raise RuntimeError("body")
    assert _same(_bits(ledger), edited)
    with ledger.paused():
        ledger.add(_entry(("y",), seed=1))
        assert _same(_bits(ledger), before)
    assert not _same(_bits(ledger), edited)
    ledger.release()
    assert _same(_bits(ledger), before)


@pytest.mark.parametrize("mode", ["merged", "side"])
def test_merge_makes_the_edited_weights_the_models_own(mode: Any) -> None:
    ledger, other = Ledger(_sites(), mode), Ledger(_sites())
    for one in (ledger, other):
        one.add(_entry(("x",)))
    edited = _bits(other)
    ledger.merge()
    assert _same(_bits(ledger), edited)
    ledger.release()
    assert _same(_bits(ledger), edited)


def test_load_gives_the_same_bits() -> None:
    ledger, other = Ledger(_sites(torch.bfloat16)), Ledger(_sites(torch.bfloat16))
    for n in range(5):
        ledger.add(_entry((f"x{n}", f"y{n}"), seed=n, ridge=None if n % 2 else 0.5))
    ledger.switch(["y3"], on=False)
    ledger.delete(["x1"])
    other.load(ledger.tensors(), ledger.meta())
    assert _same(_bits(ledger), _bits(other))
    other.switch(["y3"], on=True)
    ledger.switch(["y3"], on=True)
    assert _same(_bits(ledger), _bits(other))


def test_load_refuses_rows_that_do_not_fit() -> None:
    ledger = Ledger(_sites())
    ledger.add(_entry(("x",)))
    tensors = ledger.tensors()
    tensors["a:keys"] = tensors["a:keys"][:, :-1]
    with pytest.raises(ValueError, match=r"a:keys is torch.float32 of shape \(2, 5\), expected"):
        Ledger(_sites()).load(tensors, ledger.meta())


def test_a_failing_change_changes_nothing() -> None:
    ledger = Ledger(_sites())
    ledger.add(_entry(("x",)))
    before, entries = _bits(ledger), ledger.entries
    broken = _entry(("y",), seed=1)
    broken.parts[1].keys[0, 0] = float("nan")
    with pytest.raises(ValueError, match="raise the ridge"):
        ledger.add(broken)
    with pytest.raises(ValueError, match="'x' is in two entries"):
        ledger.add(_entry(("x",), seed=2))
    with pytest.raises(ValueError, match="no entry holds 'q'"):
        ledger.delete(["q"])
    assert _same(_bits(ledger), before)
    assert ledger.entries is entries


def test_a_deletion_recomputes_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "BLOCK", 8)
    ledger = Ledger(_sites())
    ledger.hold(_entry((f"e{n}",), seed=n) for n in range(200))
    kept = dict(ledger._sums)
    assert len(kept) > 10
    ledger.delete(["e100"])
    fresh = [key for key, found in ledger._sums.items() if kept.get(key) is not found]
    assert len(fresh) == 1


def test_a_change_at_the_end_sums_one_block_without_any_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where one block's sums take more than the cache may (a model of 8B)."""
    monkeypatch.setattr(ledger_module, "BLOCK", 8)
    summed, calls = ledger_module.summed, []
    monkeypatch.setattr(
        ledger_module, "summed", lambda block, *at: calls.append(len(block)) or summed(block, *at)
    )
    ledger, cached = Ledger(_sites(), cache_bytes=0), Ledger(_sites())
    for n in range(100):
        calls.clear()
        ledger.add(_drawn((f"e{n}",), n))
        assert len(calls) == 1
        broken = _entry((f"q{n}",), seed=n)
        broken.parts[1].keys[0, 0] = float("nan")
        with pytest.raises(ValueError, match="raise the ridge"):
            ledger.add(broken)
        cached.add(_drawn((f"e{n}",), n))
        assert _same(_bits(ledger), _bits(cached))
    assert len(list(ledger_module._blocks(ledger.entries))) > 5
    assert not any(found.sums for found in ledger._sums.values())
    *_, last = ledger_module._blocks(ledger.entries)
    assert len(last) > 1  # so that the block stays when its last edit goes
    for change in (
        lambda one: one.switch(["e99"], on=False),
        lambda one: one.switch(["e99"], on=True),
        lambda one: one.delete(["e99"]),
        lambda one: one.hold(one.entries),
        lambda one: one.add(_drawn(("again",), 7)),
    ):
        calls.clear()
        change(ledger)
        assert len(calls) <= 1
        change(cached)
        assert _same(_bits(ledger), _bits(cached))
    ledger.delete(["e3"])  # elsewhere all blocks are summed again
    cached.delete(["e3"])
    assert _same(_bits(ledger), _bits(cached))


@pytest.mark.parametrize(("cache", "share"), [(0, 0.0), (18_000, 0.5), (1 << 30, 1.0)])
def test_factors_of_closed_blocks_are_kept_while_they_are_small(
    monkeypatch: pytest.MonkeyPatch, cache: int, share: float
) -> None:
    monkeypatch.setattr(ledger_module, "BLOCK", 8)
    ledger = Ledger(_sites(), cache_bytes=cache)
    for n in range(200):
        ledger.add(_entry((f"e{n}",), seed=n))
    *closed, last = (list(block) for block in ledger_module._blocks(ledger.entries))
    assert all(entry.solved for entry in last)
    held = sum(entry.nbytes for block in closed for entry in block)
    assert held <= cache
    kept = [bool(entry.solved) for block in closed for entry in block]
    assert abs(sum(kept) / len(kept) - share) < 0.2
    ledger.delete(["e3"])  # in the first block, whose factors may have to be solved again
    other = Ledger(_sites())
    other.hold(_entry((f"e{n}",), seed=n) for n in range(200) if n != 3)
    assert _same(_bits(ledger), _bits(other))


class _History:
    """What the ledger should be: the entries made, the edits alive and those off."""

    def __init__(self) -> None:
        self.made: list[tuple[tuple[str, ...], int]] = []
        self.alive: set[str] = set()
        self.off: set[str] = set()


def _replayed(history: _History, make: Callable[[], Ledger]) -> Ledger:
    """A fresh ledger that reaches the same state by the shortest way: only the active edits, in order."""
    ledger = make()
    wanted = history.alive - history.off
    entries = []
    for ids, seed in history.made:
        entry = _drawn(ids, seed)
        if wanted & set(ids):
            left = entry.without(set(ids) - wanted)
            assert left is not None
            entries.append(left)
    ledger.hold(entries)
    return ledger


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    operations=st.lists(st.tuples(st.sampled_from("aaaddfffnnp"), st.integers(0, 10_000)), max_size=25),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    cache=st.sampled_from([0, 1 << 30]),
)
def test_bits_follow_from_the_active_edits_and_their_order_alone(
    monkeypatch: pytest.MonkeyPatch, operations: list[tuple[str, int]], dtype: torch.dtype, cache: int
) -> None:
    monkeypatch.setattr(ledger_module, "BLOCK", 3)

    def make() -> Ledger:
        return Ledger(_sites(dtype), cache_bytes=cache)

    ledger, history, original = make(), _History(), _bits(make())
    for turn, (kind, number) in enumerate(operations):
        alive = sorted(history.alive)
        if kind == "a":
            ids = tuple(f"{turn}.{n}" for n in range(1 + number % 3))
            ledger.add(_drawn(ids, number))
            history.made.append((ids, number))
            history.alive |= set(ids)
        elif alive and kind == "d":
            ledger.delete([alive[number % len(alive)]])
            history.alive.discard(alive[number % len(alive)])
        elif alive and kind in "fn":
            chosen = alive[number % len(alive)]
            ledger.switch([chosen], on=kind == "n")
            (history.off.discard if kind == "n" else history.off.add)(chosen)
        elif kind == "p":
            with ledger.paused():
                assert _same(_bits(ledger), original)
    assert _same(_bits(ledger), _bits(_replayed(history, make)))
    state = make()
    state.load(ledger.tensors(), ledger.meta())
    assert _same(_bits(state), _bits(ledger))
    ledger.switch(history.alive, on=False) if history.alive else None
    assert _same(_bits(ledger), original)
