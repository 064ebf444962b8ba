"""The fitting loop: curriculum, optimiser, progress, checkpoints, several processes."""

from __future__ import annotations

import json
import math
import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Case
from ...files import write_atomically
from ...layers import evaluating, frozen
from ...pristine import Pristine
from ..base import Host
from .calibrate import find_step, usual_texts
from .capture import capture
from .editor import Editor
from .fitting import Step, Trajectory
from .processes import Processes
from .samples import draw_batches, prepare, sample_of

__all__ = ["FitError", "FitReport", "fit"]


class FitError(ValueError):
    """Cases or a checkpoint that an editor cannot be fitted from, or losses that are not finite."""


_COUNTED = ("done", "number", "inner_lr", "log", "rewards", "chosen")


class FitReport(NamedTuple):
    """What a fitting did.

    Attributes:
        steps: optimiser steps.
        seconds: wall time, checkpoints taken up included.
        inner_lr: the step size it started from.
        losses: (edit, kept, norm) of each step.
        rewards: of each step, where a gate is trained by its reward.
        chosen: how often each module was chosen, where a gate chooses.
    """

    steps: int
    seconds: float
    inner_lr: float
    losses: list[tuple[float, float, float]]
    rewards: list[float]
    chosen: dict[str, int]


def fit(
    host: Host,
    editor: Editor,
    pristine: Pristine,
    cases: Sequence[Case],
    *,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    alone: bool = False,
) -> FitReport:
    """Fit a fresh editor. Weights are changed between steps and put back, whatever happens.

    Under ``accelerate launch`` (or any launcher that sets up ``torch.distributed``) every process runs its
    own trajectories and gradients are averaged; the statistics are the first process's.

    Args:
        host: the model.
        editor: as initialised; its constants are in its config.
        pristine: writes the weights.
        cases: edits with rephrases and locality probes.
        progress: show a bar.
        checkpoint: a file to resume from if it is there, and to write every ``checkpoint_every`` steps; the
            resumed fitting goes on exactly as the one that was cut off.
        alone: leave other processes that were launched out of it.

    Raises:
        FitError: too few cases, a checkpoint of another fitting, or losses that stay not finite.
    """
    config = editor.config
    if len(cases) < config.fit_batch:
        raise FitError(
            f"{len(cases)} cases are too few; give at least fit_batch={config.fit_batch}, better hundreds"
        )
    run = _Run(host, editor, pristine, list(cases), Processes(alone))
    bar = tqdm(
        total=config.fit_steps, desc="fitting", unit="step", disable=not progress or run.processes.rank > 0
    )
    try:
        with evaluating(host.model), frozen(host.model), bar:
            run.begin(Path(checkpoint) if checkpoint else None)
            bar.update(run.done)
            saved = run.done
            while run.done < config.fit_steps:
                run.trajectory(bar)
                if checkpoint and run.processes.rank == 0 and run.done - saved >= checkpoint_every:
                    run.save(Path(checkpoint))
                    saved = run.done
    finally:
        pristine.restore()
    editor.fitted.fill_(True)
    return run.report()


