"""Locate-and-edit on a real model: the closed form in float64, and what an edit holds and leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import memplug
from memplug.edits import Edit
from memplug.methods.locate.rows import subject_rows
from memplug.methods.locate.target import find_targets
from memplug.text.chat import in_chat

pytestmark = [pytest.mark.real, pytest.mark.slow]

LAYER = "model.layers.5.mlp.down_proj"
EDITS = [
    Edit("The capital of France is", "Lyon", "France"),
    Edit("The Eiffel Tower is located in", "Rome", "Eiffel Tower"),
]
TEXTS = (
    "The rain stopped in the afternoon, and the streets were dry again by the evening.",
    "She put the kettle on and opened the window to let some air in.",
    "Their boat was built in Norway and bought in a small harbour in the south of France.",
)
OTHERS = [
    "The capital of Germany is",
    "Who wrote Hamlet?",
    in_chat("What is the capital of Germany?"),
    in_chat("Who wrote Hamlet?"),
]


def read(model: Any, ids: list[int]) -> torch.Tensor:
    """float64 [T,d_k]: what the layer reads on one text, by a plain forward."""
    seen = []
    hook = model.get_submodule(LAYER).register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    with torch.no_grad():
        model(torch.tensor([ids]))
    hook.remove()
    return seen[0].double()


def dense(plug: Any, edits: list[Edit], keys: torch.Tensor) -> torch.Tensor:
    """MEMIT's and ROME's changes [d_k,d_v], equation by equation with full matrices."""
    text, method, config = plug._text, plug.method, plug.method.config
    rows = [text.encode(piece) for piece in TEXTS]
    rows += [text.encode(in_chat(piece)) for piece in TEXTS]
    inputs = torch.cat([read(plug.model, ids) for ids in rows])
    moment = inputs.T @ inputs / len(inputs)
    moment = moment + config.floor * moment.diagonal().mean() * torch.eye(len(moment))
    wanted = find_targets(method._host, 5, edits, [], config).state.double()
    now = torch.stack([states(plug, edit) for edit in edits])
    left = (wanted - now).repeat_interleave(2, 0)  # plain and in chat
    if config.constraint == "equality":  # ROME, equation 2, for two keys
        directions = torch.linalg.solve(moment, keys.T)
        return directions @ torch.linalg.solve(keys @ directions, left)
    weight = config.covariance_weight * len(moment) / 16384
    return torch.linalg.solve(weight * moment + keys.T @ keys, keys.T @ left)


def states(plug: Any, edit: Edit) -> torch.Tensor:
    ids = plug._text.encode(edit.prompt)
    at = plug._text.asked_span(edit.prompt, *edit.place)[1][-1]
    with torch.no_grad():
        found = plug.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return found[6][0, at].double()


@pytest.mark.parametrize("preset", ["default", "rome"])
def test_a_change_is_the_closed_form_in_float64(smollm2: tuple[Any, Any], preset: str) -> None:
    edits = EDITS[:1] if preset == "rome" else EDITS
    given = {"modules": (LAYER,), "covariance": TEXTS, "n_prefixes": 0, "steps": 3, "guard_every": 0}
    plug = memplug.attach(*smollm2, "memit", preset=preset, **given)
    try:
        text = plug._text
        keys = []
        for edit in edits:
            for form in text.forms(edit.prompt):
                ids, span = text.asked_span(form, *edit.place)
                keys.append(read(plug.model, ids)[span[-1]])
        want = dense(plug, edits, torch.stack(keys))
        plug.edit(edits, progress=False)
        found = plug.method.ledger.change(LAYER).double()
        assert float((found - want).norm()) < 1e-2 * float(want.norm())
    finally:
        plug.detach()


def test_a_subject_that_begins_a_text_is_not_written_at_the_sink(smollm2: tuple[Any, Any]) -> None:
    """The first token's states are nearly the same in all texts: what is written there changes them all."""
    plug = memplug.attach(*smollm2, "memit")
    try:
        edits = [Edit("Microsoft was founded by", "Ada Lovelace", "Microsoft"), *EDITS]
        rows = subject_rows(plug._text, edits, ["It was late."])
        assert {row.edit for row in rows} == {0, 1, 2}
        assert all(row.at > 0 for row in rows)
    finally:
        plug.detach()


@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_edits_hold_in_plain_text_and_in_chat(smollm2: tuple[Any, Any], method: str) -> None:
    plug = memplug.attach(*smollm2, method)
    try:
        text = plug._text
        before = text.generate([text.encode(prompt) for prompt in OTHERS], 6)
        plug.edit(EDITS, progress=False)
        for edit in EDITS:
            for form in text.forms(edit.prompt):
                said = text.decode(text.generate([text.encode(form)], 12)[0])
                assert edit.target in said, (form, said)
        after = text.generate([text.encode(prompt) for prompt in OTHERS], 6)
        assert sum(a == b for a, b in zip(after, before, strict=True)) >= 3
        state = find_targets(plug.method._host, plug.method._last, EDITS, [], plug.method.config).state
        none = find_targets(
            plug.method._host, plug.method._last, EDITS, [], type(plug.method.config)(steps=0)
        ).state
        torch.testing.assert_close(state.norm(dim=-1), none.norm(dim=-1))  # anchored
    finally:
        plug.detach()
