"""How alike two questions are, apart from the subjects that they name.

The state at a question's end says little about what is asked; the mean of its words' states says more, once
the directions are taken out in which the wordings of one question differ. These are learned from a few
hundred wordings (`relations`): states are multiplied by the inverse square root of the covariance within
questions (within-class covariance normalisation: Hatch, Kajarekar and Stolcke, Interspeech 2006, section 2).
Outside the directions that it knows, a state is left as it is.

Letters: W words, tokens of a question without its subject; D width; Q directions; 2 forms, plain and chat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..saving.checked import shaped

__all__ = ["Metric", "Question", "likeness", "metric", "packed", "told", "unpacked"]

_RIDGE = 0.1  # of the mean variance within questions
_LARGE = 2.0  # times the usual size of a state; sinks are tens of times as large
_PARTS = ("mean", "directions", "shrink", "size")


class Question(NamedTuple):
    """What is asked.

    Attributes:
        vector: [D] float32 unit vector; zero where there are no words.
        chat: whether it is asked in a user's turn; states look different there.
        asks: whether it asks already; else it is the beginning of a question that is not finished.
    """

    vector: Tensor
    chat: bool
    asks: bool = True


def told(words: Sequence[int]) -> list[int]:
    """Of a question's tokens those whose states say something: not a text's first, if there is another one.

    Without a BOS it is a sink, which looks the same whatever it is.
    """
    return [t for t in words if t] or list(words)


def likeness(one: Question, other: Question) -> float:
    """Between -1 and 1: 1 for the same words, 0 for questions that have nothing in common."""
    if not bool(one.vector.any()) and not bool(other.vector.any()):
        return 1.0
    return float(one.vector.float().cpu() @ other.vector.float().cpu())


@dataclass(frozen=True)
class Metric:
    """Makes one vector of a question's words.

    Attributes:
        mean: [2,D] float32 mean of ordinary questions, in plain text and in chat.
        directions: [2,D,Q] float32 orthonormal; wordings of one question vary along them.
        shrink: [2,Q] float32; the share of a state along each that is taken out.
        size: [2] float32; states farther from the mean than this are taken back to it.
    """

    mean: Tensor
    directions: Tensor
    shrink: Tensor
    size: Tensor

    def question(self, states: Tensor, chat: bool) -> Question:
        """What words with these states [W,D] ask."""
        i = int(chat)
        if not len(states):
            return Question(torch.zeros_like(self.mean[i]), chat)
        vector = _centre(states.float() - self.mean[i].to(states.device), self.size[i]).to(self.mean.device)
        along = self.directions[i]
        return Question(F.normalize(vector - along @ (self.shrink[i] * (along.T @ vector)), dim=0), chat)

    def to(self, device: torch.device) -> Metric:
        """The same with its tensors on ``device``."""
        return Metric(*(getattr(self, name).to(device) for name in _PARTS))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """For saving; names begin with ``prefix``."""
        return {f"{prefix}{name}": getattr(self, name).cpu() for name in _PARTS}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], prefix: str, width: int) -> Metric:
        """What `tensors` gave, of states of width D.

        Raises:
            ValueError: a tensor is missing, or does not fit.
        """
        wide = torch.float32
        along = shaped(tensors, f"{prefix}directions", (2, width, None), wide)
        mean = shaped(tensors, f"{prefix}mean", (2, width), wide)
        shrink = shaped(tensors, f"{prefix}shrink", (2, along.shape[2]), wide)
        return Metric(mean, along, shrink, shaped(tensors, f"{prefix}size", (2,), wide))


def _centre(away: Tensor, size: Tensor) -> Tensor:
    """[D]: the mean of vectors [W,D] that are no longer than ``size``."""
    length = away.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return (away * (size.to(away.device) / length).clamp(max=1.0)).mean(0)


def metric(forms: Sequence[Sequence[Tensor]], labels: Sequence[object], rank: int) -> Metric:
    """The metric that questions of known meaning teach.

    Args:
        forms: in plain text and in chat, the states [W,D] of each question's words.
        labels: what each asks.
        rank: most directions.
    """
    found = [_within(states, labels, rank) for states in forms]
    least = min(along.shape[1] for _, along, _, _ in found)
    mean, directions, shrink, size = zip(*found, strict=True)
    return Metric(
        torch.stack(mean),
        torch.stack([along[:, -least:] for along in directions]),
        torch.stack([some[-least:] for some in shrink]),
        torch.stack(size),
    )


def _within(
    states: Sequence[Tensor], labels: Sequence[object], rank: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    words = torch.cat([one.float() for one in states])
    mean = words.median(0).values
    size = _LARGE * (words - mean).norm(dim=-1).median()
    asked = [one.float() for one in states if len(one)]
    mean = mean + torch.stack([_centre(one - mean, size) for one in asked]).mean(0)
    vectors = torch.stack([_centre(one - mean, size) for one in asked])
    groups: dict[object, list[int]] = {}
    for i, label in enumerate(label for label, one in zip(labels, states, strict=True) if len(one)):
        groups.setdefault(label, []).append(i)
    apart = torch.cat([vectors[some] - vectors[some].mean(0) for some in groups.values() if len(some) > 1])
    # From the smaller side: there are fewer wordings than dimensions in a large model.
    _, values, along = torch.linalg.svd(apart.double(), full_matrices=False)
    variance = values.square() / len(apart)
    ridge = _RIDGE * variance.sum() / apart.shape[1]
    kept = min(rank, len(variance))
    shrink = 1 - (ridge / (variance + ridge)).sqrt()
    order = torch.arange(kept - 1, -1, -1)  # the largest last, so that forms are cut alike
    return mean, along[order].T.float().contiguous(), shrink[order].float(), size


def packed(questions: Sequence[Question], prefix: str) -> dict[str, Tensor]:
    """As tensors, for saving: vectors [M,D] (float16), and whether each is in chat, and asks [M].

    Args:
        prefix: what the tensors' names begin with.
    """
    vectors = [one.vector.half().cpu() for one in questions]
    return {
        f"{prefix}vectors": torch.stack(vectors) if vectors else torch.zeros(0, 0).half(),
        f"{prefix}chat": torch.tensor([one.chat for one in questions], dtype=torch.bool),
        f"{prefix}asks": torch.tensor([one.asks for one in questions], dtype=torch.bool),
    }


def unpacked(tensors: Mapping[str, Tensor], prefix: str, width: int) -> list[Question]:
    """What `packed` gave, of states of width D.

    Raises:
        ValueError: a tensor is missing or does not fit.
    """
    chat = shaped(tensors, f"{prefix}chat", (None,), torch.bool).tolist()
    asks = shaped(tensors, f"{prefix}asks", (len(chat),), torch.bool).tolist()
    vectors = shaped(tensors, f"{prefix}vectors", (len(chat), width if chat else None), torch.float16)
    return [Question(vector.float(), *how) for vector, *how in zip(vectors, chat, asks, strict=True)]
