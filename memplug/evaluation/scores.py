"""What an evaluation gives back: one `Answer` a probe, and the means over them with their intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..text.chat import Prompt, show
from .metrics import Score, answer_agreement, generated_exact, generated_start
from .resampling import bootstrap

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Answer", "Group", "Measures", "Scores"]

Group = Literal["efficacy", "generalization", "specificity", "same_subject", "portability"]
_MEASURES = {"tokens": "tokens", "whole": "whole answer", "generated": "generated", "starts": "begins with"}
_LABELS = {
    "specificity_gold": "  right answer",
    "same_subject": "same subject",
    "same_subject_gold": "  right answer",
}
_NONE = "–"


class Answer(NamedTuple):
    """One probe of one case, put to the edited model.

    Attributes:
        case: the case's index in the list that was evaluated.
        group: what the probe tests.
        prompt, target: the probe. For specificity and same_subject the target is the answer before the edit.
        tokens: `token_accuracy` against the target.
        whole: `whole_answer` against the target, the stop token aside.
        perplexity: of the target.
        text: the model's own answer; None if nothing was generated.
        base_text: the base model's own answer, where the reference has it (always for what must not change).
        agreement: `token_agreement` with the base model, for the same probes.
    """

    case: int
    group: Group
    prompt: Prompt
    target: str
    tokens: float
    whole: bool
    perplexity: float
    text: str | None = None
    base_text: str | None = None
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: messages as one text (`chat.show`), what is not finite as None."""
        plain = {name: _finite(value) for name, value in self._asdict().items()}
        return {**plain, "prompt": show(self.prompt)}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Answer:
        """What `to_dict` gave, read back; a perplexity of None was infinite. Other fields are left out."""
        known = {name: row.get(name) for name in cls._fields}
        return cls(**known | {"perplexity": math.inf if row.get("perplexity") is None else row["perplexity"]})

    def values(self) -> dict[tuple[str, ...], float]:
        """What it counts as, by property and measure as in `Scores`, and its ("perplexity",)."""
        stays, text = self.group in ("specificity", "same_subject"), self.text
        gold = f"{self.group}_gold" if stays else self.group
        found: dict[tuple[str, ...], float | None] = {
            (gold, "tokens"): self.tokens,
            (gold, "whole"): self.whole,
        }
        if text is not None:
            found[gold, "generated"] = generated_exact(text, self.target)
            found[gold, "starts"] = generated_start(text, self.target)
        if stays and self.agreement is not None:
            found |= {(self.group, "tokens"): self.agreement, (self.group, "whole"): self.agreement == 1}
        if stays and text is not None and self.base_text is not None:
            found[self.group, "generated"] = answer_agreement(text, self.base_text)
        if self.group == "efficacy":
            found["perplexity",] = self.perplexity
        return {key: float(value) for key, value in found.items() if value is not None}

    @property
    def right(self) -> bool | None:
        """Whether it is as it should be, as generated, or teacher forced where nothing was; None: unknown.

        What an edit must not change is right if the base model answers the same, the rest if it is the
        target.
        """
        values = self.values()
        found = values.get((self.group, "generated"), values.get((self.group, "whole")))
        return None if found is None else found == 1


@dataclass(frozen=True)
class Measures:
    """One property of an editor, measured in four ways that are never mixed; None where nothing was asked.

    Attributes:
        tokens: token by token under teacher forcing (`token_accuracy`, or `token_agreement` with the base).
        whole: the whole answer under teacher forcing (`whole_answer`, or full token agreement).
        generated: the whole answer as the model generates it (`generated_exact`, or `answer_agreement`).
        starts: the generated answer begins with the target (`generated_start`).
    """

    tokens: Score | None = None
    whole: Score | None = None
    generated: Score | None = None
    starts: Score | None = None


