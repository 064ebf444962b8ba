"""Tiny random models of many families, built from their configs: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import memplug
from memplug.model.architecture import inspect_model
from memplug.model.hooks import capture_input

_LLAMA = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_MOE = {"num_experts_per_tok": 2, "num_local_experts": 4}
_GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
_MHA = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_HEAD = {"head_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 6} | _HEAD,
    "mixtral": _LLAMA | _MOE | {"sliding_window": None},
    "ministral": _LLAMA | _HEAD | {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 6},  # noqa: E501
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | _HEAD,
    "gemma": _LLAMA | _HEAD,
    "gemma2": _LLAMA | _HEAD | {"sliding_window": 6},
    "gemma3_text": _LLAMA | _HEAD | {"sliding_window": 6},
    "phi": _LLAMA,
    "phi3": _LLAMA,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": _MHA,
    "opt": {
        "vocab_size": 97,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 32,
    },
    "xglm": {"vocab_size": 97, "d_model": 32, "ffn_dim": 48, "num_layers": 4, "attention_heads": 4, "max_position_embeddings": 128},  # noqa: E501
    "biogpt": _MHA,
    "stablelm": _LLAMA,
    "olmo2": _LLAMA,
    "cohere": _LLAMA,
    "starcoder2": _LLAMA,
    "granite": _LLAMA,
    "smollm3": _LLAMA,
    "gpt_oss": _LLAMA | _MOE | _HEAD | {"sliding_window": 6},
    "llama4_text": _LLAMA | _MOE | _HEAD | {"intermediate_size_mlp": 48, "attention_chunk_size": 64, "use_qk_norm": False},  # noqa: E501
    "ernie4_5": _LLAMA | _HEAD,
    "glm4": _LLAMA | _HEAD,
    "nemotron": _LLAMA | _HEAD,
    "persimmon": _MHA,
    "bloom": {"vocab_size": 97, "hidden_size": 32, "n_layer": 4, "n_head": 4},
    "mpt": {"vocab_size": 97, "d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2},  # noqa: E501
    "falcon": {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "alibi": True},  # noqa: E501
    "gptj": _GPT2 | {"rotary_dim": 4},
}  # fmt: skip
"""Family name as in ``AutoConfig.for_model`` -> what its config is given."""

EAGER_ONLY = {"bloom", "gemma2", "gpt_oss", "gptj", "mpt", "xglm"}
"""Families whose attention transformers runs eagerly only (soft caps, sinks, or a bias of their own)."""

CASES = [
    (family, implementation)
    for family in FAMILIES
    for implementation in ("sdpa", "eager")
    if implementation == "eager" or family not in EAGER_ONLY
]
"""Every family with every attention implementation that takes a prefix."""


def implementation_of(family: str) -> str:
    """What ``from_pretrained`` chooses."""
    return "eager" if family in EAGER_ONLY else "sdpa"


def build(family: str, implementation: str | None = None, seed: int = 0, **settings: Any) -> Any:
    """A random model of ``family`` with 4 layers, width 32 and 97 tokens, in evaluation mode."""
    given = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | FAMILIES[family] | settings
    implementation = implementation or implementation_of(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **given)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        # Larger weights than an untrained model's, so that what should matter shows in the logits.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15)
    return model.eval()


def lexical(
    family: str, vocab_size: int, implementation: str | None = None, seed: int = 0, **settings: Any
) -> Any:
    """A model whose early layers keep tokens recognisable, as large models do, so that keys match.

    What enters the layers is mostly the token (not its position), at size 1; the lower two layers add
    little to it; the upper two have weights of a size that lets attention reach the answer.
    """
    model = build(family, implementation, seed, vocab_size=vocab_size, tie_word_embeddings=False, **settings)
    architecture = inspect_model(model)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    upper = {id(p) for layer in architecture.layers[2:] for p in layer.parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and id(parameter) not in upper:
                parameter.mul_(0.2)
        for parameter in model.parameters():
            if parameter.ndim > 1 and id(parameter) in upper:
                parameter.mul_(2)
        head.mul_(17)
        embeddings.mul_(30)
        entering = capture_input(
            architecture, 0, lambda: model(input_ids=torch.arange(3, vocab_size)[None, :64])
        )
        embeddings.mul_(1 / entering.square().mean().sqrt())  # some families scale their embeddings
    return model


TEXTS = [
    "Where was Ada Quill born? In Zarnow. Who taught Ada Quill? Tam Wickes did.",
    "Who founded the Orlo Bridge Company? Tam Wickes did. What is the capital of Vestland? Marrow is.",
]
"""What the tests' tokenizer learns its merges from."""

