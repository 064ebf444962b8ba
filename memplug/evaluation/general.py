"""What a model can do beside its facts: skills of the embedded model, choice sets from files, harness tasks.

Each set has a name and scores any model; an editor that harms the rest of the model shows here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..data import DataError
from ..data.rows import read_file
from ..edits import Probe
from .metrics import Score, bootstrap, choose_likeliest, choose_per_byte, generated_exact
from .probing import answer, teacher_force

__all__ = ["Choices", "Choosing", "General", "Harness", "Skills", "open_general", "read_choices"]

_NOT_TEXT = {"id", "label", "label_name", "topic", "choices"}


class General(Protocol):
    """A set of tasks that has nothing to do with the edits."""

    @property
    def name(self) -> str:
        """How the set is called."""

    def score(self, model: Any, tokenizer: Any, *, batch_size: int, level: float) -> dict[str, Score]:
        """The model's scores, by measure; intervals over the set's questions."""


@dataclass(frozen=True)
class Skills:
    """Abilities that the embedded model was trained on, asked with whole answers (`generated_exact`).

    Attributes:
        n: questions of each skill.
        seed: which ones.
        name: of the set.
    """

    n: int = 20
    seed: int = 0
    name: str = "skills"

    def score(self, model: Any, tokenizer: Any, *, batch_size: int, level: float) -> dict[str, Score]:
        """See `General`."""
        from .. import world

        probes = [probe for made in world.skills(self.n, self.seed).values() for probe in made]
        prompts = [probe.prompt for probe in probes]
        texts = answer(model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=16)
        right = [generated_exact(t, probe.target) for t, probe in zip(texts, probes, strict=True)]
        return _scored(self.name, right, level)


class Choosing(NamedTuple):
    """One question with its possible answers.

    Attributes:
        prompt: the question.
        choices: the answers.
        label: index of the right one.
    """

    prompt: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Choices:
    """Questions with given answers, decided by the model's likelihood of each answer behind the prompt.

    Scores ``name`` by `choose_likeliest`; where the answers are texts of their own and not labels, also
    ``name_norm`` by `choose_per_byte`.

    Attributes:
        name: of the set.
        rows: the questions.
        labels: whether all rows have the same few answers.
    """

    name: str
    rows: tuple[Choosing, ...]
    labels: bool

    def score(self, model: Any, tokenizer: Any, *, batch_size: int, level: float) -> dict[str, Score]:
        """See `General`."""
        probes = [Probe(row.prompt, choice) for row in self.rows for choice in row.choices]
        forced = iter(teacher_force(model, tokenizer, probes, batch_size=batch_size))
        sums = [[sum(next(forced).log_probs) for _ in row.choices] for row in self.rows]
        pairs = list(zip(sums, self.rows, strict=True))
        found = _scored(self.name, [choose_likeliest(s) == row.label for s, row in pairs], level)
        if not self.labels:
            normed = [choose_per_byte(s, row.choices) == row.label for s, row in pairs]
            found |= _scored(f"{self.name}_norm", normed, level)
        return found


@dataclass(frozen=True)
class Harness:
    """A task of the Language Model Evaluation Harness (lm-eval), run by it on the model object itself.

    Every metric that it reports with a standard error is taken over as ``task:metric``, the interval as
    1.96 standard errors at the level 0.95.

    Attributes:
        name: the task.
        limit: how many of its questions; None takes all.
        settings: what ``lm_eval.simple_evaluate`` is given beside.
    """

    name: str
    limit: int | None = None
    settings: Mapping[str, Any] | None = None

    def score(self, model: Any, tokenizer: Any, *, batch_size: int, level: float) -> dict[str, Score]:
        """See `General`.

        Raises:
            ImportError: lm-eval is not installed.
        """
        try:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise ImportError(
                f"the task {self.name!r} is run by lm-eval ({error}); pip install 'memplug[eval]'"
            ) from error
        from statistics import NormalDist

        with _generators_kept():
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            given = {"limit": self.limit, "bootstrap_iters": 0, **(self.settings or {})}
            out = simple_evaluate(model=wrapped, tasks=[self.name], **given)
        width = NormalDist().inv_cdf(0.5 + level / 2)
        found: dict[str, Score] = {}
        for task, values in out["results"].items():
            n = int(out["n-samples"][task]["effective"])
            for key, value in values.items():
                metric, _, filter = key.partition(",")
                spread = values.get(f"{metric}_stderr,{filter}")
                if not filter or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                half = width * spread if isinstance(spread, int | float) else 0.0
                found[f"{task}:{metric}"] = Score(float(value), value - half, value + half, n)
        return found


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


def open_general(name: str | Path) -> General:
    """The set called ``name``: ``skills`` (or ``skills:N``), a file of choices, or a harness task.

    Raises:
        DataError: a file that cannot be used.
        ValueError: a number of skills out of range.
        ImportError: none of these, and there is no harness installed.
    """
    text = str(name)
    head, _, number = text.partition(":")
    if head == "skills":
        from .. import world

        n = int(number) if number.isdigit() else 20
        if number and not number.isdigit():
            raise ValueError(f"{text!r}: write skills or skills:N, N questions of each skill")
        world.skills(n)
        return Skills(n)
    if Path(text).suffix in (".jsonl", ".json", ".csv", ".tsv", ".ndjson"):
        return read_choices(Path(text))
    if head == "task":
        text, _, number = number.partition(":")
    else:
        text, number = head, number
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise ImportError(
            f"{name!r} is neither skills nor a file; as a task it is run by lm-eval, which is not installed: "
            "pip install 'memplug[eval]'"
        )
    return Harness(text, int(number) if number.isdigit() else None)


def read_choices(path: Path) -> Choices:
    """Read rows with a question, its answers and the right one's index.

    Fields: ``label`` (an index); ``choices``, or else ``label_name``, whose values over the file are the
    answers of every row; a ``prompt``, or else all other texts of the row, each on a line behind its name.

    Raises:
        DataError: a broken row, named by file and line.
    """
    rows = []
    for row in read_file(path):
        if row.broken is not None:
            raise DataError(f"{path.name}, line {row.line}: {row.broken}; mend the row")
        rows.append(row)
    names: dict[int, str] = {}
    for row in rows:
        label = row.values.get("label")
        label = int(label) if isinstance(label, str) and label.isdigit() else label
        if not isinstance(label, int) or isinstance(label, bool):
            raise DataError(
                f"{path.name}, line {row.line}: label is {label!r}; give the right answer's index"
            )
        row.values["label"] = label
        if "label_name" in row.values:
            names[label] = str(row.values["label_name"])
    own = [row for row in rows if row.values.get("choices")]
    shared = tuple(names[label] for label in sorted(names))
    if (
        not rows
        or (len(own) < len(rows) and sorted(names) != list(range(len(names))))
        or (len(own) < len(rows) and len(shared) < 2)
    ):
        raise DataError(
            f"{path.name}: rows need choices, or a label_name for each of at least two labels from 0 on"
        )
    made = []
    for row in rows:
        choices = tuple(str(c) for c in row.values.get("choices") or shared)
        label = row.values["label"]
        if not 0 <= label < len(choices) or any(not choice.strip() for choice in choices):
            raise DataError(f"{path.name}, line {row.line}: label {label} is none of {len(choices)} choices")
        made.append(Choosing(_prompt(row.values, not row.values.get("choices")), choices, label))
    return Choices(path.stem, tuple(made), labels=not own)


def _prompt(values: Mapping[str, Any], labelled: bool) -> str:
    if isinstance(values.get("prompt"), str):
        return values["prompt"].strip()
    texts = [f"{k}: {str(v).strip()}" for k, v in values.items() if k not in _NOT_TEXT and str(v).strip()]
    return "\n".join([*texts, "label:" if labelled else "answer:"])


def _scored(name: str, right: Sequence[bool], level: float) -> dict[str, Score]:
    score = bootstrap([float(value) for value in right], level=level)
    return {} if score is None else {name: score}
