"""SmolLM2 as `memplug.pretrained` loads it: what the file holds to the bit, and a chat model that works."""

from __future__ import annotations

import pytest
import torch

import memplug
from memplug import pretrained

pytestmark = pytest.mark.real


def test_it_knows_the_capital_of_france_and_has_a_chat_template(smollm2):
    model, tokenizer = smollm2
    assert (model.dtype, model.training) == (torch.float32, False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    asked = tokenizer("The capital of France is", return_tensors="pt")
    made = model.generate(**asked, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(made[0, -1]) == " Paris"
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(made)
    assert made[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")  # it ends its turn by itself
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<|endoftext|>"]
    )
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_it_is_loaded_from_the_cache_and_can_be_saved(smollm2, monkeypatch, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(pretrained, "_make", lambda *_: pytest.fail("converted again"))
    model, tokenizer = memplug.pretrained.load(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.lm_head.weight, smollm2[0].lm_head.weight.bfloat16())
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == smollm2[1].chat_template


def test_the_editor_that_ships_for_it_edits_it(smollm2):
    with memplug.attach(*smollm2, "rledit") as plug:
        assert bool(plug.method.editor.fitted)
        plug.edit("The capital of France is", "Lyon", "France")
        asked = smollm2[1]("The capital of France is", return_tensors="pt")
        made = plug.model.generate(**asked, max_new_tokens=1, do_sample=False)
        assert smollm2[1].decode(made[0, -1]) == " Lyon"
    with memplug.attach(*smollm2, "rledit", rank=8) as plug:  # networks of its own are asked for
        assert not bool(plug.method.editor.fitted)


@pytest.mark.slow
def test_it_is_what_the_file_holds_to_the_bit(smollm2):
    from transformers import AutoModelForCausalLM

    model, tokenizer = smollm2
    try:
        file = pretrained._checked(pretrained._SOURCES["smollm2"])
    except (ImportError, pretrained.PretrainedError) as error:
        pytest.skip(f"only the cache is here: {error}")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    held = read.state_dict()
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())
    asked = tokenizer("The chemical symbol for gold is", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**asked).logits, read(**asked).logits)
