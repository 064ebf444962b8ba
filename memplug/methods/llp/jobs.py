"""The jobs of value training: each subject's edits, other ways to ask for them, and what has to stay."""

from __future__ import annotations

from collections.abc import Sequence

from ...contexts import Question, Sampled, sample_about
from ...text import Text
from .config import LLPConfig
from .entries import Entry
from .rows import Job

__all__ = ["jobs_for"]

_BATCH = 64  # prompts answered at once
_ANSWER = 12  # tokens of the base model's answers


def jobs_for(text: Text, config: LLPConfig, drafts: Sequence[Entry]) -> list[Job]:
    """What each subject's value has to answer, and what it has to leave alone."""
    groups = [tuple(draft.edits[id] for id in draft.on) for draft in drafts]
    flat = [edit for group in groups for edit in group]
    answers, said = [""] * len(flat), [Sampled([], []) for _ in flat]
    if config.n_statements:
        answers = _answers(text, [edit.question for edit in flat])
        asked = zip(flat, answers, strict=True)
        questions = [Question(str(edit.subject), edit.question, answer) for edit, answer in asked]
        said = sample_about(
            text,
            questions,
            config.n_statements,
            config.n_restatements,
            config.statement_tokens,
            config.sample_top_k,
            config.seed,
        )
        said = _verified(text, said, answers)
    jobs, at = [], 0
    for draft, group in zip(drafts, groups, strict=True):
        mine = slice(at, at + len(group))
        statements = tuple(dict.fromkeys(s for one in said[mine] for s in one.statements))
        restated = tuple(tuple(one.restatements) for one in said[mine])
        jobs.append(
            Job(draft.subject, group, statements[: config.n_statements], tuple(answers[mine]), restated)
        )
        at += len(group)
    return jobs


def _answers(text: Text, prompts: Sequence[str]) -> list[str]:
    """What the base model answers, first lines only."""
    found = []
    for at in range(0, len(prompts), _BATCH):
        rows = text.generate([text.encode(prompt) for prompt in prompts[at : at + _BATCH]], _ANSWER)
        found += [text.decode(row).split("\n")[0].strip() for row in rows]
    return found


def _verified(text: Text, said: Sequence[Sampled], answers: Sequence[str]) -> list[Sampled]:
    """Restatements only where the model, asked greedily, gives the answer: else they ask something else."""
    given = iter(_answers(text, [front for one in said for front in one.restatements]))
    kept = []
    for one, answer in zip(said, answers, strict=True):
        fronts = [front for front in one.restatements if next(given).lower().startswith(answer.lower())]
        kept.append(one._replace(restatements=fronts))
    return kept
