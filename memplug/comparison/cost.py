"""What a method costs: memory while it learns, time and memory of a forward, time of a decoded token.

Host memory is sampled in a thread, as nothing but the peak of the whole process is kept by the system.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import psutil
import torch
from transformers.modeling_outputs import MoEModelOutput

from ..edits import Case
from ..model.architecture import evaluating
from ..subjects.find import find_subject
from ..text.chat import question
from ..text.tokens import Text
from .model_state import bare, hooks_of

__all__ = ["Meter", "Overhead", "Pass", "neutral", "overhead"]

_NEUTRAL = (
    "The rain stopped in the afternoon, and the streets were dry again by the evening.",
    "She put the kettle on and opened the window to let some air in.",
    "Most of the seats were taken, so they stood at the back and listened.",
    "A long wall of grey stone runs along the road to the harbour.",
    "He had left his umbrella at home and had to wait under the roof of the station.",
    "The bread was still warm, and there was butter and some honey on the table.",
    "In autumn the leaves are swept up and burnt at the end of the garden.",
    "They counted the boxes twice and wrote the number on a sheet of paper.",
)


class Meter:
    """Wall time and peak memory inside a ``with``, growth over what was held at its beginning.

    Attributes:
        seconds: wall time; work queued on a GPU is waited for.
        host: bytes of resident memory.
        device: bytes allocated on the GPUs; None without one.

    Args:
        every: seconds between two looks at the process's memory.
    """

    def __init__(self, every: float = 0.01) -> None:
        self._every = every
        self.seconds, self.host = 0.0, 0
        self.device: int | None = None

    def __enter__(self) -> Meter:
        self._process, self._stop = psutil.Process(), threading.Event()
        self._rss = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
            torch.cuda.reset_peak_memory_stats(gpu)
        self._held = [torch.cuda.memory_allocated(gpu) for gpu in self._gpus]
        self._thread.start()
        self._begin = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
        self.seconds = time.perf_counter() - self._begin
        self._stop.set()
        self._thread.join()
        self.host = max(self._peak, self._process.memory_info().rss) - self._rss
        if self._gpus:
            self.device = sum(map(torch.cuda.max_memory_allocated, self._gpus)) - sum(self._held)


def neutral(cases: Sequence[Case]) -> list[str]:
    """Texts that name no edited subject: unrelated prompts with their answers, then sentences of no interest.

    Args:
        cases: those that are edited; the unrelated prompts of the first 40 are looked at.
    """
    named = {case.edit.subject or find_subject(case.edit.question) or case.edit.question for case in cases}
    subjects = {" ".join(name.split()).casefold() for name in named}
    texts = [f"{question(probe.prompt)} {probe.target}." for case in cases[:40] for probe in case.locality]
    free = [
        text
        for text in dict.fromkeys((*texts, *_NEUTRAL))
        if not any(name in " ".join(text.split()).casefold() for name in subjects)
    ]
    return free or list(_NEUTRAL)


class Pass(NamedTuple):
    """Costs of one row: milliseconds of a forward and of a decoded token (the fastest of several turns), and
    peak growth of memory in a forward, bytes of the process and of the GPUs (None without one)."""

    forward: float
    token: float
    host: int
    device: int | None


class Overhead(NamedTuple):
    """Costs of a row of ``tokens`` with and without the method; ``text`` is what was read and decoded."""

    tokens: int
    text: str
    bare: Pass
    edited: Pass

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the results."""
        bare, edited = self.bare, self.edited
        return {
            "forward": {
                "tokens": self.tokens,
                "bare_ms": bare.forward,
                "edited_ms": edited.forward,
                "ratio": edited.forward / bare.forward,
                "bare_peak_host_bytes": bare.host,
                "bare_peak_device_bytes": bare.device,
                "peak_host_bytes": edited.host,
                "peak_device_bytes": edited.device,
            },
            "decode": {
                "bare_ms_per_token": bare.token,
                "edited_ms_per_token": edited.token,
                "ratio": edited.token / bare.token,
            },
        }


@torch.no_grad()
def overhead(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    before: frozenset[int],
    *,
    tokens: int = 64,
    steps: int = 16,
    turns: int = 5,
    seconds: float = 2.0,
) -> Overhead:
    """Time a forward of one row of ``tokens`` and greedy decoding behind it, edited and bare in turns.

    Args:
        model: the model with its plug.
        tokenizer: its tokenizer.
        texts: unrelated texts (`neutral`), joined and repeated to the length wanted.
        before: `hooks_of` the model before the plug was attached.
        tokens: length of the row, if the model's context holds it.
        steps: tokens decoded.
        turns: how often each is run at least; one more to warm up.
        seconds: more turns are taken until so much time has gone, as others may share the machine.
    """
    text = Text(model, tokenizer)
    tokens = min(tokens, max(2, text.max_length - steps - 1))
    row = text.encode(texts[0])
    for more in islice(cycle(texts), 1, tokens):
        row += text.encode(more)[text.bos_id is not None :]
    given = text.batch([text.row(row[:tokens])]).given
    kept = {"bare": before, "edited": hooks_of(model)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kept}
    memory: dict[str, tuple[int, int | None]] = {}
    with evaluating(model):
        begin = time.perf_counter()
        while len(times["edited"]) <= turns or time.perf_counter() - begin < seconds:
            for name, hooks in kept.items():
                with bare(model, hooks):
                    forward, token, made = _timed(model, given, steps)
                    times[name].append((forward, token))
                    if name not in memory:
                        memory[name] = _memory(model, given)
    read = tokenizer.decode([*row[:tokens], *made], skip_special_tokens=True)
    best = {name: tuple(map(min, zip(*its[1:], strict=True))) for name, its in times.items()}
    passes = [Pass(best[name][0], best[name][1], *memory[name]) for name in kept]
    return Overhead(len(row[:tokens]), read, *passes)


def _memory(model: Any, given: dict[str, Any]) -> tuple[int, int | None]:
    """Bytes by which memory grows at most during forwards: of the process, and of the GPUs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)  # what was freed and kept at hand would be taken again unseen
    with Meter(every=0.001) as meter:
        for _ in range(3):
            model(**given, use_cache=False)
    return meter.host, meter.device


def _timed(model: Any, given: dict[str, Any], steps: int) -> tuple[float, float, list[int]]:
    """Milliseconds of a plain forward, and of a token decoded with a cache; the tokens decoded."""
    mask, device = given["attention_mask"], given["attention_mask"].device
    forward = _milliseconds(lambda: model(**given, use_cache=False), device)
    output = model(**given, use_cache=True)
    made = [output.logits[:, -1:].argmax(-1)]

    def decode() -> None:
        cache, seen = output.past_key_values, mask
        for _ in range(steps):
            if "decoder_input_ids" in given:  # the source stays as it was read
                read = MoEModelOutput(last_hidden_state=output.encoder_last_hidden_state)
                more = {"decoder_input_ids": made[-1], "encoder_outputs": read, "attention_mask": mask}
            else:
                seen = torch.cat([seen, seen[:, :1]], dim=1)
                more = {"input_ids": made[-1], "attention_mask": seen}
            out = model(**more, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            made.append(out.logits[:, -1:].argmax(-1))

    token = _milliseconds(decode, device) / steps
    return forward, token, torch.cat(made, dim=1)[0].tolist()


def _milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)  # for what was asked of the device before
    begin = time.perf_counter()
    run()
    wait(device)
    return 1000 * (time.perf_counter() - begin)
