"""The order of a search: which layers are looked at when, as a text comes in one piece or several.

Letters: R think layers, B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memplug.memory.match import Matcher
from memplug.memory.stream import Block, MatchState
from memplug.memory.votes import Found, merge

__all__ = ["advance", "check_queries"]


def check_queries(
    n_layers: int,
    dim: int,
    queries: Tensor | Sequence[Tensor],
    valid: Tensor | None,
    state: MatchState | None,
) -> tuple[int, int]:
    """B and T of queries (R, B, T, D).

    Raises:
        ValueError: shapes that do not fit the memory's R and D, each other or the state.
    """
    wanted, shapes = f"({n_layers}, B, T, {dim})", [tuple(q.shape) for q in queries]
    if len(shapes) != n_layers or len(set(shapes)) != 1 or len(shapes[0]) != 3 or shapes[0][2] != dim:
        raise ValueError(
            f"queries are {len(shapes)} layers of shape {set(shapes)}; give (R, B, T, D) = {wanted}"
        )
    if not queries[0].is_floating_point():
        raise ValueError(f"queries are {queries[0].dtype}; give hidden states, floats {wanted}")
    n_rows, length, _ = shapes[0]
    if valid is not None and (tuple(valid.shape) != (n_rows, length) or valid.dtype != torch.bool):
        raise ValueError(
            f"valid is {valid.dtype} of shape {tuple(valid.shape)}; give bool of shape {(n_rows, length)}"
        )
    if state is not None and state.n_rows != n_rows:
        raise ValueError(
            f"the state has {state.n_rows} rows, the queries {n_rows}; take state.select(rows) where "
            "rows were dropped, repeated or reordered"
        )
    return n_rows, length


def advance(
    matcher: Matcher,
    n_layers: int,
    quorum: int,
    queries: Tensor | Sequence[Tensor],
    valid: Tensor,
    state: MatchState | None,
) -> MatchState:
    """The state after a piece of the texts; ``state`` is that before it, None at their beginning."""
    first = n_layers - quorum + 1  # an entry that passes in none of these cannot win
    layers, seq = tuple(range(n_layers)), matcher.record.next_seq
    reach = matcher.record.rest.shape[1]  # a window reaches so far back
    early = Block(tuple(queries[r] for r in layers[:first]), valid)
    late = Block(tuple(queries[r] for r in layers[first:]), valid)
    length = early.length
    if state is None:
        state = MatchState(Found.empty(), early.tail(0), (), 0, seq)
    found = state.found
    if state.waiting and state.seq != seq:
        # What waits was seen before some entries were added, and must not count for them.
        older = matcher.match(layers[first:], Block.join(state.late), state.waiting)
        found = merge(found, older.keep(older.seq < state.seq))
        state = state._replace(waiting=0)

    text = Block.join((state.early, early))
    found = merge(found, matcher.match(layers[:first], text, length))
    early = text.tail(reach)
    waiting = state.waiting + length
    if not (late.layers and len(matcher.record)):
        waiting = 0
    elif not len(found.row):
        kept = MatchState.wait((*state.late, late.copy()), waiting, reach)
        if kept is not None:
            return MatchState(found, early, kept, waiting, seq)
    text = Block.join((*state.late, late))
    if waiting:
        found = merge(found, matcher.match(layers[first:], text, waiting))
    return MatchState(found, early, (text.tail(reach),), 0, seq)
