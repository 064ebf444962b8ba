"""A space in which hidden states can be compared: whitened by the model's own ordinary text.

Raw cosines of hidden states say little: a few huge dimensions carry most of their size, and the first token
of a text, which later tokens lean on, looks nearly the same whatever it is. Here states are centred and
whitened per layer (with a ridge of the median eigenvalue), and the first token has a mean and a scale of its
own. Thresholds are read off the same text: what two tokens that are not the same word reach by chance.

Letters: n layers, B rows, T tokens, D width, K dimensions kept.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..memory import agreed
from ..saving.checked import check_rest, shaped
from .questions import Metric, Question, likeness
from .reading import Kind

__all__ = ["Calibration", "Sample", "chance_thresholds", "whitening"]

_SPACES = ("mean", "root", "first_mean", "first_root")
_KEYS = 400  # tokens that play the part of a subject when a threshold is set
_TOKENS = 64  # tokens of the prompt that a false-accept rate speaks of
_DUE = 0.5  # of the limit, where an answer has begun that was asked for


class Sample(NamedTuple):
    """Ordinary text as a model sees it.

    Attributes:
        states: [n,N,D] float32 states of all tokens but the first of each text.
        first: [n,M,D] float32 states of tokens that stand first in a text.
        text: LongTensor [N]; which text each token is from.
        words: the N tokens as text, lower case, without blanks.
    """

    states: Tensor
    first: Tensor
    text: Tensor
    words: list[str]


@dataclass(frozen=True)
class Calibration:
    """Centres and whitens the states of some layers, and tells in one more what is asked.

    Attributes:
        layers: the layers, in the order of the tensors below; the last one is that of questions.
        mean: [n,D] float32.
        root: [n,D,K] float32; ``(state - mean) @ root`` has unit variance in its large directions.
        first_mean, first_root: the same for the first token of a text.
        threshold: cosine that a subject of one token has to exceed in a layer, see `chance_thresholds`.
        several: cosine that each token of a subject of several has to exceed.
        metric: of questions, by their words' states in the last layer.
        relation: likeness that a question has to exceed to be taken for an edit's, see `questions.likeness`:
            in plain text, and in a user's turn.
        same: likeness that hardly any two questions reach that do not ask the same; the limit for what is no
            question.
        neutral: [F,M,D] float32 unit vectors of the neutral questions (`relations.wordings`), in plain text
            and, where there is a chat template, in chat.
        labels: LongTensor [M], which of the R different questions each of them is.
    """

    layers: tuple[int, ...]
    mean: Tensor
    root: Tensor
    first_mean: Tensor
    first_root: Tensor
    threshold: float
    several: float
    metric: Metric
    relation: tuple[float, float]
    same: float
    neutral: Tensor
    labels: Tensor

    def apply(self, index: int, states: Tensor, begins: Tensor | None = None) -> Tensor:
        """Unit vectors [B,T,K] float32 of states [B,T,D] of layer ``layers[index]``.

        Args:
            begins: BoolTensor [B,T], where a text's first token stands; None is nowhere.
        """
        device = states.device
        out = (states.float() - self.mean[index].to(device)) @ self.root[index].to(device)
        if begins is not None and bool(begins.any()):
            own = states[begins].float() - self.first_mean[index].to(device)
            out[begins] = own @ self.first_root[index].to(device)
        return F.normalize(out, dim=-1)

    def least(self, key: Tensor) -> float:
        """The cosine that each token of a subject has to exceed, given its key [R,S,K]."""
        return self.threshold if key.shape[1] == 1 else self.several

    def limit(self, chat: bool, kind: Kind) -> float:
        """The likeness that what is said has to exceed, see `reading.Kind`."""
        if kind == "due":
            return _DUE * self.relation[chat]
        return self.same if kind == "aside" else self.relation[chat]

    def means(self, question: Question) -> Tensor:
        """[R]: how like a question is to each of the neutral ones, the mean over their wordings."""
        likeness = self._likenesses(question)
        count = int(self.labels.max()) + 1
        total = torch.zeros(count, dtype=torch.float32).index_add(0, self.labels, likeness)
        return total / torch.bincount(self.labels, minlength=count)

    def _likenesses(self, question: Question) -> Tensor:
        return self.neutral[min(int(question.chat), len(self.neutral) - 1)] @ question.vector.float().cpu()

    def matched(self, asked: Sequence[Question]) -> int | None:
        """Which of the neutral questions asks the same as an edit; None if none does.

        Args:
            asked: in which words the edit is asked for.
        """
        means = [self.means(one) for one in asked if one.asks]
        if not means:
            return None
        mean = torch.stack(means).mean(0)
        best = int(mean.argmax())
        return best if float(mean[best]) > min(self.relation) else None

    def likeness(
        self, asked: Sequence[Question], matched: int | None, question: Question, due: bool = False
    ) -> float:
        """How much a question resembles those that ask for an edit; -1 where none does in this form.

        The wordings of a neutral question that asks the same count as its own. What the question resembles
        more is taken off: another neutral question, or the edit's own one while it is not finished.

        Args:
            asked: in which words the edit is asked for.
            matched: see `matched`.
            due: whether the edit's own unfinished question is no rival, as the answer may come at any word.
        """
        alike = [(likeness(one, question), one.asks) for one in asked if one.chat == question.chat]
        own = [score for score, asks in alike if asks]
        if not own:
            return -1.0
        means = self.means(question)
        rival = max([float(means.max()), *(score for score, asks in alike if not (asks or due))])
        nearest = mine = max(own)
        if matched is not None:
            nearest = max(nearest, float(self._likenesses(question)[self.labels == matched].max()))
            mine = max(mine, float(means[matched]))
        return nearest - max(0.0, rival - mine)

    def to(self, device: torch.device) -> Calibration:
        """The same with its tensors on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in _SPACES}
        return replace(self, **moved, metric=self.metric.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Everything in it but the layers, for saving."""
        limits = [self.threshold, self.several, *self.relation, self.same]
        return {
            **{name: getattr(self, name).cpu() for name in _SPACES},
            **self.metric.tensors("metric."),
            "neutral": self.neutral.half(),
            "labels": self.labels,
            "limits": torch.tensor(limits, dtype=torch.float64),
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor], layers: Sequence[int], width: int, kept: int) -> Calibration:
        """What `tensors` gave, for these layers of a model of width D of which K dimensions are kept.

        Raises:
            ValueError: a tensor is missing, has another shape or type, or values that are not finite.
        """
        n, wide = len(layers) - 1, torch.float32
        try:
            mean, first_mean = (shaped(tensors, name, (n, width), wide) for name in ("mean", "first_mean"))
            root, first_root = (
                shaped(tensors, name, (n, width, kept), wide) for name in ("root", "first_root")
            )
            learned = Metric.of(tensors, "metric.", width)
            limits = shaped(tensors, "limits", (5,), torch.float64).tolist()
            labels = shaped(tensors, "labels", (None,), torch.int64)
            neutral = shaped(tensors, "neutral", (None, len(labels), width), torch.float16).float()
            if (
                not len(labels)
                or not len(neutral)
                or not 0 <= int(labels.min()) <= int(labels.max()) < len(labels)
            ):
                raise ValueError("the tensor labels names questions that are not there")
            check_rest(tensors, (*_SPACES, *learned.tensors("metric."), "neutral", "labels", "limits"))
        except ValueError as error:
            raise ValueError(
                f"the saved calibration is damaged, or is for another model ({error}); this one has width "
                f"{width} and {n} layers are compared"
            ) from error
        one, several, *asks, same = limits
        spaces = (mean, root, first_mean, first_root)
        return Calibration(
            tuple(layers), *spaces, one, several, learned, (asks[0], asks[1]), same, neutral, labels
        )


def whitening(states: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and root [D,K] of states [N,D]: (x - mean) @ root is white in its K largest directions.

    The ridge is the median of the eigenvalues that the sample can tell from nothing, so that directions which
    ordinary text hardly uses are not blown up.
    """
    mean = states.mean(0)
    centred = (states - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(states) - 1))
    values = values.clamp(min=0)
    known = values[values > 1e-9 * values.max().clamp(min=1e-30)]
    ridge = known.median() if len(known) else torch.ones((), dtype=values.dtype)
    scale = (values + ridge).rsqrt()
    keep = slice(-rank, None)
    return mean, (vectors[:, keep] * scale[keep]).float()


