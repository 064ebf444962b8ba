"""Weight editing on many families, and what stays to the bit on each."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, TEXTS, build

import memplug
from memplug.layers import UnsupportedModelError

FUSED = {"mixtral", "gpt_oss"}
"""Their experts are one tensor; no linear module of the MLP is left to edit."""
ASKED = [memplug.Edit("Who rules Elba?", "Ann", "Elba"), memplug.Edit("Is Oz big?", "No", "Oz")]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_from_attach_to_detach(family, make_tokenizer):
    model, tokenizer = build(family), make_tokenizer(TEXTS, 300)
    model.resize_token_embeddings(len(tokenizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def untouched():
        return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    settings = {"inner_lr": 0.01, "batch_size": 2, "guard_every": 0, "steps": 1}
    if family in FUSED:
        with pytest.raises(UnsupportedModelError, match="experts fused into one tensor"):
            memplug.attach(model, tokenizer, "ultraedit", **settings)
        assert untouched()
        return
    with memplug.attach(model, tokenizer, "ultraedit", **settings) as plug:
        names = {f"{site.name}.weight" for site in plug.method.sites}
        one, _ = plug.edit(ASKED, progress=False)
        changed = {
            name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)
        }
        assert changed == names
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
            assert likely() < min(edited, alone)
        plug.enable("e2")
        assert likely() == edited
        plug.delete("e1", "e2")
        assert untouched()
        plug.edit("Who rules Elba?", "Ann", "Elba")
    assert untouched()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_most_families_can_be_edited():
    assert len(set(FAMILIES) - FUSED) >= 25
