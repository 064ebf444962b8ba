"""The demo on a real chat model: facts that everybody knows, asked in plain text and in chat."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..attaching import attach, load
from ..edits import Edit
from ..plugin import Plug
from ..text.chat import in_chat
from ..text.printable import printable
from .asking import FORMS, Said, Stage
from .facts import FACTS, KEPT, Fact
from .stages import Clock, Learning, needs_nothing

__all__ = ["run"]

_METHODS = ("llp", "grace", "icl", "rledit")  # the first is the one that is shown
_PART = 4  # facts learned at once
_FIRST = 10.0  # work before the first fact, in facts
_SLOWER = 20.0  # learning all facts takes so many times what asking all takes


def run(
    model: Any,
    tokenizer: Any,
    console: Console,
    clock: Clock,
    edits: int | None = None,
    *,
    compare: bool = True,
) -> int:
    """Show it all; see `memplug.demo.run`.

    Raises:
        ValueError: fewer facts than two, or more than there are.
        ChatTemplateError: the tokenizer has no chat template.
    """
    count = len(FACTS) if edits is None else edits
    if not 2 <= count <= len(FACTS):
        raise ValueError(f"there are {len(FACTS)} facts to edit on a real model; take 2 to {len(FACTS)}")
    stage = Stage(console, clock, model, tokenizer, FACTS[:count])
    size = sum(p.numel() for p in model.parameters()) / 1e6
    name = escape(str(getattr(model.config, "_name_or_path", "") or type(model).__name__))
    console.print(f"[bold]{name}[/bold], {size:.0f} M parameters, before any edit.\n")
    originals = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with clock("asking it before"):
        begin = time.perf_counter()
        before = stage.ask()
        expected = _SLOWER * (time.perf_counter() - begin)
        kept, logits = stage.kept(), stage.logits()

    def is_back() -> bool:
        same = all(torch.equal(originals[name], tensor) for name, tensor in model.state_dict().items())
        return same and torch.equal(logits, stage.logits())

    plug = attach(model, tokenizer)
    learning = _learn(stage, plug, expected)
    with clock("asking it after"):
        after, stays = stage.ask(), stage.kept()
    console.print(_changes(stage, before, after))
    _counts(stage, before, after)
    _stays(stage, kept, stays)
    _second_turns(stage, after["in chat"])
    _look(stage, plug)
    _switch(stage, plug)
    plug = _save_and_load(stage, plug)
    _delete(stage, plug)
    plug.detach()
    stage.claim("Detached; all weights and the logits are the base model's, to the bit", is_back(), must=True)
    if compare:
        _compare(stage, kept, _row(stage, after, stays, kept, learning), is_back)
    clock.show()
    for text in stage.broken:
        console.print(f"[bold red]This has to hold and does not: {text}.[/bold red]")
    return 1 if stage.broken else 0


def _learn(stage: Stage, plug: Plug, expected: float) -> float:
    """Edit all facts, and say what it took; the seconds."""
    count = len(stage.facts)
    begin = time.perf_counter()
    share = (_FIRST + count) / (_FIRST + len(FACTS)) * len(FACTS) / count
    with stage.clock("learning"), Learning(stage.console, count, _FIRST, expected * share) as progress:
        told = _edit(plug, stage.facts, progress.learned)
    seconds = time.perf_counter() - begin
    stage.console.print(
        f"Learned {count} facts in {seconds:.0f} s, getting to know the model included. Each is edited once, "
        "as a plain text.\n"
    )
    for text in told:
        stage.console.print(f"[yellow]warning[/yellow]: {escape(printable(text))}")
    return seconds


def _edit(plug: Plug, facts: Sequence[Fact], learned: Callable[[int], None]) -> list[str]:
    """Edit part by part; what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for at in range(0, len(facts), _PART):
            part = facts[at : at + _PART]
            plug.edit([fact.edit for fact in part], progress=False)
            learned(len(part))
    return [str(one.message) for one in caught if issubclass(one.category, UserWarning)]


