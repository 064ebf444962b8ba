"""Experts: the LoRAs of every edited linear and the routers that choose among them.

All learnable parameters are here, and their number does not depend on the number of edits. Knows nothing
about edits, texts or which rows are in scope.

Letters: l edited linears, N experts, k of them used, r rank, p and o a linear's in- and out-features, q the
query's width, B rows, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .places import Place

__all__ = ["Experts", "Mixer", "Routing", "best", "mix", "mix_rows", "parameter_count", "scores"]


def parameter_count(shapes: Sequence[tuple[int, int]], query: int, n: int, rank: int) -> int:
    """Learnable parameters: sum over linears (p, o) of N r (p + o) for the LoRAs, N q + N for the router.

    Six linears of 11008 to 4096 with N = 4, r = 8 and q = 11008 give 3,164,184.
    """
    return sum(n * rank * (p + o) + n * query + n for p, o in shapes)


class Routing(NamedTuple):
    """What rows are routed to.

    Attributes:
        picks: LongTensor [l,B,k], chosen experts in ascending order.
        weights: float32 [l,B,k], their softmax scores, not renormalised (ELDER, equation 5).
    """

    picks: Tensor
    weights: Tensor


class Mixer(NamedTuple):
    """The chosen LoRAs of b rows at one linear: down [b,k r,p], up [b,k r,o] and their weights [b,1,k r]."""

    down: Tensor
    up: Tensor
    weights: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[b,T,p] of any dtype -> [b,T,o] float32."""
        return torch.bmm(self._inner(x), self.up)

    def add(self, x: Tensor, output: Tensor) -> Tensor:
        """``output`` [b,T,o], of any dtype, with that added, in its dtype."""
        if output.dtype == torch.float32:
            return torch.baddbmm(output, self._inner(x), self.up)
        return output + self(x).to(output.dtype)

    def _inner(self, x: Tensor) -> Tensor:
        return torch.bmm(x.float(), self.down.transpose(1, 2)) * self.weights