class _Run:
    """The state of a fitting; all of it is in a checkpoint, taken between two trajectories."""

    def __init__(
        self, host: Host, editor: Editor, pristine: Pristine, cases: list[Case], processes: Processes
    ) -> None:
        self.host, self.editor, self.pristine, self.cases = host, editor, pristine, cases
        self.config, self.processes = editor.config, processes
        self.optimizer = torch.optim.Adam(editor.parameters(), lr=self.config.fit_lr)
        self.done = self.number = self.broken = 0
        self.seconds, self.inner_lr = 0.0, 0.0
        self.log: list[list[float]] = []
        self.rewards: list[float] = []
        self.chosen = [0] * len(editor.sites)

    def begin(self, checkpoint: Path | None) -> None:
        """Take up the checkpoint, or find statistics and a step size on the base model."""
        self.clock = time.monotonic()
        if checkpoint is not None and checkpoint.is_file():
            self._resume(checkpoint)
            return
        edits = [self.host.text.pair(case.edit.prompt, case.edit.target) for case in self.cases[:64]]
        features = capture(self.host, self.editor.sites, edits, self.config.tokens)
        self.editor.observe(features, 0)
        if self.editor.usual:
            text = self.host.text
            kept = [text.pair(*probe) for case in self.cases[:64] for probe in case.locality[:4]]
            kept += usual_texts(self.host, 256, self.config.seed + 2)
            self.editor.study(capture(self.host, self.editor.sites, kept or edits, "all").keys)
        given = self.config.inner_lr
        self.inner_lr = find_step(self.host, self.editor, edits[:32]) if given is None else given

    def trajectory(self, bar: Any) -> None:
        """One trajectory from the base model on; the weights are the base model's again after it."""
        config = self.config
        self.number += 1
        name = f"fit {config.seed} {self.number} {self.processes.rank}"
        rng, draw = random.Random(name), torch.Generator().manual_seed(zlib.crc32(name.encode()))
        first, last = config.trajectory
        grown = (
            1.0 if config.faithful else min(1.0, self.done / max(1.0, config.curriculum * config.fit_steps))
        )
        batches = draw_batches(
            self.cases, round(first + (last - first) * grown), config.fit_batch, rng, config.fresh_targets
        )
        samples = [[sample_of(self.host, case, config, rng) for case in batch] for batch in batches]
        run = Trajectory(self.host, self.editor, self.pristine, rng, draw)
        ready = iter(prepare(self.host, run.low, [s for batch in samples for s in batch], config))
        prepared = [[next(ready) for _ in batch] for batch in samples]
        try:
            for batch in prepared:
                for only in range(config.steps) if config.shared_steps else [None]:
                    if self.done == config.fit_steps or not self._step(run, batch, only, bar):
                        return
        finally:
            self.pristine.restore()
            if config.faithful:
                self._one_step()
                self.optimizer.zero_grad()
            self.processes.share([buffer for buffer in self.editor.buffers() if buffer.is_floating_point()])

    def _step(self, run: Trajectory, batch: list[Any], only: int | None, bar: Any) -> bool:
        """A step of the trajectory and, unless it is the published procedure, of the optimiser; False where
        the losses are not finite any more."""
        config = self.config
        if not config.faithful:
            self.optimizer.zero_grad()
        elif config.style == "outer" and self.editor.gate is not None:
            self.editor.nets.zero_grad()  # the gate keeps what its first step left
        step, factors = run.step(batch, only)
        fine = self.processes.average(self.editor, math.isfinite(step.losses.total(config)))
        self.broken = 0 if fine else self.broken + 1
        if self.broken > 20:
            raise FitError(
                "the losses of 20 trajectories in a row were not finite; lower inner_lr or fit_lr, or edit "
                "fewer modules"
            )
        if fine:
            torch.nn.utils.clip_grad_norm_(self.editor.parameters(), config.clip)
            if not config.faithful:
                self._one_step()
            run.commit(factors)
            self._record(step)
        self.done += 1
        bar.update(1)
        shown = dict(zip(step.losses._fields, step.losses, strict=True))
        if step.reward is not None:
            shown["reward"] = step.reward
        bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
        return fine

    def _one_step(self) -> None:
        share = self.done / self.config.fit_steps
        fall = 1.0 if self.config.faithful else min(1.0, max(0.01, 2 * (1 - share)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.fit_lr * fall
        self.optimizer.step()

    def _record(self, step: Step) -> None:
        self.log.append(list(step.losses))
        if step.reward is not None:
            self.rewards.append(step.reward)
        for index in step.chosen or ():
            self.chosen[index] += 1

    def report(self) -> FitReport:
        """What was done."""
        names = [site.name for site in self.editor.sites]
        chosen = dict(zip(names, self.chosen, strict=True)) if self.editor.gate is not None else {}
        seconds = self.seconds + time.monotonic() - self.clock
        losses = [(a, b, c) for a, b, c in self.log]
        return FitReport(self.done, seconds, self.inner_lr, losses, self.rewards, chosen)

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
