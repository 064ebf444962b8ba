"""Tiny random models of any kind: sizes are put into a kind's own default config, by the names of its fields.

Weights are drawn so that a fact can be learned: lower layers keep tokens recognisable, as trained models do,
and what the upper layers attend to shows in the logits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

__all__ = ["BuildError", "build", "names", "tokenizer"]

DEPTH, WIDTH, HEADS, HEAD = 4, 32, 4, 8

_SIZES: tuple[tuple[int, str], ...] = (
    (WIDTH, "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size word_embed_proj_dim lru_width "
    "attention_hidden_size input_embedding_size output_embedding_size backbone_hidden_size embedding_dim "
    "input_size out_hidden_size hidden_size_global vector_quantization_hidden_dimension ple_embed_dim "
    "dim_model_base out_channels_ vision_output_dim router_hidden_size projector_output_dim"),
    (48, "intermediate_size moe_intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim ffn_hidden_size "
    "shared_expert_intermediate_size expert_ffn_hidden_size d_ff dff d_inner dim_ff feed_forward_size "
    "shared_intermediate_size shared_experts_intermediate_size dense_intermediate_size intermediate_size_mlp "
    "moe_shared_expert_intermediate_size"),
    (DEPTH, "num_hidden_layers decoder_layers encoder_layers n_layer n_layers num_layers num_decoder_layers "
    "num_encoder_layers depth"),
    (HEADS, "num_attention_heads decoder_attention_heads encoder_attention_heads n_head n_heads num_heads "
    "attention_heads linear_num_value_heads num_decoder_attention_heads num_encoder_attention_heads "
    "swa_num_attention_heads num_experts n_routed_experts num_local_experts moe_num_experts linear_num_heads "
    "index_n_heads mamba_num_heads mamba_n_heads"),
    (2, "num_key_value_heads linear_num_key_heads swa_num_key_value_heads num_kv_heads num_experts_per_tok "
    "num_experts_per_token moe_topk moe_top_k moe_k zero_expert_num mamba_expand expand conv_kernel_"),
    (1, "n_group topk_group num_expert_group first_k_dense_replace num_dense_layers n_shared_experts "
    "num_shared_experts moe_num_shared_experts num_mem_blocks pretraining_tp mamba_n_groups n_groups_"),
    (HEAD, "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim "
    "kv_channels dim_head d_kv d_head attention_head_size linear_head_dim state_size mamba_d_state "
    "ssm_state_size rotary_dim query_pre_attn_scalar hidden_size_per_layer_input laurel_rank "
    "time_step_rank mamba_dt_rank swa_head_dim gated_norm_rank adapter_rank"),
    (16, "q_lora_rank kv_lora_rank qk_head_dim index_head_dim attention_head_dim mamba_d_head mamba_head_dim "
    "o_lora_rank mamba_headdim chunk_size mamba_chunk_size"),
    (256, "max_position_embeddings n_positions max_seq_len n_ctx model_max_length context_length "
    "max_target_positions original_max_position_embeddings"),
    (64, "mamba_d_ssm"),
    (128, "ngram_vocab_size_base"),
)  # fmt: skip
_BY_NAME = {name: size for size, names in _SIZES for name in names.split()}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Also where the default is None.
_ALWAYS = ("head_dim", "num_key_value_heads", "moe_intermediate_size", "n_routed_experts")
_LATER = ("image", "video", "audio", "vision", "boi", "eoi", "boa", "eoa")  # ids of what is no text

_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_SEEING = (
    "qwen2_vl",
    "qwen2_5_vl",
    "glm4v",
    "glm46v",
    "glm_ocr",
    "glmga",
    "paddleocr_vl",
)
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blenderbot": {"num_hidden_layers": DEPTH},
    "blenderbot-small": {"num_hidden_layers": DEPTH},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0, "model_type": ""}},
    "deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 2},
    "dots3_note_text": {
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": HEAD,
        "swa_v_head_dim": HEAD,
    },
    "dots1": {"n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "gemma3": {"mm_tokens_per_image": 49},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "mpt": {"expansion_ratio": 2},
    "nemotron_h": {"n_groups": 1},
    "phi3": {"sliding_window": 6},
    "mistral4": {"head_dim": 16},  # half of it is rotary
    **{kind: {"text_config": _MROPE} for kind in _SEEING},
    "qwen2_5_omni_thinker": {"text_config": _MROPE, "vision_start_token_id": 3},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 3},
    "reformer": {"is_decoder": True, "axial_pos_shape": (16, 16), "axial_pos_embds_dim": (16, 16)},
    "xlstm": {"qk_dim_factor": 2.0, "v_dim_factor": 2.0},  # the cache counts in multiples of 64
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 16},
    "zamba2": {
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 16,
        "n_mamba_heads": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What follows from other fields in ways that their names do not say, and layers of each kind in hybrids."""


