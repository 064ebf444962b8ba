"""What a method costs: memory while it learns, time of a forward and of a decoded token beside the base's.

Host memory is sampled in a thread, as nothing but the peak of the whole process is kept by the system.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn

from ..layers import evaluating, input_device
from ..text import Text

__all__ = ["Meter", "Overhead", "bare", "hooks_of", "overhead"]

_EVERY = 0.01  # seconds between two looks at the process's memory
_TABLES = ("_forward_pre_hooks", "_forward_hooks")


class Meter:
    """Wall time and peak memory inside a ``with``, growth over what was held at its beginning.

    Attributes:
        seconds: wall time; work queued on a GPU is waited for.
        host: bytes of resident memory.
        device: bytes allocated on the GPUs; None without one.
    """

    def __init__(self) -> None:
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
        while not self._stop.wait(_EVERY):
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


class Overhead(NamedTuple):
    """Milliseconds with and without the method, the fastest of several turns taken one after the other.

    Attributes:
        tokens: length of the forward's one row.
        bare, edited: of that forward.
        bare_token, edited_token: of one decoded token with a cache.
    """

    tokens: int
    bare: float
    edited: float
    bare_token: float
    edited_token: float

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the results."""
        return {
            "forward": {
                "tokens": self.tokens,
                "bare_ms": self.bare,
                "edited_ms": self.edited,
                "ratio": self.edited / self.bare,
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
        texts: unrelated texts, joined and repeated to the length wanted.
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
    with evaluating(model):
        begin, turn = time.perf_counter(), -1
        while (turn := turn + 1) <= turns or time.perf_counter() - begin < seconds:
            for name in best:
                if name == "bare":
                    with bare(model, before):
                        found = _once(model, ids, steps)
                else:
                    found = _once(model, ids, steps)
                if turn:
                    best[name] = [min(pair) for pair in zip(best[name], found, strict=True)]
    return Overhead(tokens, best["bare"][0], best["edited"][0], best["bare"][1], best["edited"][1])


def _once(model: Any, ids: torch.Tensor, steps: int) -> tuple[float, float]:
    """Milliseconds of a plain forward, and of a token decoded with a cache."""
    mask = torch.ones_like(ids)
    forward = _timed(lambda: model(input_ids=ids, attention_mask=mask, use_cache=False))
    output = model(input_ids=ids, attention_mask=mask, use_cache=True)
    state = {"cache": output.past_key_values, "next": output.logits[:, -1:].argmax(-1), "mask": mask}

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

    return forward, _timed(decode) / steps


def _timed(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin)
