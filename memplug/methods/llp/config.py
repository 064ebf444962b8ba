"""LLP's constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from ...configs import check_choices, check_numbers, from_preset
from ...model.architecture import fraction
from ...retrieval.config import RetrievalConfig

__all__ = ["PAPER", "LLPConfig"]


@dataclass(frozen=True)
class LLPConfig(RetrievalConfig):
    """Layer-level prompting: think in the early layers, recall a soft prompt in the later ones.

    Defaults were chosen on 16 facts of a pretrained model of 135 M parameters (``benchmarks/README.md``).
    Scope "row" is the published procedure; the published value is named where it differs, and
    ``LLPConfig.preset("paper")`` gives all of them.

    Raises:
        ValueError: a constant out of its range.
    """

    scope: Literal["answer", "row"] = "answer"
    """Where a value is seen: by the answer alone, where the edit is asked for, or (published) by the whole
    row whose text names the subject."""
    n_values: int = 4
    """b, soft-prompt vectors an edit (published configurations: 1)."""
    n_prefixes: int = 3
    """Sampled texts put before the prompt in training (scope "row"); without any, the prompt alone."""
    prefix_tokens: int = 14
    """Longest such text, in tokens."""
    value_lr: float = 0.22
    """Adam's step for values, in units of each dimension's spread (published: 0.05, or 0.5, absolute)."""
    value_steps: int = 14
    """Most steps for a value (published: 64, or 128 for one model)."""
    products: Literal["fastest", "model"] = "fastest"
    """Precision of the products with the model's weights while values are learned (scope "answer"): bfloat16
    for a float32 model on a CPU that has it in hardware, or always the model's."""
    stop_loss: float = 0.1
    """Training of a value ends when its loss is below this; scope "answer": that of the lesson answered worst
    (published: 0.05, of the total, tested after the step)."""
    stop_divergence: float = 5e-2
    """... and the KL divergence on what is to be answered as before below this (scope "answer")."""
    norm_penalty: float = 0.5
    """Weight of the published code's penalty on the value's norm (scope "row"; 0.1 to 1 there, not in the
    paper)."""
    statement_weight: float = 0.5
    """Weight of the KL divergence to the base model on what is to be answered as before (scope "answer")."""
    batch_size: int = 32
    """Subjects whose values are trained together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, _RANGES, exact=True)
        check_choices(self, _CHOICES)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> LLPConfig:
        """``"default"``, or ``"paper"`` for the published procedure; fields given by name win.

        Raises:
            ValueError: no such preset or field.
        """
        return from_preset(cls, {"default": {}, "paper": PAPER}, name, overrides)

    def resolve(self, depth: int) -> Self:
        """This config with the layers filled in for a model of ``depth`` layers.

        Raises:
            ValueError: a layer out of range, or think layers that are not all below the recall layer.
        """
        if self.scope == "answer" or depth < 2:
            return super().resolve(depth)
        layers = self.think_layers
        if layers is None:
            top = depth - 1 if self.recall_layer is None else self.recall_layer
            layers = tuple(range(min(fraction(8 / 32, depth, least=1), max(1, top))))
        recall = self.recall_layer
        if recall is None:
            recall = min(depth - 1, max(fraction(10 / 32, depth, least=1), max(layers) + 1))
        return self._checked(depth, layers, recall)


_CHOICES = {
    "scope": ("answer", "row"),
    "products": ("fastest", "model"),
}
_RANGES = (
    ("n_values", 1, 64),
    ("n_prefixes", 0, 64),
    ("prefix_tokens", 1, 1 << 12),
    ("value_lr", 1e-9, 1e3),
    ("value_steps", 0, 1 << 20),
    ("stop_loss", 0.0, 1e3),
    ("stop_divergence", 0.0, 1e3),
    ("norm_penalty", 0.0, 1e3),
    ("statement_weight", 0.0, 1e3),
    ("batch_size", 1, 1 << 20),
)

PAPER: dict[str, Any] = {
    "scope": "row",
    "value_steps": 64,
    "value_lr": 5e-2,
    "stop_loss": 5e-2,
    "n_values": 1,
    "span_keys": False,
    "order": "paper",
    "mean_key": False,
}
"""What the published procedure does differently."""
