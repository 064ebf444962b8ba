"""What a model can do beside its facts: skills of the embedded model, choice sets from files, harness tasks.

Each set has a name and scores any model; an editor that harms the rest of the model shows here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..data import DataError
from ..data.rows import read_file
from ..edits import Probe
from .harness import Harness
from .metrics import Judged, Score, choose_likeliest, choose_per_byte, generated_exact
from .probing import answer, teacher_force
from .resampling import bootstrap

__all__ = ["Choices", "Choosing", "General", "Skills", "open_general", "read_choices"]

_NOT_TEXT = {"id", "label", "label_name", "topic", "choices"}


class General(Protocol):
    """A set of tasks that has nothing to do with the edits."""

    @property
    def name(self) -> str:
        """How the set is called."""

    def score(self, model: Any, tokenizer: Any, *, batch_size: int, level: float) -> dict[str, Score]:
        """The model's scores, by measure; intervals over its questions. A `Judged` keeps the answers."""


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

    def asked(self) -> dict[str, Any]:
        """What tells this set from others of its name, plain."""
        return {"kind": "skills", "n": self.n, "seed": self.seed}

    def score(self, model: Any, tokenizer: Any, *, batch_size: int, level: float) -> Judged:
        """See `General`."""
        from .. import world

        probes = [probe for made in world.skills(self.n, self.seed).values() for probe in made]
        prompts = [probe.prompt for probe in probes]
        texts = answer(model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=16)
        right = [generated_exact(t, probe.target) for t, probe in zip(texts, probes, strict=True)]
        answers = [
            {"prompt": probe.prompt, "target": probe.target, "text": text, "right": one}
            for probe, text, one in zip(probes, texts, right, strict=True)
        ]
        return Judged(_scored(self.name, right, level), answers)


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
        file: where the rows were read, for the record.
    """

    name: str
    rows: tuple[Choosing, ...]
    labels: bool
    file: str = ""

    def asked(self) -> dict[str, Any]:
        """What tells this set from others of its name, plain; where the file lies does not count."""
        digest = hashlib.sha256(repr((self.labels, [tuple(row) for row in self.rows])).encode()).hexdigest()
        return {"kind": "choices", "rows": len(self.rows), "sha256": digest, "file": self.file}

    def score(self, model: Any, tokenizer: Any, *, batch_size: int, level: float) -> Judged:
        """See `General`."""
        probes = [Probe(row.prompt, choice) for row in self.rows for choice in row.choices]
        forced = iter(teacher_force(model, tokenizer, probes, batch_size=batch_size))
        sums = [[sum(next(forced).log_probs) for _ in row.choices] for row in self.rows]
        pairs = list(zip(sums, self.rows, strict=True))
        found = _scored(self.name, [choose_likeliest(s) == row.label for s, row in pairs], level)
        if not self.labels:
            normed = [choose_per_byte(s, row.choices) == row.label for s, row in pairs]
            found |= _scored(f"{self.name}_norm", normed, level)
        answers = [{"question": i, "label": row.label, "log_probs": s} for i, (s, row) in enumerate(pairs)]
        return Judged(found, answers)


def open_general(name: str | Path) -> General:
    """The set called ``name``: ``skills`` (or ``skills:N``), a file of choices, or a harness task.

    Raises:
        DataError: a file that cannot be used.
        ValueError: a number of skills or questions out of range, or the harness has no such task.
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
    if number and not (number.isdigit() and int(number)):
        raise ValueError(f"{str(name)!r}: write TASK or TASK:N, N questions")
    task = Harness(text, int(number) if number else None)
    task.check()
    return task


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
    return Choices(path.stem, tuple(made), not own, str(path))


def _prompt(values: Mapping[str, Any], labelled: bool) -> str:
    if isinstance(values.get("prompt"), str):
        return values["prompt"].strip()
    texts = [f"{k}: {str(v).strip()}" for k, v in values.items() if k not in _NOT_TEXT and str(v).strip()]
    return "\n".join([*texts, "label:" if labelled else "answer:"])


def _scored(name: str, right: Sequence[bool], level: float) -> dict[str, Score]:
    score = bootstrap([float(value) for value in right], level=level)
    return {} if score is None else {name: score}
