"""MEMIT, ROME and AlphaEdit against their literal formulas in float64, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import TEXTS
from locating import EDITS, maker, read

import memplug
from memplug.edits import Edit, EditError
from memplug.methods.locate.covariance import moments_of
from memplug.methods.locate.rows import look, subject_rows
from memplug.methods.locate.target import find_targets
from memplug.methods.memit import MEMITConfig
from memplug.model.architecture import UnsupportedModelError
from memplug.weights import free_memory


@pytest.fixture(scope="module")
def make_plug(make_tokenizer: Callable[..., Any]) -> Callable[..., memplug.Plug]:
    return maker(make_tokenizer)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("earlier", [True, False])
def test_memit_is_the_literal_formula(make_plug: Callable[..., Any], family: str, earlier: bool) -> None:
    plug = make_plug("memit", family, earlier=earlier, covariance_weight=300.0, floor=0.01)
    method = plug.method
    plug.edit(EDITS[:1])
    plug.edit(EDITS[1:], progress=False)
    first, second = method.ledger.entries
    with plug.paused():
        moments = moments_of(method._host, method.sites, method.config).by_site
    for site in method.sites:
        prior = moments[site.name].double()
        prior = prior + 0.01 * prior.diagonal().mean() * torch.eye(site.d_k)
        prior = prior * 300.0 * site.d_k / 16384
        for entry in (first, second):
            (part,) = (part for part in entry.parts if part.site == site.name)
            keys, values = part.keys.double(), part.values.double()
            want = torch.linalg.solve(prior + keys.T @ keys, keys.T @ values)
            a, b = entry.factors()[site.name]
            torch.testing.assert_close((a @ b).double(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
            if earlier:
                prior = prior + keys.T @ keys


def test_alphaedit_is_the_literal_formula(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("alphaedit", threshold=0.2, ridge=0.05, n_prefixes=0)
    method, text = plug.method, plug.method._host.text
    site = method.sites[0]
    moments = moments_of(method._host, method.sites, method.config).by_site[site.name].double()
    values, vectors = torch.linalg.eigh(moments)
    free = vectors[:, values.cumsum(0) <= 0.2 * values.sum()]
    assert 0 < free.shape[1] < site.d_k
    projection = free @ free.T

    def keys_of(edits: list[Edit]) -> torch.Tensor:
        rows = [text.span(e.prompt, b := e.prompt.index(e.subject), b + len(e.subject)) for e in edits]
        return torch.stack([read(plug.model, site.module, ids)[span[-1]] for ids, span in rows])

    past = torch.zeros(site.d_k, site.d_k).double()
    ridge = 0.05 * float(moments.diagonal().sum())
    for batch in (EDITS[:1], EDITS[1:]):
        keys = keys_of(batch)  # of the lowest edited layer: no edit changes them
        plug.edit(batch, progress=False)
        entry = method.ledger.entries[-1]
        part = next(part for part in entry.parts if part.site == site.name)
        system = projection @ (past + keys.T @ keys) + ridge * torch.eye(site.d_k)
        want = torch.linalg.solve(system, projection @ keys.T @ part.values.double())
        a, b = entry.factors()[site.name]
        torch.testing.assert_close((a @ b).double(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
        past = past + keys.T @ keys
        used = vectors[:, values.cumsum(0) > 0.2 * values.sum()]
        assert float((used.T @ (a @ b).double()).norm()) < 1e-5 * float((a @ b).norm())


def _state_behind(plug: memplug.Plug, layer: int, edit: Edit) -> torch.Tensor:
    host = plug.method._host
    rows = subject_rows(host.text, [edit], ())
    return look(host, rows, plug.method.sites[0], layer, [], 8).hidden[0]


def test_rome_meets_the_wanted_state_exactly(make_plug: Callable[..., Any]) -> None:
    rome = MEMITConfig.preset("rome")
    assert rome.constraint == "equality"
    plug = make_plug(
        "memit",
        constraint="equality",
        batch_size=1,
        earlier=False,
        n_prefixes=0,
        ranges=(("down", 0.25, 0.5),),
    )
    layer = plug.method._last
    for edit in EDITS:
        wanted = find_targets(plug.method._host, layer, [edit], [], plug.method.config).state[0]
        before = _state_behind(plug, layer, edit)
        plug.edit(edit)
        after = _state_behind(plug, layer, edit)
        assert float((after - wanted).norm()) < 1e-3 * float((before - wanted).norm())
        (part,) = plug.method.ledger.entries[-1].parts
        a, b = plug.method.ledger.entries[-1].factors()[part.site]
        assert torch.linalg.matrix_rank(a @ b) == 1


def test_layers_share_what_is_to_be_done(make_plug: Callable[..., Any]) -> None:
    """With nothing to hold, two layers reach the wanted state together, each its share."""
    plug = make_plug("memit", covariance_weight=1e-6, n_prefixes=0)
    layer = plug.method._last
    assert [site.layer for site in plug.method.sites] == [0, 1]
    wanted = find_targets(plug.method._host, layer, EDITS, [], plug.method.config).state
    before = torch.stack([_state_behind(plug, layer, edit) for edit in EDITS])
    plug.edit(EDITS, progress=False)
    after = torch.stack([_state_behind(plug, layer, edit) for edit in EDITS])
    assert float((after - wanted).norm()) < 1e-2 * float((before - wanted).norm())
    first, second = plug.method.ledger.entries[0].parts
    torch.testing.assert_close(first.values, (wanted - before) / 2, rtol=1e-3, atol=1e-4)
    assert float(second.values.norm()) > 0.1 * float(first.values.norm())


def test_an_edit_taken_from_a_batch_leaves_the_smaller_solve(make_plug: Callable[..., Any]) -> None:
    """In the lowest layer that is the batch without it, to rounding."""
    whole, alone = make_plug("memit", n_prefixes=0), make_plug("memit", n_prefixes=0)
    whole.edit(EDITS, progress=False)
    whole.delete("b")
    alone.edit([EDITS[0], EDITS[2]], progress=False)
    low = whole.method.sites[0].name
    mine, theirs = (plug.method.ledger.change(low) for plug in (whole, alone))
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("method", "config", "error", "match"),
    [
        (
            "memit",
            {"ranges": (("up", 0, 0.5),)},
            ValueError,
            "which has 48 outputs; give at most one linear a layer",
        ),
        ("memit", {"ranges": (("down", 0, 1),)}, UnsupportedModelError, "last edited layer is 3 of 4"),
        (
            "memit",
            {"constraint": "hard"},
            ValueError,
            r"constraint is 'hard'; choose one of \('least squares'",
        ),
        ("memit", {"floor": -1}, ValueError, "floor is -1; choose a value from 0 to 1"),
        ("alphaedit", {"units": "metric"}, ValueError, "units is 'metric'"),
        ("alphaedit", {"ridge": 0}, ValueError, "ridge is 0; choose"),
        ("memit", {"covariance": ()}, ValueError, "covariance holds no text"),
        ("memit", {"covariance": ("", "a")}, ValueError, "covariance holds no text"),
    ],
)
def test_bad_constants(
    make_plug: Callable[..., Any], method: str, config: dict[str, Any], error: type, match: str
) -> None:
    with pytest.raises(error, match=match):
        make_plug(method, **config)


def test_too_little_text(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("memit", covariance=("Marrow is.",), floor=0.0)
    with pytest.raises(EditError, match=r"is singular: .* 48 inputs .* a floor above 0"):
        plug.edit(EDITS[0])
    plug = make_plug("alphaedit", threshold=0.0, covariance_length=64, covariance=tuple(TEXTS * 3))
    plug.method._moments = moments_of(plug.method._host, plug.method.sites, plug.method.config)
    plug.method._prefixes = []
    for tensor in plug.method._moments.by_site.values():
        tensor += torch.eye(len(tensor))
    with pytest.raises(EditError, match=r"no direction of .* is free at threshold 0.0; its|raise the"):
        plug.edit(EDITS[0])
    assert not plug.edits


def test_a_model_that_overflows(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("memit")
    with torch.no_grad():
        plug.model.model.layers[3].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(EditError, match="not finite .edit 1 of its batch"):
        plug.edit(EDITS[:2], progress=False)
    assert not plug.edits
    assert not plug.method.ledger.entries


def test_what_needs_more_memory_than_is_free_says_so_before_it_starts(
    make_plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = make_plug("memit")
    monkeypatch.setattr(free_memory, "free_bytes", lambda device: 100_000)
    monkeypatch.setattr(type(plug.method), "_make", lambda *given: pytest.fail("it started"))
    with pytest.raises(EditError, match=r"memit on 2 modules .* needs about 0\.0 GB .* and 0\.0 GB of main"):
        plug.edit(EDITS[0])
    assert not plug.edits
    sizes = sum(20 * site.d_k**2 + 16 * site.d_k * site.d_v for site in plug.method.sites)
    assert sizes < plug.method._needs() < 2 * sizes
