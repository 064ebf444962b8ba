"""What a method can say about its decisions, gathered over the cases for the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..chat import Prompt, show
from ..edits import Case
from ..plugin import Plug
from ..text import TokenizerError

__all__ = ["details", "recalled"]

_SHOWN = 30  # cases whose decisions are looked at


def details(plug: Plug, cases: Sequence[Case]) -> dict[str, Any]:
    """How often modules were chosen, how layers voted, how far codes lie apart: what there is of these.

    Args:
        plug: holds the edits of ``cases``.
        cases: what was edited; the first 30 are looked at.
    """
    found: dict[str, Any] = {}
    ledger = getattr(plug.method, "ledger", None)
    if ledger is not None:
        found |= _choices([entry.notes for entry in ledger.entries])
    said = plug.explain(cases[0].edit.prompt)
    if hasattr(said, "recalled") and hasattr(said, "quorum"):
        found |= _votes(plug, cases[:_SHOWN])
    elif hasattr(said, "distance") and hasattr(said, "uses"):
        found |= _distances(plug, cases[:_SHOWN])
    return found


def recalled(plug: Plug, text: str) -> bool | None:
    """Whether an edit comes into play where the model reads a text; None where the method cannot tell, or the
    text, put into tokens once more, does not fit into the model's context."""
    try:
        said = plug.explain(text)
    except TokenizerError:
        return None
    if hasattr(said, "recalled"):
        return said.recalled is not None
    if hasattr(said, "deferred"):
        return not said.deferred
    notes = getattr(said, "notes", None)
    return bool(notes) if isinstance(notes, str) else None


def _choices(notes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Times each module was chosen, and the entropy of that in bits; where modules are chosen at all."""
    chosen = Counter(name for note in notes if "scores" in note for name in note["chosen"])
    if not chosen:
        return {}
    everything = {name: 0 for note in notes for name in note.get("scores", {})}
    total = sum(chosen.values())
    entropy = -sum(n / total * math.log2(n / total) for n in chosen.values())
    return {"layers": everything | dict(chosen), "entropy": entropy}


def _votes(plug: Plug, cases: Sequence[Case]) -> dict[str, Any]:
    """What each layer saw of the subject in one rephrasing and one unrelated prompt of each case."""
    rows = []
    for case in cases:
        for kind, prompts in (
            ("edited", [case.edit.prompt]),
            ("rephrased", case.rephrases[:1]),
            ("unrelated", [probe.prompt for probe in case.locality[:1]]),
        ):
            for prompt in prompts:
                said = plug.explain(prompt)
                seen = said.recalled or said.runner_up
                rows.append(
                    {
                        "prompt": show(prompt),
                        "kind": kind,
                        "layers": [vote.layer for vote in seen.layers] if seen else [],
                        "similarity": [vote.similarity for vote in seen.layers] if seen else [],
                        "voted": [vote.voted for vote in seen.layers] if seen else [],
                        "threshold": said.threshold,
                        "recalled": said.recalled.edits[0].id if said.recalled else None,
                    }
                )
    return {"votes": rows}


def _distances(plug: Plug, cases: Sequence[Case]) -> dict[str, Any]:
    """Bits between each prompt's code and the nearest edit's."""
    groups: dict[str, list[Prompt]] = {
        "edited": [case.edit.prompt for case in cases],
        "rephrased": [prompt for case in cases for prompt in case.rephrases[:1]],
        "unrelated": [probe.prompt for case in cases for probe in case.locality[:1]],
    }
    said = {name: [plug.explain(prompt) for prompt in prompts] for name, prompts in groups.items()}
    distances = {
        name: [one.distance for one in ones if one.distance is not None] for name, ones in said.items()
    }
    return {"distances": distances | {"epsilon": next(one.epsilon for one in said["edited"])}}
