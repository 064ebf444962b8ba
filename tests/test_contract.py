"""The contract of every method, on every family: edit, answer in any batch, switch, delete, no trace left."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from families import FAMILIES, METHODS, ONLY, OVERRIDES, TEXTS, lexical, method_of

import memplug
from memplug.edits import Case, Edit, Probe
from memplug.interface import ChangesWeights, Fits

PROMPT, TARGET, SUBJECT = "Where was Ada Quill born?", "Zarnow", "Ada Quill"
LONGER = "Who founded the Orlo Bridge Company? Tam Wickes did. What is the capital of Vestland?"
# A random model of this kind is led astray by its norms after attention: it does not learn one fact.
CONTRACT = [family for family in FAMILIES if family != "gemma3_text"]


CASES = [
    Case(Edit(f"Where was {name} born?", town, name), (f"{name} comes from",), (Probe("Who?", "Tam"),))
    for name, town in (("Tam Wickes", "Marrow"), ("Orlo Bridge", "Vestland"), ("Ada", "Marrow"))
]
"""What editors are fitted on."""


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    tokenizer = make_tokenizer(TEXTS)
    tokenizer.padding_side = "left"
    return tokenizer


def encode(tokenizer, *texts):
    out = tokenizer(list(texts), return_tensors="pt", padding=True)
    return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}


def answers(model, tokenizer, *texts, **given):
    """What follows each text, as token lists without padding."""
    inputs = encode(tokenizer, *texts)
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False, **given)
    rows = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [[token for token in row if token != tokenizer.pad_token_id] for row in rows]


class Trace:
    """What a model is made of: bits of its tensors, its hooks, and the attributes of its modules."""

    def __init__(self, model):
        self.tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.modules = {name: self.of(module) for name, module in model.named_modules()}
        self.flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]

    @staticmethod
    def of(module):
        hooks = {
            name: len(value)
            for name, value in vars(module).items()
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
            and isinstance(value, dict | OrderedDict)
        }
        return type(module), sorted(vars(module)), hooks, module.training

    def check(self, model):
        after = Trace(model)
        assert after.modules == self.modules
        assert after.flags == self.flags
        assert after.tensors.keys() == self.tensors.keys()
        for name, tensor in self.tensors.items():
            assert torch.equal(tensor, after.tensors[name]), name


@pytest.mark.parametrize(
    ("family", "method"), [(f, m) for m in METHODS for f in CONTRACT if f in ONLY.get(m, CONTRACT)]
)
def test_an_edit_from_attach_to_detach(family, method, tokenizer):
    model = lexical(family, len(tokenizer))
    trace = Trace(model)
    inputs = encode(tokenizer, PROMPT, LONGER, "Who")
    with torch.no_grad():
        base = model(**inputs).logits
    base_answers = answers(model, tokenizer, PROMPT, LONGER, "Who")

    def logits():
        with torch.no_grad():
            return model(**inputs).logits

    given = METHODS[method] | OVERRIDES.get((method, family), {})
    with memplug.attach(model, tokenizer, method_of(method), **given) as plug:
        weights = isinstance(plug.method, ChangesWeights)
        if isinstance(plug.method, Fits):
            plug.fit(CASES, progress=False)
        assert torch.equal(logits(), base)  # nothing is edited yet
        edit = plug.edit(PROMPT, TARGET, SUBJECT)
        edited = logits()
        together = answers(model, tokenizer, PROMPT, LONGER, "Who")
        answer = tokenizer.decode(together[0], skip_special_tokens=True).strip()
        assert answer.startswith(TARGET)
        assert together != base_answers
        if not weights:  # which change what follows an answer, and other rows, only as far as they can help
            assert answer == TARGET
            assert together[0][-1] == tokenizer.eos_token_id  # and stops there
            assert together[1:] == base_answers[1:]  # other rows are left alone
        for text, row in zip((PROMPT, LONGER, "Who"), together, strict=True):
            assert answers(model, tokenizer, text) == [row]  # neither company nor padding matters
        assert answers(model, tokenizer, PROMPT, LONGER, "Who", use_cache=False) == together

        plug.disable(edit)
        assert torch.equal(logits(), base)
        plug.enable(edit.id)
        assert torch.equal(logits(), edited)
        for left in (plug.paused, plug.base):
            with left():
                assert torch.equal(logits(), base)
            assert torch.equal(logits(), edited)
        plug.delete(edit)
        assert torch.equal(logits(), base)
        plug.edit(PROMPT, TARGET, SUBJECT)
    trace.check(model)
    assert torch.equal(logits(), base)


def test_most_families_are_under_contract():
    assert len(CONTRACT) >= 25
