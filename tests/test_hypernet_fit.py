"""Fitting: resumable, restoring, published and not, in one process and in two."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import memplug
from memplug.edits import Case, Edit, Probe
from memplug.methods.hypernet import fit as fit_module
from memplug.methods.hypernet.fit import FitError

NAMES = ["Ankaria", "Borland", "Curia", "Dagmar", "Elba", "Fanoria", "Gelt", "Hiram"]
TOWNS = ["Bel", "Castle", "Dor", "Efra", "Gor", "Hol", "Ister", "Jam"]
CASES = [
    Case(
        Edit(f"The capital of {name} is", town, name),
        rephrases=(f"What town rules {name}?",),
        locality=(Probe(f"The river of {name[::-1]} is", "long"),),
    )
    for name, town in zip(NAMES, TOWNS, strict=True)
]
TINY: dict[str, Any] = {
    "rank": 4, "fit_steps": 6, "fit_batch": 2, "trajectory": (2, 3), "batch_size": 2, "guard_every": 0,
    "steps": 2,
}  # fmt: skip


@pytest.fixture
def make_plug(
    make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> Callable[..., memplug.Plug]:
    def make(method: str, **config: Any) -> memplug.Plug:
        tokenizer = make_tokenizer([p for c in CASES for p in (c.edit.prompt, *c.rephrases)], 300)
        model = make_llama(len(tokenizer), hidden_size=16, intermediate_size=24, initializer_range=0.3)
        fitted = {} if method == "ultraedit" else TINY
        return memplug.attach(model, tokenizer, method, **(fitted | config))

    return make


def _bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("method", ["mend", "malmen", "rledit", "hiedit", "smedit"])
def test_fitting_lowers_the_loss_and_leaves_the_model(make_plug: Callable[..., Any], method: str) -> None:
    length = (1, 1) if method in ("mend", "malmen") else (2, 2)
    lr = 2e-2 if method == "mend" else 5e-3
    plug = make_plug(method, fit_steps=40, fit_lr=lr, trajectory=length, own_prompt=1.0)
    before = _bits(plug.model)
    start = torch.random.get_rng_state()
    report = plug.fit(CASES, progress=False)
    assert torch.equal(torch.random.get_rng_state(), start)
    assert _same(_bits(plug.model), before)
    assert all(p.requires_grad for p in plug.model.parameters())
    assert report.steps == len(report.losses) == 40
    assert all(parameter.grad is None for parameter in plug.model.parameters())
    weights = 1.0, plug.method.config.locality_weight, plug.method.config.norm_weight
    totals = [sum(w * term for w, term in zip(weights, loss, strict=True)) for loss in report.losses]
    assert sum(totals[-10:]) < sum(totals[:10])


def test_a_resumed_fitting_ends_where_the_whole_one_does(
    make_plug: Callable[..., Any], tmp_path: Path
) -> None:
    whole, cut, resumed = (make_plug("smedit") for _ in range(3))
    whole.fit(CASES, progress=False)
    file = tmp_path / "fit.safetensors"
    step = fit_module._Run._step

    def stop(self: Any, *args: Any) -> bool:
        if self.done == 5:
            raise KeyboardInterrupt
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module._Run, "_step", stop)
        before = _bits(cut.model)
        with pytest.raises(KeyboardInterrupt):
            cut.fit(CASES, progress=False, checkpoint=file, checkpoint_every=1)
        assert _same(_bits(cut.model), before)
    assert not bool(cut.method.editor.fitted)
    report = resumed.fit(CASES, progress=False, checkpoint=file)
    assert report.steps == len(report.losses) == 6
    mine, theirs = resumed.method.editor.state_dict(), whole.method.editor.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    other = make_plug("smedit", rank=5)
    with pytest.raises(FitError, match="another rank"):
        other.fit(CASES, progress=False, checkpoint=file)


def test_a_float64_model_is_fitted_and_edited_as_exactly(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("hiedit")
    model = plug.model
    plug.detach()
    model.double()
    with memplug.attach(model, plug.tokenizer, "hiedit", **TINY) as exact:
        exact.fit(CASES, progress=False)
        assert {p.dtype for p in exact.method.editor.parameters()} == {torch.float64}
        exact.edit(CASES[0])
        assert exact.method.ledger.active


def test_what_cannot_be_fitted(make_plug: Callable[..., Any], tmp_path: Path) -> None:
    plug = make_plug("rledit")
    with pytest.raises(FitError, match="1 cases are too few"):
        plug.fit(CASES[:1], progress=False)
    with pytest.raises(FitError, match="fit takes cases, got Edit"):
        plug.fit([case.edit for case in CASES], progress=False)
    (tmp_path / "x").write_bytes(b"nonsense")
    with pytest.raises(FitError, match="no checkpoint"):
        plug.fit(CASES, progress=False, checkpoint=tmp_path / "x")
    with pytest.raises(ValueError, match="needs no fitting"):
        make_plug("ultraedit").fit(CASES)
    with pytest.raises(ValueError, match="no editor to save"):
        make_plug("ultraedit").save_editor(tmp_path / "e")


def test_losses_that_are_not_finite_end_the_fitting(
    make_plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = make_plug("rledit", fit_steps=100)
    before = _bits(plug.model)
    loss = fit_module.Trajectory._edit_loss
    broken = staticmethod(lambda *given: loss(*given) * float("inf"))
    monkeypatch.setattr(fit_module.Trajectory, "_edit_loss", broken)
    with pytest.raises(FitError, match="not finite"):
        plug.fit(CASES, progress=False)
    assert _same(_bits(plug.model), before)
    assert not bool(plug.method.editor.fitted)


def test_configs_refuse_what_they_cannot_be(make_plug: Callable[..., Any]) -> None:
    for wrong, message in [
        ({"steps": 0}, "steps is 0; choose a value from 1"),
        ({"style": "both"}, "style is 'both'; choose one of"),
        ({"trajectory": (5, 2)}, "trajectory is"),
        ({"ranges": (("middle", 0.0, 1.0),)}, "ranges holds"),
        ({"modules": ()}, "modules is empty"),
        ({"ranks": 3}, "has no field 'ranks'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_plug("rledit", **wrong)
    for method in ("mend", "malmen", "rledit", "hiedit", "smedit", "ultraedit"):
        config = type(make_plug(method).method.config)
        assert dataclasses.asdict(config.preset("paper"))["std_floor"] == 0.0


def test_an_editor_is_saved_as_it_is_or_in_half_precision(
    make_plug: Callable[..., Any], tmp_path: Path
) -> None:
    plug = make_plug("rledit", rank=32)
    plug.fit(CASES, progress=False)
    fitted = plug.method.editor.state_dict()
    plug.save_editor(tmp_path / "whole")
    plug.save_editor(tmp_path / "half", half=True)
    constants = {"editor": tmp_path / "whole", "rank": 32}
    assert all(torch.equal(fitted[n], t) for n, t in make_plug(
        "rledit", **constants).method.editor.state_dict().items())  # fmt: skip
    again = make_plug("rledit", **(constants | {"editor": tmp_path / "half"})).method.editor.state_dict()
    for name, tensor in fitted.items():
        small = tensor.dtype == torch.float32 and tensor.dim() > 1
        assert torch.equal(again[name], tensor.half().float() if small else tensor), name
    assert (tmp_path / "half").stat().st_size < 0.7 * (tmp_path / "whole").stat().st_size


@pytest.mark.parametrize("locality", ["base", "previous"])
@pytest.mark.parametrize("method", ["rledit", "hiedit"])
def test_cases_may_lack_unrelated_probes_and_share_their_words(
    make_plug: Callable[..., Any], method: str, locality: str
) -> None:
    bare = [dataclasses.replace(case, locality=(), same_subject=()) for case in CASES]
    plug = make_plug(method, locality=locality, fit_steps=3, trajectory=(1, 1))
    plug.fit(bare, progress=False)
    plug.fit([*bare[:-1], CASES[-1]], progress=False)
    # The same text, its answer starting at another word.
    cut = [Probe("The river is", "long and wide"), Probe("The river is long", "and wide")]
    cases = [dataclasses.replace(case, locality=(cut[n % 2],)) for n, case in enumerate(CASES)]
    report = plug.fit(cases, progress=False)
    assert all(math.isfinite(value) for losses in report.losses for value in losses)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("locality", ["base", "previous"])
def test_a_half_precision_model_is_fitted_edited_and_put_back(
    make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any], dtype: torch.dtype, locality: str
) -> None:
    tokenizer = make_tokenizer([p for c in CASES for p in (c.edit.prompt, *c.rephrases)], 300)
    model = make_llama(len(tokenizer), hidden_size=16, intermediate_size=24, initializer_range=0.3).to(dtype)
    before = _bits(model)
    with memplug.attach(model, tokenizer, "rledit", **(TINY | {"locality": locality})) as plug:
        report = plug.fit(CASES, progress=False)
        assert all(math.isfinite(value) for losses in report.losses for value in losses)
        assert _same(_bits(model), before)
        edits = plug.edit([case.edit for case in CASES[:4]], progress=False)
        edited = _bits(model)
        assert not _same(edited, before)
        plug.disable(edits[1])
        plug.enable(edits[1])
        assert _same(_bits(model), edited)
    assert _same(_bits(model), before)
