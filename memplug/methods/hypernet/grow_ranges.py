"""Over which modules edits are spread: the published ones, and as many more as the edits need.

A change of one module acts through its inputs, of which it has d_k directions; every answer token of an edit
takes one. Where tokens outnumber directions, later edits overwrite earlier ones and what other facts run
through. Wide models have room enough in the published layers; narrow ones need more of them.

Letters: d_k a module's input width.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...interface import Host
from ...model.architecture import UnsupportedModelError
from ...weights.modules import Range, find_sites

__all__ = ["grow_ranges"]


def grow_ranges(host: Host, ranges: Sequence[Range], capacity: int) -> tuple[Range, ...]:
    """``ranges``, grown by a layer on either side until their modules have ``capacity`` inputs together; if
    they are the whole depth before that, the linears that lead back to the model's width come to them. They
    end before a layer that has no such linears.

    Args:
        host: the model.
        ranges: what to start from.
        capacity: the sum of d_k that is wanted; 0 for the ranges as they are.

    Raises:
        UnsupportedModelError: ``ranges`` as they are hold a layer without such linears; see `find_sites`.
    """
    layer = 1 / len(host.architecture.layers)
    taken = tuple(ranges)
    room = _room(host, taken)
    while room < capacity:
        grown = tuple(
            (which, max(0.0, start - layer), min(1.0, stop + layer)) for which, start, stop in taken
        )
        if grown == taken:
            if ("down", 0.0, 1.0) in taken:
                break
            grown = (*taken, ("down", 0.0, 1.0))
        try:
            room = _room(host, grown)
        except UnsupportedModelError:  # a layer that has no such linears (experts fused into one tensor)
            break
        taken = grown
    return taken


def _room(host: Host, ranges: Sequence[Range]) -> int:
    return sum(site.d_k for site in find_sites(host.model, host.architecture, ranges, writable=False))
