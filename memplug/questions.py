"""How alike two questions are, apart from the subjects that they name.

The state at a question's end says little about what is asked. Its words say more: each word of one question
is compared with the word of the other one that is most alike (late interaction: Khattab and Zaharia, ColBERT,
2020, equation 3; here in both directions, and weighted by how rare a token is). Words are compared twice, by
their embeddings and by their states in one layer.

Letters: W tokens of a question without its subject, K dimensions of calibrated states, E width of embeddings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checked import shaped

__all__ = ["Lexicon", "Question", "likeness", "packed", "rarity", "unpacked"]

_MOST = 1 << 40  # words that a file may speak of


class Question(NamedTuple):
    """The words of a question, without its subject.

    Attributes:
        ids: their W token ids; -1 where a token is not known.
        states: [W,K] unit states of a layer.
        chat: whether it is asked in a user's turn; words look different there.
    """

    ids: tuple[int, ...]
    states: Tensor
    chat: bool


@dataclass(frozen=True)
class Lexicon:
    """What is known of tokens without their context.

    Attributes:
        mean: [E] float32 mean embedding of ordinary text.
        root: [E,K] float32; ``(embedding - mean) @ root`` is white.
        counted: LongTensor [C], the tokens of ordinary text.
        weights: [C] float32, how rare each is, see `rarity`.
        unseen: the weight of any other token.
    """

    mean: Tensor
    root: Tensor
    counted: Tensor
    weights: Tensor
    unseen: float

    def units(self, embeddings: Tensor) -> Tensor:
        """[W,K] float32 unit vectors of embeddings [W,E]."""
        mean, root = (t.to(embeddings.device) for t in (self.mean, self.root))
        return F.normalize((embeddings.float() - mean) @ root, dim=-1)

    def weigh(self, ids: Sequence[int]) -> Tensor:
        """[W] float32 weights of tokens."""
        same = torch.tensor(ids)[:, None] == self.counted[None].cpu()
        known = (same * self.weights[None].cpu()).sum(1)
        return torch.where(same.any(1), known, torch.tensor(self.unseen, dtype=torch.float32))


def rarity(*corpora: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, float]:
    """Inverse document frequencies, each token's in that of some corpora in which it is most frequent.

    Returns:
        The tokens [C], their weights [C], and the weight of other tokens.
    """
    shares: dict[int, float] = {}
    for texts in corpora:
        for token, count in Counter(token for text in texts for token in set(text)).items():
            shares[token] = max(shares.get(token, 0.0), (count + 1) / (len(texts) + 1))
    weights = -torch.tensor([*shares.values()], dtype=torch.float32).log()
    most = max(map(len, corpora), default=0) + 1
    return torch.tensor([*shares], dtype=torch.long), weights.clamp(min=0.01), math.log(most)


def likeness(
    lexicon: Lexicon, embed: Callable[[Sequence[int]], Tensor], one: Question, other: Question
) -> float:
    """Between -1 and 1: 1 for the same words.

    Args:
        lexicon: of the tokens.
        embed: the embeddings [W,E] of token ids.
    """
    if not one.ids or not other.ids:
        return 1.0 if one.ids == other.ids else 0.0
    cosines = [one.states.float() @ other.states.to(one.states.device).float().T]
    if min(*one.ids, *other.ids) >= 0:
        cosines.append(lexicon.units(embed(one.ids)) @ lexicon.units(embed(other.ids)).T)
    weights = [lexicon.weigh(q.ids) for q in (one, other)]
    score = 0.0
    for cosine in cosines:
        for dim, weight in zip((1, 0), weights, strict=True):
            best = cosine.amax(dim).cpu()
            score += float((best * weight).sum() / weight.sum())
    return score / (2 * len(cosines))


def packed(questions: Sequence[Question], prefix: str) -> dict[str, Tensor]:
    """As tensors, for saving: ids [N] and states [N,K] (float16) of all words, sizes and chat [M].

    Args:
        prefix: what the tensors' names begin with.
    """
    states = [one.states.half().cpu() for one in questions]
    return {
        f"{prefix}ids": torch.tensor([token for one in questions for token in one.ids], dtype=torch.long),
        f"{prefix}states": torch.cat(states) if states else torch.zeros(0, 0).half(),
        f"{prefix}sizes": torch.tensor([len(one.ids) for one in questions], dtype=torch.long),
        f"{prefix}chat": torch.tensor([one.chat for one in questions], dtype=torch.bool),
    }


def unpacked(tensors: Mapping[str, Tensor], prefix: str, width: int) -> list[Question]:
    """What `packed` gave, of states of width K.

    Raises:
        ValueError: a tensor is missing or does not fit.
    """
    sizes = shaped(tensors, f"{prefix}sizes", (None,), torch.int64)
    counts = sizes.tolist()
    chat = shaped(tensors, f"{prefix}chat", (len(counts),), torch.bool)
    if min(counts, default=0) < 0 or sum(counts) > _MOST:
        raise ValueError(f"the tensor {prefix}sizes has sizes that cannot be")
    total = sum(counts)
    ids = shaped(tensors, f"{prefix}ids", (total,), torch.int64)
    states = shaped(tensors, f"{prefix}states", (total, width if counts else None), torch.float16)
    parts = zip(ids.split(counts), states.split(counts), chat.tolist(), strict=True) if counts else ()
    return [Question(tuple(some.tolist()), part, form) for some, part, form in parts]
