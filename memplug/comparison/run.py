"""One run: a method makes all edits of one seed, batch by batch, and is judged on the way and at the end.

A run can be cut off at any moment; it goes on from the last point at which it was saved, and gives what it
would have given.
"""

from __future__ import annotations

import errno
import json
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from tqdm.auto import tqdm

from ..evaluation import Answer, retained
from ..evaluation.metrics import Judged
from ..plugin import Plug
from ..saving.plugs import LoadError, SaveError
from ..text.tokens import TokenizerError
from .checkpoint import Checkpoint, RunState
from .context import RunContext
from .cost import Meter, neutral, overhead
from .decisions import details, recalled
from .fitting import attach_fitted
from .folder import plain
from .model_state import hooks_of
from .preference import preferences
from .specs import MethodSpec

__all__ = ["failed_row", "general_scores", "is_failure", "run"]

FIRST = 100
"""The early edits that are looked at again and again, at most."""


def run(context: RunContext, spec: MethodSpec) -> dict[str, Any]:
    """The run of one method, as it stands in the results (``restored`` is for the caller to say).

    A part of the judging beside the scores that raises is left out, and stands among the run's warnings.

    Raises:
        Exception: whatever the method raises; the model is detached from it.
    """
    before = hooks_of(context.model)
    checkpoint = Checkpoint(context.folder.state(spec.label, context.seed))
    plug, state = _begin(context, spec, checkpoint)
    try:
        _edit(context, spec, plug, state, checkpoint)
        return _judge(context, spec, plug, state, checkpoint, before)
    except Exception as error:
        error.add_note(f"after {state.done} of {len(context.drawn.cases)} edits")
        raise
    finally:
        plug.detach()


def _begin(context: RunContext, spec: MethodSpec, checkpoint: Checkpoint) -> tuple[Plug, RunState]:
    """The plug as it was saved, or a fresh one."""
    try:
        found = checkpoint.load(context.model, context.tokenizer, spec.paths())
    except LoadError as error:
        warnings.warn(f"{spec.label} begins anew: {error}", stacklevel=2)
        found = None
    if found is not None:
        return found
    checkpoint.remove()
    plug, fit = attach_fitted(spec, context)
    return plug, RunState(fit=fit, config=plain(asdict(plug.method.config)))


def _edit(context: RunContext, spec: MethodSpec, plug: Plug, state: RunState, checkpoint: Checkpoint) -> None:
    """Make the edits that are left, look at each right after its batch, and at the points at more."""
    settings, cases = context.settings, context.drawn.cases
    name, quiet = f"{spec.label} {context.seed}", not context.progress
    with tqdm(total=len(cases), initial=state.done, desc=name, disable=quiet, unit="edit") as bar:
        while state.done < len(cases):
            at = range(state.done, min(state.done + settings.batch, len(cases)))
            with warnings.catch_warnings(record=True) as caught, Meter() as meter:
                warnings.simplefilter("always")
                plug.edit([cases[i] for i in at], progress=False)
            state.seconds += meter.seconds
            state.host = max(state.host, meter.host)
            if meter.device is not None:
                state.device = max(state.device or 0, meter.device)
            for warning in caught:
                state.warn(str(warning.message))
            state.immediate += context.ask(at)
            state.done = at.stop
            bar.update(len(at))
            if state.done in settings.points and state.done < len(cases):
                state.curve.append(_point(context, state, None))
            if state.done in settings.points or checkpoint.due():
                checkpoint.save(plug, state)


def _point(context: RunContext, state: RunState, rows: Sequence[Answer] | None) -> dict[str, Any]:
    """A point of the curve; ``rows`` are those about all edits, where they have been asked already (and are
    among the run's answers)."""
    k = min(FIRST, context.settings.points[0])
    first, recent = range(k), range(max(0, state.done - k), state.done)
    asked = context.ask(sorted({*first, *recent})) if rows is None else rows
    general, said = _part(state, "general abilities", lambda: general_scores(context)) or ({}, {})
    return {
        "edits": state.done,
        "seconds": state.seconds,
        "first": context.scores([row for row in asked if row.case in first]).to_dict(),
        "recent": context.scores([row for row in asked if row.case in recent]).to_dict(),
        "general": general,
        "general_answers": said,
        "answers": [row.to_dict() for row in asked] if rows is None else None,
    }


