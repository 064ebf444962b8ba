"""One run: a method makes all edits of one seed, batch by batch, and is judged on the way and at the end.

A run can be cut off at any moment; it goes on from the last point at which it was saved, and gives what it
would have given.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm.auto import tqdm

from ..edits import Case
from ..evaluation import Answer, Reference, Scores, ask, retained
from ..evaluation.general import General
from ..evaluation.metrics import Judged, generated_exact
from ..plugin import Plug
from ..storage import LoadError
from .casebook import Drawn
from .contenders import Contender
from .cost import Meter, hooks_of, neutral, overhead
from .details import details, recalled
from .fitting import ready
from .folder import Folder, plain
from .preference import preferences
from .progress import Keeper, Tally, plug_folder, save, take_up
from .result import is_failure, named
from .settings import Settings

__all__ = ["Bench", "general_scores", "run"]

FIRST = 100
"""The early edits that are looked at again and again, at most."""


@dataclass(frozen=True)
class Bench:
    """What all runs of one seed share.

    Attributes:
        model, tokenizer: the model, unedited between runs.
        settings: of the comparison.
        folder: its files.
        seed: the seed.
        drawn: the seed's cases.
        reference: the unedited model on them.
        general: the general sets.
        fit_cases: gives the cases to fit on, if there are any.
        progress: show bars.
    """

    model: Any
    tokenizer: Any
    settings: Settings
    folder: Folder
    seed: int
    drawn: Drawn
    reference: Reference
    general: Sequence[General]
    fit_cases: Callable[[], Sequence[Case]] | None
    progress: bool = True

    def ask(self, cases: Sequence[Case], at: Sequence[int]) -> list[Answer]:
        """Rows about these cases, which have the numbers ``at`` in the run."""
        rows = ask(
            self.model,
            self.tokenizer,
            cases,
            self.reference,
            batch_size=self.settings.batch_size,
            max_new_tokens=self.settings.max_new_tokens,
        )
        return [row._replace(case=at[row.case]) for row in rows]

    def abilities(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The model's scores on the general sets, and its answers."""
        return general_scores(self.general, self.model, self.tokenizer, self.settings)

    def scores(self, rows: Sequence[Answer]) -> Scores:
        """Scores of rows."""
        return Scores.from_answers(rows, level=self.settings.level)


def run(bench: Bench, contender: Contender) -> dict[str, Any]:
    """The run of one method, as it stands in the results (``restored`` is for the caller to say).

    A part of the judging beside the scores that raises is left out, and stands among the run's warnings.

    Raises:
        Exception: whatever the method raises; the model is detached from it.
    """
    before = hooks_of(bench.model)
    plug, tally = _begin(bench, contender)
    try:
        _edit(bench, contender, plug, tally)
        return _judge(bench, contender, plug, tally, before)
    except Exception as error:
        error.add_note(f"after {tally.done} of {len(bench.drawn.cases)} edits")
        raise
    finally:
        plug.detach()


def _begin(bench: Bench, contender: Contender) -> tuple[Plug, Tally]:
    """The plug as it was saved, or a fresh one."""
    state = bench.folder.state(contender.label, bench.seed)
    try:
        found = take_up(state, bench.model, bench.tokenizer, contender.paths())
    except LoadError as error:
        warnings.warn(f"{contender.label} begins anew: {error}", stacklevel=2)
        found = None
    if found is not None:
        return found
    bench.folder.forget(contender.label, bench.seed)
    plug, fit = ready(
        contender,
        bench.model,
        bench.tokenizer,
        bench.folder,
        bench.seed,
        bench.fit_cases,
        steps=bench.settings.fit_steps,
        progress=bench.progress,
    )
    return plug, Tally(fit=fit, config=plain(asdict(plug.method.config)))


def _edit(bench: Bench, contender: Contender, plug: Plug, tally: Tally) -> None:
    """Make the edits that are left, look at each right after its batch, and at the points at more."""
    settings, cases, keeper = bench.settings, bench.drawn.cases, Keeper()
    bar = tqdm(
        total=len(cases), desc=f"{contender.label} {bench.seed}", disable=not bench.progress, unit="edit"
    )
    with bar:
        bar.update(tally.done)
        while tally.done < len(cases):
            at = range(tally.done, min(tally.done + settings.batch, len(cases)))
            batch = [cases[i] for i in at]
            with warnings.catch_warnings(record=True) as caught, Meter() as meter:
                warnings.simplefilter("always")
                plug.edit(batch, progress=False)
            tally.seconds += meter.seconds
            tally.host = max(tally.host, meter.host)
            if meter.device is not None:
                tally.device = max(tally.device or 0, meter.device)
            told = Counter(tally.warned)
            told.update(str(one.message) for one in caught)
            tally.warned = dict(told)
            tally.immediate += bench.ask(batch, at)
            tally.done = at.stop
            bar.update(len(batch))
            if tally.done in settings.points and tally.done < len(cases):
                tally.curve.append(_look(bench, tally, None))
            if tally.done in settings.points or keeper.due():
                with keeper:
                    save(bench.folder.state(contender.label, bench.seed), plug, tally)