class Experts:
    """l x N LoRAs and l routers, float32.

    Args:
        places: the edited linears; parameters live on their devices.
        query: q, the query's width.
        n, top_k, rank: N, k, r.
        init: bound of A's start, "input" 1/sqrt(p), "published" 1/sqrt(r). B starts at zero.
        seed: of the start.

    Attributes:
        down: l tensors A [N,r,p], transposed, so that an expert's part is in one piece.
        up: l tensors B [N,r,o].
        gates, bias: [l,N,q] and [l,N], the routers (the published code has the bias, the paper does not).
    """

    def __init__(
        self, places: Sequence[Place], query: int, n: int, top_k: int, rank: int, init: str, seed: int
    ) -> None:
        self.places, self.n, self.top_k, self.rank = tuple(places), n, top_k, rank
        self.down: list[Tensor] = []
        self.up: list[Tensor] = []
        draw = torch.Generator().manual_seed(seed)

        def uniform(shape: tuple[int, ...], bound: float, device: torch.device) -> Tensor:
            if device.type == "meta":
                return torch.empty(shape, device=device, dtype=torch.float32)
            return ((torch.rand(shape, generator=draw, dtype=torch.float32) * 2 - 1) * bound).to(device)

        for place in self.places:
            bound = (rank if init == "published" else place.fan_in) ** -0.5
            self.down.append(
                uniform((n, place.fan_in, rank), bound, place.device).transpose(1, 2).contiguous()
            )
            self.up.append(torch.zeros(n, rank, place.fan_out, device=place.device, dtype=torch.float32))
        self._together = self._stack()
        first = self.places[0].device
        self.gates = uniform((len(self.places), n, query), query**-0.5, first)
        self.bias = uniform((len(self.places), n), query**-0.5, first)

    def _stack(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """All A [l N,r,p] and B [l N,r,o] as one tensor each, of which the linears' are parts, and where each
        linear's begin [l,1,1]; None where linears differ in shape or device."""
        if any(len({(t.shape, t.device) for t in some}) > 1 for some in (self.down, self.up)):
            return None
        down, up = torch.cat(self.down), torch.cat(self.up)
        self.down, self.up = list(down.split(self.n)), list(up.split(self.n))
        return down, up, torch.arange(0, len(down), self.n, device=down.device)[:, None, None]

    @property
    def loras(self) -> list[Tensor]:
        """A and B of every linear."""
        return [*self.down, *self.up]

    @property
    def routers(self) -> list[Tensor]:
        """Weights and biases of the routers."""
        return [self.gates, self.bias]

    @property
    def count(self) -> int:
        """Learnable parameters; see `parameter_count`."""
        return sum(tensor.numel() for tensor in (*self.loras, *self.routers))

    @torch.no_grad()
    def copy(self) -> Experts:
        """The same, to be trained on its own."""
        other = copy.copy(self)
        other.down, other.up = list(self.down), list(self.up)
        other._together = other._stack()  # of new tensors
        if other._together is None:
            other.down, other.up = [t.clone() for t in self.down], [t.clone() for t in self.up]
        other.gates, other.bias = self.gates.clone(), self.bias.clone()
        return other

    def snapshot(self) -> list[Tensor]:
        """Copies of all parameters."""
        return [tensor.detach().clone() for tensor in (*self.loras, *self.routers)]

    @torch.no_grad()
    def load(self, tensors: Sequence[Tensor]) -> None:
        """Take over what `snapshot` gave.

        Raises:
            ValueError: tensors of other shapes; nothing is changed then.
        """
        mine = [*self.loras, *self.routers]
        theirs = [tuple(tensor.shape) for tensor in tensors]
        if theirs != [tuple(tensor.shape) for tensor in mine]:
            raise ValueError(f"the experts' shapes are {[tuple(t.shape) for t in mine]}, not {theirs}")
        for tensor, new in zip(mine, tensors, strict=True):
            tensor.copy_(new)

    def logits(self, query: Tensor) -> Tensor:
        """[l,B,N] from queries [B,q] float32."""
        return scores(self.routers, query.to(self.gates.device))

    @torch.no_grad()
    def route(self, query: Tensor) -> Routing:
        """The k experts of the largest logits for each row and linear; ties go to the lower index."""
        return self.routed(self.logits(query))

    def routed(self, logits: Tensor) -> Routing:
        """That of logits [l,B,N]."""
        picks = best(logits, self.top_k)
        return Routing(picks, logits.softmax(-1).gather(-1, picks))

    def mixers(self, routing: Routing, rows: Tensor | None = None) -> list[Mixer]:
        """By linear the LoRAs that ``rows`` LongTensor [b] of a routing, or all of it, use."""
        picks, weights = routing
        if rows is not None:
            picks, weights = (x[:, rows.to(x.device)] for x in routing)
        if self._together is None:
            found = zip(self.down, self.up, picks, weights, strict=True)
            return [_mixer(down, up, p.to(down.device), w.to(down.device)) for down, up, p, w in found]
        down, up, begins = self._together
        linears, count, k = picks.shape
        every = _mixer(
            down, up, (picks.to(down.device) + begins).reshape(-1, k), weights.reshape(-1, k).to(up.device)
        )
        at = (slice(i * count, (i + 1) * count) for i in range(linears))
        return [Mixer(*(part[here] for part in every)) for here in at]

    def mix(self, index: int, x: Tensor, weights: Tensor) -> Tensor:
        """`mix` of all experts of linear ``index``."""
        return mix(x, self.down[index], self.up[index], weights)


def scores(routers: Sequence[Tensor], query: Tensor) -> Tensor:
    """Logits [l,B,N] of routers ([l,N,q], [l,N]) for queries [B,q]."""
    (linears, n, _), (gates, bias) = routers[0].shape, routers
    every = torch.nn.functional.linear(query, gates.flatten(0, 1), bias.flatten())
    return every.view(len(query), linears, n).transpose(0, 1)


def mix(x: Tensor, down: Tensor, up: Tensor, weights: Tensor) -> Tensor:
    """The output of n experts at one linear, in two products for all of them.

    Args:
        x: [B,T,p], the linear's input, of any dtype.
        down, up: A [n,r,p], transposed, and B [n,r,o].
        weights: [B,n], zero for experts that a row does not use.

    Returns:
        [B,T,o] float32, sum over experts e of weights_e x A_e B_e.
    """
    scale = weights.to(x.device).repeat_interleave(down.shape[1], dim=-1)[:, None]
    return ((x.float() @ down.flatten(0, 1).T) * scale) @ up.flatten(0, 1)


def mix_rows(x: Tensor, down: Tensor, up: Tensor, picks: Tensor, weights: Tensor) -> Tensor:
    """As `mix`, from the experts that each row uses.

    Args:
        x: [B,T,p], the linear's input, of any dtype.
        down, up: A [n,r,p], transposed, and B [n,r,o].
        picks, weights: [B,k], which experts, and how much of each.

    Returns:
        [B,T,o] float32.
    """
    if len(down) <= _DENSE * picks.shape[1]:
        every = torch.zeros(len(picks), len(down), device=weights.device, dtype=torch.float32).scatter(
            -1, picks, weights
        )
        return mix(x, down, up, every)
    return _mixer(down, up, picks, weights)(x)


_DENSE = 3  # with so few experts for each one used, all of them cost less than every row's own copies


def _mixer(down: Tensor, up: Tensor, picks: Tensor, weights: Tensor) -> Mixer:
    """The LoRAs ``picks`` [b,k] of A [n,r,p] and B [n,r,o], side by side."""
    (b, k), rank, which = picks.shape, down.shape[1], picks.flatten()
    chosen, out = (tensor.index_select(0, which).view(b, k * rank, -1) for tensor in (down, up))
    return Mixer(chosen, out, weights.repeat_interleave(rank, dim=-1).view(b, 1, k * rank))


def best(logits: Tensor, k: int) -> Tensor:
    """The indices of the k largest in the last dimension, ascending; of equals the lower ones."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :k].sort(dim=-1).values
