"""Calibrating for LLP: limits, and what is kept between plugs."""

from __future__ import annotations

import copy

import torch
from chats import CHATML, chatting
from families import attach_llp

from memplug.retrieval import calibrate as calibrating
from memplug.retrieval.calibrate import calibrate
from memplug.retrieval.relations import wordings


def attach(model, tokenizer, **given):
    return attach_llp(copy.deepcopy(model), tokenizer, "answer", **given)


def test_limits_follow_the_shares_that_are_asked_for(model, tokenizer):
    """Of each form its own: fewer other questions pass a higher limit."""
    tokenizer = chatting(tokenizer, CHATML)

    def limits(**given):
        with attach(model, tokenizer, **given) as plug:
            method = plug.method
            made = calibrate(method._host, method.config, method._layers, method._room.relation)
            return made

    few, many = limits(other_accepts=0.1), limits(other_accepts=0.6)
    assert all(a > b for a, b in zip(few.relation, many.relation, strict=True))
    assert many.same == few.same
    assert few.relation[0] < few.same
    assert few.neutral.shape == (2, len(wordings()), model.config.hidden_size)
    assert few.labels.tolist() == sorted(few.labels.tolist())


def test_what_was_calibrated_is_kept_by_model_tokenizer_and_constants(
    model, tokenizer, monkeypatch, tmp_path
):
    """Not by the weights alone: with another template, or none, a question looks different."""
    made = []
    monkeypatch.setattr(calibrating, "is_large", lambda model: True)
    monkeypatch.setattr(calibrating, "cache", lambda: tmp_path)
    monkeypatch.setattr(calibrating, "calibrate", lambda *given: made.append(given) or calibrate(*given))

    def calibrated(tokenizer, **given):
        with attach(model, tokenizer, **given) as plug:
            return plug.method._room.calibrate()

    first, again = calibrated(tokenizer), calibrated(tokenizer)
    assert len(made) == 1
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in first.tensors().items())
    assert len(calibrated(chatting(tokenizer, CHATML)).neutral) == 2 > len(first.neutral)
    assert len(made) == 2
    calibrated(tokenizer, other_accepts=0.3)
    assert len(made) == 3
    for file in (tmp_path / "calibrations").iterdir():
        file.write_bytes(b"damaged")
    calibrated(tokenizer)
    assert len(made) == 4
