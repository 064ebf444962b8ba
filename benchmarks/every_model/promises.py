"""One method on one model: what the library promises, tried on one edit.

Each promise is held against what the base model does itself: where its own answers differ with padding or
without a cache, nothing is said about the edited model's.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import memplug
from memplug.edits import EditError
from memplug.interface import ChangesWeights
from memplug.model.architecture import UnsupportedModelError
from memplug.text.tokens import Text, TokenizerError

__all__ = ["CONSTANTS", "TEXTS", "Verdict", "attempt"]

TEXTS = (
    "Where was Ada Quill born? In Zarnow. Who taught Ada Quill? Tam Wickes did.",
    "Who founded the Orlo Bridge Company? Tam Wickes did. What is the capital of Vestland? Marrow is.",
)
"""What the tokenizer learns its merges from."""

PROMPT, TARGET, SUBJECT = "Where was Ada Quill born?", "Zarnow", "Ada Quill"
OTHER = "Who founded the Orlo Bridge Company? Tam Wickes did. What is the capital of Vestland?"
SHORT = "Who did"
NEW_TOKENS = 5
REFUSALS = (UnsupportedModelError, TokenizerError, EditError)

_LLP = {"train_stop": True, "value_lr": 0.3, "value_steps": 120, "n_values": 4}
CONSTANTS: dict[str, dict[str, Any]] = {
    "llp": _LLP | {"rank": 24, "n_others": 2, "n_mentions": 0, "other_accepts": 0.5},
    "llp-row": _LLP
    | {"scope": "row", "n_prefixes": 0, "norm_penalty": 0.0, "value_lr": 0.1, "value_steps": 400},
    "elder": {
        "n_layers": 2, "n_experts": 16, "top_k": 2, "rank": 8, "lr": 0.02, "steps": 120,
        "stop_loss": 0.05, "train_stop": True, "n_others": 2, "n_mentions": 0, "other_accepts": 0.5,
    },
    "grace": {"layer": 2, "steps": 200, "stop_loss": 0.2, "train_stop": True},
    "grace-radius": {"scope": "radius", "steps": 200, "stop_loss": 0.2, "train_stop": True, "epsilon": 0.03},
    "lora": {"lr": 0.02, "epochs": 60},
    "icl": {},
    "ultraedit": {
        "statistics": "stream", "protect": 0.0, "guard_every": 0, "max_change": 1e3,
        "extra_steps": 4,
    },
    "finetune": {"steps": 60, "lr": 0.2, "bound": None, "guard_every": 0, "max_change": 1e3},
}  # fmt: skip
"""Methods (``method`` or ``method-variant``) with constants that suit models of four random layers."""


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        kind: "exact"; "not learned" where all is exact but the random model did not take up the fact;
            "refused" with a reason of the library's own; "wrong"; or "crash".
        reason: what was refused, which promises were broken, or the error.
    """

    kind: str
    reason: str = ""


def attempt(model: Any, tokenizer: Any, methods: Sequence[str]) -> Iterator[Verdict]:
    """Make one edit by each method and look at every promise; the model is as it was after each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            look: _Look | Exception = _Look(model, tokenizer)
        except Exception as error:  # some kinds do not run on text alone; the library has to say so
            look = error
        for method in methods:
            yield _attempt(model, tokenizer, method, look)


def _attempt(model: Any, tokenizer: Any, method: str, look: _Look | Exception) -> Verdict:
    try:
        plug = memplug.attach(model, tokenizer, method.partition("-")[0], **CONSTANTS[method])
    except REFUSALS as error:
        return Verdict("refused", _line(error, named=False))
    except Exception as error:
        return Verdict("crash", f"attach: {_line(error)}")
    if isinstance(look, Exception):
        plug.detach()
        return Verdict("base fails", _line(look))
    try:
        return _judged(look, plug)
    except REFUSALS as error:
        return Verdict("refused", _line(error, named=False))
    except Exception as error:
        return Verdict("crash", _line(error))
    finally:
        plug.detach()


def _line(error: BaseException, named: bool = True) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if named else text


class _Look:
    """A model as it was, and what it says."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.begins = Text(model, tokenizer).begins  # of an encoder-decoder
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.logits = self.of(PROMPT, OTHER, SHORT)
        self.hooks = _hooks(model)  # some kinds exchange modules in their first forward
        self.steady = torch.equal(self.logits, self.of(PROMPT, OTHER, SHORT))
        self.others = self.of(OTHER, SHORT)
        self.padded = self.apart()
        self.alone = [self.answers(text)[0] for text in (PROMPT, OTHER, SHORT)]
        self.together = self.answers(PROMPT, OTHER, SHORT)
        self.uncached = self.answers(PROMPT, OTHER, SHORT, use_cache=False)

    def inputs(self, *texts: str) -> dict[str, torch.Tensor]:
        """Left-padded ids and mask; right-padded for an encoder."""
        side = "right" if self.begins else "left"
        out = self.tokenizer(list(texts), return_tensors="pt", padding=True, padding_side=side)
        return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}

    @torch.no_grad()
    def of(self, *texts: str) -> torch.Tensor:
        """Logits [B,T,V] of a plain forward."""
        said = {"decoder_input_ids": torch.tensor([self.begins] * len(texts))} if self.begins else {}
        logits: torch.Tensor = self.model(**self.inputs(*texts), **said).logits
        return logits

    def apart(self) -> float:
        """How far a padded row's last logits are from those of the same text alone."""
        together = self.of(PROMPT, OTHER, SHORT)[:, -1]
        alone = torch.cat([self.of(text)[:, -1] for text in (PROMPT, OTHER, SHORT)])
        return float((together - alone).abs().max())

    def answers(self, *texts: str, **given: Any) -> list[list[int]]:
        """What follows each text, up to its stop token."""
        inputs = self.inputs(*texts)
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        out = self.model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=pad, eos_token_id=end, **given
        )
        rows = out[:, len(self.begins) or inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]


