"""Methods on a CUDA device: edits hold, others stay, and the model comes back, as on a CPU."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from families import METHODS, method_of
from test_contract import CASES, PROMPT, SUBJECT, TARGET, Trace

import memplug
from memplug.interface import Fits

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
OTHER = "Who founded the Orlo Bridge Company?"


def asked(model, tokenizer, *texts):
    """The logits of some texts, and what is generated behind the first."""
    inputs = tokenizer(list(texts), return_tensors="pt", padding=True, return_token_type_ids=False).to(DEVICE)
    with torch.no_grad():
        logits = model(**inputs).logits
    made = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return logits, tokenizer.decode(made, skip_special_tokens=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_an_edit_from_attach_to_detach(model, tokenizer, tmp_path, method, dtype):
    there = copy.deepcopy(model).to(DEVICE, dtype)
    trace, (base, _) = Trace(there), asked(there, tokenizer, PROMPT, OTHER)
    plug = memplug.attach(there, tokenizer, method_of(method), **METHODS[method])
    if isinstance(plug.method, Fits):
        plug.fit(CASES, progress=False)
    with warnings.catch_warnings():  # in half precision random models do not learn every target
        warnings.simplefilter("default" if dtype == torch.float32 else "ignore")
        edit = plug.edit(PROMPT, TARGET, SUBJECT)
    edited, said = asked(there, tokenizer, PROMPT, OTHER)
    assert bool(edited.isfinite().all())
    if dtype == torch.float32:
        assert said.strip().startswith(TARGET)
    plug.save(tmp_path / "plug")
    plug.disable(edit)
    assert torch.equal(asked(there, tokenizer, PROMPT, OTHER)[0], base)
    plug.detach()
    trace.check(there)
    with memplug.load(tmp_path / "plug", there, tokenizer):
        again = asked(there, tokenizer, PROMPT, OTHER)
        assert torch.equal(again[0], edited)
        assert again[1] == said
    trace.check(there)


def test_it_is_found_as_on_a_cpu(model, tokenizer):
    found = []
    for device in ("cpu", DEVICE):
        with memplug.attach(
            copy.deepcopy(model).to(device), tokenizer, "llp", **METHODS["llp-answer"]
        ) as plug:
            plug.edit(PROMPT, TARGET, SUBJECT)
            told = plug.explain(PROMPT)
            found.append((told.applies, told.recalled.votes, plug.explain(OTHER).applies))
    assert found[0] == found[1]
