"""Requests in batches: rows wait in a queue, and each worker runs those that may run together.

A worker takes the row that waits longest, gives others a moment to arrive (``window``), and runs up to
``batch`` of them in one ``generate`` of the plug's model, left-padded: those that ask the same model, edited
or base, and fit into its context together. Rows need not have the same sampling settings: each token is
chosen row by row, and each row ends by itself (limit, stop, end token, a client that went away); it is filled
up until the last one ends. New rows do not join a batch that runs, as with continuous batching: that packs
texts into one row, where edits cannot be looked for (`model/tracker.py`). Several workers keep a long answer
from holding up short ones.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ..plugin import Plug
from ..text.tokens import Text
from .rows import Row
from .settings import Settings

__all__ = ["Batcher", "QueueFull", "Stopped"]


class QueueFull(Exception):
    """More rows wait than may; ``after`` is in how many seconds to come again."""

    def __init__(self, after: int) -> None:
        super().__init__(f"too many requests are waiting; come again in {after} s")
        self.after = after


class Stopped(Exception):
    """The server is shutting down."""


class Batcher:
    """The queue and its workers.

    Args:
        plug: whose model answers.
        text: a tokenizer of its own.
        settings: sizes.
    """

    def __init__(self, plug: Plug, text: Text, settings: Settings) -> None:
        self._plug, self._text, self._settings = plug, text, settings
        self._queue: list[Row] = []
        self._moved = threading.Condition()
        self._stopping = False
        self._seconds = 1.0  # of the last batch
        self.running = 0
        self._workers = [
            threading.Thread(target=self._work, name=f"memplug-batch-{i}", daemon=True)
            for i in range(settings.workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return sum(not row.done for row in list(self._queue))  # those of clients that went away do not

    @property
    def ready(self) -> bool:
        """Whether rows are taken and all workers are there."""
        return not self._stopping and all(worker.is_alive() for worker in self._workers)

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue the rows of one request, all or none.

        Raises:
            QueueFull: there is no room for them.
            Stopped: no more are taken.
        """
        with self._moved:
            if self._stopping:
                raise Stopped("the server is shutting down")
            self._queue = [row for row in self._queue if not row.done]  # of clients that went away
            if len(self._queue) + len(rows) > self._settings.queue:
                raise QueueFull(math.ceil(self._seconds * (1 + len(self._queue) / self._settings.batch)))
            self._queue += rows
            self._moved.notify_all()

    def stop(self) -> None:
        """Take no more rows, and come back when those that there are have been answered."""
        with self._moved:
            self._stopping = True
            self._moved.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            begun = time.monotonic()
            try:
                with self._plug.base() if batch[0].base else nullcontext():
                    self._generate(batch)
            except Exception as error:  # of the model: it is told to those who asked, and others are served
                for row in batch:
                    row.fail(error)
            finally:
                with self._moved:
                    self.running -= len(batch)
                self._seconds = time.monotonic() - begun

    def _next(self) -> list[Row] | None:
        """Rows to run together; None when there will be none."""
        with self._moved:
            while True:
                self._moved.wait_for(lambda: self._queue or self._stopping)
                end = time.monotonic() + self._settings.window
                while 0 < len(self._queue) < self._settings.batch and not self._stopping:
                    if not self._moved.wait(max(0.0, end - time.monotonic())):
                        break
                if batch := self._taken():
                    self.running += len(batch)
                    return batch
                if self._stopping and not self._queue:
                    return None

    def _taken(self) -> list[Row]:
        batch: list[Row] = []
        left: list[Row] = []
        for row in self._queue:
            together = [*batch, row]
            width = max(len(one.ids) for one in together) + max(one.sampling.limit for one in together)
            fits = row.base == together[0].base and width <= self._text.max_length
            if row.done:
                continue
            (batch if len(batch) < self._settings.batch and (fits or not batch) else left).append(row)
        self._queue = left
        return batch

    def _generate(self, batch: list[Row]) -> None:
        ids, mask = self._text.pad([row.ids for row in batch])
        self._plug.model.generate(
            ids,
            attention_mask=mask,
            generation_config=self._text.plain_settings(max(row.sampling.limit for row in batch)),
            logits_processor=LogitsProcessorList([_Draw(batch)] if any(row.sampled for row in batch) else []),
            stopping_criteria=StoppingCriteriaList([_Watch(batch)]),
        )


class _Draw(LogitsProcessor):
    """Leaves the token that each sampled row draws alone, so that greedy search picks it."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, own in zip(self._rows, scores, strict=True):
            if row.sampled and not row.done:
                chosen = row.choose(own)
                own.fill_(-torch.inf)
                own[chosen] = 0.0
        return scores


class _Watch(StoppingCriteria):
    """Hands every row its token as soon as it is made, and ends rows one by one."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.take(token)
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)
