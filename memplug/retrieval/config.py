"""Constants of the retrieval room: how edits are found, and from what they are taught."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from ..configs import check_choices, check_numbers, several_layers
from ..model.architecture import check_layer, fraction

__all__ = ["RetrievalConfig"]


@dataclass(frozen=True)
class RetrievalConfig:
    """How the edits are found that a text asks for; defaults were chosen on 16 facts of a pretrained model.

    Where a scope is named, it is LLP's (`LLPConfig`); the others find edits as its scope "answer" does.

    Raises:
        ValueError: a constant out of its range.
    """

    think_layers: tuple[int, ...] | None = None
    """Layers whose outputs are matched. None: four in the first fifth (published, and with scope "row":
    the first quarter, 0 to 7 of 32)."""
    recall_layer: int | None = None
    """Layer z from whose input on the value is seen. None: 2/3 of the depth (scope "row": 10/32)."""
    relation_layer: int | None = None
    """Layer whose states say what is asked, below the recall layer. None: at 27 % of the depth (scope
    "answer")."""
    false_accepts: float = 1e-4
    """Probability with which a prompt of 64 tokens is taken to name a subject of one token that it does not
    name, and a name for one that differs from it in one of several tokens; the thresholds of calibrated keys
    follow from it (scope "answer")."""
    other_accepts: float = 0.02
    """Share of questions that are as like another one about the same kind of subject as one has to be to be
    taken for an edit's own (scope "answer")."""
    rank: int = 512
    """Most dimensions of calibrated states (scope "answer")."""
    n_fronts: int = 2
    """Neutral sentences put before the prompt in training (scope "answer")."""
    n_rewordings: int = 4
    """Most other wordings of its question that an edit is taught in, plain and in chat, if it is among the
    neutral ones (scope "answer")."""
    n_mentions: int = 3
    """Neutral statements, and as many requests in chat, that name the subject in passing (scope "answer")."""
    n_others: int = 3
    """Neutral statements, and as many questions in chat, that are to be answered as before (scope
    "answer")."""
    most_recalled: int = 4
    """Edits that may speak at one token (scope "answer")."""
    span_keys: bool = True
    """Match all tokens of the subject, not the last one alone (published: the last)."""
    threshold: float = 0.7
    """A key whose cosine is above this gets a layer's vote (scope "row")."""
    top_k: int = 3
    """Votes a layer has to give (scope "row")."""
    quorum: float = 0.5
    """Share of the think layers that must vote for an edit before it is recalled."""
    order: Literal["similarity", "paper"] = "similarity"
    """Ties in votes (scope "row"): by summed similarity, or (published code) by the earliest layer, then the
    oldest."""
    sample_top_k: int = 5
    """A sampled text's next token is one of the k most probable (40 k for texts that calibrate)."""
    train_stop: bool = False
    """Train the answer to end with the stop token."""
    mean_key: bool = True
    """A key is the mean over its contexts (as equation 8 says; the published code takes the last)."""
    key_lr: float = 5e-3
    """Adam's step for keys."""
    key_steps: int = 32
    """Most contrastive steps for a key."""
    temperature: float = 0.2
    """Of the contrastive loss."""
    negatives: int = 1000
    """Most other keys in it."""
    seed: int = 0
    """Of all sampling."""

    def __post_init__(self) -> None:
        if self.think_layers is not None:
            layers = several_layers("think_layers", self.think_layers)
            object.__setattr__(self, "think_layers", layers)
        check_numbers(self, _RANGES, exact=True)
        check_choices(self, _CHOICES)

    def resolve(self, depth: int) -> Self:
        """This config with the layers filled in for a model of ``depth`` layers.

        Raises:
            ValueError: a layer out of range, or think layers that are not all below the recall layer.
        """
        if depth < 2:
            raise ValueError(f"the model has {depth} layer(s); thinking and recalling need at least 2")
        return self._answering(depth)

    def _answering(self, depth: int) -> Self:
        recall = self.recall_layer
        if recall is None:
            lowest = 1 if self.think_layers is None else max(self.think_layers) + 1
            recall = min(depth - 1, max(fraction(2 / 3, depth, least=1), lowest))
        layers = self.think_layers
        if layers is None:
            near = (fraction(share, depth) for share in (0.07, 0.1, 0.14, 0.2))
            layers = tuple(dict.fromkeys(min(layer, max(0, recall - 1)) for layer in near))
        relation = self.relation_layer
        if relation is None:
            relation = max(0, min(recall - 1, fraction(0.27, depth)))
        elif check_layer(relation, depth, "relation_layer") >= recall:
            raise ValueError(f"the relation layer {relation} is not below the recall layer {recall}")
        return replace(self._checked(depth, layers, recall), relation_layer=relation)

    def _checked(self, depth: int, layers: tuple[int, ...], recall: int) -> Self:
        check_layer(recall, depth, "recall_layer")
        for layer in layers:
            check_layer(layer, depth, "a think layer")
            if layer >= recall:
                raise ValueError(
                    f"think layer {layer} is not below the recall layer {recall}; "
                    "what is recalled is decided before it is injected"
                )
        return replace(self, think_layers=layers, recall_layer=recall)


_CHOICES = {"order": ("similarity", "paper")}
_RANGES = (
    ("false_accepts", 1e-9, 1.0),
    ("other_accepts", 0.0, 1.0),
    ("rank", 2, 1 << 16),
    ("n_fronts", 0, 6),
    ("n_rewordings", 0, 16),
    ("n_others", 0, 1 << 10),
    ("n_mentions", 0, 14),
    ("most_recalled", 1, 64),
    ("threshold", 0.0, 1.0),
    ("top_k", 1, 1 << 20),
    ("quorum", 0.0, 1.0),
    ("sample_top_k", 1, 1 << 20),
    ("key_lr", 0.0, 1e3),
    ("key_steps", 0, 1 << 20),
    ("temperature", 1e-6, 1e3),
    ("negatives", 1, 1 << 20),
)
