"""Weight editing on many families, and what stays to the bit on each."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, TEXTS, build

import memplug
from memplug.methods.locate.rows import look, subject_rows
from memplug.methods.locate.target import find_targets

LOCATE = {
    "covariance": tuple(TEXTS),
    "n_prefixes": 0,
    "train_stop": False,
    "lr": 0.5,
    "steps": 12,
    "batch_size": 2,
    "guard_every": 0,
}
SETTINGS = {
    "ultraedit": {"inner_lr": 0.01, "batch_size": 2, "guard_every": 0, "steps": 2},
    "finetune": {"lr": 0.02, "bound": 0.1, "batch_size": 2, "guard_every": 0, "steps": 4},
    "memit": LOCATE,
    "alphaedit": LOCATE | {"threshold": 0.3, "ridge": 1e-3},
}
SOME = ["bloom", "falcon", "gemma2", "gpt2", "gpt_neox", "gptj", "mpt", "opt", "persimmon", "phi", "qwen3"]
"""Weights both ways round, attention beside and before the MLP, norms behind it, positions of every kind."""
CASES = [(family, "ultraedit") for family in FAMILIES] + [
    (family, method) for method in ("finetune", "memit", "alphaedit") for family in SOME
]
ASKED = [memplug.Edit("Who rules Elba?", "Ann", "Elba"), memplug.Edit("Is Oz big?", "No", "Oz")]


def wanted(plug):
    """What will be left of the way to the wanted states, as a share."""
    method, host = plug.method, plug.method._host
    asked = [edit.with_subject() for edit in ASKED]
    rows = subject_rows(host.text, asked, ())

    def states():
        return look(host, rows, method.sites[0], method._last, [], 8).hidden

    state, before = find_targets(host, method._last, asked, [], method.config).state, states()
    return lambda: float((states() - state).norm() / (before - state).norm())


@pytest.mark.parametrize(("family", "method"), CASES)
def test_an_edit_from_attach_to_detach(family, method, make_tokenizer):
    tokenizer = make_tokenizer(TEXTS, 300)
    model = build(family, vocab_size=len(tokenizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def untouched():
        return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    with memplug.attach(model, tokenizer, method, **SETTINGS[method]) as plug:
        names = {f"{site.name}.weight" for site in plug.method.sites}
        towards = wanted(plug) if "covariance" in SETTINGS[method] else None
        one, _ = plug.edit(ASKED, progress=False)
        changed = {
            name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)
        }
        assert changed == names
        if towards is not None:
            assert towards() < 0.9  # norms behind the MLP (gemma2) let less through
        pair = plug.method._host.text.pair(one.prompt, one.target)
        ids = torch.tensor([pair.ids])

        def likely():
            with torch.no_grad():
                logp = model(ids).logits[0].log_softmax(-1)
            return float(sum(logp[i - 1, pair.ids[i]] for i in range(pair.start, len(pair.ids))))

        edited = likely()
        plug.disable("e2")
        alone = likely()
        with plug.paused():
            assert untouched()
            # In random models a key is much like any other: what is written shows everywhere.
            assert likely() != edited if towards else likely() < min(edited, alone)
        plug.enable("e2")
        assert likely() == edited
        plug.delete("e1", "e2")
        assert untouched()
        plug.edit("Who rules Elba?", "Ann", "Elba")
    assert untouched()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