_FITTED: dict[str, Any] = {"rank": 4, "fit_steps": 2, "fit_batch": 2, "trajectory": (1, 2), "steps": 5}
METHODS: dict[str, dict[str, Any]] = {
    "llp": {
        "scope": "row",
        "think_layers": (0, 1),
        "recall_layer": 2,
        "n_values": 4,
        "train_stop": True,
        "n_prefixes": 0,
        "norm_penalty": 0.0,
        "value_lr": 0.1,
        "value_steps": 400,
    },
    "llp-answer": {
        "think_layers": (0, 1),
        "recall_layer": 2,
        "train_stop": True,
        "rank": 24,
        "n_others": 2,
        "n_rewordings": 1,
        "n_mentions": 0,
        "value_lr": 0.2,
        "value_steps": 90,
        "other_accepts": 0.5,
    },
    "elder": {
        "edit_layers": (2, 3),
        "n_experts": 16,
        "top_k": 2,
        "rank": 8,
        "lr": 0.02,
        "steps": 120,
        "stop_loss": 0.05,
        "train_stop": True,
        "n_others": 2,
        "n_rewordings": 1,
        "n_mentions": 0,
        "other_accepts": 0.5,
    },
    "elder-row": {
        "scope": "row",
        "epsilon": 2,
        "edit_layers": (2, 3),
        # Prompts that end alike have queries alike here: only long codes of routers as they start differ.
        "n_experts": 64,
        "top_k": 16,
        "rank": 8,
        "router_lr": 0.0,
        "lr": 1e-2,
        "steps": 120,
        "stop_loss": 0.02,
        "train_stop": True,
    },
    "grace": {
        "scope": "radius",
        "layer": 2,
        "replace": "all",
        "train_stop": True,
        "epsilon": 0.03,
        "steps": 300,
        "stop_loss": 0.2,
    },
    "grace-asked": {"layer": 2, "steps": 300, "stop_loss": 0.1, "train_stop": True},
    "ultraedit": {},
    "mend": _FITTED | {"inner_lr": 0.1},
    **dict.fromkeys(("malmen", "rledit", "hiedit", "smedit"), _FITTED | {"inner_lr": 0.01}),
}
"""Methods under the contract (``method`` or ``method-variant``), with constants that make them quick on a
`lexical` model."""

_BOTH_WAYS_ROUND = ("llama", "gpt2")
ONLY = {
    "elder-row": _BOTH_WAYS_ROUND,
    "grace": ("llama", "mixtral", "qwen2"),
    "grace-asked": ("llama", "mixtral", "qwen2"),
    "ultraedit": ("llama", "gpt2", "gemma2", "bloom", "falcon", "phi3"),
    **dict.fromkeys(("mend", "malmen", "rledit", "hiedit", "smedit"), _BOTH_WAYS_ROUND),
}
"""Families that a method is held to the contract on, where not on all. GRACE: one MLP output, the same for
every token, is not enough for most random models to say a word and then stop. Weight editors: families differ
in their modules for them, of which `test_hypernet_families` and `test_ultraedit_families` have all kinds."""


def method_of(name: str) -> str:
    """The method of a name in `METHODS`."""
    return name.partition("-")[0]


def attach_llp(model: Any, tokenizer: Any, scope: str = "row", **config: Any) -> Any:
    """A quick LLP plug on a `lexical` model: the published procedure, or the one that speaks in answers."""
    constants = METHODS["llp" if scope == "row" else "llp-answer"]
    return memplug.attach(model, tokenizer, "llp", **(constants | config))


OVERRIDES: dict[tuple[str, str], dict[str, Any]] = {
    ("llp-answer", "nemotron"): {"value_steps": 180},  # its loss falls slowly and steadily
    ("llp-answer", "bloom"): {"value_steps": 180},
}
"""What a method is given beyond that on some families."""
