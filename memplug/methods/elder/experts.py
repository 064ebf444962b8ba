"""Experts: the LoRAs of every edited linear and the routers that choose among them.

All learnable parameters are here, and their number does not depend on the number of edits. Knows nothing
about edits, texts or which rows are in scope.

Letters: l edited linears, N experts, k of them used, r rank, p and o a linear's in- and out-features, q the
query's width, B rows, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...interface import Host
from ...model.attention import check_recomputed
from ...model.hooks import Hook
from ...saving.checked import shaped
from ..places import Place

__all__ = ["Experts", "Routing", "Used", "best", "mix", "mixing", "parameter_count", "scores"]


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
        published: A starts within 1/sqrt(r), else within 1/sqrt(p) as LoRA has it. B starts at zero.
        seed: of the start.

    Attributes:
        down: l tensors A [N,r,p], transposed, so that an expert's part is in one piece.
        up: l tensors B [N,r,o].
        gates, bias: [l,N,q] and [l,N], the routers (the published code has the bias, the paper does not).
    """

    def __init__(
        self, places: Sequence[Place], query: int, n: int, top_k: int, rank: int, published: bool, seed: int
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
            bound = (rank if published else place.fan_in) ** -0.5
            down = uniform((n, place.fan_in, rank), bound, place.device)
            self.down.append(down.transpose(1, 2).contiguous())
            self.up.append(torch.zeros(n, rank, place.fan_out, device=place.device, dtype=torch.float32))
        first = self.places[0].device
        self.gates = uniform((len(self.places), n, query), query**-0.5, first)
        self.bias = uniform((len(self.places), n), query**-0.5, first)

    @property
    def routers(self) -> list[Tensor]:
        """Weights and biases of the routers."""
        return [self.gates, self.bias]

    @property
    def tensors(self) -> list[Tensor]:
        """All learnable parameters; see `parameter_count`."""
        return [*self.down, *self.up, *self.routers]

    @torch.no_grad()
    def copy(self) -> Experts:
        """The same, to be trained on its own."""
        other = copy.copy(self)
        other.down, other.up = [t.clone() for t in self.down], [t.clone() for t in self.up]
        other.gates, other.bias = self.gates.clone(), self.bias.clone()
        return other

    def named(self) -> dict[str, Tensor]:
        """All learnable parameters by name, for saving."""
        return {f"experts.{i}": tensor for i, tensor in enumerate(self.tensors)}

    def read(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `named` gave.

        Raises:
            ValueError: one is missing, or is of another shape; nothing is changed then.
        """
        mine = self.named()
        found = [shaped(tensors, name, tuple(one.shape), torch.float32) for name, one in mine.items()]
        for tensor, new in zip(mine.values(), found, strict=True):
            tensor.copy_(new)

    @torch.no_grad()
    def route(self, query: Tensor) -> Routing:
        """The k experts of the largest logits for each query [B,q] and linear; ties go to the lower index."""
        logits = scores(self.routers, query.to(self.gates.device))
        picks = best(logits, self.top_k)
        return Routing(picks, logits.softmax(-1).gather(-1, picks))


class Used(NamedTuple):
    """Experts in use in one forward.

    Attributes:
        at: LongTensor [n], the tokens that use any, as row * T + column.
        picks, weights: [l,n,k] which, and how much of each.
    """

    at: Tensor
    picks: Tensor
    weights: Tensor

    def apply(self, experts: Experts, index: int, x: Tensor, output: Tensor) -> Tensor:
        """The output of linear ``index`` with the experts' added.

        Args:
            experts: the LoRAs.
            index: which linear.
            x, output: its input and output, [B,T,w] or flattened to [B T,w].
        """
        flat, device = x.reshape(-1, x.shape[-1]), x.device
        at = self.at.to(device)
        picks, weights = (part[index].to(device) for part in (self.picks, self.weights))
        delta = mix(flat[at], experts.down[index], experts.up[index], picks, weights)
        out = output.reshape(-1, output.shape[-1])
        return out.index_add(0, at.to(out.device), delta.to(out)).view(output.shape)


def mixing(host: Host, places: Sequence[Place], experts: Callable[[], Experts]) -> list[Hook]:
    """Hooks that add the output of the experts which the running call's ``scratch`` says are `Used`."""

    def make(index: int) -> Hook:
        def after(_m: Any, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor | None:
            call = host.tracker.current
            if call is None or not isinstance(call.scratch, Used):
                return None
            check_recomputed(host.architecture.layers[places[index].layer])
            return call.scratch.apply(experts(), index, args[0], output)

        return Hook(places[index].module, "after", after)

    return [make(index) for index in range(len(places))]


def scores(routers: Sequence[Tensor], query: Tensor) -> Tensor:
    """Logits [l,B,N] of routers ([l,N,q], [l,N]) for queries [B,q]."""
    (linears, n, _), (gates, bias) = routers[0].shape, routers
    every = torch.nn.functional.linear(query, gates.flatten(0, 1), bias.flatten())
    return every.view(len(query), linears, n).transpose(0, 1)


def best(logits: Tensor, k: int) -> Tensor:
    """The indices of the k largest in the last dimension, ascending; of equals the lower ones."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :k].sort(dim=-1).values


def mix(x: Tensor, down: Tensor, up: Tensor, picks: Tensor, weights: Tensor) -> Tensor:
    """The output of experts at one linear, in two products for all that are picked.

    Args:
        x: [B,p] or [B,T,p], the linear's input, of any dtype.
        down, up: A [n,r,p], transposed, and B [n,r,o].
        picks, weights: [B,k], which experts a row uses, and how much of each.

    Returns:
        [B,o] or [B,T,o] float32, sum over a row's experts e of weights_e x A_e B_e.
    """
    ids, place = picks.unique(return_inverse=True)
    every = torch.zeros(len(picks), len(ids), device=x.device, dtype=torch.float32)
    scale = every.scatter(-1, place, weights).repeat_interleave(down.shape[1], dim=-1)
    scale = scale if x.ndim == 2 else scale[:, None]
    return ((x.float() @ down[ids].flatten(0, 1).T) * scale) @ up[ids].flatten(0, 1)
