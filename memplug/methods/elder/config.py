"""ELDER's constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ...layers import check_layer, fraction
from ..checks import check_choices, check_numbers, from_preset, several_layers

__all__ = ["PAPER", "ELDERConfig"]


@dataclass(frozen=True)
class ELDERConfig:
    """Mixture of LoRAs with guided routing and deferral.

    Defaults are the best found on the embedded model (``benchmarks/README.md``); the published value is
    named where it differs, and ``ELDERConfig.preset("paper")`` gives all of them.

    Raises:
        ValueError: a constant out of its range.
    """

    edit_layers: tuple[int, ...] | None = None
    """Layers whose MLP output projection is edited. None: `n_layers` in a row from 21/32 of the depth."""
    n_layers: int = 4
    """How many, where `edit_layers` is None; fewer where the model has no more (published: 6)."""
    query_layer: int | None = None
    """Layer that the query comes from. None: the one right before the first edited layer."""
    query: Literal["hidden", "input"] = "hidden"
    """The query: that layer's output (as the paper says), or its projection's input (published code)."""
    n_experts: int = 64
    """N, LoRAs an edited linear (published: 4)."""
    top_k: int = 4
    """k, LoRAs that a row uses in each (published: 2)."""
    rank: int = 4
    """r of a LoRA (published: 8)."""
    init: Literal["input", "published"] = "input"
    """Bound of A's uniform start: 1/sqrt(in-features) as LoRA has it, or 1/sqrt(rank) (published code)."""
    normalise: bool = True
    """Route on the query less the mean query of sampled text, at length sqrt(width) (published: as it is)."""
    gain: float = 4.0
    """Length of that query in units of sqrt(width): the larger, the more two routers' logits differ."""
    allocation: Literal["own", "random", "spread"] = "own"
    """An edit's experts: what the router prefers at first, at random (published), or far from all others'."""
    guide: Literal["guided", "balance", "none"] = "guided"
    """Loss on the routers: towards the edit's experts (published), load balancing, or none."""
    guide_weight: float = 1e-2
    """Its weight, lambda."""
    lr: float = 0.06
    """Adam's step for the LoRAs (published: 1e-4, absolute)."""
    relative_lr: bool = True
    """Take that step in units of 1/sqrt(in-features), where LoRA's A starts (published: absolute)."""
    router_lr: float | None = 0.0
    """Adam's step for the routers, absolute; 0 leaves them as they start. None: as for the LoRAs."""
    batch_size: int = 16
    """Edits trained together (published: 4)."""
    steps: int = 50
    """Steps a batch."""
    stop_loss: float = 0.05
    """A batch ends early when each of its rows is below this loss (published: never)."""
    n_prefixes: int = 0
    """Sampled texts put before each prompt, as further rows with the same experts (published: none)."""
    prefix_tokens: int = 14
    """Longest such text, in tokens."""
    sample_top_k: int = 5
    """Top-k of all sampling from the base model."""
    train_stop: bool = True
    """Train the answer to end with the stop token."""
    replay: int = 32
    """Earlier edits looked at beside each batch, those that share most experts with it; where they are above
    `stop_loss` they are trained again (published: none)."""
    rehearse: int = 64
    """After so many new edits all are looked at, and in the end of a call those it brought, and trained again
    where they were lost; 0 is never, as published."""
    router_replay: int = 0
    """Earlier edits whose stored queries take part in the guide (published: none)."""
    subjects: bool = True
    """Ask for the subject of an edit in the prompt, all its tokens, and let it take part in the query
    (published: no). The thresholds below are then cosines of queries that name the same subject."""
    subject_layer: int | None = None
    """Layer in whose output a subject is recognised. None: at an eighth of the depth."""
    subject_threshold: float = 0.7
    """Cosine that each of its tokens has to exceed."""
    snap: bool = True
    """Route a row in scope as the edit that its query is most similar to (published: as itself)."""
    epsilon: int | None = None
    """A row is in scope if its code differs from some edit's in fewer than this many bits (published: 12).
    None: calibrated."""
    gate: Literal["auto", "off"] = "auto"
    """Beside the codes, ask for a query similar to an edit's, as similar as calibration finds necessary."""
    threshold: float | None = None
    """That similarity, a cosine that must be exceeded. None: calibrated, where one is necessary."""
    false_accept: float = 0.05
    """Share of unrelated prompts (with `subjects`, of other questions about a subject) that calibration lets
    into scope; with `subjects` far fewer, as the limit is set two thirds of the way from there to 1."""
    heldout: int = 256
    """Texts sampled from the base model for calibration."""
    heldout_tokens: int = 32
    """Longest of them, in tokens."""
    refresh: bool = True
    """Compute the codes of earlier edits anew after each change of the routers (published: no)."""
    block: float = 0.9
    """A row is kept out of scope if its query is this similar to that of an edit that was deleted or
    switched off, and less similar to every other edit's."""
    seed: int = 0
    """Of all random choices."""

    def __post_init__(self) -> None:
        if self.edit_layers is not None:
            object.__setattr__(self, "edit_layers", several_layers("edit_layers", self.edit_layers))
        check_numbers(self, _RANGES)
        check_choices(self, _CHOICES)
        if self.threshold is not None and self.gate == "off":
            raise ValueError(f"threshold is {self.threshold}, but the gate is off; set gate='auto'")
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
            ValueError: a layer out of range, or a query layer that is not below all edited layers.
        """
        if depth < 2:
            raise ValueError(f"the model has {depth} layer(s); a query and an edited layer need 2")
        layers = self.edit_layers
        if layers is None:
            least = 1 if self.query_layer is None else self.query_layer + 1
            count = max(1, min(self.n_layers, depth - least))
            first = max(least, min(fraction(21 / 32, depth), depth - count))
            layers = tuple(range(first, first + count))
        layers = tuple(sorted(layers))
        for layer in layers:
            check_layer(layer, depth, "an edited layer")
        query = layers[0] - 1 if self.query_layer is None else self.query_layer
        subject = self.subject_layer
        if subject is None:
            subject = min(fraction(1 / 8, depth), query)
        elif not 0 <= subject < layers[0]:
            raise ValueError(
                f"subject layer {subject} is not below the first edited layer, {layers[0]}; "
                "a row's subject is looked up before its experts are used"
            )
        if not 0 <= query < layers[0]:
            raise ValueError(
                f"query layer {query} is not below the first edited layer, {layers[0]}; "
                "a row's experts are chosen before they are used"
            )
        return replace(
            self, edit_layers=layers, n_layers=len(layers), query_layer=query, subject_layer=subject
        )


_CHOICES = {
    "query": ("hidden", "input"),
    "init": ("input", "published"),
    "allocation": ("own", "random", "spread"),
    "guide": ("guided", "balance", "none"),
    "gate": ("auto", "off"),
}
_RANGES = (
    ("n_layers", 1, 1 << 10),
    ("n_experts", 1, 1 << 12),
    ("top_k", 1, 1 << 12),
    ("rank", 1, 1 << 12),
    ("gain", 1e-6, 1e6),
    ("guide_weight", 0.0, 1e6),
    ("lr", 1e-9, 1e3),
    ("router_lr", 0.0, 1e3),
    ("batch_size", 1, 1 << 20),
    ("steps", 1, 1 << 20),
    ("stop_loss", 0.0, 1e3),
    ("n_prefixes", 0, 64),
    ("prefix_tokens", 1, 1 << 12),
    ("sample_top_k", 1, 1 << 20),
    ("replay", 0, 1 << 20),
    ("rehearse", 0, 1 << 20),
    ("router_replay", 0, 1 << 20),
    ("subject_threshold", 0.0, 0.999999),
    ("epsilon", 1, 1 << 20),
    ("threshold", 0.0, 0.999999),
    ("false_accept", 0.0, 1.0),
    ("heldout", 1, 1 << 20),
    ("heldout_tokens", 1, 1 << 12),
    ("block", 0.0, 0.999999),
)

PAPER: dict[str, Any] = {
    "n_layers": 6,
    "query": "input",
    "n_experts": 4,
    "top_k": 2,
    "rank": 8,
    "init": "published",
    "normalise": False,
    "allocation": "random",
    "guide": "guided",
    "guide_weight": 1e-2,
    "lr": 1e-4,
    "relative_lr": False,
    "router_lr": None,
    "batch_size": 4,
    "steps": 50,
    "stop_loss": 0.0,
    "n_prefixes": 0,
    "replay": 0,
    "rehearse": 0,
    "router_replay": 0,
    "subjects": False,
    "snap": False,
    "epsilon": 12,
    "gate": "off",
    "refresh": False,
}
"""The published procedure and constants."""
