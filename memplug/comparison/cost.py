"""What a method costs: memory while it learns, time and memory of a forward, time of a decoded token.

Host memory is sampled in a thread, as nothing but the peak of the whole process is kept by the system.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn

from ..chat import question
from ..edits import Case
from ..layers import evaluating, input_device
from ..subjects import find_subject
from ..text import Text

__all__ = ["Meter", "Overhead", "bare", "hooks_of", "neutral", "overhead"]

_EVERY = 0.01  # seconds between two looks at the process's memory
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
_TABLES = ("_forward_pre_hooks", "_forward_hooks")


class Meter:
    """Wall time and peak memory inside a ``with``, growth over what was held at its beginning.

    Attributes:
        seconds: wall time; work queued on a GPU is waited for.
        host: bytes of resident memory.
        device: bytes allocated on the GPUs; None without one.

    Args:
        every: seconds between two looks at the process's memory.
    """

    def __init__(self, every: float = _EVERY) -> None:
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
            peaks = [torch.cuda.max_memory_allocated(gpu) for gpu in self._gpus]
            self.device = sum(peaks) - sum(self._held)


def hooks_of(model: nn.Module) -> frozenset[int]:
    """Ids of all forward hooks on the model; no two hooks of a process have the same."""
    return frozenset(id for module in model.modules() for table in _TABLES for id in getattr(module, table))


@contextmanager
def bare(model: nn.Module, before: frozenset[int]) -> Iterator[None]:
    """Inside the ``with`` no hooks run but those whose ids are in ``before``; weights stay as they are."""
    tables = [getattr(module, table) for module in model.modules() for table in _TABLES]
    whole = [(hooks, dict(hooks)) for hooks in tables if any(id not in before for id in hooks)]
    try:
        for hooks, all_of_them in whole:
            for id in all_of_them.keys() - before:
                del hooks[id]
        yield
    finally:
        for hooks, all_of_them in whole:
            hooks.clear()
            hooks.update(all_of_them)


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


class Overhead(NamedTuple):
    """Costs of a forward with and without the method.

    Attributes:
        tokens: length of the forward's one row.
        text: what it reads, with what was decoded behind it.
        bare, edited: milliseconds, the fastest of several turns taken one after the other.
        bare_token, edited_token: milliseconds of one decoded token with a cache.
        bare_memory, edited_memory: peak growth while the row is run: bytes of the process, and of the GPUs
            (None without one).
    """

    tokens: int
    text: str
    bare: float
    edited: float
    bare_token: float
    edited_token: float
    bare_memory: tuple[int, int | None]
    edited_memory: tuple[int, int | None]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the results."""
        return {
            "forward": {
                "tokens": self.tokens,
                "bare_ms": self.bare,
                "edited_ms": self.edited,
                "ratio": self.edited / self.bare,
                "bare_peak_host_bytes": self.bare_memory[0],
                "bare_peak_device_bytes": self.bare_memory[1],
                "peak_host_bytes": self.edited_memory[0],
                "peak_device_bytes": self.edited_memory[1],
            },
            "decode": {
                "bare_ms_per_token": self.bare_token,
                "edited_ms_per_token": self.edited_token,
                "ratio": self.edited_token / self.bare_token,
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
        if len(row) >= tokens:
            break
    row = row[:tokens]
    ids = torch.tensor([row], device=input_device(model))
    best = {name: [float("inf"), float("inf")] for name in ("bare", "edited")}
    memory, made = {}, list[int]()
    with evaluating(model):
        begin, turn = time.perf_counter(), -1
        while (turn := turn + 1) <= turns or time.perf_counter() - begin < seconds:
            for name in best:
                with bare(model, before if name == "bare" else hooks_of(model)):
                    *found, made = _once(model, ids, steps)
                    if turn:
                        best[name] = [min(pair) for pair in zip(best[name], found, strict=True)]
                    else:
                        memory[name] = _memory(model, ids)
    read = tokenizer.decode([*row, *made], skip_special_tokens=True)
    times = (best["bare"][0], best["edited"][0], best["bare"][1], best["edited"][1])
    return Overhead(len(row), read, *times, memory["bare"], memory["edited"])


def _memory(model: Any, ids: torch.Tensor) -> tuple[int, int | None]:
    """Bytes by which memory grows at most during forwards: of the process, and of the GPUs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)  # what was freed and kept at hand would be taken again unseen
    with Meter(every=0.001) as meter:
        for _ in range(3):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return meter.host, meter.device


def _once(model: Any, ids: torch.Tensor, steps: int) -> tuple[float, float, list[int]]:
    """Milliseconds of a plain forward, and of a token decoded with a cache; the tokens decoded."""
    mask = torch.ones_like(ids)
    forward = _timed(lambda: model(input_ids=ids, attention_mask=mask, use_cache=False), ids.device)
    output = model(input_ids=ids, attention_mask=mask, use_cache=True)
    state = {"cache": output.past_key_values, "next": output.logits[:, -1:].argmax(-1), "mask": mask}
    made = [state["next"]]

    def decode() -> None:
        for _ in range(steps):
            state["mask"] = torch.cat([state["mask"], state["mask"][:, :1]], dim=1)
            out = model(
                input_ids=state["next"],
                attention_mask=state["mask"],
                past_key_values=state["cache"],
                use_cache=True,
            )
            state["next"] = out.logits[:, -1:].argmax(-1)
            made.append(state["next"])

    took = _timed(decode, ids.device) / steps
    return forward, took, [int(token) for token in torch.cat(made, dim=1)[0]]


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)  # for what was asked of the device before
    begin = time.perf_counter()
    run()
    _wait(device)
    return 1000 * (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