def chance_thresholds(
    units: Tensor, sample: Sample, quorum: int, rate: float, seed: int
) -> tuple[float, float]:
    """The cosines that are exceeded in ``quorum`` layers at a false-accept rate, by a subject's tokens.

    Tokens of the sample play the part of a subject's token; each is compared with every token of the other
    texts that is not the same word. A subject of one token is taken for another word in a share ``rate`` of
    prompts, which count as 64 tokens; one of several is taken for a name that differs in one token with this
    probability: its cosine is the smallest of its tokens', which is lower in other company, while a token
    that differs is as far off as any two words.

    Args:
        units: [n,N,K] the sample's states as unit vectors.
        sample: the sample.
        quorum: layers that have to agree, at one token.
        rate: the false-accept rate.
        seed: of the choice of tokens.

    Returns:
        What a subject of one token has to exceed, and each token of one of several.
    """
    named = [i for i, word in enumerate(sample.words) if len(word) > 3 and word.isalpha()]
    named = named or list(range(len(sample.words)))
    chosen = random.Random(seed).sample(named, min(_KEYS, len(named)))
    number = {word: i for i, word in enumerate(dict.fromkeys(sample.words))}
    word = torch.tensor([number[w] for w in sample.words], device=units.device)
    text = sample.text.to(units.device)
    reached = []
    for i in chosen:
        cosines = torch.einsum("nk,ntk->nt", units[:, i], units)
        reached.append(agreed(cosines, quorum)[(word != word[i]) & (text != text[i])])
    values = torch.cat(reached)
    if not len(values):
        return 0.5, 0.5
    allowed = (max(1, min(round(share * len(values)), len(values))) for share in (rate / _TOKENS, rate))
    one, several = (float(values.topk(count).values[-1]) for count in allowed)
    return one, several
