"""The fitting loop: curriculum, optimiser, progress, checkpoints."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Case
from ...interface import Host
from ...model.architecture import evaluating, frozen
from ...model.reduced_precision import has_reduced_products, reduced_products
from ...retrieval.samples import ordinary_texts, text_rows
from ...saving.files import write_atomically
from .calibrate import find_step, ordinary_inputs
from .editor import Editor
from .features import capture, requests
from .samples import Sample, draw_batches, sample_of
from .trajectory import Trajectory

__all__ = ["FitError", "FitReport", "fit"]

_FIRST = 64  # cases from which statistics are taken before the fitting begins
_TEXTS = 32  # of ordinary text, that are to go on as before
_STEPPED = 24  # of their requests, made at every step size
_CLIP = 1.0  # largest norm of a step's gradient
_COUNTED = ("done", "number", "inner_lr", "log", "chosen")


class FitError(ValueError):
    """Cases or a checkpoint that an editor cannot be fitted from, or losses that are not finite."""


class FitReport(NamedTuple):
    """What a fitting did.

    Attributes:
        steps: optimiser steps.
        seconds: wall time, checkpoints taken up included.
        inner_lr: the step size it started from.
        losses: (edit, kept, norm) of each step.
        chosen: how often each module was chosen, where a gate chooses.
    """

    steps: int
    seconds: float
    inner_lr: float
    losses: list[tuple[float, float, float]]
    chosen: dict[str, int]


def fit(
    host: Host,
    editor: Editor,
    cases: Sequence[Case],
    *,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
) -> FitReport:
    """Fit a fresh editor; no weight changes.

    Args:
        host: the model.
        editor: as initialised; its constants are in its config.
        cases: edits with rephrases and locality probes.
        progress: show a bar.
        checkpoint: a file to resume from if it is there, and to write every ``checkpoint_every`` steps; the
            resumed fitting goes on exactly as the one that was cut off.

    Raises:
        FitError: too few cases, a checkpoint of another fitting, or losses that stay not finite.
    """
    config = editor.config
    if len(cases) < config.fit_batch:
        raise FitError(
            f"{len(cases)} cases are too few; give at least fit_batch={config.fit_batch}, better hundreds"
        )
    run = _Run(host, editor, list(cases))
    bar = tqdm(total=config.fit_steps, desc="fitting", unit="step", disable=not progress)
    with evaluating(host.model), frozen(host.model), _reduced(host), bar:
        run.begin(Path(checkpoint) if checkpoint else None)
        bar.update(run.done)
        saved = run.done
        while run.done < config.fit_steps:
            run.trajectory(bar)
            if checkpoint and run.done - saved >= checkpoint_every:
                run.save(Path(checkpoint))
                saved = run.done
    editor.fitted.fill_(True)
    return run.report()


@contextmanager
def _reduced(host: Host) -> Iterator[None]:
    """Products in bfloat16, where the CPU has them: twice as fast."""
    every = [*host.architecture.layers, host.model.get_output_embeddings()]
    with reduced_products(host.architecture.shadows, every if has_reduced_products() else []):
        yield


class _Run:
    """The state of a fitting; all of it is in a checkpoint, taken between two trajectories."""

    def __init__(self, host: Host, editor: Editor, cases: list[Case]) -> None:
        self.host, self.editor, self.cases = host, editor, cases
        self.config = editor.config
        self.optimizer = torch.optim.Adam(editor.parameters(), lr=self.config.fit_lr)
        self.done = self.number = self.broken = 0
        self.seconds, self.inner_lr = 0.0, 0.0
        self.log: list[list[float]] = []
        self.chosen = [0] * len(editor.sites)

    def begin(self, checkpoint: Path | None) -> None:
        """Take up the checkpoint, or find statistics and a step size on the base model."""
        self.clock = time.monotonic()
        text, config, sites = self.host.text, self.config, self.editor.sites
        rows = text_rows(text, ordinary_texts(text, config.seed)[-_TEXTS:], config.seed)
        self.texts = [row for row in rows if len(row.ids) > 1]
        if checkpoint is not None and checkpoint.is_file():
            self._resume(checkpoint)
            return
        edits = [case.edit for case in self.cases[:_FIRST]]
        asked = [
            one for edit in edits for one in requests(text, edit, text.forms(edit.prompt), config.tokens)
        ]
        features = capture(self.host, sites, asked)
        self.editor.observe(features, 0)
        if self.editor.usual:
            self.editor.study(ordinary_inputs(self.host, sites, config.seed), features.keys)
        self.inner_lr = config.inner_lr or find_step(self.host, self.editor, asked[:_STEPPED])

    def trajectory(self, bar: Any) -> None:
        """One trajectory from the base model on; the weights are the base model's again after it."""
        config, host = self.config, self.host
        self.number += 1
        rng = random.Random(f"fit {config.seed} {self.number}")
        first, last = config.trajectory
        length = round(first + (last - first) * min(1.0, 2 * self.done / config.fit_steps))
        cases = draw_batches(self.cases, length, config.fit_batch, rng)
        batches = [[sample_of(host, case, config, self.texts, rng) for case in batch] for batch in cases]
        run = Trajectory(host, self.editor, [sample for batch in batches for sample in batch], rng)
        for batch in batches:
            if self.done == config.fit_steps or not self._step(run, batch, bar):
                return

    def _step(self, run: Trajectory, batch: list[Sample], bar: Any) -> bool:
        """A step of the trajectory and of the optimiser; False where the losses are not finite any more."""
        config = self.config
        self.optimizer.zero_grad()
        step = run.step(batch)
        grads = [parameter.grad for parameter in self.editor.parameters() if parameter.grad is not None]
        fine = math.isfinite(step.losses.total(config)) and all(bool(g.isfinite().all()) for g in grads)
        self.broken = 0 if fine else self.broken + 1
        if self.broken > 20:
            raise FitError(
                "the losses of 20 trajectories in a row were not finite; lower inner_lr or fit_lr, or edit "
                "fewer modules"
            )
        if fine:
            torch.nn.utils.clip_grad_norm_(self.editor.parameters(), _CLIP)
            fall = min(1.0, max(0.01, 2 * (1 - self.done / config.fit_steps)))
            for group in self.optimizer.param_groups:
                group["lr"] = config.fit_lr * fall
            self.optimizer.step()
            run.commit(step)
            self.log.append(list(step.losses))
            for index in step.chosen or ():
                self.chosen[index] += 1
        self.done += 1
        bar.update(1)
        bar.set_postfix({name: f"{value:.3g}" for name, value in step.losses._asdict().items()})
        return fine

    def report(self) -> FitReport:
        """What was done."""
        names = [site.name for site in self.editor.sites]
        chosen = dict(zip(names, self.chosen, strict=True)) if self.editor.gate is not None else {}
        seconds = self.seconds + time.monotonic() - self.clock
        losses = [(a, b, c) for a, b, c in self.log]
        return FitReport(self.done, seconds, self.inner_lr, losses, chosen)

    # ------------------------------------------------------------------ checkpoints

    def save(self, path: Path) -> None:
        """Write everything to one file, in one step."""
        tensors = {f"editor.{name}": tensor for name, tensor in self.editor.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        head = {
            "config": asdict(self.config),
            "cases": len(self.cases),
            "seconds": self.seconds + time.monotonic() - self.clock,
            **{name: getattr(self, name) for name in _COUNTED},
        }
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump_tensors(plain, metadata={"memplug_fit": json.dumps(head)}))

    def _resume(self, path: Path) -> None:
        try:
            with safe_open(path, "pt", device=str(self.host.text.device)) as file:
                head = json.loads((file.metadata() or {})["memplug_fit"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as error:
            raise FitError(f"{path} is no checkpoint of a fitting ({error!r}); name another file") from error
        mine = json.loads(json.dumps(asdict(self.config)))
        other = [name for name in mine if head["config"].get(name) != mine[name]]
        if other or head["cases"] != len(self.cases):
            what = other[0] if other else "number of cases"
            raise FitError(
                f"{path} belongs to a fitting with another {what}; remove it, or name another file"
            )
        self.editor.load_state_dict(
            {name.removeprefix("editor."): t for name, t in tensors.items() if name.startswith("editor.")}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, what = name.split(".")
                state.setdefault(int(index), {})[what] = tensor
        self.optimizer.load_state_dict(
            {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        self.seconds = head["seconds"]
        for name in _COUNTED:
            setattr(self, name, head[name])
