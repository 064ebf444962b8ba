"""What some methods tell about how they decided: votes by layer, chosen modules, code distances."""

from __future__ import annotations

from typing import Any, NamedTuple

from .charts import distances, layers
from .gather import Gathered, Method, dig
from .svg import draw

__all__ = ["Vote", "Votes", "decisions", "votes"]

_SHOWN = 24  # prompts of a table of votes


class Vote(NamedTuple):
    """A prompt, each think layer's similarity (None where it has none), and the edit that was recalled."""

    prompt: str
    similarity: list[float | None]
    recalled: str


class Votes(NamedTuple):
    """The votes of one method; ``threshold`` is the similarity that a vote takes, None if not told."""

    label: str
    layers: list[int]
    rows: list[Vote]
    threshold: float | None
    more: int


def votes(method: Method) -> Votes | None:
    """The votes on the prompts that a run of the method noted; of the first seed that has some."""
    for run in method.runs:
        noted = dig(run, "details", "votes") or []
        numbers = sorted({int(n) for vote in noted for n in vote.get("layers") or ()})
        if not numbers:
            continue
        rows = []
        for vote in noted[:_SHOWN]:
            by_layer = dict(zip(vote.get("layers") or (), vote.get("similarity") or (), strict=False))
            recalled = vote.get("recalled")
            similar = [None if by_layer.get(n) is None else float(by_layer[n]) for n in numbers]
            rows.append(Vote(str(vote.get("prompt")), similar, "" if recalled is None else str(recalled)))
        threshold = dig(run, "config", "threshold")
        number = float(threshold) if isinstance(threshold, int | float) else None
        return Votes(method.label, numbers, rows, number, max(0, len(noted) - _SHOWN))
    return None


def decisions(gathered: Gathered) -> dict[str, Any]:
    """Everything of this kind that the results hold, drawn; empty where they hold none."""
    chosen, codes = [], []
    for method in gathered.done:
        bars = layers(method)
        if bars is not None:
            entropy = [e for run in method.runs if (e := dig(run, "details", "entropy")) is not None]
            chosen.append((draw(bars), sum(entropy) / len(entropy) if entropy else None))
        histogram = distances(method)
        if histogram is not None:
            codes.append(draw(histogram))
    return {"votes": [v for m in gathered.done if (v := votes(m))], "layers": chosen, "codes": codes}
