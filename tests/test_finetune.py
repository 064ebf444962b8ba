"""FT-L against a plain loop on the weights themselves, and edits that were trained together."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import TEXTS, build

import memplug
from memplug.edits import Edit, EditError
from memplug.methods.neutral import NeutralPool, neutral
from memplug.weights.entries import DenseUpdate, Entry
from memplug.weights.ledger import Ledger

EDITS = [
    Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill", "a"),
    Edit("The founder of Orlo Bridge is", "Tam", "Orlo Bridge", "b"),
    Edit("In Vestland, the capital is", "Marrow", "Vestland", "c"),
]
QUICK: dict[str, Any] = {
    "steps": 5,
    "lr": 0.05,
    "bound": 0.12,
    "stop_loss": 0.01,
    "keep": 0,
    "guard_every": 0,
}


@pytest.fixture(scope="module")
def make_plug(make_tokenizer: Callable[..., Any]) -> Callable[..., memplug.Plug]:
    tokenizer = make_tokenizer(TEXTS, 300)

    def make(family: str = "llama", **config: Any) -> memplug.Plug:
        model = build(family, vocab_size=len(tokenizer))
        return memplug.attach(model, tokenizer, "finetune", **(QUICK | config))

    return make


def _bits(plug: memplug.Plug) -> list[torch.Tensor]:
    return [site.weight.detach().clone() for site in plug.method.sites]


def _same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("bound", [0.12, None])
def test_it_is_adam_on_the_weights_within_a_bound(
    make_plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, family: str, bound: float | None
) -> None:
    monkeypatch.setattr("memplug.methods.neutral.has_reduced_products", lambda: False)
    plug, plain = make_plug(family, bound=bound, batch_size=2), make_plug(family).model
    (site,) = plug.method.sites
    assert site.layer == 3
    weight = plain.get_submodule(site.name).weight
    start = weight.detach().clone()
    unit = float(start.square().mean().sqrt())
    optimizer = torch.optim.Adam([weight], lr=0.05 * unit)
    text = plug.method._host.text
    pairs = [text.pair(e.prompt, e.target) for e in EDITS[:2]]
    for _ in range(5):
        optimizer.zero_grad()
        for ids, begin, _ in pairs:
            logp = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            nll = -sum(logp[t - 1, ids[t]] for t in range(begin, len(ids))) / (len(ids) - begin)
            (nll / 2).backward()
        optimizer.step()
        if bound is not None:
            with torch.no_grad():
                weight.copy_(torch.clamp(weight, start - bound * unit, start + bound * unit))
    plug.edit(EDITS[:2], progress=False)
    change = (site.weight - start).detach()
    torch.testing.assert_close(change, (weight - start).detach(), rtol=1e-3, atol=2e-3 * unit)
    reached = float(change.abs().max()) / unit
    assert reached <= 0.1201 if bound else reached > 0.2


def test_training_ends_when_learned(make_plug: Callable[..., Any]) -> None:
    plug = make_plug(steps=60, stop_loss=2.0, bound=None)
    plug.edit(EDITS[0])
    assert plug.method.ledger.entries[0].notes["loss"] < 2.0
    plug = make_plug(steps=60, stop_loss=1e3)
    before = _bits(plug)
    plug.edit(EDITS[0])  # learned before the first step
    assert _same(_bits(plug), before)


def test_answers_to_neutral_questions_are_kept(make_plug: Callable[..., Any]) -> None:
    def diverged(**config: Any) -> float:
        plug = make_plug(steps=25, lr=0.2, bound=None, **config)
        host = plug.method._host
        kept = neutral(host, 3, NeutralPool(host, 8, 0).pairs(EDITS))
        plug.edit(EDITS, progress=False)
        assert kept is not None
        with torch.no_grad():
            return float(kept.divergence(20, random.Random(0)))

    assert diverged(keep=20, keep_pool=8, keep_weight=100.0) < 0.5 * diverged()


def test_edits_trained_together_are_trained_anew_without_one(make_plug: Callable[..., Any]) -> None:
    plug, alone = make_plug(batch_size=3), make_plug(batch_size=3)
    base = _bits(plug)
    plug.edit(EDITS, progress=False)
    together = _bits(plug)
    plug.disable("b")
    alone.edit([EDITS[0], EDITS[2]], progress=False)
    assert _same(_bits(plug), _bits(alone))
    plug.enable("b")
    assert _same(_bits(plug), together)
    plug.delete("b")
    assert _same(_bits(plug), _bits(alone))
    plug.disable("a", "c")
    assert _same(_bits(plug), base)
    plug.enable("a", "c")
    assert _same(_bits(plug), _bits(alone))
    plug.disable("a")
    with plug.paused():
        assert _same(_bits(plug), base)
        plug.enable("a")  # that change is at hand
        with pytest.raises(EditError, match="the plug is paused"):
            plug.disable("c")
    assert _same(_bits(plug), _bits(alone))
    assert len(plug.edits) == 2


def test_a_failure_while_training_anew_changes_nothing(
    make_plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = make_plug(batch_size=3)
    plug.edit(EDITS, progress=False)
    before = _bits(plug)

    def fail(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(plug.method, "_train", fail)
    with pytest.raises(MemoryError):
        plug.delete("b")
    assert _same(_bits(plug), before)
    assert list(plug.edits) == ["a", "b", "c"]
    assert plug.method.ledger.entries[0].ids == ("a", "b", "c")


def test_the_ledger_refuses_a_change_made_for_other_edits(make_plug: Callable[..., Any]) -> None:
    (site,) = make_plug().method.sites
    ledger = Ledger([site])
    before = site.weight.detach().clone()
    change = torch.ones(site.d_k, site.d_v)
    ledger.add(Entry(("a", "b"), (), wholes=(DenseUpdate(site.name, change, ("a", "b")),)))
    torch.testing.assert_close(site.weight, before + 1)
    with pytest.raises(ValueError, match=r"\['a'\] was made together with other edits; train it anew"):
        ledger.delete(["b"])
    torch.testing.assert_close(site.weight, before + 1)
    ledger.delete(["a", "b"])
    assert torch.equal(site.weight, before)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"bound": 0}, "bound is 0; choose"),
        ({"steps": 0}, "steps is 0; choose"),
        ({"lr": -1}, "lr is -1; choose"),
        ({"ranges": (("out", 0, 1),)}, "ranges holds"),
    ],
)
def test_bad_constants(make_plug: Callable[..., Any], config: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_plug(**config)


def test_a_model_that_overflows(make_plug: Callable[..., Any]) -> None:
    plug = make_plug()
    with torch.no_grad():
        plug.model.model.layers[3].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(EditError, match="not finite; lower lr"):
        plug.edit(EDITS[0])
    assert not plug.edits