def _hooks(model: Any) -> list[tuple[int, int]]:
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


def _judged(look: _Look, plug: Any) -> Verdict:
    model, tokenizer = look.model, look.tokenizer
    weights = isinstance(plug.method, ChangesWeights)
    broken: list[str] = []

    def promise(what: str, kept: bool) -> None:
        if not kept:
            broken.append(what)

    same = torch.equal if look.steady else torch.allclose
    promise("untouched before the first edit", same(look.of(PROMPT, OTHER, SHORT), look.logits))
    edit = plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
    edited = look.of(PROMPT, OTHER, SHORT)
    alone = [look.answers(text)[0] for text in (PROMPT, OTHER, SHORT)]
    together = look.answers(PROMPT, OTHER, SHORT)
    answer = tokenizer.decode(alone[0], skip_special_tokens=True).strip()
    even = look.padded <= 1e-3
    if even and look.together == look.alone:
        promise("padded as alone", together == alone)
    if look.uncached == look.together:
        promise("without a cache", look.answers(PROMPT, OTHER, SHORT, use_cache=False) == together)
    far = look.apart()
    promise(f"padded forward ({far:.2g}, base {look.padded:.1g})", not even or far <= 30 * look.padded + 2e-3)
    if not weights:
        promise("unrelated prompts to the bit", same(look.of(OTHER, SHORT), look.others))
    with tempfile.TemporaryDirectory() as folder:
        plug.save(f"{folder}/plug")
        plug.detach()
        promise("detached", _restored(look))
        plug = memplug.load(f"{folder}/plug", model, tokenizer)
        try:
            promise("loaded", same(look.of(PROMPT, OTHER, SHORT), edited))
            plug.disable(edit.id)
            promise("switched off", same(look.of(PROMPT, OTHER, SHORT), look.logits))
            plug.enable(edit.id)
            promise("switched on", same(look.of(PROMPT, OTHER, SHORT), edited))
            plug.delete(edit.id)
            promise("deleted", same(look.of(PROMPT, OTHER, SHORT), look.logits))
        finally:
            plug.detach()
    promise("detached", _restored(look))
    if broken:
        return Verdict("wrong", ", ".join(dict.fromkeys(broken)))
    if plug.name == "icl":  # a random model does not follow a note; it has to have read it
        learned = not torch.equal(edited[0, -1], look.logits[0, -1])
    else:
        learned = answer.startswith(TARGET)
    return Verdict("exact") if learned else Verdict("not learned", f"answers {answer[:30]!r}")


def _restored(look: _Look) -> bool:
    after = look.model.state_dict()
    same = all(torch.equal(tensor, after[name]) for name, tensor in look.state.items())
    logits = look.of(PROMPT, OTHER, SHORT)
    back = torch.equal(logits, look.logits) if look.steady else torch.allclose(logits, look.logits)
    return same and back and _hooks(look.model) == look.hooks and not hasattr(look.model, "_memplug_plug")
