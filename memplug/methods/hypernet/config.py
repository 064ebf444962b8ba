"""Constants of the methods that make an edit's change from its activations and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ...configs import Limit
from ...weights.modules import Range
from ..inweights.config import WeightConfig

__all__ = ["EditorConfig", "FitConfig"]


@dataclass(frozen=True)
class EditorConfig(WeightConfig):
    """Where an edit goes, how its change is made, and what it keeps clear of.

    Raises:
        ValueError: a constant out of its range.
    """

    ranges: tuple[Range, ...] | None = None
    """As in `WeightConfig`; None: the published ones, grown by `capacity`."""
    capacity: int = 6144
    """Inputs of all modules together, at least, where `ranges` is None: about as many as there will be answer
    tokens in all edits (published: 0, the ranges alone; see `grow_ranges`)."""

    # How a change is made.
    style: Literal["joint", "outer"] = "joint"
    """"joint": a least-squares solve over all tokens (MALMEN); "outer": the sum of outer products (MEND)."""
    tokens: Literal["answer", "both", "all"] = "answer"
    """Tokens whose activations and gradients make the edit: those that predict the answer (published), the
    subject's last one as well, or all."""
    steps: int = 5
    """Times that activations are taken and a change is made for one batch of edits (published: 1; several
    small steps wear the model out less than one large one)."""
    enough: float = 0.95
    """Edits all of whose answer tokens are this probable take no further step (published: 1, never)."""
    extra_steps: int = 8
    """Further steps, with the last one's network, for edits that are not `enough` (published: 0)."""
    growth: float = 1.5
    """By how much each of them is larger than the one before, as long as the batch gains (see `StepSize`)."""
    inner_lr: float | None = None
    """Initial size of a change; None: found on the base model (see `find_step`)."""
    ridge: float = 1.0
    """Initial weight of the squared norm in the joint solve; for fitted editors with `protect`, in units of
    what the requests of the first cases meet in the metric."""
    protect: float = 100.0
    """How much more a change's size counts along the module's ordinary inputs than elsewhere: the weight of
    their second moment (published: 0, all directions alike; see `InputCovariance`)."""
    protect_rank: int = 64
    """Principal directions of those inputs that are told apart."""
    remember: float = 0.3
    """How much the inputs of earlier edits count beside them, as a share of what this batch's own do (1 is
    recursive least squares; published: 0). It takes a d_k by d_k matrix of each module, in float64."""
    std_floor: float = 0.05
    """Smallest standard deviation a feature is divided by, as a share of its half's (published: 0)."""
    max_feature: float = 3.0
    """Largest root mean square of a token's normalised activations and gradients each; larger ones are scaled
    down to it (published: 0, no limit)."""
    max_change: float = 10.0
    """As in `WeightConfig`; changes that keep clear of ordinary inputs are large where nothing is."""
    rows: Literal["float16", "float32"] = "float16"
    """How exactly the rows of edits are kept, most of what edits take in memory (published: float32)."""
    micro_batch: int = 256
    """Most rows in one forward pass."""

    published: ClassVar[dict[str, Any]] = {
        "capacity": 0,
        "ranges": None,
        "tokens": "answer",
        "steps": 1,
        "enough": 1.0,
        "extra_steps": 0,
        "inner_lr": 1e-6,
        "protect": 0.0,
        "remember": 0.0,
        "std_floor": 0.0,
        "max_feature": 0.0,
        "rows": "float32",
    }
    """What all papers have in common; part of every ``preset("paper")``."""
    of_networks: ClassVar[frozenset[str]] = frozenset(
        [
            *("modules", "ranges", "capacity", "style", "tokens", "steps", "protect", "protect_rank"),
            *("std_floor", "rank", "n_blocks", "hidden"),
        ]
    )
    """Fields that say what an editor's networks are: it cannot edit with others."""
    while_editing: ClassVar[frozenset[str]] = frozenset(
        [
            *("mode", "batch_size", "max_change", "max_perplexity", "guard_every", "guard_texts"),
            *("enough", "extra_steps", "growth", "micro_batch", "seed", "rows"),
        ]
    )
    """Fields that a fitted editor may edit with as one likes."""
    former: ClassVar[dict[str, Any]] = {
        **{"shared_steps": False, "autocast": False, "faithful": False, "selection": "learned"},
        **dict.fromkeys(["curriculum", "same_subject", "norm_of", "fresh_targets", "learn_stop"]),
        **dict.fromkeys(["clip", "baseline", "gate_training"]),
    }
    """Fields that files written earlier may hold, with the value that can still be read (None: any)."""
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
        ("micro_batch", 1, 1 << 20),
    )
    choices: ClassVar[dict[str, tuple[Any, ...]]] = {
        "style": ("joint", "outer"),
        "tokens": ("answer", "both", "all"),
        "rows": ("float16", "float32"),
    }


