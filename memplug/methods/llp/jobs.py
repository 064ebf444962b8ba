"""The jobs of value training: each subject's edits, and sampled statements about it that have to stay."""

from __future__ import annotations

from collections.abc import Sequence

from ...contexts import Question, sample_statements
from ...text import Text
from .config import LLPConfig
from .entries import Entry
from .rows import Job

__all__ = ["jobs_for"]


def jobs_for(text: Text, config: LLPConfig, drafts: Sequence[Entry]) -> list[Job]:
    """What each subject's value has to answer, and what it has to leave alone."""
    groups = [tuple(draft.edits[id] for id in draft.on) for draft in drafts]
    if not config.n_statements:
        return [
            Job(draft.subject, group, (), ("",) * len(group))
            for draft, group in zip(drafts, groups, strict=True)
        ]
    flat = [edit for group in groups for edit in group]
    answers = []
    for at in range(0, len(flat), 64):
        part = [text.encode(edit.prompt) for edit in flat[at : at + 64]]
        answers += [text.decode(row).split("\n")[0] for row in text.generate(part, 12)]
    questions = [
        Question(str(edit.subject), edit.prompt, answer) for edit, answer in zip(flat, answers, strict=True)
    ]
    found = sample_statements(
        text, questions, config.n_statements, config.statement_tokens, config.sample_top_k, config.seed
    )
    jobs, at = [], 0
    for draft, group in zip(drafts, groups, strict=True):
        mine = slice(at, at + len(group))
        statements = [s for some in found[mine] for s in some]
        kept = tuple(dict.fromkeys(statements))[: config.n_statements]
        jobs.append(Job(draft.subject, group, kept, tuple(answers[mine])))
        at += len(group)
    return jobs
