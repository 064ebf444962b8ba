"""What the report calls the keys of the results, and one sentence on each."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GROUPS", "MEASURES", "MOMENTS", "PREFERENCES", "PROPERTIES", "Term"]


class Term(NamedTuple):
    """A key of the results, its heading, and one sentence on it."""

    key: str
    label: str
    meaning: str = ""


PROPERTIES = (
    Term("efficacy", "Efficacy", "the edit's own prompt is answered by the new answer"),
    Term("generalization", "Generalization", "rephrased prompts are answered by the new answer"),
    Term("specificity", "Specificity", "unrelated prompts are answered as the base model answers them"),
    Term("same_subject", "Same subject", "other facts about the edited subject are answered as before"),
    Term("portability", "Portability", "questions that follow from the edit get the answer that follows"),
    Term("specificity_gold", "Specificity, right answer", "unrelated prompts get the data set's answer"),
    Term("same_subject_gold", "Same subject, right answer", "other facts get the data set's answer"),
)

MEASURES = (
    Term("generated", "whole answer, generated", "the model's own answer is the expected one, whole"),
    Term("starts", "begins with, generated", "the model's own answer begins with the expected one"),
    Term("whole", "whole answer, teacher forced", "every expected token is the first choice"),
    Term("tokens", "tokens, teacher forced", "share of expected tokens that are the first choice"),
)

MOMENTS = (
    Term("final", "after all edits", "every edit scored when all had been made"),
    Term("immediate", "right after each batch", "every edit scored as soon as its own batch had been made"),
    Term("first", "earliest edits, after all edits", "the first edits (100 at most) when all had been made"),
)

GROUPS = (
    Term("efficacy", "edit", "should change"),
    Term("generalization", "rephrased", "should change"),
    Term("specificity", "unrelated", "should stay"),
    Term("same_subject", "same subject", "should stay"),
    Term("portability", "consequence", "should change"),
)

PREFERENCES = (
    Term("rome", "New answer likelier, whole sequence", "as ROME and MEMIT count it"),
    Term("rledit", "New answer likelier, position by position", "as RLEdit and HiEdit count it"),
)
