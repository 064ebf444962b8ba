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

__all__ = ["Experts", "Routing", "best", "mix", "mix_rows", "parameter_count", "scores"]


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
        first = self.places[0].device
        self.gates = uniform((len(self.places), n, query), query**-0.5, first)
        self.bias = uniform((len(self.places), n), query**-0.5, first)

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

    def mix(self, index: int, x: Tensor, picks: Tensor, weights: Tensor) -> Tensor:
        """[B,T,o]: what ``picks`` [B,k] of linear ``index`` make of x [B,T,p], times ``weights`` [B,k]."""
        return mix_rows(x, self.down[index], self.up[index], picks, weights)


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
    (rows, k), rank = picks.shape, down.shape[1]
    if len(down) <= max(_DENSE, rows) * k:
        every = torch.zeros(rows, len(down), device=weights.device, dtype=torch.float32)
        return mix(x, down, up, every.scatter(-1, picks, weights))
    chosen, out = (tensor[picks].flatten(1, 2) for tensor in (down, up))  # [B,k r,p], [B,k r,o]
    inner = torch.bmm(x.float(), chosen.transpose(1, 2)) * weights.repeat_interleave(rank, dim=-1)[:, None]
    return torch.bmm(inner, out)


_DENSE = 3  # with so few experts for each one used, all of them cost less than every row's own copies


def best(logits: Tensor, k: int) -> Tensor:
    """The indices of the k largest in the last dimension, ascending; of equals the lower ones."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :k].sort(dim=-1).values
