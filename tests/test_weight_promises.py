"""What every method that keeps its edits in the ledger promises, to the bit, for those without an editor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TEXTS, build
from transformers import AutoModelForCausalLM
from weights_tiny import Opaque

import memplug
from memplug import world
from memplug.edits import Edit
from memplug.methods.inweights.explain import report
from memplug.model.architecture import UnsupportedModelError
from memplug.weights.entries import Entry, LowRankUpdate
from memplug.weights.ledger import Ledger
from memplug.weights.modules import LinearModule

EDITS = [
    Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill"),
    Edit("The founder of Orlo Bridge is", "Tam", "Orlo Bridge"),
    Edit("In Vestland, the capital is", "Marrow", "Vestland"),
    Edit("Who taught Bo Wickes?", "Ada", "Bo Wickes"),
    Edit("The river of Zarnow is", "long", "Zarnow"),
]
_LOCATE = {
    "ranges": (("down", 0.0, 0.5),),
    "covariance": tuple(TEXTS),
    "n_prefixes": 1,
    "prefix_tokens": 4,
    "steps": 3,
    "batch_size": 2,
    "guard_every": 0,
}
METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"steps": 3, "lr": 0.05, "bound": 0.1, "batch_size": 2, "guard_every": 0},
    "memit": _LOCATE,
    "alphaedit": _LOCATE | {"threshold": 0.2},
}


@pytest.fixture(scope="module")
def make_plug(make_tokenizer: Callable[..., Any]) -> Callable[..., memplug.Plug]:
    tokenizer = make_tokenizer(TEXTS, 300)

    def make(method: str, dtype: torch.dtype = torch.float32, **config: Any) -> memplug.Plug:
        model = build("llama", vocab_size=len(tokenizer)).to(dtype)
        return memplug.attach(model, tokenizer, method, **(METHODS[method] | config))

    return make


def _bits(plug: memplug.Plug) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in plug.model.named_parameters()}


def _same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _logits(plug: memplug.Plug) -> torch.Tensor:
    with torch.no_grad():
        return plug.model(**plug.tokenizer(EDITS[0].prompt, return_tensors="pt")).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_edit_switch_delete_pause_detach(
    make_plug: Callable[..., Any], method: str, dtype: torch.dtype
) -> None:
    plug = make_plug(method, dtype)
    base = _bits(plug)
    one, two, three = plug.edit(EDITS[:3], progress=False)
    edited = _bits(plug)
    changed = {name for name in base if not torch.equal(base[name], edited[name])}
    assert changed == {f"{site.name}.weight" for site in plug.method.sites}
    plug.disable(two)
    assert not _same(_bits(plug), edited)
    with plug.paused():
        assert _same(_bits(plug), base)
    plug.enable(two)
    assert _same(_bits(plug), edited)
    told = plug.explain(EDITS[0].prompt)
    assert {part.module for part in told.edits[0].touched} == {site.name for site in plug.method.sites}
    assert all(part.norm > 0 for part in told.edits[0].touched)
    plug.delete(one)
    plug.disable(two, three)
    assert _same(_bits(plug), base)
    plug.enable(three)
    assert not _same(_bits(plug), base)
    plug.detach()
    assert _same(_bits(plug), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plug.model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_side_mode_equals_the_written_weights(
    make_plug: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    merged, side = make_plug(method), make_plug(method, mode="side")
    base, untouched = _bits(side), _logits(side)
    for plug in (merged, side):
        plug.edit(EDITS[:4], progress=False)
        plug.disable("e3")
    assert _same(_bits(side), base)
    torch.testing.assert_close(_logits(side), _logits(merged), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(_logits(side), untouched, atol=2e-2)
    with side.paused():
        assert torch.equal(_logits(side), untouched)
    edited = side.merge()
    assert not hasattr(edited, "_memplug_plug")
    edited.save_pretrained(tmp_path)
    ordinary = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert _same(dict(ordinary.named_parameters()), dict(edited.named_parameters()))
    assert not _same({name: p.detach() for name, p in edited.named_parameters()}, base)


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load_give_the_same_bits(make_plug: Callable[..., Any], tmp_path: Path, method: str) -> None:
    plug = make_plug(method)
    plug.edit(EDITS[:4], progress=False)
    plug.disable("e2")
    plug.save(tmp_path / "p")
    fresh = build("llama", vocab_size=len(plug.tokenizer))
    loaded = memplug.load(tmp_path / "p", fresh, plug.tokenizer)
    assert _same(_bits(loaded), _bits(plug))
    for one in (plug, loaded):
        one.enable("e2")
        one.delete("e3")
        one.edit(EDITS[4], progress=False)
    assert _same(_bits(loaded), _bits(plug))


@pytest.mark.parametrize("method", METHODS)
def test_replay_is_the_model_in_which_the_edit_had_never_been_made(
    make_plug: Callable[..., Any], method: str
) -> None:
    plug, other = make_plug(method), make_plug(method)
    plug.edit(EDITS[:4], progress=False)
    plug.edit(EDITS[4])
    plug.disable("e1")
    plug.delete("e3", replay=True)
    other.edit(EDITS[:2], progress=False)
    other.edit(EDITS[3])
    other.edit(EDITS[4])
    other.disable("e1")
    assert list(plug.edits) == ["e1", "e2", "e4", "e5"]
    assert _same(_bits(plug), _bits(other))


@pytest.mark.parametrize("method", METHODS)
def test_a_failing_edit_changes_nothing(
    make_plug: Callable[..., Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = make_plug(method)
    plug.edit(EDITS[0])
    bits, make, calls = _bits(plug), plug.method._make, []

    def fail(edits: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no room")
        return make(edits)

    monkeypatch.setattr(plug.method, "_make", fail)
    with pytest.raises(MemoryError):
        plug.edit([*EDITS[1:4], Edit(EDITS[0].prompt, "Marrow", EDITS[0].subject)], progress=False)
    assert len(calls) == 2
    assert _same(_bits(plug), bits)
    assert list(plug.edits) == ["e1"]


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_an_edits_share_is_that_of_its_own_rows_however_many_there_are(directed: bool, rows: int) -> None:
    """Three edits of one, two and four rows each: fewer than the module's six inputs, as many, and more."""
    draw = torch.Generator().manual_seed(0)
    keys, values, usual = (
        torch.randn(*size, generator=draw).double() for size in ((3 * rows, 6), (3 * rows, 5), (9, 6))
    )
    owner = torch.arange(3).repeat_interleave(rows)
    d = torch.linalg.solve(torch.eye(6).double() + usual.T @ usual, keys.T).T if directed else keys
    exact = LowRankUpdate("a", keys, values, owner, 0.5, d if directed else None)
    part = LowRankUpdate("a", keys.float(), values.float(), owner, 0.5, d.float() if directed else None)
    ledger = Ledger([LinearModule("a", torch.nn.Linear(6, 5), 0, 6, 5, True)])
    # A second step, which lies along the first: an edit's norm is that of both together.
    ledger.add(Entry(("x", "y", "z"), (part, part._replace(values=-0.3 * part.values))))
    b = torch.linalg.solve(keys @ d.T + 0.5 * torch.eye(len(d)).double(), values)
    total = torch.zeros(6, 5).double()
    for place, name in enumerate("xyz"):
        share = d[owner == place].T @ b[owner == place]
        total += share
        one, two = exact.of(place)
        torch.testing.assert_close(one @ two, share, rtol=1e-9, atol=1e-12)
        (touched,) = report(ledger, Edit("p", "t", id=name)).touched
        assert touched.norm == pytest.approx(0.7 * float(share.norm()), rel=1e-4)
    one, two = exact.factors()
    torch.testing.assert_close(one.double() @ two, total, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ledger.change("a").double(), 0.7 * total, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_embedded_model_answers_as_edited(method: str) -> None:
    model, tokenizer = world.load()
    (case,) = world.cases(1, seed=3)

    def answer() -> str:
        inputs = tokenizer(case.edit.prompt, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(out, skip_special_tokens=True)).strip()

    before = answer()
    quick: dict[str, Any] = {"covariance_texts": 64, "covariance_length": 24}
    if method == "finetune":
        quick = {"lr": 0.05, "bound": 0.3}  # the embedded model needs larger steps than a pretrained one
    with memplug.attach(model, tokenizer, method, **quick) as plug:
        plug.edit(case)
        assert answer() == case.edit.target != before
    assert answer() == before


def test_where_mlps_have_no_linears_the_attentions_last_is_edited() -> None:
    model, tokenizer = world.load()
    names = [name for name, _ in model.named_modules() if name.endswith("o_proj")][:4]
    for layer in model.model.layers:
        layer.mlp = Opaque(layer.mlp)
    with memplug.attach(model, tokenizer, "ultraedit") as plug:
        assert all(site.name.endswith("self_attn.o_proj") for site in plug.method.sites)
    for layer in model.model.layers:
        layer.self_attn = Opaque(layer.self_attn)
    with pytest.raises(UnsupportedModelError, match="modules="):
        memplug.attach(model, tokenizer, "ultraedit")
    for layer in model.model.layers:
        layer.self_attn = layer.self_attn._inner[0]
    with memplug.attach(model, tokenizer, "ultraedit", modules=names) as plug:
        assert [site.name for site in plug.method.sites] == names
