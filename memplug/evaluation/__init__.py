"""How well a model holds its edits: measures, their batched computation, and the protocol of one method."""

from .metrics import Score, retained
from .probing import Forced, Preference, answer, prefer, teacher_force
from .protocol import Edited, Reference, ask, evaluate, refer, score
from .resampling import bootstrap
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
    "ask",
    "bootstrap",
    "evaluate",
    "prefer",
    "refer",
    "retained",
    "score",
    "teacher_force",
]