def _judge(
    context: RunContext,
    spec: MethodSpec,
    plug: Plug,
    state: RunState,
    checkpoint: Checkpoint,
    before: frozenset[int],
) -> dict[str, Any]:
    cases = context.drawn.cases
    # One batch of all edits was looked at right after it: nothing has changed since.
    once = context.settings.batch >= len(cases)
    final = list(state.immediate) if once else context.ask(range(len(cases)))
    last = _point(context, state, final)
    size = checkpoint.size()
    learned = plug.method.state().tensors.values()
    spent = _part(state, "overhead", lambda: _overhead(context, plug, state, before)) or {}
    likelier = _part(state, "preferences", lambda: preferences(context))
    return plain(
        {
            **_named(spec, context.seed),
            "status": "done",
            "error": None,
            "config": state.config,
            "fit": state.fit,
            "cost": {
                "seconds": state.seconds,
                "seconds_per_edit": state.seconds / len(cases),
                "peak_host_bytes": state.host,
                "peak_device_bytes": state.device,
                "parameters": sum(t.numel() for t in learned if t.is_floating_point()),
                "bytes": size,
                "bytes_per_edit": size / len(cases),
                "forward": spent.get("forward"),
                "decode": spent.get("decode"),
            },
            "immediate": context.scores(state.immediate).to_dict(),
            "final": context.scores(final).to_dict(),
            "first": context.scores([row for row in final if row.case < FIRST]).to_dict(),
            "retained": _retained(state.immediate, final),
            "preference": likelier,
            "curve": [*state.curve, last],
            "general": last["general"],
            "details": _part(state, "details", lambda: details(plug, cases)) or {},
            "warnings": state.warned,
            "answers": {
                "immediate": [row.to_dict() for row in state.immediate],
                "final": [row.to_dict() for row in final],
            },
        }
    )


def _part(state: RunState, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives; None where it raises, which is noted: edits and scores are too dear to lose."""
    try:
        return make()
    except Exception as error:
        if not is_failure(error):
            raise
        state.warn(f"{name} left out: {type(error).__name__}: {' '.join(str(error).split())}")
        return None


def _overhead(context: RunContext, plug: Plug, state: RunState, before: frozenset[int]) -> dict[str, Any]:
    """What a forward costs where nothing is to be recalled, and whether something was."""
    found = overhead(context.model, context.tokenizer, neutral(context.drawn.cases), before)
    costs = found.to_dict()
    try:
        edits = recalled(plug.explain(found.text))
    except TokenizerError:  # put into tokens once more, it may not fit into the model's context
        edits = None
    costs["forward"]["recalled"] = None if edits is None else bool(edits)
    if edits:
        state.warn("an edit was recalled in the text that forwards were timed on, though it names none")
    return costs


def _retained(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, float | None]:
    """`retained`, of whole answers as generated, or teacher forced where none were."""
    return {
        group: retained(
            *([float(r.right or 0) for r in rows if r.group == group] for rows in (before, after))
        )
        for group in ("efficacy", "generalization")
    }


def general_scores(context: RunContext) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's scores on all general sets by measure, and its answers by set, plain."""
    found: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    size, level = context.settings.batch_size, context.settings.level
    for one in context.general:
        scores = one.score(context.model, context.tokenizer, batch_size=size, level=level)
        found |= {name: plain(score._asdict()) for name, score in scores.items()}
        answers[one.name] = plain(scores.answers) if isinstance(scores, Judged) else None
    return found, answers


def _named(spec: MethodSpec, seed: int) -> dict[str, Any]:
    """What the row of a run begins with."""
    names = {"method": spec.label, "name": spec.name, "family": spec.family}
    return {**names, "seed": seed, "asked": spec.asked()}


def failed_row(spec: MethodSpec, seed: int, error: BaseException) -> dict[str, Any]:
    """The row of a run that raised."""
    empty = ("fit", "cost", "immediate", "final", "first", "preference", "answers")
    told = {
        "type": type(error).__name__,
        "message": " ".join([str(error), *(f"({note})" for note in getattr(error, "__notes__", ()))]),
        "traceback": "".join(traceback.format_exception(error)),
    }
    config = json.loads(json.dumps(asdict(spec.chosen()), default=str))
    row = {**_named(spec, seed), "status": "failed", "error": told, "config": config, **dict.fromkeys(empty)}
    return plain({**row, "curve": [], "general": {}, "details": {}})


def is_failure(error: Exception) -> bool:
    """Whether an exception says something about the method, and not about the disk."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return not full and not isinstance(error, SaveError)
