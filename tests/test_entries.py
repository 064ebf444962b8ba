"""Rows as the ledger keeps them: in main memory, in half precision, on any scale."""

from __future__ import annotations

import pytest
import torch
from test_ledger import _bits, _part, _same, _sites
from torch import Tensor

import memplug
from memplug import world
from memplug.weights.entries import Entry, LowRankUpdate
from memplug.weights.ledger import Ledger
from memplug.weights.solve import SolveError


@pytest.mark.parametrize("size", [1e-20, 1e-6, 1.0, 3e7, 1e30])
def test_half_rows_keep_eleven_bits_on_any_scale(size: float) -> None:
    draw = torch.Generator().manual_seed(0)
    # Elements over nine orders of magnitude, of both signs.
    keys = size * torch.randn(50, 6, generator=draw) * 10 ** (-9 * torch.rand(50, 6, generator=draw))
    values = torch.randn(50, 5, generator=draw)
    values[0] = 0
    part = LowRankUpdate("a", keys, values, torch.arange(50), 0.5, 3 * keys).kept(half=True)
    assert part.keys.dtype == part.values.dtype == torch.float16
    assert part.directions is not None
    assert torch.isfinite(part.keys).all()
    wide = part.wide()
    assert wide.keys.dtype == torch.float32
    for got, want in ((wide.keys, keys), (wide.values, values), (wide.directions, 3 * keys)):
        torch.testing.assert_close(got, want, rtol=2**-11, atol=2**-38 * float(want.abs().max()))
    again = wide.kept(half=True)
    assert all(torch.equal(one, two) for one, two in zip(again[1:4], part[1:4], strict=True))
    assert again.scales == part.scales


def test_rows_that_are_zero_empty_or_not_finite() -> None:
    keys, values, none = torch.zeros(2, 6), torch.zeros(2, 5), torch.zeros(0, dtype=torch.long)
    part = LowRankUpdate("a", keys, values, torch.arange(2), 0.5).kept(half=True)
    assert part.scales == (1.0, 1.0, 1.0)
    assert not part.wide().values.any()
    assert LowRankUpdate("a", keys[:0], values[:0], none, 0.5).kept(half=True).wide().keys.shape == (0, 6)
    keys[0, 0] = float("nan")
    with pytest.raises(SolveError, match="not finite"):
        LowRankUpdate("a", keys, values, torch.arange(2), 0.5).kept(half=True).factors()


@pytest.mark.parametrize("kind", ["joint", "directed", "outer"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_change_is_that_of_the_rounded_rows(kind: str, rows: int) -> None:
    """Against the literal formula in float64, whether the rows are fewer than the module's inputs or more."""
    part = _part("a", 3, rows, None if kind == "outer" else 0.5, kind == "directed", 1)
    part = part._replace(keys=1e-3 * part.keys).kept(half=True)
    wide = part.wide()
    keys, values = wide.keys.double(), wide.values.double()
    along = keys if wide.directions is None else wide.directions.double()
    ledger = Ledger(_sites())
    ledger.add(Entry(("x", "y", "z"), (part,)))
    eye = 0.5 * torch.eye(len(keys), dtype=torch.double)
    want = along.T @ (values if kind == "outer" else torch.linalg.solve(keys @ along.T + eye, values))
    torch.testing.assert_close(
        ledger.change("a").double(), want, rtol=1e-4, atol=1e-6 * float(want.abs().max())
    )


def test_a_save_keeps_the_precision_of_each_edit() -> None:
    """Edits made with either precision in one ledger: what is saved gives the same bits."""
    ledger, other = Ledger(_sites()), Ledger(_sites())
    for n in range(4):
        part = _part("a", 2, 2, 0.5, True, n)
        ledger.add(Entry((f"x{n}", f"y{n}"), (part._replace(values=10.0**n * part.values).kept(n % 2 == 0),)))
    other.load(ledger.tensors(), ledger.meta())
    assert _same(_bits(ledger), _bits(other))
    for one in (ledger, other):
        one.delete(["x2"])
    assert _same(_bits(ledger), _bits(other))


@pytest.mark.parametrize("method", ["ultraedit", "rledit"])
def test_half_the_memory_for_nearly_the_same_change(method: str) -> None:
    model, tokenizer = world.load()
    edits = [case.edit for case in world.cases(6, seed=3)]

    def made(rows: str) -> tuple[dict[str, Tensor], int]:
        with memplug.attach(model, tokenizer, method, rows=rows) as plug:
            plug.edit(edits, progress=False)
            kept = [x for name, x in plug.method.ledger.tensors().items() if "owner" not in name]
            ledger = plug.method.ledger
            return {name: ledger.change(name) for name in ledger.sites}, sum(x.nbytes for x in kept)

    (exact, full), (near, half) = made("float32"), made("float16")
    assert half == full / 2
    for name, change in exact.items():
        assert float((near[name] - change).norm()) < 1e-3 * float(change.norm())
