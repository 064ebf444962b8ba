"""What methods tell about their decisions: the one place that knows how each kind of them says so."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..edits import Case, Edit
from ..interface import Explanation
from ..methods.elder.explain import Explanation as Routed
from ..plugin import Plug
from ..retrieval.explanation import Explanation as Voted
from ..text.chat import Prompt, show

__all__ = ["details", "module_choices", "recalled"]

_SHOWN = 30  # cases whose decisions are looked at


def recalled(said: Any) -> tuple[Edit, ...] | None:
    """The edits that come into play according to a method's explanation; None where it cannot tell."""
    return said.edits if isinstance(said, Explanation) else None


def details(plug: Plug, cases: Sequence[Case]) -> dict[str, Any]:
    """What there is of these: how often modules were chosen, how layers voted, how far codes lie apart.

    Args:
        plug: holds the edits of ``cases``.
        cases: what was edited; the first 30 are looked at.
    """
    ledger = getattr(plug.method, "ledger", None)
    found = {} if ledger is None else module_choices([entry.notes for entry in ledger.entries])
    prompts: list[tuple[str, Prompt]] = []
    for case in cases[:_SHOWN]:
        prompts.append(("edited", case.edit.prompt))
        prompts += [("rephrased", prompt) for prompt in case.rephrases[:1]]
        prompts += [("unrelated", probe.prompt) for probe in case.locality[:1]]
    first = plug.explain(prompts[0][1])
    if isinstance(first, Voted):
        found["votes"] = [{"prompt": show(p), "kind": kind, **_votes(plug.explain(p))} for kind, p in prompts]
    elif isinstance(first, Routed):
        distances: dict[str, Any] = {"edited": [], "rephrased": [], "unrelated": []}
        for kind, prompt in prompts:
            distances[kind].append(plug.explain(prompt).distance)
        found["distances"] = {k: [d for d in its if not math.isnan(d)] for k, its in distances.items()}
        found["distances"]["epsilon"] = first.limit
    return found


def module_choices(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Times each module was chosen, and the entropy of that in bits; where modules are chosen at all."""
    chosen = Counter(name for note in notes if "scores" in note for name in note["chosen"])
    if not chosen:
        return {}
    everything = {name: 0 for note in notes for name in note.get("scores", {})}
    shares = [count / chosen.total() for count in chosen.values()]
    return {
        "layers": everything | dict(chosen),
        "entropy": -sum(share * math.log2(share) for share in shares),
    }


def _votes(said: Voted) -> dict[str, Any]:
    """What each layer saw of the subject that is recalled, or else of the next best."""
    seen = said.recalled or said.runner_up
    layers = seen.layers if seen else ()
    return {
        "layers": [vote.layer for vote in layers],
        "similarity": [vote.similarity for vote in layers],
        "voted": [vote.voted for vote in layers],
        "threshold": said.threshold,
        "recalled": said.recalled.edits[0].id if said.recalled else None,
    }
