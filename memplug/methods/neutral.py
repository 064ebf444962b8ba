"""What training is to leave alone: the base model's answers to questions that are not edited.

Fine-tuning with a divergence from the base model on other prompts is the usual baseline of model editing
(FT+KL; Mitchell et al., 2022). The questions are those of ``relations.toml``, about subjects of its own and
about the edits' subjects, in plain text and in the chat template; the answers are the base model's own.

Letters: P tokens of all answers, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..edits import Edit
from ..interface import Host
from ..model.reduced_precision import has_reduced_products, reduced_products
from ..retrieval.relations import wordings
from ..text.chat import Prompt, in_chat
from ..text.names import names
from ..text.tokens import Pair
from .answers import Answers, read_answers

__all__ = ["Neutral", "NeutralPool", "neutral", "products"]

_TOKENS = 8  # of an answer
_EACH = 2  # questions about an edit's subject, and as many times what it asks of another one
_EDITS = 12  # of a batch that are asked so: log-probabilities of all answers are kept in memory


@dataclass(frozen=True)
class Neutral:
    """Answers to keep, and the base model's log-probabilities ``base`` [P,V] there."""

    answers: Answers
    base: Tensor

    def divergence(self, count: int, draw: random.Random) -> Tensor:
        """KL(base || model as it is now), the mean over the tokens of ``count`` answers drawn anew."""
        some = draw.sample(range(len(self.answers)), min(count, len(self.answers)))
        logits, points = self.answers.logits(torch.tensor(some, device=self.base.device))
        return F.kl_div(logits.log_softmax(-1), self.base[points], reduction="batchmean", log_target=True)


def products(host: Host, layer: int) -> list[nn.Module]:
    """The modules from ``layer`` on, where this CPU multiplies bfloat16: for `reduced_products`.

    It rounds what a module holds, which is not what a draft or a pause of the ledger has in its place:
    modules whose weights a ledger edits have to be below.
    """
    modules = [*host.architecture.layers[layer:], host.model.get_output_embeddings()]
    return modules if has_reduced_products() else []


class NeutralPool:
    """Questions that are not edited, with the first tokens that the base model answers.

    Made when first asked for, of the model as it is then: without edits.

    Args:
        host: the model.
        count: of questions about subjects of their own.
        seed: of the choice.
        layer: from which on no weights are edited, so that they may be rounded (see `products`).
    """

    def __init__(self, host: Host, count: int, seed: int, layer: int = 0) -> None:
        self._host, self._count, self._seed, self._layer = host, count, seed, layer
        self._own: list[tuple[str, Pair]] | None = None

    def pairs(self, edits: Sequence[Edit]) -> list[Pair]:
        """The pool's questions, and some for each of ``edits``, `_EDITS` of them at most: other questions
        about its subject, and its own question about other subjects. Every second is in the chat template.

        The pool's own questions about these edits' subjects are left out. Edits made before are not looked
        at, so that a batch is trained alike whatever was made before it.
        """
        known = wordings()
        if self._own is None:
            some = random.Random(self._seed).sample(known, min(self._count, len(known)))
            self._own = self._answered([one.about(one.name) for one in some])
        draw = random.Random(self._seed + 1)
        edited = {edit.subject for edit in edits if edit.subject}
        free = [one for one in known if one.name not in edited]
        asked = []
        for edit in edits if len(edits) <= _EDITS else draw.sample(list(edits), _EDITS):
            if edit.subject:
                front, back = edit.question[: edit.place.begin], edit.question[edit.place.end :]
                asked += [draw.choice(known).about(edit.subject) for _ in range(_EACH)]
                asked += [front + draw.choice(free).name + back for _ in range(_EACH if free else 0)]
        own = [pair for text, pair in self._own if not any(names(text, subject) for subject in edited)]
        return own + [pair for _, pair in self._answered(asked)]

    def _answered(self, asked: Sequence[str]) -> list[tuple[str, Pair]]:
        host, text = self._host, self._host.text
        prompts: list[Prompt] = [
            in_chat(one) if text.has_chat and place % 2 else one for place, one in enumerate(asked)
        ]
        fitting = [
            (one, ids)
            for one, ids in zip(asked, map(text.encode, prompts), strict=True)
            if ids and text.room(ids) > _TOKENS
        ]
        if not fitting:
            return []
        with reduced_products(host.architecture.shadows, products(host, self._layer)):
            said = text.generate([ids for _, ids in fitting], _TOKENS)
        pairs = zip(fitting, said, strict=True)
        return [(one, text.row(ids, answer)) for (one, ids), answer in pairs if answer]


@torch.no_grad()
def neutral(host: Host, layer: int, pairs: Sequence[Pair]) -> Neutral | None:
    """``pairs`` to be kept while what is from ``layer`` on is trained; read of the model as it is now."""
    if not pairs:
        return None
    answers = read_answers(host, layer, pairs)
    parts = [answers.logits(rows) for rows in torch.arange(len(pairs), device=host.text.device).split(16)]
    base = torch.cat([logits.log_softmax(-1) for logits, _ in parts])
    return Neutral(answers, base[torch.cat([points for _, points in parts]).argsort()])