def names(seeing: bool = False, encoding: bool = False) -> list[str]:
    """Every kind of model with a causal language model; with ``seeing`` also those that see images; with
    ``encoding`` encoder-decoders alone, as ``kind+encoder``.

    Encoders that can be told to be decoders are listed twice, as ``kind`` and ``kind+is_decoder``.
    """
    if encoding:
        return [f"{kind}+encoder" for kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES]
    kinds = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if seeing:
        kinds += [kind for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if kind not in kinds]
    found = []
    for kind in kinds:
        found.append(kind)
        if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and _told(kind):
            found.append(f"{kind}+is_decoder")
    return found


def _told(kind: str) -> bool:
    """Whether models of this kind are encoders that can be told to be decoders."""
    try:
        config = AutoConfig.for_model(kind)
    except Exception:  # configs that cannot be made without being told more; `build` says so
        return False
    given = config.to_dict()
    encoder = "type_vocab_size" in given or kind in ("bert-generation", "roformer", "rembert")
    return encoder and not given.get("is_decoder") and not given.get("is_encoder_decoder")


class BuildError(Exception):
    """transformers cannot build a tiny model of this kind from sizes alone."""


def build(name: str, vocab_size: int, seed: int = 0, *, seeing: bool = False) -> Any:
    """A random model in evaluation mode.

    Args:
        name: one of `names`.
        vocab_size: of its embeddings.
        seed: of its weights.
        seeing: with what it needs to see images, where there is a model of the kind without.

    Raises:
        BuildError: the sizes do not fit this kind.
    """
    kind, _, told = name.partition("+")
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    try:
        given = sizes(AutoConfig.for_model(kind).to_dict(), vocab_size)
        for field, value in _OWN.get(kind, {}).items():
            inner = isinstance(value, dict) and isinstance(given.get(field), dict)
            given[field] = given[field] | value if inner else value
        del given["model_type"]
        if told == "is_decoder":
            given[told] = True
        elif told == "encoder":
            given.setdefault("decoder_start_token_id", _IDS["pad_token_id"])  # T5's, not in its config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = AutoConfig.for_model(kind, **given)
            maker: Any = AutoModelForCausalLM if causal and not seeing else AutoModelForImageTextToText
            model = (AutoModelForSeq2SeqLM if told == "encoder" else maker).from_config(config)
            _draw(model)
    except Exception as error:
        raise BuildError(f"{type(error).__name__}: {str(error).splitlines()[0][:150]}") from error
    return model.eval()


def sizes(config: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """What is given to a config class for a tiny model, from the dict of its default config."""
    given: dict[str, Any] = {}
    later = vocab_size - 1
    for name, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            given[name] = sizes(value, vocab_size)
        elif isinstance(value, dict) and "mrope_section" in value:
            given[name] = value | {"mrope_section": [2, 1, 1]}  # half of the width of a head
        elif name == "model_type":
            given[name] = value
        elif name in _IDS:
            given[name] = _IDS[name]
        elif name.endswith(("_token_id", "_token_index")) and not name.startswith("forced_"):
            given[name], later = (later, later - 1) if name.startswith(_LATER) else (2, later)
        elif name == "tie_word_embeddings":
            given[name] = False
        elif "vocab_size" in name and "type" not in name and value:
            given[name] = vocab_size
        elif name in _BY_NAME and (value is not None or name in _ALWAYS):
            given[name] = _BY_NAME[name]
    if "kv_lora_rank" in config:  # latent attention has as many keys and values as queries
        given["num_key_value_heads"] = HEADS
    return given


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """Weights with which the model can be taught: see the module."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    upper = _upper(model)
    for parameter in model.parameters():
        if parameter.ndim > 1 and min(parameter.shape[-2:]) > 4:  # linears; not convolutions nor decays
            parameter.normal_(std=0.3 if id(parameter) in upper else 0.03)
    if isinstance(embeddings, nn.Embedding):
        embeddings.weight.normal_()
    if head is not None and hasattr(head, "weight"):
        head.weight.normal_(std=0.5)


def _upper(model: nn.Module) -> set[int]:
    """The parameters of the upper half of each list of layers."""
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == DEPTH:
            found |= {id(p) for layer in list(module)[DEPTH // 2 :] for p in layer.parameters()}
    return found


def tokenizer(
    texts: Iterable[str], vocab_size: int = 400, *, add_bos: bool = True, padding_side: str = "left"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ``<s>``, ``</s>`` and ``<pad>``; its merges come from the texts."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    if add_bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side=padding_side,
    )
