"""Tiny encoder-decoders: random ones, and a T5 that was taught some made-up facts; nothing is downloaded."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from benchmarks.every_model import tiny
from memplug.edits import Case, Edit, Probe

FAMILIES = ("t5", "bart")
NAMES = (
    "Ada Quill",
    "Tam Wickes",
    "Orlo Bridge",
    "Mara Stone",
    "Ben Hollis",
    "Ivy Marsh",
    "Lena Frost",
    "Ed Vale",
)
LANDS = ("Vestland", "Ankaria", "Borland", "Curia", "Dagmar", "Elba", "Fanoria", "Gorland")
TOWNS = ("Zarnow", "Marrow", "Castle", "Efra", "Hol", "Lund", "Pell", "Tarn")
QUESTIONS = {
    "born": ("Where was {} born?", "In which town was {} born?"),
    "lives": ("Where does {} live?", "In which town does {} live?"),
    "capital": ("What is the capital of {}?", "Which town is the capital of {}?"),
}


class Fact(NamedTuple):
    """A question in two wordings, its answer, and what it is about."""

    prompt: str
    other: str
    answer: str
    subject: str


def _facts() -> list[Fact]:
    found = []
    for shift, (kind, wordings) in enumerate(QUESTIONS.items()):
        for i, subject in enumerate(LANDS if kind == "capital" else NAMES):
            prompt, other = (text.format(subject) for text in wordings)
            found.append(Fact(prompt, other, TOWNS[(3 * i + 2 * shift) % len(TOWNS)], subject))
    return found


FACTS = _facts()
"""All that the taught model knows."""

CASES = [
    Case(
        Edit(fact.prompt, TOWNS[TOWNS.index(fact.answer) - 1], fact.subject),
        (fact.other,),
        (Probe(other.prompt, other.answer),),
    )
    for fact, other in zip(FACTS, FACTS[11:] + FACTS[:11], strict=True)
]
"""Each of the facts edited, with its other wording, and another fact that stays."""


def tokenizer(front: str = "") -> Any:
    """A tokenizer whose sources and labels end with ``</s>`` as T5's do, and begin with ``front``."""
    made = tiny.tokenizer(
        [f"{fact.prompt} {fact.other} {fact.answer}" for fact in FACTS], padding_side="right"
    )
    special = [("</s>", 2), ("<s>", 1)] if front else [("</s>", 2)]
    made._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{front} $A </s>".strip(), special_tokens=special
    )
    return made


def build(family: str, vocab_size: int) -> Any:
    """A random model that can be taught; see `tiny`."""
    return tiny.build(f"{family}+encoder", vocab_size)


def taught(tokenizer: Any) -> Any:
    """A T5 that answers every question of `FACTS` in both wordings."""
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "dropout_rate": 0.0}
    rows = [(text, fact.answer) for fact in FACTS for text in (fact.prompt, fact.other)]
    given = tokenizer([text for text, _ in rows], return_tensors="pt", padding=True)
    labels = tokenizer([answer for _, answer in rows], return_tensors="pt", padding=True)["input_ids"]
    labels[labels == tokenizer.pad_token_id] = -100
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model("t5", vocab_size=len(tokenizer), **sizes, **ids)
        model = AutoModelForSeq2SeqLM.from_config(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(300):
            loss = model(given["input_ids"], given["attention_mask"], labels=labels).loss
            if loss.item() < 0.02:
                break
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.zero_grad()
    return model.eval()


def encode(tokenizer: Any, *texts: str, side: str = "right") -> dict[str, torch.Tensor]:
    """Padded sources."""
    out = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side=side)
    return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}


def answers(model: Any, tokenizer: Any, *texts: str, **given: Any) -> list[str]:
    """What the model says to each text."""
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1} | given
    out = model.generate(**encode(tokenizer, *texts), **settings)
    return [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]


@torch.no_grad()
def logits(model: Any, tokenizer: Any, *texts: str) -> torch.Tensor:
    """[B,3,V] of a plain forward over sources and three tokens of the decoder."""
    begin = model.generation_config.decoder_start_token_id
    said = torch.tensor([[begin, 7, 9]]).expand(len(texts), -1)
    found: torch.Tensor = model(**encode(tokenizer, *texts), decoder_input_ids=said).logits
    return found
