"""What some methods tell about how they decided: votes by layer, chosen modules, code distances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .charts import distances, layers
from .gather import Gathered, Method, dig
from .pictures import svg

__all__ = ["Share", "Vote", "Votes", "decisions", "votes"]

_SHOWN = 30  # prompts of a table of votes


class Vote(NamedTuple):
    """A prompt: its kind, each layer's similarity (None: it has none) and vote, and the edit recalled."""

    prompt: str
    kind: str
    similarity: list[float | None]
    voted: list[bool]
    recalled: str


class Share(NamedTuple):
    """The prompts of a kind: how many, the share for which each layer voted, and that recalled an edit."""

    kind: str
    prompts: int
    voted: list[float]
    recalled: float


class Votes(NamedTuple):
    """The votes of one method on the prompts that its first run noted; ``more`` are not in ``rows``."""

    label: str
    layers: list[int]
    shares: list[Share]
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
        threshold = noted[0].get("threshold", dig(run, "config", "threshold"))
        limit = float(threshold) if isinstance(threshold, int | float) else None
        rows = [_vote(vote, numbers, limit) for vote in noted]
        shares = []
        for kind in dict.fromkeys(row.kind for row in rows):
            its = [row for row in rows if row.kind == kind]
            voted = [sum(row.voted[j] for row in its) / len(its) for j in range(len(numbers))]
            shares.append(Share(kind, len(its), voted, sum(bool(row.recalled) for row in its) / len(its)))
        return Votes(method.label, numbers, shares, rows[:_SHOWN], limit, max(0, len(rows) - _SHOWN))
    return None


def _vote(noted: Mapping[str, Any], numbers: list[int], limit: float | None) -> Vote:
    seen = noted.get("layers") or ()
    similarity = dict(zip(seen, noted.get("similarity") or (), strict=False))
    told = dict(zip(seen, noted.get("voted") or (), strict=False))
    found = [None if similarity.get(n) is None else float(similarity[n]) for n in numbers]
    voted = [
        bool(told.get(n, value is not None and limit is not None and value >= limit))
        for n, value in zip(numbers, found, strict=True)
    ]
    recalled = noted.get("recalled")
    kind, prompt = str(noted.get("kind") or "prompts"), str(noted.get("prompt"))
    return Vote(prompt, kind, found, voted, "" if recalled is None else str(recalled))


def decisions(gathered: Gathered) -> dict[str, Any]:
    """Everything of this kind that the results hold, drawn; empty where they hold none."""
    chosen, codes = [], []
    for method in gathered.done:
        bars = layers(method)
        if bars is not None:
            entropy = [e for run in method.runs if (e := dig(run, "details", "entropy")) is not None]
            chosen.append((svg(bars), sum(entropy) / len(entropy) if entropy else None))
        histogram = distances(method)
        if histogram is not None:
            codes.append(svg(histogram))
    return {"votes": [v for m in gathered.done if (v := votes(m))], "layers": chosen, "codes": codes}
