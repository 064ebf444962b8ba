"""The wanted state: what to add to a hidden state at the subject's last token so that the answer is the new
one (MEMIT, equation 16; ROME, equation 4).

The layers below and the tokens before do not see it, so that they are computed once (see `tails`); the head
runs only at the tokens that count. Products are in bfloat16 where the CPU has them (`reduced_precision`).
Edits do not see each other: each has its own Adam state, and leaves the batch when it has learned.

Letters: E edits, N rows, T tokens, D width, P logits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...edits import Edit, EditError
from ...interface import Host
from ...model.architecture import evaluating, frozen
from ...model.reduced_precision import has_reduced_products, reduced_products
from ...retrieval.passes import Line
from ..inweights.rows import chunks
from ..scaling import GradientScale
from .config import LocateConfig
from .rows import contexts, first_rows, kept_rows, subject_at
from .tails import Tail, tails_of

__all__ = ["Wanted", "find_targets"]


class Wanted(NamedTuple):
    """``state`` [E,D] wanted behind the layer in each edit's first context, ``added`` [E,D] there and in the
    others; ``loss`` [E], the last of each edit."""

    state: Tensor
    added: Tensor
    loss: Tensor


class _Row(NamedTuple):
    """A row of an edit: its answer starts at ``start``; what is to be continued as before has none."""

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
    each = 3 + len(prefixes) + config.n_kept
    found = []
    with (
        evaluating(host.model),
        frozen(host.model),
        reduced_products(host.architecture.shadows, _products(host, layer)),
    ):
        for part in chunks(range(len(edits)), max(1, config.micro_batch // each)):
            rows = _rows(host, [edits[i] for i in part], prefixes, config)
            found.append(_Search(host, layer, rows, len(part), config).run())
    return Wanted(*map(torch.cat, zip(*found, strict=True)))


def _products(host: Host, layer: int) -> list[nn.Module]:
    return (
        [*host.architecture.layers[layer + 1 :], host.model.get_output_embeddings()]
        if has_reduced_products()
        else []
    )


def _rows(host: Host, edits: Sequence[Edit], prefixes: Sequence[str], config: LocateConfig) -> list[_Row]:
    """The rows of each edit; its first context's comes first."""
    text, rows = host.text, []
    for index, edit in enumerate(edits):
        for prompt, _ in contexts(text, edit, prefixes):
            pair = text.pair(prompt, edit.target, stop=config.train_stop)
            rows.append(_Row(pair.ids, subject_at(text, prompt, edit, edit.target)[1], index, pair.start))
        for ids, at in kept_rows(text, edit, config.n_kept, config.seed):
            rows.append(_Row(ids, at, index, None))
    return rows


class _Search:
    """Rows of some edits, run from ``layer + 1`` on."""

    def __init__(
        self, host: Host, layer: int, rows: Sequence[_Row], count: int, config: LocateConfig
    ) -> None:
        self.host, self.rows, self.count, self.config = host, rows, count, config
        self.tails = tails_of(host, layer + 1, [Line(tuple(row.ids), row.at) for row in rows])
        self.device = self.tails[0].hidden.device
        states = {i: tail.hidden[r, tail.at[r]] for tail in self.tails for r, i in enumerate(tail.rows)}
        wide = torch.promote_types(self.tails[0].hidden.dtype, torch.float32)
        self.start = torch.stack([states[i] for i in first_rows(rows, self.device).tolist()]).to(
            wide
        )  # [E,D]
        with torch.no_grad():
            _, self.base = self._asked(torch.zeros_like(self.start), list(range(count)))
        self.kept = Counter(row.edit for row in rows if row.start is None)

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
            added = self._anchored(unit * moved)
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
            if all(ended):
                break
            keep = torch.tensor([not end for end in ended], device=self.device)
            (moved.grad,) = scale.gradients(losses[keep].sum(), [moved])
            if any(ended):
                alive = [e for k, e in enumerate(alive) if not ended[k]]
                self.tails = [left for tail in self.tails if (left := self._left(tail, alive)) is not None]
            optimizer.step()
            with torch.no_grad():
                longest = config.clamp * size / unit
                moved.mul_((longest / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1))
        added = torch.stack([done[e][0] for e in range(self.count)])
        return Wanted(start + added, added, torch.stack([done[e][1] for e in range(self.count)]))

    def _left(self, tail: Tail, alive: Sequence[int]) -> Tail | None:
        kept = [r for r, i in enumerate(tail.rows) if self.rows[i].edit in set(alive)]
        return tail if len(kept) == len(tail.rows) else tail.of(kept) if kept else None

    def _anchored(self, added: Tensor) -> Tensor:
        """``added`` [E,D] or, with ``anchor``, as much of it as leaves the state its length."""
        if not self.config.anchor:
            return added
        wanted = self.start + added
        return (
            wanted * (self.start.norm(dim=-1, keepdim=True) / wanted.norm(dim=-1, keepdim=True)) - self.start
        )

    def _losses(self, added: Tensor, alive: Sequence[int]) -> Tensor:
        """[A] of the edits in ``alive``: the mean over rows of the mean over the answer's tokens, and the
        divergence."""
        loss, said = self._asked(added, alive)
        place = {e: k for k, e in enumerate(alive)}
        for i, now in said.items() if self.config.kl_weight else ():
            edit = self.rows[i].edit
            share = self.config.kl_weight / self.kept[edit]
            divergence = F.kl_div(self.base[i], now, reduction="sum", log_target=True).to(loss)
            loss = loss + share * divergence * F.one_hot(torch.tensor(place[edit]), len(alive)).to(loss)
        return loss

    def _asked(self, added: Tensor, alive: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Of the edits in ``alive`` the loss [A] of their answers, and by row the log-probabilities [V] of
        what is to be continued as before, with ``added`` [E,D] at the subjects."""
        place = {e: k for k, e in enumerate(alive)}
        counts = Counter(row.edit for row in self.rows if row.start is not None)
        losses, said = added.new_zeros(len(alive)), dict[int, Tensor]()
        for tail in self.tails:
            points = list(self._points(tail, counts))
            edit = torch.tensor([self.rows[i].edit for i in tail.rows], device=self.device)
            logp = tail.logits(added[edit], [(r, t) for r, t, _, _ in points])
            logp = logp.to(torch.promote_types(logp.dtype, torch.float32)).log_softmax(-1)
            said |= {tail.rows[r]: logp[n] for n, (r, _, token, _) in enumerate(points) if token < 0}
            target = torch.tensor([max(token, 0) for _, _, token, _ in points], device=logp.device)
            weight = torch.tensor([share for *_, share in points], device=logp.device, dtype=logp.dtype)
            owner = torch.tensor(
                [place[self.rows[tail.rows[r]].edit] for r, *_ in points], device=self.device
            )
            nll = -logp.gather(-1, target[:, None])[:, 0] * weight
            losses = losses.index_add(0, owner, nll.to(losses))
        return losses, said

    def _points(self, tail: Tail, counts: Mapping[int, int]) -> Iterator[tuple[int, int, int, float]]:
        """Where something is asked: a row of ``tail``, its column there, the token that is expected next (-1
        where nothing is asked), and how much it counts."""
        for r, (i, begin) in enumerate(zip(tail.rows, tail.begin, strict=True)):
            row = self.rows[i]
            if row.start is None:
                yield r, len(row.ids) - 1 - begin, -1, 0.0
                continue
            share = 1.0 / (len(row.ids) - row.start) / counts[row.edit]
            for t in range(row.start, len(row.ids)):
                yield r, t - 1 - begin, row.ids[t], share
