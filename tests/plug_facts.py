"""A plug with two edits on a tiny model, and what its tests ask."""

from __future__ import annotations

import torch
from families import attach_llp
from test_contract import encode

BORN, TAUGHT, FOUNDED = (
    "Where was Ada Quill born?",
    "Who taught Ada Quill?",
    "Who founded the Orlo Bridge Company?",
)


def logits(model, tokenizer, *texts):
    with torch.no_grad():
        return model(**encode(tokenizer, *texts)).logits


def state_of(plug):
    tensors, meta = plug.method.state()
    return (
        {name: tensor.clone() for name, tensor in tensors.items()},
        meta,
        dict(plug.edits),
        repr(plug.edits),
    )


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name
    assert before[1:] == after[1:]


def text_of(tokenizer, row):
    return tokenizer.decode(row, skip_special_tokens=True).strip()


def save_two_facts(model, tokenizer, path):
    with attach_llp(model, tokenizer) as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company")
        plug.save(path)
