"""Weight editing through the plug: steps, answers, the guard, what is refused, which editor is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from weights_tiny import (
    EDITS,
    QUICK,
    TINY,
    bits,
    clean,
    logits,
    same,
)

import memplug
from memplug.configs import without_former
from memplug.edits import EditError
from memplug.methods import editors as editors_module
from memplug.methods.hypernet.calibrate import LADDER, answered, find_step, stand_ins
from memplug.methods.hypernet.editor import StepSize
from memplug.methods.hypernet.features import Request
from memplug.methods.hypernet.method import UnfittedError
from memplug.methods.inweights.branch import branch_hooks
from memplug.methods.inweights.guard import CollapseError
from memplug.methods.smedit import SMEditConfig
from memplug.methods.ultraedit import UltraEditConfig
from memplug.model.hooks import HookSet
from memplug.saving.plugs import LoadError
from memplug.weights import originals as originals_module


def test_the_step_size_is_where_single_edits_gain_half(tiny_model: Callable[..., Any]) -> None:
    """Each stand-in edited alone, by the plain way: at the step size found, and at half of it."""
    plug = memplug.attach(
        *tiny_model(hidden_size=64, intermediate_size=128), "ultraedit", steps=1, enough=1.0
    )
    method, base = plug.method, bits(plug.model)
    host, pairs = method._host, stand_ins(plug.method._host, 24, 0)
    assert stand_ins(host, 24, 0) == pairs
    asked = [Request(pair, list(range(pair.start - 1, len(pair.ids) - 1))) for pair in pairs]
    method.editor.make(host, asked, observe=True)
    found = find_step(host, method.editor, asked)

    def gained(step: float) -> float:
        method.editor.set_step(step)
        total = 0.0
        for one in asked:
            factors = method.editor.make(host, [one]).factors(method.sites)
            with HookSet(branch_hooks(method.ledger.sites, factors)):
                total += float(answered(host, [one.pair])[0])
        return total / len(pairs)

    steps = [step for step in LADDER if step <= found * 1.01]
    assert found in steps
    assert gained(found) > gained(steps[-2])
    assert gained(found) >= 0.4 * max(gained(found * 2**n) for n in range(4))
    assert same(bits(plug.model), base)


def test_an_edit_is_answered_and_explained(tiny_model: Callable[..., Any]) -> None:
    """Statistics come from the model alone, and the first edit works."""
    model, tokenizer = tiny_model(hidden_size=64, intermediate_size=128)
    plug = memplug.attach(model, tokenizer, "ultraedit", steps=8, inner_lr=0.0256)
    state = torch.random.get_rng_state()
    edit = plug.edit("The capital of Ankaria is", "Castle", subject="Ankaria")
    assert torch.equal(torch.random.get_rng_state(), state)
    ids = plug.tokenizer(edit.prompt, return_tensors="pt")
    out = plug.model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert plug.tokenizer.decode(out).strip().startswith("Castle")
    told = plug.explain(edit.prompt)
    assert told.edited.startswith("Castle")
    assert not told.base.startswith("Castle")
    assert {one.module for one in told.edits[0].touched} == {site.name for site in plug.method.sites}
    whole = plug.method.ledger.relative_change()
    assert {one.module: one.share for one in told.edits[0].touched} == pytest.approx(whole, rel=1e-3)
    assert "The capital of Ankaria is" in str(told)


class _Int8Linear(nn.Module):
    """Codes of one byte and a scale for each output; the weight exists inside the forward alone."""

    def __init__(self, linear: nn.Linear, away: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scales = nn.Parameter(linear.weight.detach().abs().amax(1, keepdim=True) / 127, False)
        codes = (linear.weight.detach() / self.scales).round().to(torch.int8)
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, linear.out_features), False)
        self.codes = codes  # no parameter, as where a hook brings the weight from elsewhere
        self.weight = nn.Parameter(torch.empty(codes.shape, device="meta") if away else codes, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.codes.to(x.dtype) * self.scales.to(x.dtype), self.bias)


def _quantised(model: Any, away: bool) -> Any:
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, _Int8Linear(getattr(layer.mlp, name), away))
    return model


def _widened(model: Any) -> Any:
    """The same function as `_quantised`, with plain weights."""
    for layer in _quantised(model, False).model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            codes = getattr(layer.mlp, name)
            plain = nn.Linear(codes.in_features, codes.out_features)
            plain.weight.data, plain.bias.data = codes.codes * codes.scales, codes.bias.data
            setattr(layer.mlp, name, plain)
    return model


@pytest.mark.parametrize("away", [False, True])
def test_shares_of_quantised_and_offloaded_modules_are_those_of_the_weight_they_compute_with(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    monkeypatch.setattr(originals_module, "_ROWS", 7)
    (model, tokenizer), (wide, _) = tiny_model(), tiny_model()
    given = {"mode": "side", "inner_lr": 0.02, **QUICK}
    plug = memplug.attach(_quantised(model, away), tokenizer, "ultraedit", **given)
    float_plug = memplug.attach(_widened(wide), tokenizer, "ultraedit", **given)
    sites = plug.method.sites
    codes = [site.module.codes.clone() for site in sites]
    before = logits(plug)
    for one in (plug, float_plug):
        one.edit(EDITS[:4], progress=False)
    assert not torch.equal(logits(plug), before)
    shares = float_plug.method.ledger.relative_change()
    assert min(shares.values()) > 0.01
    assert plug.method.ledger.relative_change() == pytest.approx(shares, rel=1e-3)
    told, want = (one.explain(EDITS[0].prompt).edits[0].touched for one in (plug, float_plug))
    assert [one.share for one in told] == pytest.approx([one.share for one in want], rel=1e-3)
    again = _quantised(tiny_model()[0], away)
    refusing = memplug.attach(again, tokenizer, "ultraedit", **given, max_change=min(shares.values()) / 2)
    with pytest.raises(CollapseError, match="times its norm"):
        refusing.edit(EDITS[:4], progress=False)
    plug.detach()
    assert all(torch.equal(site.module.codes, code) for site, code in zip(sites, codes, strict=True))
    assert clean(model)
    with torch.no_grad():
        assert torch.equal(model(**tokenizer(EDITS[0].prompt, return_tensors="pt")).logits, before)


def test_replay_is_for_weights_alone(tiny_model: Callable[..., Any]) -> None:
    plug = memplug.attach(*tiny_model(), "llp", value_steps=1)
    plug.edit(EDITS[0])
    with pytest.raises(ValueError, match="replay=True: deleting an edit of 'llp'"):
        plug.delete("e1", replay=True)
    assert len(plug.edits) == 1


def test_the_guard_refuses_and_rolls_back(tiny_plug: Callable[..., Any]) -> None:
    for limits, message in [
        ({"max_change": 1e-6}, "times its norm"),
        ({"max_perplexity": 1.0, "max_change": 1e9}, "perplexity"),
    ]:
        plug = tiny_plug("ultraedit", guard_texts=("The river of Elba is long",), inner_lr=1.0, **limits)
        base = bits(plug.model)
        with pytest.raises(CollapseError, match=message):
            plug.edit(EDITS[:4], progress=False)
        assert same(bits(plug.model), base)
        assert not plug.edits
        assert not plug.method.ledger.entries
    quiet = tiny_plug("ultraedit", guard_every=0, max_change=1e-6)
    quiet.edit(EDITS[:4], progress=False)
    assert len(quiet.edits) == 4


def test_nan_in_features(tiny_plug: Callable[..., Any]) -> None:
    plug = tiny_plug("rledit")
    with torch.no_grad():
        plug.model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(EditError, match="are not finite"):
        plug.edit(EDITS[0])
    assert not plug.edits


def test_editors_that_do_not_fit(
    tiny_model: Callable[..., Any], tiny_editor: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tiny_editor("rledit")
    with pytest.raises(UnfittedError, match=r"not fitted; call plug.fit\(cases\)"):
        memplug.attach(*tiny_model(), "rledit").edit(EDITS[0])
    with pytest.raises(UnfittedError, match="no fitted editor to save"):
        memplug.attach(*tiny_model(), "rledit").save_editor(tmp_path / "x")
    model, tokenizer = tiny_model(seed=3)
    with pytest.raises(LoadError, match="fitted for a LlamaForCausalLM with the fingerprint"):
        memplug.attach(model, tokenizer, "rledit", editor=file)
    assert clean(model)
    with pytest.raises(ValueError, match="fitted for 'rledit', not 'smedit'"):
        memplug.attach(*tiny_model(), "smedit", editor=file)
    for given, message in (
        ({"rank": 9}, "rank is 9, but the editor was fitted with 4"),
        ({"style": "outer"}, "style is 'outer', but the editor was fitted with 'joint'"),
        ({"ranges": (("down", 0.0, 1.0),)}, "ranges is"),
    ):
        with pytest.raises(ValueError, match=message):
            memplug.attach(*tiny_model(), "rledit", editor=file, **given)
    with pytest.raises(LoadError, match="is not a file"):
        memplug.attach(*tiny_model(), "rledit", editor=tmp_path)
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match="damaged"):
        memplug.attach(*tiny_model(), "rledit", editor=tmp_path / "cut")
    model, tokenizer = tiny_model(tie_word_embeddings=False)
    model.model.layers[1].mlp.gate_proj.weight = model.model.layers[2].mlp.gate_proj.weight
    with pytest.raises(memplug.UnsupportedModelError, match="shares its weight"):
        memplug.attach(model, tokenizer, "rledit")
    assert clean(model)


def test_constants_that_there_are_no_more_do_no_harm_where_they_say_nothing() -> None:
    old = {"rank": 4, "clip": 1.0, "norm_of": "drift", "faithful": False, "shared_steps": False}
    assert without_former(SMEditConfig, old) == {"rank": 4}
    assert without_former(UltraEditConfig, old) == {}
    assert "faithful" in without_former(SMEditConfig, old | {"faithful": True})


def test_the_shipped_editor_is_taken_for_its_own_model(
    tiny_model: Callable[..., Any], tiny_editor: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editors_module, "_SHIPPED", tiny_editor("smedit").parent)
    plug = memplug.attach(*tiny_model(), "smedit")
    assert plug.method.config.rank == TINY["rank"]
    plug.edit(EDITS[0])
    for given in (
        {"batch_size": 7}, {"enough": 0.5}, {"seed": 3}, {"rank": TINY["rank"]},
        {"trajectory": TINY["trajectory"]},
    ):  # fmt: skip
        plug = memplug.attach(*tiny_model(), "smedit", **given)
        assert bool(plug.method.editor.fitted)
        assert plug.method.config.rank == TINY["rank"]
        assert all(getattr(plug.method.config, name) == value for name, value in given.items())
    assert bool(memplug.attach(*tiny_model(), SMEditConfig(batch_size=7)).method.editor.fitted)
    for given in ({"rank": 9}, {"norm_weight": 0.0}):  # asks for an editor of its own
        plug = memplug.attach(*tiny_model(), "smedit", **given)
        assert not bool(plug.method.editor.fitted)
    with pytest.raises(UnfittedError):
        memplug.attach(*tiny_model(seed=4), "smedit").edit(EDITS[0])


def test_further_steps_grow_until_edits_are_learned(tiny_plug: Callable[..., memplug.Plug]) -> None:
    """From a step size that is far too small; and where they lose, they shrink again."""
    known = {}
    for growth in (1.0, 2.0):
        with tiny_plug("ultraedit", inner_lr=1e-3, batch_size=6, extra_steps=14, growth=growth) as plug:
            pairs = [plug.method._host.text.pair(edit.prompt, edit.target) for edit in EDITS]
            plug.edit(EDITS, progress=False)
            known[growth] = float(answered(plug.method._host, pairs).mean())
            assert max(plug.method.ledger.relative_change().values()) < 2
    assert known[1.0] < 0.1
    assert known[2.0] > 0.3


def test_the_step_size_follows_what_the_batch_gains() -> None:
    size, both = StepSize(3, 1.5), torch.tensor([0, 2])
    size.look(torch.tensor([0.1, 0.1, 0.1]), torch.arange(3), adapt=False)
    assert size.size == 1
    size.look(torch.tensor([0.3, 0.09]), both, adapt=True)
    assert size.size == 1.5
    size.look(torch.tensor([0.01, 0.1]), both, adapt=True)
    assert size.size == pytest.approx(1 / 1.5)


def test_a_batch_that_further_steps_would_break_is_made_without_them(
    tiny_plug: Callable[..., memplug.Plug],
) -> None:
    given: dict[str, Any] = {"batch_size": 6, "growth": 4.0}
    with tiny_plug("rledit", extra_steps=0, **given) as plug:
        plug.edit(EDITS, progress=False)
        plain, change = bits(plug.model), max(plug.method.ledger.relative_change().values())
    with tiny_plug("rledit", extra_steps=14, max_change=2 * change, **given) as plug:
        plug.edit(EDITS, progress=False)
        assert same(bits(plug.model), plain)
        assert len(plug.edits) == len(EDITS)
    with (
        tiny_plug("rledit", extra_steps=14, max_change=change / 2, **given) as plug,
        pytest.raises(CollapseError, match="times its norm"),
    ):
        plug.edit(EDITS, progress=False)


def test_what_is_made_again_is_looked_at_whenever_the_guard_is_due(
    tiny_plug: Callable[..., memplug.Plug],
) -> None:
    """The guard looks at every second batch; what it refuses is not let in by being made a second time."""
    with tiny_plug("rledit", batch_size=2, max_change=1e-6, guard_every=2) as plug:
        base = bits(plug.model)
        with pytest.raises(CollapseError, match="times its norm"):
            plug.edit(EDITS[:4], progress=False)
        assert same(bits(plug.model), base)
