"""A part of the sweep over every model of transformers: one of each kind, against what is promised."""

from __future__ import annotations

import pytest
import torch

from benchmarks.every_model import tiny
from benchmarks.every_model.__main__ import main
from benchmarks.every_model.promises import TEXTS, Verdict, attempt
from benchmarks.every_model.table import markdown

METHODS = ("llp", "elder", "icl", "finetune")
ALL = dict.fromkeys(METHODS, "exact")
NO_PREFIX = ALL | dict.fromkeys(("llp", "icl"), "cannot join all layers")
ENCODER = dict.fromkeys(METHODS, "tokens see those that come after them")
EXPECTED = {
    "llama": ALL,
    "gptj": ALL,  # rotary, from a table of its own
    "deepseek_v3": ALL,  # latent attention: what is rotary stands beside the keys
    "mixtral": ALL,  # experts in one tensor
    "persimmon": ALL,  # keys without a mean
    "ministral3": ALL,  # queries that grow with their position
    "opt": ALL,  # learned positions, counted from the first token that is not masked
    "megatron-bert+is_decoder": ALL,  # a cache for an encoder's states beside its own
    "bert+is_decoder": ALL,  # the layers lie in a module that takes no token ids
    "bert": ENCODER,
    "electra": ENCODER,
    "qwen3_next": NO_PREFIX | {"llp": "exact"},  # the last layer has attention, those below it do not
    "jamba": NO_PREFIX | {"llp": "exact"},
    "mamba": NO_PREFIX,
    "openai-gpt": NO_PREFIX,  # attention, but no cache
    "glm_moe_dsa": NO_PREFIX,  # attention to tokens that an index chooses
    "dots3_note_text": ALL | {"icl": "cannot join all layers"},  # below a window
    "xlstm": NO_PREFIX | {"elder": "hands layers no cache object"},
    "reformer": dict.fromkeys(METHODS, "by name, not one state for each token"),
    "rwkv": NO_PREFIX | {"elder": "keeps bare tensors"},
    "mllama": dict.fromkeys(METHODS, "not run on text alone") | {"elder": "no linear that maps every token"},
}


@pytest.fixture(scope="module")
def made():
    return tiny.tokenizer(TEXTS)


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_promise_holds_or_the_reason_is_named(kind, made):
    model = tiny.build(kind, len(made) + 8)
    for method, verdict in zip(METHODS, attempt(model, made, METHODS), strict=True):
        if EXPECTED[kind][method] == "exact":
            assert verdict.kind == "exact", (method, verdict)
        else:
            assert verdict.kind == "refused", (method, verdict)
            assert EXPECTED[kind][method] in verdict.reason


@pytest.mark.parametrize("how", ["bfloat16", "float64", "autocast"])
def test_every_promise_holds_whatever_the_callers_dtype(how, made):
    methods = (*METHODS, "llp-row", "ultraedit")
    model = tiny.build("llama", len(made) + 8)
    before = torch.get_default_dtype()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        try:
            torch.set_default_dtype(before if how == "autocast" else getattr(torch, how))
            verdicts = list(attempt(model, made, methods))
        finally:
            torch.set_default_dtype(before)
    assert dict(zip(methods, verdicts, strict=True)) == dict.fromkeys(methods, Verdict("exact"))


def test_every_kind_of_transformers_is_among_them():
    names = tiny.names()
    assert len(names) > 150
    assert {"llama", "bert", "bert+is_decoder", "mamba"} <= set(names)
    assert "qwen2_vl" in tiny.names(seeing=True)


def test_the_command_keeps_its_results_and_writes_a_table(tmp_path, capsys):
    out, kept = tmp_path / "table.md", tmp_path / "kept.json"
    main(["--kinds=bert", "--methods=llp", f"--out={out}", f"--keep={kept}"])
    main(["--kinds=electra", "--methods=elder", f"--out={out}", f"--keep={kept}"])
    text = out.read_text()
    assert "| bert | not tried |" in text
    assert "| electra | refused |" in text
    assert "BertLMHeadModel: tokens see those that come after them" in markdown_of(kept)
    capsys.readouterr()


def markdown_of(file):
    from benchmarks.every_model.__main__ import _kept

    return markdown(sorted(_kept(file).items()), ["llp", "elder"])