def _look(bench: Bench, tally: Tally, rows: Sequence[Answer] | None) -> dict[str, Any]:
    """A point of the curve; ``rows`` are those about all edits, where they have been asked already (and are
    among the run's answers)."""
    asked = rows is None
    k = min(FIRST, bench.settings.points[0])
    first, recent = range(k), range(max(0, tally.done - k), tally.done)
    if rows is None:
        at = sorted({*first, *recent})
        rows = bench.ask([bench.drawn.cases[i] for i in at], at)
    general, said = _part(tally, "general abilities", lambda: bench.abilities()) or ({}, {})
    return {
        "edits": tally.done,
        "seconds": tally.seconds,
        "first": bench.scores([row for row in rows if row.case in first]).to_dict(),
        "recent": bench.scores([row for row in rows if row.case in recent]).to_dict(),
        "general": general,
        "general_answers": said,
        "answers": bench.scores(rows).to_dict(answers=True)["answers"] if asked else None,
    }


def _judge(
    bench: Bench, contender: Contender, plug: Plug, tally: Tally, before: frozenset[int]
) -> dict[str, Any]:
    cases, settings = bench.drawn.cases, bench.settings
    # One batch of all edits was looked at right after it: nothing has changed since.
    once = settings.batch >= len(cases)
    final = list(tally.immediate) if once else bench.ask(cases, range(len(cases)))
    last = _look(bench, tally, final)
    first = [row for row in final if row.case < FIRST]
    immediate, scores = bench.scores(tally.immediate), bench.scores(final)
    state = bench.folder.state(contender.label, bench.seed)
    size = sum(file.stat().st_size for file in plug_folder(state, tally).rglob("*") if file.is_file())
    learned = plug.method.state().tensors.values()
    spent = _part(tally, "overhead", lambda: _overhead(bench, plug, tally, before)) or {}
    likelier = _part(
        tally,
        "preferences",
        lambda: preferences(bench.model, bench.tokenizer, bench.drawn, bench.reference, settings),
    )
    told = _part(tally, "details", lambda: details(plug, cases)) or {}
    out = {
        **named(contender, bench.seed),
        "status": "done",
        "error": None,
        "config": tally.config,
        "fit": tally.fit,
        "cost": {
            "seconds": tally.seconds,
            "seconds_per_edit": tally.seconds / len(cases),
            "peak_host_bytes": tally.host,
            "peak_device_bytes": tally.device,
            "parameters": sum(t.numel() for t in learned if t.is_floating_point()),
            "bytes": size,
            "bytes_per_edit": size / len(cases),
            "forward": spent.get("forward"),
            "decode": spent.get("decode"),
        },
        "immediate": immediate.to_dict(),
        "final": scores.to_dict(),
        "first": bench.scores(first).to_dict(),
        "retained": _retained(tally.immediate, final),
        "preference": likelier,
        "curve": [*tally.curve, last],
        "general": last["general"],
        "details": told,
        "warnings": tally.warned,
        "answers": {
            "immediate": immediate.to_dict(answers=True)["answers"],
            "final": scores.to_dict(answers=True)["answers"],
        },
    }
    return plain(out)


def _part(tally: Tally, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` gives; None where it raises, which is noted: edits and scores are too dear to lose."""
    try:
        return make()
    except Exception as error:
        if not is_failure(error):
            raise
        told = f"{name} left out: {type(error).__name__}: {' '.join(str(error).split())}"
        tally.warned[told] = tally.warned.get(told, 0) + 1
        return None


def _overhead(bench: Bench, plug: Plug, tally: Tally, before: frozenset[int]) -> dict[str, Any]:
    """What a forward costs where nothing is to be recalled, and whether something was."""
    found = overhead(bench.model, bench.tokenizer, neutral(bench.drawn.cases), before)
    costs = found.to_dict()
    costs["forward"]["recalled"] = recalled(plug, found.text)
    if costs["forward"]["recalled"]:
        tally.warned["an edit was recalled in the text that forwards were timed on, though it names none"] = 1
    return costs


def _retained(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, float | None]:
    """`retained`, of whole answers as generated, or teacher forced where none were."""

    def held(row: Answer) -> float:
        return float(row.whole if row.text is None else generated_exact(row.text, row.target))

    groups = ("efficacy", "generalization")
    pairs = {
        name: [[held(r) for r in rows if r.group == name] for rows in (before, after)] for name in groups
    }
    return {name: retained(*pair) for name, pair in pairs.items()}


def general_scores(
    sets: Sequence[General], model: Any, tokenizer: Any, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's scores on all general sets by measure, and its answers by set, plain."""
    found: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for one in sets:
        scores = one.score(model, tokenizer, batch_size=settings.batch_size, level=settings.level)
        found |= {name: plain(score._asdict()) for name, score in scores.items()}
        answers[one.name] = plain(scores.answers) if isinstance(scores, Judged) else None
    return found, answers
