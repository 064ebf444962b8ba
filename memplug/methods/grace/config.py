"""GRACE's constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ...configs import check_choices, check_numbers, from_preset
from ...model.architecture import check_layer, fraction

__all__ = ["PAPER", "GRACEConfig"]


@dataclass(frozen=True)
class GRACEConfig:
    """Discrete key-value adaptor with deferral radii.

    Defaults are the best found on the embedded model with scope "radius"; with scope "asked" they were not
    compared. The published value is named where it differs, and ``GRACEConfig.preset("paper")`` gives all of
    them.

    Raises:
        ValueError: a constant out of its range.
    """

    scope: Literal["asked", "radius"] = "asked"
    """Where a value takes effect: at the tokens that answer what its edit is asked by, as LLP's retrieval
    tells it; or (published) in a text whose prompt ends within a radius of the edit's key."""
    layer: int | None = None
    """Layer whose MLP output is replaced. None: at `depth`. In the last layer a value of the prompt's tokens
    could say one token only."""
    depth: float = 0.8
    """Share of the depth at which it lies, where `layer` is None (published: 35/48 in GPT2-XL)."""
    key: Literal["hidden", "input"] = "hidden"
    """The key (scope "radius"): the hidden state that enters the layer, or what its MLP's output projection
    reads (published: what the edited linear reads), at the last token of the prompt."""
    replace: Literal["last", "prompt", "all"] = "prompt"
    """Tokens whose MLP output becomes the value (scope "radius"): the prompt's last one, the prompt's
    (published for language models), or these and every generated one."""
    epsilon: float = 1.0
    """Deferral radius of a new key (scope "radius")."""
    start: Literal["warm", "cold"] = "warm"
    """A value starts as the output it replaces, or uniform in [0, 1) (published)."""
    lr: float = 0.1
    """Adam's step for values (published: 1.0, absolute)."""
    relative_lr: bool = True
    """Take that step in units of the root mean square of the outputs replaced (published: absolute)."""
    steps: int = 100
    """Steps at most."""
    stop_loss: float = 0.02
    """A value is ready when each of its answers is below this loss (published: never)."""
    batch_size: int = 64
    """Entries trained together; they do not depend on each other."""
    train_stop: bool = False
    """Train the answer to end with the stop token."""
    seed: int = 0
    """Of all random choices."""

    def __post_init__(self) -> None:
        check_numbers(self, _RANGES, exact=True)
        check_choices(self, _CHOICES)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> GRACEConfig:
        """``"default"``, or ``"paper"`` for the published procedure; fields given by name win.

        Raises:
            ValueError: no such preset or field.
        """
        return from_preset(cls, {"default": {}, "paper": PAPER}, name, overrides)

    def resolve(self, depth: int) -> GRACEConfig:
        """This config with the layer filled in for a model of ``depth`` layers.

        Raises:
            ValueError: a layer out of range, or no layer below it whose output could be the key.
        """
        layer = self.layer
        least = 1 if self.scope == "asked" or self.key == "hidden" else 0
        if layer is None:
            # Tokens to come learn of a value from the layers above it.
            last = max(0, depth - 2)
            layer = max(min(least, depth - 1), min(fraction(self.depth, depth), last))
        check_layer(layer, depth, "the edited layer")
        if layer < least:
            raise ValueError(
                f"the edited layer is {layer}, and no layer lies below whose output could be the key; choose "
                "a later layer, or scope='radius' and key='input'"
            )
        return replace(self, layer=layer)


_CHOICES = {
    "scope": ("asked", "radius"),
    "key": ("hidden", "input"),
    "replace": ("last", "prompt", "all"),
    "start": ("warm", "cold"),
}
_RANGES = (
    ("depth", 0.0, 1.0),
    ("epsilon", 0.0, 1e9),
    ("lr", 1e-9, 1e3),
    ("steps", 1, 1 << 20),
    ("stop_loss", 0.0, 1e3),
    ("batch_size", 1, 1 << 20),
)

PAPER: dict[str, Any] = {
    "scope": "radius",
    "depth": 35 / 48,
    "key": "input",
    "start": "cold",
    "lr": 1.0,
    "relative_lr": False,
    "stop_loss": 0.0,
    "train_stop": True,
}
"""The published procedure and constants (GPT2-XL)."""
