"""How well a model holds its edits: measures, their batched computation, and the protocol of one method."""

from .metrics import Score
from .probing import Forced, Preference, answer, prefer, teacher_force
from .protocol import Edited, Reference, evaluate, refer, score
from .scores import Answer, Measures, Scores

__all__ = [
    "Answer",
    "Edited",
    "Forced",
    "Measures",
    "Preference",
    "Reference",
    "Score",
    "Scores",
    "answer",
    "evaluate",
    "prefer",
    "refer",
    "score",
    "teacher_force",
]