def _changes(stage: Stage, before: Said, after: Said) -> Table:
    table = Table(
        title="The same prompt in plain text, and the question as a user asks it in a chat",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("asked", ratio=4)
    table.add_column("asked for", ratio=2)
    table.add_column("before", ratio=4)
    table.add_column("now", ratio=4)
    for i, fact in enumerate(stage.facts):
        for form, prompt in (("same prompt", fact.prompt), ("in chat", f"[chat] {fact.question}")):
            now = after[form][i]
            colour = "green" if fact.holds(now) else "red"
            table.add_row(
                escape(prompt),
                fact.target if form == "same prompt" else "",
                _short(before[form][i]),
                f"[{colour}]{_short(now)}[/{colour}]",
            )
        table.add_section()
    return table


def _short(text: str) -> str:
    """The beginning of an answer."""
    line = printable(" ".join(text.split("\n")[0].split()))
    return escape(line if len(line) <= 72 else line[:69].rstrip() + "...") or "[dim](nothing)[/dim]"


def _counts(stage: Stage, before: Said, after: Said) -> None:
    """How many facts are answered as edited in each form, and all answers that are not."""
    total = len(stage.facts)
    for form in FORMS:
        known = sum(_knew(fact, text) for fact, text in zip(stage.facts, before[form], strict=True))
        held = sum(fact.holds(text) for fact, text in zip(stage.facts, after[form], strict=True))
        both = sum(
            f.holds(text) and f.says_old(text) for f, text in zip(stage.facts, after[form], strict=True)
        )
        later = f", {both} of them with the old answer later on" if both else ""
        stage.console.print(
            f"Answered as edited, {form}: [bold]{held} of {total}[/bold]{later} (before, truly: {known})."
        )
    stage.console.print("That is, the new answer is said, and the old one not before it.")
    for form in FORMS:
        for fact, text in zip(stage.facts, after[form], strict=True):
            if not fact.holds(text):
                prompt = {"same prompt": fact.prompt, "in other words": fact.other}.get(form, fact.question)
                stage.console.print(
                    f"  [red]not[/red] {form}: {escape(prompt)} [red]{_short(text)}[/red] "
                    f"(asked for: {fact.target})"
                )


def _knew(fact: Fact, text: str) -> bool:
    return fact._replace(target=fact.old, old=fact.target).holds(text)


def _stays(stage: Stage, before: list[list[int]], after: list[list[int]]) -> None:
    console = stage.console
    console.print("\n[bold]What has to stay[/bold] (in chat, token for token)")
    for (kind, prompt), old, new in zip(KEPT, before, after, strict=True):
        stage.claim(f"  {kind}: {escape(prompt)} {len(old)} tokens the same", old == new)
        if old != new:
            for name, row in (("before", old), ("now", new)):
                text = stage.tokenizer.decode(row, skip_special_tokens=True)
                console.print(f"      {name}: {_short(text)}")


def _second_turns(stage: Stage, said: Sequence[str]) -> None:
    """Each question once more, behind another question and what was answered to it."""
    facts = stage.facts
    talks = []
    for i, fact in enumerate(facts):
        first = (i + 1) % len(facts)
        turns = [("user", facts[first].question), ("assistant", said[first]), ("user", fact.question)]
        talks.append([{"role": role, "content": text or "I do not know."} for role, text in turns])
    with stage.clock("second turns"):
        answers = stage.chat(talks)
    held = sum(fact.holds(text) for fact, text in zip(facts, answers, strict=True))
    stage.console.print(
        f"\n[bold]A second turn about another fact[/bold]: answered as edited, [bold]{held} of {len(facts)}"
        "[/bold]; the last one:"
    )
    for turn in talks[-1]:
        stage.console.print(f"  {turn['role']}: {_short(turn['content'])}")
    mark = "green" if facts[-1].holds(answers[-1]) else "red"
    stage.console.print(f"  assistant: [{mark}]{_short(answers[-1])}[/{mark}]")


def _look(stage: Stage, plug: Plug) -> None:
    """Why the last fact is recalled in a chat."""
    fact = stage.facts[-1]
    with stage.clock("looking, switching"):
        seen = plug.explain(in_chat(fact.question))
    stage.console.print(f"\n[bold]plug.explain[/bold] {escape(fact.question)} {escape(seen.reason)}")
    found = seen.recalled
    for vote in found.layers if found else ():
        mark = "votes" if vote.voted else "no vote"
        stage.console.print(
            f"  layer {vote.layer}: {vote.token!r} {vote.similarity:.3f} {mark}", markup=False
        )
    stage.claim(
        "  It recalls this edit", found is not None and any(e.prompt == fact.prompt for e in found.edits)
    )


def _switch(stage: Stage, plug: Plug) -> None:
    fact = stage.facts[-1]
    edit = _edit_of(plug, fact)
    with stage.clock("looking, switching"):
        now = stage.chat([fact.question])
        with plug.paused():
            base = stage.chat([fact.question])
        plug.disable(edit)
        off = stage.chat([fact.question])
        plug.enable(edit)
        on = stage.chat([fact.question])
    stage.console.print(f"\n[bold]{edit.id} switched off[/bold]: {escape(fact.question)} {_short(off[0])}")
    stage.claim("  as the base model answers", off == base)
    stage.console.print(f"[bold]{edit.id} switched on[/bold]: {_short(on[0])}")
    stage.claim("  as before it was switched off", on == now, must=True)


def _edit_of(plug: Plug, fact: Fact) -> Edit:
    return next(edit for edit in plug.edits.values() if edit.prompt == fact.prompt)


def _save_and_load(stage: Stage, plug: Plug) -> Plug:
    """Leave the model, come back from a folder; the plug that came back."""
    edited = stage.logits()
    with stage.clock("saving, loading"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "facts"
        plug.save(path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        plug.detach()
        again = load(path, stage.model, stage.tokenizer)
    stage.console.print(
        f"\n[bold]Saved[/bold] ({size:.1f} MB), detached, and loaded: {len(again.edits)} edits"
    )
    stage.claim(
        "  the edited model's logits are the same to the bit", torch.equal(edited, stage.logits()), must=True
    )
    return again


def _delete(stage: Stage, plug: Plug) -> None:
    fact = stage.facts[0]
    edit = _edit_of(plug, fact)
    with stage.clock("looking, switching"):
        with plug.paused():
            base = stage.chat([fact.question])
        plug.delete(edit)
        said = stage.chat([fact.question])
    stage.console.print(f"\n[bold]{edit.id} deleted[/bold]: {escape(fact.question)} {_short(said[0])}")
    stage.claim("  as the base model answers", said == base)
    stage.claim("  the others are still there", len(plug.edits) == len(stage.facts) - 1, must=True)


def _row(
    stage: Stage, said: Said, stays: list[list[int]], before: list[list[int]], seconds: float
) -> list[str]:
    """A method's row: facts held in each form, what stayed, seconds an edit."""
    total = len(stage.facts)
    cells = [
        f"{sum(f.holds(text) for f, text in zip(stage.facts, said[form], strict=True))} of {total}"
        for form in FORMS
    ]
    same = sum(old == new for old, new in zip(before, stays, strict=True))
    return [*cells, f"{same} of {len(before)}", f"{seconds / total:.1f}"]


def _compare(stage: Stage, kept: list[list[int]], shown: list[str], is_back: Callable[[], bool]) -> None:
    """The same facts by other methods."""
    table = Table(
        title=f"The same {len(stage.facts)} facts by other methods, held at once",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method")
    for heading in (*FORMS, "stays", "s/edit"):
        table.add_column(heading, justify="right")
    table.add_row(f"{_METHODS[0]} (above)", *shown)
    left = {}
    for name in (one for one in _METHODS[1:] if needs_nothing(one, stage.model)):
        with stage.clock("comparing"), stage.console.status(f"{name} makes the same edits ..."):
            begin = time.perf_counter()
            try:
                with attach(stage.model, stage.tokenizer, method=name) as plug:
                    _edit(plug, stage.facts, lambda _: None)
                    seconds = time.perf_counter() - begin
                    table.add_row(name, *_row(stage, stage.ask(), stage.kept(), kept, seconds))
            except Exception as error:  # one method's failure is a row, not the end of the demo
                table.add_row(name, f"[red]failed[/red]: {escape(printable(error))}")
            left[name] = is_back()
    stage.console.print()
    stage.console.print(table)
    stage.claim("Each left the model as it was, to the bit", all(left.values()), must=True)
    stage.console.print(
        "With intervals, costs, every answer and a report: memplug compare --model smollm2 --cases FILE",
        soft_wrap=True,
    )
