"""What a weight edit did, for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...edits import Edit
from ...text.chat import Prompt, quoted
from ...text.printable import printable
from ...weights.ledger import Ledger
from ...weights.solve import factor_norm

__all__ = ["EditReport", "Explanation", "Touched", "report"]


class Touched(NamedTuple):
    """One edit in one module; the norm is that of the edit's own share of the batch's change, all steps
    together (of the batch's change itself where that was trained as a whole). See `LowRankUpdate.of`: the
    shares of a batch's edits add up to its change, their norms need not.

    Attributes:
        module: the module's name.
        norm: Frobenius norm of the edit's change.
        share: the same over the norm of the original weight.
    """

    module: str
    norm: float
    share: float


@dataclass(frozen=True)
class EditReport:
    """One edit.

    Attributes:
        id, prompt, target: the edit.
        on: whether it is in force.
        touched: what it changed.
        scores: the gate's score by module, where modules are chosen.
        chosen: the modules chosen.
    """

    id: str
    prompt: Prompt
    target: str
    on: bool
    touched: tuple[Touched, ...]
    scores: dict[str, float]
    chosen: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What the edits do to a prompt.

    Attributes:
        prompt: the prompt.
        base: the first tokens of the base model's answer.
        edited: the same of the model as it is now.
        change: by module, the norm of all edits' change over the original weight's.
        edits: the edits of the same prompt or subject; all that are in force change the weights.
    """

    prompt: Prompt
    base: str
    edited: str
    change: dict[str, float]
    edits: tuple[EditReport, ...]

    def __str__(self) -> str:
        lines = [f"{quoted(self.prompt)}", f"  base model: {self.base!r}", f"  edited:     {self.edited!r}"]
        for edit in self.edits:
            state = f"{printable(edit.id)} ({'on' if edit.on else 'off'})"
            lines.append(f"  {state}: {quoted(edit.prompt)} -> {edit.target!r}")
            for module, norm, share in edit.touched:
                score = f"  score {edit.scores[module]:+.3f}" if module in edit.scores else ""
                lines.append(f"    {module}  norm {norm:.3g} ({100 * share:.2g} % of the weight's){score}")
            for module, value in edit.scores.items():
                if module not in edit.chosen:
                    lines.append(f"    {module}  not chosen  score {value:+.3f}")
        lines.append("  all edits in force together change:")
        lines += [f"    {module}  by {100 * share:.2g} %" for module, share in self.change.items()]
        return "\n".join(lines)


def report(ledger: Ledger, edit: Edit) -> EditReport:
    """What an edit of the ledger changed: its own share of its batch's solve, all edits of it counted in."""
    entry = next(entry for entry in ledger.entries if edit.id in entry.ids)
    place = entry.ids.index(str(edit.id))
    steps: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for part in entry.parts:
        steps.setdefault(part.site, []).append(part.of(place))
    touched = []
    for name, pairs in steps.items():
        norm = float(factor_norm(torch.cat([a for a, _ in pairs], dim=1), torch.cat([b for _, b in pairs])))
        touched.append(Touched(name, norm, norm / max(ledger.originals.norm(name), 1e-12)))
    own = [whole for whole in entry.wholes if edit.id in whole.ids]
    for whole in (whole for whole in own if whole.ids == own[0].ids):
        norm = float(whole.change.norm())
        touched.append(Touched(whole.site, norm, norm / max(ledger.originals.norm(whole.site), 1e-12)))
    scores = dict(entry.notes.get("scores", {}))
    chosen = tuple(entry.notes.get("chosen", [one.module for one in touched]))
    return EditReport(
        str(edit.id), edit.prompt, edit.target, str(edit.id) in entry.on, tuple(touched), scores, chosen
    )
