"""The demo on the embedded model and its made-up world; then a comparison."""

from __future__ import annotations

import time
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import world
from ..attaching import attach
from ..comparison import compare
from ..edits import Case
from ..evaluation import Scores, answer, evaluate
from ..methods import METHODS
from ..plugin import Plug
from ..text.chat import show
from .stages import needs_nothing

__all__ = ["run"]

_SHOWN = 6
_GENERAL = ("skills:5",)
_METHODS = ("llp", "elder", "rledit", "ultraedit", "finetune", "icl")


def run(edits: int = 100, seed: int = 0, compared: int = 20, out: Path | None = None) -> int:
    """Show it all.

    Args:
        edits: facts to edit.
        seed: which facts.
        compared: edits of the comparison; 0 leaves it out.
        out: the comparison's folder; by default a new one in the current folder.

    Returns:
        0 if the model is back to the bit in the end, 1 if not.
    """
    console = Console()
    begin = time.perf_counter()
    model, tokenizer = world.load()
    cases = [_shorter(case) for case in world.cases(max(edits, compared), seed)]
    same = _edit(console, model, tokenizer, cases[:edits])
    if same and compared:
        same = _compare(console, model, tokenizer, cases[:compared], out or _new_folder())
    console.print(f"{time.perf_counter() - begin:.0f} s in all.")
    return 0 if same else 1


def _shorter(case: Case) -> Case:
    """The case with enough probes for a demo of a minute or two."""
    return Case(case.edit, case.rephrases[:2], case.locality[:3], case.same_subject[:2], case.portability)


def _edit(console: Console, model: Any, tokenizer: Any, cases: list[Case]) -> bool:
    """Edit, look, delete, detach; whether the model is back to the bit."""
    originals = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = sum(p.numel() for p in model.parameters()) / 1e6
    console.print(f"The embedded model: {size:.1f} M parameters, {len(world.facts())} made-up facts.")
    probe = tokenizer(cases[0].edit.prompt, return_tensors="pt")
    with torch.no_grad():
        before = model(**probe).logits

    shown = cases[:_SHOWN]
    old = answer(model, tokenizer, [cases[0].edit.prompt])[0]
    plug = attach(model, tokenizer, method="llp")
    start = time.perf_counter()
    learned = plug.edit(cases)
    seconds = time.perf_counter() - start
    console.print(f"Learned {len(learned)} edits in {seconds:.1f} s ({seconds / len(learned):.2f} s each).\n")
    console.print(_changes(plug, shown))
    console.print(_unchanged(plug, shown))

    start = time.perf_counter()
    scores = evaluate(plug, cases, batch_size=64)
    console.print(_summary(scores, seconds, time.perf_counter() - start))

    gone = learned[0]
    console.print(f"\n[bold]plug.explain[/bold] {escape(str(plug.explain(cases[0].rephrases[0])))}")
    plug.delete(gone)
    after = answer(model, tokenizer, [gone.prompt])[0]
    console.print(f"\nDeleted {gone.id}: {gone.question} [green]{after}[/green] (as before: {after == old})")
    plug.detach()
    with torch.no_grad():
        same = torch.equal(before, model(**probe).logits)
    same = same and all(torch.equal(originals[name], t) for name, t in model.state_dict().items())
    console.print(f"Detached: weights and logits are the base model's to the bit: {same}\n")
    return same


def _compare(console: Console, model: Any, tokenizer: Any, cases: list[Case], out: Path) -> bool:
    """The same edits by several methods; whether each left the model as it was."""
    # Those that need fitting only where an editor comes with the model.
    methods = [name for name in _METHODS if name in METHODS and needs_nothing(name, model)]
    console.print(f"Now {', '.join(methods)} make the same {len(cases)} edits, 10 at a time.")
    comparison = compare(
        model,
        tokenizer,
        cases,
        methods=methods,
        batch=10,
        general=_GENERAL,
        batch_size=64,
        out=out,
        name="world",
        progress=console.is_terminal,
    )
    console.print(comparison.table(title="Side by side"))
    comparison.to_html(out / "report.html")
    comparison.to_markdown(out / "report.md")
    console.print(f"The report with every answer: {escape(str(out / 'report.html'))}", soft_wrap=True)
    return all(run["restored"] for run in comparison.results["runs"])


def _new_folder() -> Path:
    """``memplug-demo`` in the current folder, with a number where there is one already."""
    names = chain(["memplug-demo"], (f"memplug-demo-{i}" for i in count(2)))
    return next(folder for folder in map(Path, names) if not folder.exists())


def _changes(plug: Plug, cases: list[Case]) -> Table:
    table = Table(title="Edited facts, as edited and in a phrasing the model never saw", title_justify="left")
    for heading in ("prompt", "base model", "asked for", "edited model"):
        table.add_column(heading)
    for case in cases:
        prompts = [case.edit.prompt, case.rephrases[0]]
        new = answer(plug.model, plug.tokenizer, prompts)
        with plug.paused():
            old = answer(plug.model, plug.tokenizer, prompts)
        for prompt, was, now in zip(prompts, old, new, strict=True):
            table.add_row(show(prompt), was, case.edit.target, _marked(now, case.edit.target))
        table.add_section()
    return table


def _unchanged(plug: Plug, cases: list[Case]) -> Table:
    table = Table(title="Facts that were not edited", title_justify="left")
    for heading in ("prompt", "base model", "edited model"):
        table.add_column(heading)
    prompts = [probe.prompt for case in cases for probe in (case.locality[0], case.same_subject[0])]
    new = answer(plug.model, plug.tokenizer, prompts)
    with plug.paused():
        base = answer(plug.model, plug.tokenizer, prompts)
    for prompt, was, now in zip(prompts, base, new, strict=True):
        table.add_row(show(prompt), was, _marked(now, was))
    return table


def _marked(text: str, wanted: str) -> str:
    return f"[green]{text}[/green]" if text == wanted else f"[red]{text}[/red]"


def _summary(scores: Scores, learning: float, judging: float) -> Any:
    table = scores.table(title="All edits held at once")
    table.caption = f"{table.caption or ''}\n{learning:.1f} s to learn, {judging:.1f} s to judge".strip()
    return table