@dataclass(frozen=True)
class FitConfig(EditorConfig):
    """The networks, and how they are fitted.

    Where an editor's file is taken up, one that ships included, its constants come before these defaults.

    Raises:
        ValueError: a constant out of its range.
    """

    ranges: tuple[Range, ...] | None = (
        ("gate", 0.4, 0.5),
        ("up", 0.4, 0.5),
        ("gate", 0.84, 0.9),
        ("up", 0.84, 0.9),
    )
    """As in `EditorConfig`: where a subject is read, and where an answer is chosen. Inputs of the former are
    alike in all wordings of a question, those of the latter in the chat template (published: None)."""
    tokens: Literal["answer", "both", "all"] = "both"
    steps: int = 2
    protect_rank: int = 256
    rank: int = 64
    """Rank of a residual block; the s-th step's network has a 1/s of it (SMEdit, section 4.2)."""
    n_blocks: int = 1
    """Residual blocks of a network."""
    fit_steps: int = 32
    """Optimiser steps."""
    fit_lr: float = 3e-3
    """Adam's step, constant for the first half and then falling linearly to a hundredth."""
    fit_batch: int = 5
    """Edits in a step of a trajectory."""
    trajectory: tuple[int, int] = (1, 3)
    """Steps of a trajectory at the start, and from half of the fitting on."""
    back_depth: int = 1
    """Batches whose edits count in a step's loss: this one and those before it."""
    back_decay: float = 0.95
    """Weight of a batch, per batch that lies between."""
    back_samples: int | None = 5
    """Earlier edits that are drawn, by that weight, for a step's loss; None: all (published)."""
    locality: Literal["base", "previous", "none"] = "base"
    """Unrelated answers are held to those of the base model, of the model before the step, or not at all."""
    locality_weight: float = 4.0
    """Weight of that Kullback-Leibler divergence."""
    own_prompt: float = 0.3
    """Share of steps in which an edit is judged on its own prompt instead of a rephrasing (published: 0)."""
    norm_weight: float = 1e-4
    """Weight of the squared norm of a step's changes (SMEdit, equation 7)."""

    published_fit: ClassVar[dict[str, Any]] = EditorConfig.published | {
        "rank": 1024,
        "n_blocks": 4,
        "fit_lr": 1e-5,
        "back_samples": None,
        "locality": "previous",
        "own_prompt": 0.0,
    }
    """The same of those that are fitted."""
    limits: ClassVar[tuple[Limit, ...]] = (
        *EditorConfig.limits,
        ("rank", 1, 1 << 16),
        ("n_blocks", 1, 64),
        ("fit_steps", 1, 1 << 30),
        ("fit_lr", 0, 1e3),
        ("fit_batch", 1, 1 << 20),
        ("back_depth", 1, 1 << 20),
        ("back_decay", 0, 1),
        ("back_samples", 0, 1 << 20),
        ("locality_weight", 0, 1e6),
        ("own_prompt", 0, 1),
        ("norm_weight", 0, 1e6),
    )
    choices: ClassVar[dict[str, tuple[Any, ...]]] = EditorConfig.choices | {
        "locality": ("base", "previous", "none")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "trajectory", tuple(self.trajectory))
        if len(self.trajectory) != 2 or not 1 <= self.trajectory[0] <= self.trajectory[1]:
            raise ValueError(
                f"trajectory is {self.trajectory!r}; give its first and last length, like (3, 20)"
            )
