"""Constants shared by the methods that change weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...sites import Range
from ..checks import Limit
from ..inweights.config import WeightConfig

__all__ = ["EditorConfig"]


@dataclass(frozen=True)
class EditorConfig(WeightConfig):
    """What an editor changes, how it solves, how it is fitted, and what it refuses.

    Defaults suit the embedded model (``benchmarks/EMBEDDED.md``), ``preset("paper")`` is as published.

    Raises:
        ValueError: a constant out of its range.
    """

    # Where edits go.
    ranges: tuple[Range, ...] | None = None
    """As in `WeightConfig`; None: the published ones, grown by `capacity`."""
    capacity: int = 6144
    """Inputs of all modules together, at least, where `ranges` is left to the rule: about as many as there
    will be answer tokens in all edits (published: 0, the ranges alone; see `spread`)."""

    # How an edit is made.
    style: Literal["joint", "outer"] = "joint"
    """"joint": a least-squares solve over all tokens (MALMEN); "outer": the sum of outer products (MEND)."""
    tokens: Literal["answer", "all"] = "answer"
    """Tokens whose activations and gradients make the edit: those that predict the answer, or all."""
    steps: int = 1
    """S, times that features are taken and a change is made for one batch of edits."""
    enough: float = 0.95
    """Edits all of whose answer tokens are this probable take no further step (published: 1, never)."""
    extra_steps: int = 8
    """Further steps, with the last one's network, for edits that are not `enough` (published: 0)."""
    growth: float = 1.5
    """By how much each of them is larger than the one before, as long as the batch gains (see `Pace`)."""
    inner_lr: float | None = None
    """Initial size of a change; None: the smallest at which single edits of the base model succeed."""
    ridge: float = 1.0
    """Initial weight of the squared norm in the joint solve."""
    protect: float = 100.0
    """How much more a change's size counts along the usual inputs of its module than elsewhere: the weight of
    their second moment (published: 0, all directions alike; see `Usual`)."""
    protect_rank: int = 64
    """Principal directions of those inputs that are told apart."""
    remember: float = 0.3
    """How much the inputs of earlier edits count beside them, as a share of what this batch's own do (1 is
    recursive least squares; published: 0). Their second moment is d_k by d_k once they are more than d_k: the
    one thing of that size that is kept, in float64, beside the low-rank changes."""
    max_change: float = 10.0
    """As in `WeightConfig`; changes that keep clear of the usual inputs are large where nothing is."""
    std_floor: float = 0.05
    """Smallest standard deviation a feature is divided by, as a share of its half's (published: 0)."""

    max_feature: float = 3.0
    """Largest root mean square of a token's normalised activations and slopes each; larger ones are scaled
    down to it (published: 0, no limit)."""

    rows: Literal["float16", "float32"] = "float16"
    """How exactly the rows of edits are kept, which are most of what edits take in memory and on disk
    (published: float32)."""

    # The networks.
    rank: int = 64
    """Rank of a residual block; the s-th step's network has a 1/s of it where steps have their own."""
    n_blocks: int = 1
    """Residual blocks of a network."""
    shared_steps: bool = False
    """One network for all steps, instead of one each."""

    # Fitting.
    fit_steps: int = 100
    """Optimiser steps."""
    fit_lr: float = 5e-4
    """Adam's step, constant for the first half and then falling linearly to a hundredth."""
    fit_batch: int = 10
    """Edits in a step of a trajectory."""
    trajectory: tuple[int, int] = (5, 20)
    """Steps of a trajectory at the start, and from `curriculum` of the fitting on."""
    curriculum: float = 0.5
    """Share of the fitting over which the trajectory grows."""
    back_depth: int = 1
    """Batches whose edits count in a step's loss: this one and those before it."""
    back_decay: float = 0.95
    """Weight of a batch, per batch that lies between."""
    back_samples: int | None = 20
    """Of the earlier batches, so many samples drawn by weight stand for all; None takes all."""
    locality: Literal["base", "previous", "none"] = "base"
    """Unrelated answers are held to those of the base model, of the model before the step, or not at all."""
    locality_weight: float = 5.0
    """Weight of that Kullback-Leibler divergence."""
    same_subject: bool = True
    """Count other facts of the edited subject among the unrelated ones."""
    own_prompt: float = 0.3
    """Share of steps in which an edit is judged on its own prompt instead of a rephrasing (published: 0)."""
    norm_weight: float = 3e-4
    """Weight of the squared norm of the changes."""
    norm_of: Literal["edit", "drift"] = "edit"
    """The norm of this step's changes (SMEdit, equation 7), or of all so far (its algorithm 1)."""
    fresh_targets: bool = True
    """Trade targets between cases that ask the same in every trajectory, where there are such."""
    learn_stop: bool = True
    """Answers in the loss end with the stop token."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    micro_batch: int = 256
    """Most rows in one forward pass."""
    autocast: bool = False
    """Run the model in bfloat16 while fitting; features, networks and solves stay in float32."""
    faithful: bool = False
    """Fit as the published code does where it differs from the paper; see the method. Constants stay as they
    are, so take the published ones with it: ``preset("paper", faithful=True)``. Not copied: statistics that
    go on changing while edits are made, a gate whose features are never normalised, and gradients of the
    edits themselves that are left over (all three are slips, of no use to anybody)."""

    published: ClassVar[dict[str, Any]] = {
        "inner_lr": 1e-6,
        "std_floor": 0.0,
        "max_feature": 0.0,
        "protect": 0.0,
        "capacity": 0,
        "remember": 0.0,
        "enough": 1.0,
        "extra_steps": 0,
        "rows": "float32",
    }
    """What all papers have in common where the defaults differ; part of every ``preset("paper")``."""
    published_fit: ClassVar[dict[str, Any]] = published | {
        "fit_lr": 1e-5,
        "own_prompt": 0.0,
        "learn_stop": False,
        "fresh_targets": False,
    }
    """The same of those that are fitted."""

    limits: ClassVar[tuple[Limit, ...]] = (
        ("capacity", 0, 1 << 40),
        ("steps", 1, 64),
        ("enough", 0, 1),
        ("extra_steps", 0, 1 << 10),
        ("growth", 1, 100),
        ("inner_lr", 1e-12, 1e6),
        ("ridge", 1e-9, 1e9),
        ("protect", 0, 1e9),
        ("protect_rank", 1, 1 << 16),
        ("remember", 0, 1e9),
        ("std_floor", 0, 1e3),
        ("max_feature", 0, 1e6),
        ("rank", 1, 1 << 16),
        ("n_blocks", 1, 64),
        ("fit_steps", 1, 1 << 30),
        ("fit_lr", 0, 1e3),
        ("fit_batch", 1, 1 << 20),
        ("curriculum", 0, 1),
        ("back_depth", 1, 1 << 20),
        ("back_decay", 0, 1),
        ("back_samples", 1, 1 << 20),
        ("locality_weight", 0, 1e6),
        ("own_prompt", 0, 1),
        ("norm_weight", 0, 1e6),
        ("clip", 1e-9, 1e9),
        ("micro_batch", 1, 1 << 20),
        ("n_selected", 0, 1),
        ("hidden", 1, 1 << 16),
    )
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "style": ("joint", "outer"),
        "tokens": ("answer", "all"),
        "locality": ("base", "previous", "none"),
        "norm_of": ("edit", "drift"),
        "rows": ("float16", "float32"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "trajectory", tuple(self.trajectory))
        if len(self.trajectory) != 2 or not 1 <= self.trajectory[0] <= self.trajectory[1]:
            raise ValueError(
                f"trajectory is {self.trajectory!r}; give its first and last length, like (3, 20)"
            )