@dataclass(frozen=True)
class Scores:
    """How well edits hold, and what they left alone. Every score is a mean over cases, of each case's mean.

    Attributes:
        efficacy: the edits' own prompts, against the new answer.
        generalization: rephrased prompts, against the new answer.
        specificity: unrelated prompts, against the base model (1 means nothing changed).
        specificity_gold: the same prompts, against the right answer (the base model need not know it).
        same_subject: other facts about the edited subjects, against the base model.
        same_subject_gold: the same prompts, against the right answer.
        portability: questions whose answer follows from the edit, against the new answer.
        perplexity: of the new answers to the edits' own prompts (`perplexity`; lower is better).
        answers: what the scores were made from, in the order of the cases.
    """

    efficacy: Measures
    generalization: Measures
    specificity: Measures
    specificity_gold: Measures
    same_subject: Measures
    same_subject_gold: Measures
    portability: Measures
    perplexity: Score | None
    answers: tuple[Answer, ...] = ()

    @classmethod
    def from_answers(cls, answers: Iterable[Answer], *, level: float = 0.95, seed: int = 0) -> Scores:
        """The scores of any answers, of some cases only if only theirs are given.

        Args:
            answers: rows of one or more evaluations.
            level: coverage of the `bootstrap` intervals, drawn over cases.
            seed: of that drawing.
        """
        rows = tuple(answers)
        by_case: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            for key, value in row.values().items():
                by_case[key][row.case].append(value)
        scores = {
            key: bootstrap([sum(v) / len(v) for v in cases.values()], level=level, seed=seed)
            for key, cases in by_case.items()
        }
        names = [one.name for one in fields(cls) if one.type == "Measures"]
        return cls(
            **{name: Measures(*(scores.get((name, key)) for key in _MEASURES)) for name in names},
            perplexity=scores.get(("perplexity",)),
            answers=rows,
        )

    def items(self) -> list[tuple[str, Measures]]:
        """The properties by name, in order."""
        return [(f.name, value) for f in fields(self) if isinstance(value := getattr(self, f.name), Measures)]

    def table(self, title: str | None = None) -> Table:
        """A rich table in percent, intervals in brackets; an en dash where nothing was asked.

        Specificity and same subject are counted against the base model; the line below each against the
        right answer.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(title=title, caption=_caption(self), caption_justify="left", box=SIMPLE_HEAD)
        table.add_column("%", no_wrap=True)
        for heading in _MEASURES.values():
            table.add_column(heading, justify="right")
        table.add_column("cases", justify="right", no_wrap=True)
        for name, measures in self.items():
            found = [getattr(measures, key) for key in _MEASURES]
            cases = next((str(score.n) for score in found if score is not None), _NONE)
            table.add_row(_LABELS.get(name, name), *(_percent(score) for score in found), cases)
        return table

    def to_dict(self, *, answers: bool = False) -> dict[str, Any]:
        """Plain values for JSON. A score is value, low, high and n; one that is not finite has None there.

        Args:
            answers: put the answers in as well.
        """
        out: dict[str, Any] = {
            name: {key: _plain(getattr(measures, key)) for key in _MEASURES}
            for name, measures in self.items()
        }
        out["perplexity"] = _plain(self.perplexity)
        if answers:
            out["answers"] = [row.to_dict() for row in self.answers]
        return out

    def __repr__(self) -> str:
        parts = [
            f"{name}={score.value:.3f}"
            for name, m in self.items()
            if (score := m.generated or m.tokens) is not None
        ]
        return f"Scores({', '.join(parts)}; {len(self.answers)} answers)"


def _caption(scores: Scores) -> str:
    score = scores.perplexity
    found = _NONE if score is None else f"{score.value:.2f} ({score.low:.2f}–{score.high:.2f})"
    return f"perplexity of the new answers: {found}"


def _percent(score: Score | None) -> str:
    if score is None:
        return _NONE
    return f"{100 * score.value:.1f} ({100 * score.low:.0f}–{100 * score.high:.0f})"


def _plain(score: Score | None) -> dict[str, Any] | None:
    return None if score is None else {key: _finite(value) for key, value in score._asdict().items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
