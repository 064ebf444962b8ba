"""Shared by all tests: one thread, the gpu marker, and tiny models built from configs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import quick_toys, tiny
from example_results import example
from families import TEXTS, lexical
from report_page import Page
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from weights_tiny import editor_maker, model_maker, plug_maker

import memplug
from benchmarks.every_model.tiny import tokenizer as trained
from memplug.comparison.report.page import html
from memplug.retrieval import calibrate as calibrating

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def calibrations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model is calibrated once for all tests, in all workers, as large ones are for all processes."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrating, "is_large", lambda model: True)
        patch.setattr(calibrating, "cache", lambda: folder)
        yield


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A byte-level BPE tokenizer with ``<s>``, ``</s>`` and ``<pad>``; its merges come from the texts."""
    return partial(trained, padding_side="right")


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    """A seeded random Llama in eval mode: 4 layers, width 32 and 4 heads unless told otherwise."""

    def make(vocab_size: int, *, seed: int = 0, **config: Any) -> LlamaForCausalLM:
        settings: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **(settings | config))).eval()

    return make


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """Of the texts that the tiny models of `families.lexical` are asked; pads on the left."""
    made = make_tokenizer(TEXTS)
    made.padding_side = "left"
    return made


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A tiny Llama that can be edited; a test that changes it takes a copy."""
    return lexical("llama", len(tokenizer))


@pytest.fixture(scope="module")
def saved(model: Any, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved plug with two edits on a copy of the tiny model, trained once for all tests of a module."""
    from plug_facts import save_two_facts

    path = tmp_path_factory.mktemp("plug") / "facts"
    save_two_facts(copy.deepcopy(model), tokenizer, path)
    return path


@pytest.fixture
def plug(model: Any, tokenizer: PreTrainedTokenizerFast, saved: Path) -> Iterator[Any]:
    """That plug, loaded."""
    with memplug.load(saved, copy.deepcopy(model), tokenizer) as plug:
        yield plug


@pytest.fixture(scope="session")
def tiny_model(make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """A model and its tokenizer for weight editors; see `weights_tiny`."""
    return model_maker(make_llama, make_tokenizer)


@pytest.fixture(scope="session")
def tiny_editor(
    tiny_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The file of a method's editor, fitted once."""
    return editor_maker(tiny_model, tmp_path_factory.mktemp("editors"))


@pytest.fixture(scope="session")
def tiny_plug(
    tiny_model: Callable[..., Any], tiny_editor: Callable[[str], Path]
) -> Callable[..., memplug.Plug]:
    """Attaches a weight editor to such a model, a fresh one each time."""
    return plug_maker(tiny_model, tiny_editor)


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """SmolLM2 in float32 and its tokenizer; for tests marked `real`, which leave it as it was."""
    try:
        return memplug.pretrained.load()
    except (ImportError, memplug.pretrained.PretrainedError) as error:
        pytest.skip(f"no SmolLM2: {error}")


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Methods for comparisons that take no time."""
    with quick_toys():
        yield


@pytest.fixture(scope="module")
def loaded(make_tokenizer: Callable[..., Any], make_llama: Callable[..., Any]) -> Any:
    """A tiny model and its tokenizer, to compare on."""
    return tiny(make_tokenizer, make_llama)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Results of a comparison of many methods, made up."""
    return example()


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> Page:
    """Their report."""
    return Page(html(results))
