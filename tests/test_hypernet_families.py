"""Fitted weight editors on other families: fitted, edited with, switched, saved, undone to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TEXTS, build

import memplug
from memplug.edits import Case, Edit, Probe

EDITS = [Edit("Who rules Elba?", "Ann", "Elba"), Edit("Who rules Oz?", "Bo", "Oz")]
CASES = [
    Case(Edit(f"Who rules {name}?", who, name), (f"{name} is ruled by",), (Probe("Is it big?", "No"),))
    for name, who in (("Ankaria", "Ada"), ("Vestland", "Tam"), ("Zarnow", "Bo"))
]
TINY = {"rank": 4, "fit_steps": 2, "fit_batch": 2, "trajectory": (1, 2), "steps": 2, "extra_steps": 1}
PAIRS = [("gpt2", "rledit"), ("gemma2", "hiedit"), ("bloom", "smedit"), ("opt", "mend"), ("phi", "malmen")]
"""Weights both ways round, attention beside the MLP, norms behind it, one linear before it or two."""


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_from_fitting_to_detaching(
    make_tokenizer: Callable[..., Any], tmp_path: Path, family: str, method: str
) -> None:
    tokenizer = make_tokenizer(TEXTS, 300)
    model = build(family, vocab_size=len(tokenizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def changed() -> set[str]:
        return {name for name, one in model.state_dict().items() if not torch.equal(before[name], one)}

    plug = memplug.attach(model, tokenizer, method, inner_lr=0.01, batch_size=2, guard_every=0, **TINY)
    plug.fit(CASES, progress=False)
    assert not changed()
    one, two = plug.edit(EDITS, progress=False)
    edited = {name: model.state_dict()[name].clone() for name in changed()}
    assert edited
    assert edited.keys() <= {f"{site.name}.weight" for site in plug.method.sites}
    plug.disable(two)
    plug.enable(two)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in edited.items())
    plug.save(tmp_path / "plug")
    plug.detach()
    assert not changed()
    again = memplug.load(tmp_path / "plug", model, tokenizer)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in edited.items())
    again.delete(one.id, two.id)
    assert not changed()
    again.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
