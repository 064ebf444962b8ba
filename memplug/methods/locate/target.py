"""The wanted state: what to add to a hidden state at the subject's last token so that the answer is the new
one (MEMIT, equation 16; ROME, equation 4).

The layers below do not see it, so that their output is computed once; a step runs only the layers above, and
the head only at the tokens that count. Edits do not see each other: each has its own Adam state, and leaves
the batch when it has learned.

Letters: E edits, N rows, T tokens, D width, P logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...chat import behind, question
from ...edits import Edit, EditError
from ...hooks import capture_input, resume
from ...layers import evaluating, frozen
from ...text import Batch
from ..base import Host
from ..hypernet.capture import chunks
from ..scaling import GradientScale
from .config import LocateConfig

__all__ = ["Wanted", "find_targets"]


class Wanted(NamedTuple):
    """``state`` [E,D] wanted behind the layer on the bare prompt; ``loss`` [E], the last of each edit."""

    state: Tensor
    loss: Tensor


class _Row(NamedTuple):
    """A row of an edit: its answer starts at ``start``; "<subject> is a" has none."""

    ids: list[int]
    at: int
    edit: int
    start: int | None


def find_targets(
    host: Host, layer: int, edits: Sequence[Edit], prefixes: Sequence[str], config: LocateConfig
) -> Wanted:
    """The wanted states behind ``layer``, at the weights as they are now.

    Raises:
        EditError: a loss is not finite.
    """
    each = 2 + len(prefixes)
    found = [
        _find(host, layer, [edits[i] for i in part], prefixes, config)
        for part in chunks(range(len(edits)), max(1, config.micro_batch // each))
    ]
    return Wanted(torch.cat([one.state for one in found]), torch.cat([one.loss for one in found]))


def _rows(host: Host, edits: Sequence[Edit], prefixes: Sequence[str], stop: bool) -> list[_Row]:
    """Row 0 of each edit is its bare prompt."""
    text, rows = host.text, []
    for index, edit in enumerate(edits):
        subject = str(edit.subject)
        for front in ("", *prefixes):
            prompt = behind(front, edit.prompt)
            if front and len(text.encode(prompt)) + 64 >= text.max_length:
                continue
            pair = text.pair(prompt, edit.target, stop=stop)
            begin = len(question(prompt)) - len(edit.question) + edit.place.begin
            _, span = text.asked_span(prompt, begin, begin + len(subject), edit.target)
            rows.append(_Row(pair.ids, span[-1], index, pair.start))
        ids, span = text.span(f"{subject} is a", 0, len(subject))
        rows.append(_Row(ids, span[-1], index, None))
    return rows


def _find(
    host: Host, layer: int, edits: Sequence[Edit], prefixes: Sequence[str], config: LocateConfig
) -> Wanted:
    rows = _rows(host, edits, prefixes, config.train_stop)
    with evaluating(host.model), frozen(host.model):
        return _Search(host, layer, rows, len(edits), config).run()


class _Search:
    """Rows of some edits, run from ``layer + 1`` on."""

    def __init__(
        self, host: Host, layer: int, rows: Sequence[_Row], count: int, config: LocateConfig
    ) -> None:
        self.host, self.layer, self.rows, self.count, self.config = host, layer, rows, count, config
        self.batch = host.text.batch([row.ids for row in rows])
        self.hidden = capture_input(
            host.anatomy, layer + 1, partial(host.forward, host.anatomy.decoder, self.batch)
        )
        self.device = self.hidden.device
        first = [next(i for i, row in enumerate(rows) if row.edit == e) for e in range(count)]
        at = torch.tensor([rows[i].at for i in first], device=self.device)
        wide = torch.promote_types(self.hidden.dtype, torch.float32)
        self.start = self.hidden[torch.tensor(first, device=self.device), at].to(wide)  # [E,D]
        self.base: dict[int, Tensor] = {}
        everything = list(range(count))
        with torch.no_grad():
            _, said = self._logits(torch.zeros_like(self.start), everything)
        self.base = dict(zip(everything, said, strict=True))

    def run(self) -> Wanted:
        config, start = self.config, self.start
        size = start.norm(dim=-1, keepdim=True)  # [E,1]
        unit = size / start.shape[1] ** 0.5 if config.relative_lr else torch.ones_like(size)
        moved = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.Adam([moved], lr=config.lr)
        done: dict[int, tuple[Tensor, Tensor]] = {}
        alive = list(range(self.count))
        scale = GradientScale(self.host.model.dtype)
        for step in range(config.steps + 1):
            added = unit * moved
            losses = self._losses(added, alive) + config.weight_decay * (added / size)[alive].square().sum(-1)
            if not bool(torch.isfinite(losses).all()):
                raise EditError(
                    f"the search for a state that answers as edited gave a loss that is not finite (edit "
                    f"{alive[int((~torch.isfinite(losses)).nonzero()[0])] + 1} of its batch); "
                    "nothing was changed"
                )
            over = step == config.steps
            ended = [over or loss < config.stop_loss for loss in losses.tolist()]
            for k, e in enumerate(alive):
                if ended[k]:
                    done[e] = (added[e].detach().clone(), losses[k].detach())
            alive = [e for k, e in enumerate(alive) if not ended[k]]
            if not alive:
                break
            keep = torch.tensor([not end for end in ended], device=self.device)
            (moved.grad,) = scale.gradients(losses[keep].sum(), [moved])
            optimizer.step()
            with torch.no_grad():
                longest = config.clamp * size / unit
                moved.mul_((longest / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1))
        added = torch.stack([done[e][0] for e in range(self.count)])
        return Wanted(start + added, torch.stack([done[e][1] for e in range(self.count)]))

    def _losses(self, added: Tensor, alive: Sequence[int]) -> Tensor:
        """[A] of the edits in ``alive``: the mean over rows of the mean over the answer's tokens, and the
        divergence."""
        answers, said = self._logits(added, alive)
        loss = torch.stack(answers)
        if self.config.kl_weight:
            base = torch.stack([self.base[e] for e in alive])
            now = torch.stack(said)
            divergence = F.kl_div(base, now, reduction="none", log_target=True).sum(-1)
            loss = loss + self.config.kl_weight * divergence
        return loss

    def _logits(self, added: Tensor, alive: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """By edit: the loss of its answers, and the log-probabilities [V] after "<subject> is a"."""
        mine = [i for i, row in enumerate(self.rows) if row.edit in set(alive)]
        longest = max(len(self.rows[i].ids) for i in mine)
        index = torch.tensor(mine, device=self.device)
        batch = Batch(*(column[index.to(column.device), :longest] for column in self.batch))
        edit = torch.tensor([self.rows[i].edit for i in mine], device=self.device)
        at = torch.tensor([self.rows[i].at for i in mine], device=self.device)
        hidden = self.hidden[index, :longest]
        here = F.one_hot(at, longest).to(hidden.dtype)[..., None]  # [N,T,1]
        hidden = hidden + here * added[edit][:, None].to(hidden.dtype)
        flat: list[int] = []
        target: list[int] = []
        weight: list[float] = []
        owner: list[int] = []
        said: list[int] = []
        place = {e: k for k, e in enumerate(alive)}
        count = {e: sum(self.rows[i].edit == e for i in mine) - 1 for e in alive}
        for r, i in enumerate(mine):
            row = self.rows[i]
            if row.start is None:
                said.append(len(flat))
                points = [(len(row.ids) - 1, 0, 0.0)]
            else:
                share = 1.0 / (len(row.ids) - row.start) / count[row.edit]
                points = [(t - 1, row.ids[t], share) for t in range(row.start, len(row.ids))]
            for t, token, part in points:
                flat.append(r * longest + t)
                target.append(token)
                weight.append(part)
                owner.append(place[row.edit])
        logits = resume(
            self.host.model,
            self.host.anatomy,
            self.layer + 1,
            hidden,
            partial(self.host.forward, self.host.model, batch),
            torch.tensor(flat, device=self.device),
        )
        logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        device = logp.device
        nll = -logp.gather(-1, torch.tensor(target, device=device)[:, None])[:, 0]
        nll = nll * torch.tensor(weight, device=device, dtype=nll.dtype)
        losses = torch.zeros(len(alive), dtype=nll.dtype, device=device)
        losses = losses.index_add(0, torch.tensor(owner, device=device), nll).to(self.device)
        return list(losses), list(logp[torch.tensor(said, device=device)].to(self.device))
