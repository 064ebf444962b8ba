"""Tasks of the Language Model Evaluation Harness (lm-eval), run by it."""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from .metrics import Judged, Score

__all__ = ["Harness"]


@dataclass(frozen=True)
class Harness:
    """A task of the Language Model Evaluation Harness (lm-eval), run by it on the model object itself.

    Every metric that it reports is taken over as ``task:metric``, the interval as 1.96 standard errors at
    the level 0.95 (NaN where it reports none). Of a group that the harness sums up, that sum alone is taken.

    Attributes:
        name: the task, or a group of tasks.
        limit: how many of its questions (of each task of a group); None takes all.
        settings: what ``lm_eval.simple_evaluate`` is given beside.
    """

    name: str
    limit: int | None = None
    settings: Mapping[str, Any] | None = None

    def asked(self) -> dict[str, Any]:
        """What tells this set from others of its name, plain."""
        plain = {k: v for k, v in (self.settings or {}).items() if isinstance(v, bool | int | float | str)}
        return {"kind": "task", "limit": self.limit, **plain}

    def check(self) -> None:
        """Look the task's name up.

        Raises:
            ImportError: lm-eval is not installed.
            ValueError: it knows no task or group of this name.
        """
        with _installed(self.name):
            known = self._manager.all_tasks
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm-eval ls tasks` lists all"
            raise ValueError(f"lm-eval has no task {self.name!r}; {hint}")

    @cached_property
    def _manager(self) -> Any:
        """The tasks that there are; the harness goes through thousands of files for them, once."""
        return (self.settings or {}).get("task_manager") or _all_tasks()

    def score(self, model: Any, tokenizer: Any, *, batch_size: int, level: float) -> Judged:
        """See `General` (``memplug.evaluation.general``).

        Raises:
            ImportError: lm-eval is not installed.
            ValueError: it reports no figures for the task.
        """
        with _installed(self.name):
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
        with _generators_kept():
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            given = {"limit": self.limit, "bootstrap_iters": 100, **(self.settings or {})}
            given["task_manager"] = self._manager
            out = simple_evaluate(model=wrapped, tasks=[self.name], **given)
        width = NormalDist().inv_cdf(0.5 + level / 2)
        found = {task: _figures(task, out, width) for task in out["results"]}
        own = found.get(self.name)
        scores = own or {key: score for its in found.values() for key, score in its.items()}
        if not scores:
            raise ValueError(f"lm-eval reports no figures for {self.name!r}; name one of its tasks")
        return Judged(scores, _answers(out))


def _answers(out: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the harness logged of each question, where its settings let it."""
    said = ("doc_id", "target", "filter", "resps", "filtered_resps")
    return [
        {"task": task} | {name: sample[name] for name in said if name in sample}
        for task, samples in (out.get("samples") or {}).items()
        for sample in samples
    ]


def _figures(task: str, out: Mapping[str, Any], width: float) -> dict[str, Score]:
    """The harness's figures of one task or group; the bounds are ``width`` standard errors away."""
    n = _questions(task, out)
    values, found = out["results"][task], {}
    for key, value in values.items():
        metric, _, filter = key.partition(",")
        spread = values.get(f"{metric}_stderr,{filter}")
        if not filter or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        half = width * spread if isinstance(spread, int | float) else float("nan")
        found[f"{task}:{metric}"] = Score(float(value), float(value - half), float(value + half), n)
    return found


def _questions(task: str, out: Mapping[str, Any]) -> int:
    """Questions asked; a group has those of its parts."""
    own = out["n-samples"].get(task)
    if own is not None:
        return int(own["effective"])
    return sum(_questions(part, out) for part in (out.get("group_subtasks") or {}).get(task, ()))


@contextmanager
def _installed(task: str) -> Iterator[None]:
    """Says what to install where lm-eval is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"the task {task!r} is run by lm-eval ({error}); pip install 'memplug[eval]'"
        ) from error


def _all_tasks() -> Any:
    """The harness's own tasks."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextmanager
def _generators_kept() -> Iterator[None]:
    """The harness seeds all global random generators; they are put back."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
