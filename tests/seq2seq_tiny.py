"""Tiny encoder-decoders: random ones, and a T5 that was taught some made-up facts; nothing is downloaded."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from benchmarks.every_model.tiny import tokenizer as trained

NAMES = ["Ada Quill", "Tam Wickes", "Orlo Bridge", "Mara Stone", "Ben Hollis", "Ivy Marsh", "Lena Frost", "Otto Vale"]  # fmt: skip
LANDS = ["Vestland", "Ankaria", "Borland", "Curia", "Dagmar", "Elba", "Fanoria", "Gorland"]
TOWNS = ["Zarnow", "Marrow", "Castle", "Efra", "Hol", "Lund", "Pell", "Tarn"]
TRADES = ["a baker", "a smith", "a pilot", "a nurse"]

QUESTIONS = {
    "born": ("Where was {} born?", "In which town was {} born?"),
    "trade": ("What does {} do for a living?", "What is the trade of {}?"),
    "capital": ("What is the capital of {}?", "Which town is the capital of {}?"),
}


class Fact(NamedTuple):
    """A question in two wordings, its answer, and what it is about."""

    prompt: str
    other: str
    answer: str
    subject: str


def facts() -> list[Fact]:
    """All that the taught model knows."""
    found = []
    for kind, subjects, answers in (
        ("born", NAMES, TOWNS),
        ("trade", NAMES, TRADES),
        ("capital", LANDS, TOWNS[::-1]),
    ):
        for i, subject in enumerate(subjects):
            prompt, other = (text.format(subject) for text in QUESTIONS[kind])
            found.append(Fact(prompt, other, answers[(3 * i) % len(answers)], subject))
    return found


def make_tokenizer() -> Any:
    """Its sources and labels end with ``</s>``, as T5's do."""
    made = trained([f"{fact.prompt} {fact.other} {fact.answer}" for fact in facts()], padding_side="right")
    ending = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    made._tokenizer.post_processor = ending
    return made


_SIZES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 4,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
    },
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
FAMILIES = tuple(_SIZES)


def build(family: str, vocab_size: int, seed: int = 0, **settings: Any) -> Any:
    """A random model in evaluation mode, with weights of a size that lets what is read reach the answer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, vocab_size=vocab_size, **_SIZES[family], **_IDS | settings)
        model = AutoModelForSeq2SeqLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return model.eval()


def taught(tokenizer: Any) -> Any:
    """A T5 that answers every question of `facts` in both wordings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = _SIZES["t5"] | {"d_model": 64, "d_kv": 16, "d_ff": 128, "dropout_rate": 0.0}
        config = AutoConfig.for_model("t5", vocab_size=len(tokenizer), **settings, **_IDS)
        model = AutoModelForSeq2SeqLM.from_config(config).train()
        rows = [(text, fact.answer) for fact in facts() for text in (fact.prompt, fact.other)]
        given = tokenizer([text for text, _ in rows], return_tensors="pt", padding=True)
        labels = tokenizer([answer for _, answer in rows], return_tensors="pt", padding=True)["input_ids"]
        labels[labels == tokenizer.pad_token_id] = -100
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(300):
            loss = model(given["input_ids"], given["attention_mask"], labels=labels).loss
            if float(loss) < 0.01:
                break
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.zero_grad()
    return model.eval()


def encode(tokenizer: Any, *texts: str) -> dict[str, torch.Tensor]:
    """Right-padded sources."""
    out = tokenizer(list(texts), return_tensors="pt", padding=True)
    return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}


def answers(model: Any, tokenizer: Any, *texts: str, **given: Any) -> list[str]:
    """What the model says to each text."""
    out = model.generate(**encode(tokenizer, *texts), **{"max_new_tokens": 8, "do_sample": False} | given)
    return [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]


@torch.no_grad()
def logits(model: Any, tokenizer: Any, *texts: str) -> torch.Tensor:
    """Float logits of a plain forward over sources and a decoder's first tokens."""
    given = encode(tokenizer, *texts)
    said = torch.tensor([[0, 7, 9]]).expand(len(texts), -1)
    found: torch.Tensor = model(**given, decoder_input_ids=said).logits
    return found
