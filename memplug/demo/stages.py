"""How long the demo's stages take, and how long learning will still take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from ..methods import METHODS, find_method
from ..methods.editors import shipped_editor

__all__ = ["Clock", "Learning", "needs_nothing"]


class Clock:
    """Times stages: ``with clock("loading"): ...``.

    Attributes:
        seconds: by stage, in order.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._begin = console, time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin

    def show(self) -> None:
        """Print what each stage took, and all."""
        parts = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in self.seconds.items())
        self._console.print(f"\nSeconds: {parts}; {time.perf_counter() - self._begin:.0f} in all.")


class Learning:
    """Progress of learning in parts, with the time that is left; lines where there is no terminal.

    Args:
        console: where it is shown.
        facts: how many are learned.
        first: work before the first of them, in units of the work for one.
        expected: a guess at the seconds of all.
    """

    def __init__(self, console: Console, facts: int, first: float, expected: float) -> None:
        self._console, self._facts, self._first = console, facts, first
        self._done = 0
        self._begin = time.perf_counter()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("learning, {task.completed:.0f} of {task.total:.0f} facts learned"),
            BarColumn(bar_width=20),
            _Left(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=facts, expected=expected)
        if not console.is_terminal:
            console.print(f"Learning {facts} facts: about {expected:.0f} s.")

    def __enter__(self) -> Learning:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def learned(self, facts: int) -> None:
        """So many more are."""
        self._done += facts
        spent = time.perf_counter() - self._begin
        expected = spent * (self._first + self._facts) / (self._first + self._done)
        fields: dict[str, Any] = {"expected": expected}
        self._bar.update(self._task, advance=facts, **fields)
        if not self._console.is_terminal:
            left = f", about {expected - spent:.0f} s left" if self._done < self._facts else ""
            self._console.print(f"  {self._done} of {self._facts} learned{left}")


class _Left(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.fields["expected"] - (task.elapsed or 0.0)
        return Text(f"about {max(left, 1):.0f} s left")


def needs_nothing(name: str, model: Any) -> bool:
    """Whether a method edits this model at once: it needs no fitting, or its editor is shipped. True of a
    name that is no method's: that is told where it is attached."""
    if name not in METHODS:
        return True
    found = find_method(name)
    return not hasattr(found.method, "fit") or shipped_editor(name, model, found.config()) is not None
