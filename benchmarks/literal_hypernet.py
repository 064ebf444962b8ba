"""A step of fitting done the way the published code does it, to compare the library's with.

The same networks, loss and samples, but: each backtracked batch by itself, in forwards of at most four
samples (one where a batch is one edit, as HiEdit's are) and two for each divergence term, through the whole
model with all its logits; changes as whole matrices from dense solves; added to the live weights and
subtracted again around each use; features written to files and read twice. The gradient is the same (the
benchmark checks that), the work is not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memplug.methods.hypernet.capture import Features, capture, chunks, flat_rows
from memplug.methods.hypernet.fitting import Losses, Step, Trajectory
from memplug.methods.hypernet.samples import weighted

MICRO = 4


class LiteralTrajectory(Trajectory):
    """A `Trajectory` whose steps are literal; single-step editors of the joint style."""

    def step(self, batch: list[Any], only: int | None = None) -> tuple[Step, dict[str, Any]]:
        self.history = [*self.history, batch][-self.config.back_depth :]
        judged = weighted(self.history, self.config, self.rng)
        with tempfile.TemporaryDirectory() as folder:
            files = self._write_features([item.sample.edit for item in batch], Path(folder))
            features = self._read_features(files)
            self.editor.observe(features, 0)
            choice = None if self.editor.gate is None else self.editor.gate(features, self.draw)
            with torch.no_grad():
                whole = self._dense(features)
            mask = torch.ones(len(whole)) if choice is None else choice.mask.detach()
            deltas = [m * delta for m, delta in zip(mask, whole, strict=True)]
            slopes, losses = self._outer(deltas, judged)
            if (
                choice is not None
            ):  # the published baseline: the losses with all modules, with a graph of its own
                self._outer(whole, judged)
            again = self._dense(self._read_features(files))
        for index, (slope, delta) in enumerate(zip(slopes, again, strict=True)):
            scaled = delta if choice is None else choice.mask[index] * delta
            slope = slope + 2 * self.config.norm_weight * deltas[index]
            (slope * scaled).sum().backward(retain_graph=True)
        norm = sum(float(delta.square().sum()) for delta in deltas)
        eyes = [torch.eye(site.d_k) for site in self.editor.sites]
        made = {s.name: (eye, d) for s, eye, d in zip(self.editor.sites, eyes, deltas, strict=True)}
        return Step(Losses(*losses, norm), None, None), made

    def _write_features(self, pairs: list[Any], folder: Path) -> list[list[Path]]:
        files = []
        for number, part in enumerate(chunks(range(len(pairs)), MICRO)):
            found = capture(self.host, self.editor.sites, [pairs[i] for i in part], self.config.tokens)
            files.append([])
            for index in range(len(self.editor.sites)):
                path = folder / f"{index}_{number}"
                torch.save((found.keys[index], found.slopes[index], found.owner + part[0]), path)
                files[-1].append(path)
        return files

    def _read_features(self, files: list[list[Path]]) -> Features:
        read = [[torch.load(path) for path in row] for row in files]
        modules = range(len(self.editor.sites))
        keys = tuple(torch.cat([row[i][0] for row in read]) for i in modules)
        slopes = tuple(torch.cat([row[i][1] for row in read]) for i in modules)
        return Features(keys, slopes, torch.cat([row[0][2] for row in read]))

    def _dense(self, features: Features) -> list[Tensor]:
        found = []
        for index, change in enumerate(self.editor.changes(features, 0)):
            keys, values = change.keys[0], change.values[0]
            ridge = change.log_ridge.exp()  # type: ignore[union-attr]
            metric = torch.eye(keys.shape[1])
            if self.editor.usual:
                metric = torch.linalg.inv(self.editor.usual[index](metric))
            system = keys.T @ keys + ridge * metric
            found.append(torch.linalg.solve(system, keys.T @ values))
        return found

    @torch.no_grad()
    def _flip(self, deltas: list[Tensor], sign: int) -> None:
        for site, delta in zip(self.editor.sites, deltas, strict=True):
            site.weight.add_(site.stored(delta), alpha=sign)

    def _outer(self, deltas: list[Tensor], judged: Any) -> tuple[list[Tensor], tuple[float, float]]:
        weights = [site.weight for site in self.editor.sites]
        for weight in weights:
            weight.requires_grad_(True)
            weight.grad = None
        totals = [0.0, 0.0]
        for rows in self._micro_batches(judged):
            self._flip(deltas, 1)
            logits, at = self._forward([item.sample.asked for item, _ in rows])
            share = torch.tensor([w for _, w in rows])[at.row] / at.size
            loss = (F.cross_entropy(logits, at.target, reduction="none") * share).sum()
            loss.backward()
            totals[0] += float(loss.detach())
            self._flip(deltas, -1)
            with torch.no_grad():
                before = self._forward([item.sample.kept for item, _ in rows])[0].log_softmax(-1)
            self._flip(deltas, 1)
            logits, at = self._forward([item.sample.kept for item, _ in rows])
            share = torch.tensor([w for _, w in rows])[at.row] / at.size
            apart = F.kl_div(logits.log_softmax(-1), before, reduction="none", log_target=True).sum(-1)
            loss = self.config.locality_weight * (apart * share).sum()
            loss.backward()
            totals[1] += float(loss.detach()) / self.config.locality_weight
            self._flip(deltas, -1)
        slopes = [site.stored(site.weight.grad) for site in self.editor.sites]  # type: ignore[arg-type]
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
        return slopes, (totals[0], totals[1])

    def _micro_batches(self, judged: Any) -> list[list[Any]]:
        """The judged samples in forwards, none of which holds samples of two batches."""
        weights = {id(item): weight for item, weight in judged}
        return [
            [(batch[i], weights[id(batch[i])]) for i in part]
            for batch in reversed(self.history)
            for part in chunks(range(len(batch)), MICRO)
        ]

    def _forward(self, pairs: list[Any]) -> tuple[Tensor, Any]:
        batch = self.host.text.batch([pair.ids[:-1] for pair in pairs])
        logits = self.host.forward(self.host.model, batch).logits.float()
        at = flat_rows(pairs, batch.ids.shape[1], batch.ids.device)
        return logits.flatten(0, 1)[at.flat], at
