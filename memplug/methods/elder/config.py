"""ELDER's constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ...configs import check_choices, check_numbers, from_preset, several_layers
from ...model.architecture import check_layer, fraction
from ...retrieval.config import RetrievalConfig

__all__ = ["PAPER", "ELDERConfig"]


@dataclass(frozen=True)
class ELDERConfig:
    """Mixture of LoRAs with guided routing and deferral.

    Defaults were chosen on a real model of 135 M parameters; the published value is named where it differs,
    and ``ELDERConfig.preset("paper")`` gives all of them.

    Raises:
        ValueError: a constant out of its range.
    """

    scope: Literal["answer", "row"] = "answer"
    """Where an edit's experts are used: by the answer alone, where the edit is asked for, as LLP finds that
    out; or (published) by every token of a row whose prompt has a code near to some edit's."""
    edit_layers: tuple[int, ...] | None = None
    """Layers whose MLP output projection is edited. None: `n_layers` in a row from 21/32 of the depth."""
    n_layers: int = 4
    """How many, where `edit_layers` is None; fewer where the model has no more (published: 6)."""
    n_experts: int = 64
    """N, LoRAs an edited linear (published: 4)."""
    top_k: int = 4
    """k, LoRAs that an edit uses in each (published: 2)."""
    rank: int = 8
    """r of a LoRA."""
    guide_weight: float = 1e-2
    """Weight of the loss that draws routers to an edit's experts, lambda (scope "row")."""
    lr: float = 0.25
    """Adam's step for the LoRAs' A, in units of 1/sqrt(in-features), where it starts; B's is larger. Scope
    "row": that of both, absolute (published: 1e-4)."""
    router_lr: float | None = None
    """Adam's step for the routers, absolute (scope "row"; published, and None: as for the LoRAs). With scope
    "answer" routers stay as they start."""
    batch_size: int = 16
    """Edits trained together (published: 4)."""
    steps: int = 20
    """Most steps a batch (published: 50)."""
    stop_loss: float = 0.1
    """A batch ends early when each of its lessons is below this loss (published: never)..."""
    stop_divergence: float = 5e-2
    """... and the KL divergence on what is not to change below this."""
    products: Literal["fastest", "model"] = "fastest"
    """Precision of the products with the model's weights in training, see `LLPConfig`."""
    train_stop: bool = False
    """Train the answer to end with the stop token (published: yes)."""
    n_rewordings: int = 4
    """Most other wordings of its question that an edit is taught in, see `LLPConfig` (scope "answer")."""
    n_others: int = 3
    """Neutral statements, and as many questions in chat, that are to be answered as before (scope
    "answer")."""
    n_mentions: int = 3
    """Neutral statements, and as many requests in chat, that name the subject in passing (scope "answer")."""
    other_accepts: float = 0.02
    """Share of questions that are as like another one about the same kind of subject as one has to be to be
    taken for an edit's own (scope "answer")."""
    replay: int = 32
    """Earlier edits looked at beside each batch, those that share most experts with it (scope "answer")."""
    epsilon: int = 12
    """A row is in scope if its code differs from some edit's in fewer bits (scope "row")."""
    seed: int = 0
    """Of all random choices."""

    oldest_format: ClassVar[int] = 4
    """Of saved plugs that can be read: before, experts and routing were kept otherwise."""

    def __post_init__(self) -> None:
        if self.edit_layers is not None:
            object.__setattr__(self, "edit_layers", several_layers("edit_layers", self.edit_layers))
        check_numbers(self, _RANGES, exact=True)
        check_numbers(self, _OPTIONAL)
        check_choices(self, _CHOICES)
        if self.top_k > self.n_experts:
            raise ValueError(
                f"top_k is {self.top_k}, but there are {self.n_experts} experts; choose 1 to n_experts"
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ELDERConfig:
        """``"default"``, or ``"paper"`` for the published procedure; fields given by name win.

        Raises:
            ValueError: no such preset or field.
        """
        return from_preset(cls, {"default": {}, "paper": PAPER}, name, overrides)

    def resolve(self, depth: int) -> ELDERConfig:
        """This config with the layers filled in for a model of ``depth`` layers.

        The range starts at 21/32 of the depth (layers 21 to 26 of 32) and moves down where it would not fit.

        Raises:
            ValueError: a layer out of range, or no layer below the first edited one.
        """
        if depth < 2:
            raise ValueError(f"the model has {depth} layer(s); a query and an edited layer need 2")
        layers = self.edit_layers
        if layers is None:
            count = max(1, min(self.n_layers, depth - 1))
            first = max(1, min(fraction(21 / 32, depth), depth - count))
            layers = tuple(range(first, first + count))
        layers = tuple(sorted(layers))
        for layer in layers:
            check_layer(layer, depth, "an edited layer")
        if not layers[0]:
            raise ValueError(
                "layer 0 is among the edited ones; what is asked is read in the layer below the first of them"
            )
        return replace(self, edit_layers=layers, n_layers=len(layers))

    @property
    def first(self) -> int:
        """The first edited layer, once `resolve` has filled them in; what is asked is read right below."""
        return (self.edit_layers or (1,))[0]

    @property
    def retrieval(self) -> RetrievalConfig:
        """How edits are found with scope "answer", and what they are taught from."""
        names = ("train_stop", "n_rewordings", "n_others", "n_mentions", "other_accepts", "seed")
        given = {name: getattr(self, name) for name in names}
        return RetrievalConfig(recall_layer=self.first, most_recalled=1, **given)


_CHOICES = {
    "scope": ("answer", "row"),
    "products": ("fastest", "model"),
}
_RANGES = (
    ("n_layers", 1, 1 << 10),
    ("n_experts", 1, 1 << 12),
    ("top_k", 1, 1 << 12),
    ("rank", 1, 1 << 12),
    ("guide_weight", 0.0, 1e6),
    ("lr", 1e-9, 1e3),
    ("batch_size", 1, 1 << 20),
    ("steps", 0, 1 << 20),
    ("stop_loss", 0.0, 1e3),
    ("stop_divergence", 0.0, 1e3),
    ("n_rewordings", 0, 16),
    ("n_others", 0, 36),
    ("n_mentions", 0, 14),
    ("other_accepts", 0.0, 1.0),
    ("replay", 0, 1 << 20),
    ("epsilon", 1, 1 << 20),
)

_OPTIONAL = (("router_lr", 0.0, 1e3),)

PAPER: dict[str, Any] = {
    "scope": "row",
    "n_layers": 6,
    "n_experts": 4,
    "top_k": 2,
    "lr": 1e-4,
    "batch_size": 4,
    "steps": 50,
    "stop_loss": 0.0,
    "products": "model",
    "train_stop": True,
}
"""The published procedure and constants."""
