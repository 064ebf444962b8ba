"""What edits are learned from: keys that recognise their subjects, questions that ask for them, lessons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor
from tqdm.auto import tqdm

from ...edits import Edit
from ...interface import Host
from ...memory import KeyMemory
from ...retrieval.calibration import Calibration
from ...retrieval.entries import Entry
from ...retrieval.lessons import Lesson, further_lessons, lessons_of, statements_of
from ...retrieval.passes import Chunk, Run, States, Upper, run_lines
from ...retrieval.questions import Question
from ...retrieval.recogniser import Recogniser
from .config import LLPConfig

__all__ = ["Learner", "batches"]

T = TypeVar("T")


def batches(
    edits: Sequence[T], size: int, steps: int, progress: bool
) -> Iterator[tuple[Sequence[T], tqdm[Any], Callable[[str], None]]]:
    """``size`` edits at a time, a bar of ``steps`` and one for each, and what moves it on by a step with a
    word on how far that is; some batches need fewer."""
    total = len(edits) * (steps + 1)
    quiet = not progress or not edits
    with tqdm(total=total, desc="learning", unit="step", disable=quiet, leave=False) as bar:
        for at in range(0, len(edits), size):
            part = edits[at : at + size]

            def advance(how_far: str, count: int = len(part)) -> None:
                bar.update(count)
                bar.set_postfix_str(how_far)

            yield part, bar, advance
            bar.update((at + len(part)) * (steps + 1) - bar.n)


class Learner:
    """Reads the lessons of edits, with one calibration.

    Args:
        host, config: the method's.
        upper: runs the layers from the recall layer on.
        memory: the keys that are held already; nothing is added to it here.
        calibration: of the think layers and the relation layer, in this order.
        run: runs lines through the base model.
    """

    def __init__(
        self,
        host: Host,
        upper: Upper,
        config: LLPConfig,
        memory: KeyMemory,
        calibration: Calibration,
        run: Run = run_lines,
    ) -> None:
        self._host, self._upper, self._config, self._run = host, upper, config, run
        self._calibration = calibration
        self._recogniser = Recogniser(host, config, memory, calibration)

    def read(
        self,
        part: Sequence[tuple[Entry, Edit]],
        keys: dict[str, list[Tensor]],
        questions: dict[str, tuple[Question, ...]],
        bar: Any,
    ) -> tuple[list[tuple[int, Lesson]], list[Chunk]]:
        """The lessons of some edits, each with the number of its edit, and their base model's states.

        Args:
            part: the edits, and the entries of their subjects.
            keys: by subject, keys [R,S,K] that are not in the memory yet; new ones are added here.
            questions: by edit, how it is asked for; added here.
            bar: shows how far it is.
        """
        host, config = self._host, self._config
        edits = [edit for _, edit in part]
        bar.set_postfix_str("reading prompts")
        statements = statements_of(host.text, edits)
        asking = [
            (e, one)
            for e, (edit, statement) in enumerate(zip(edits, statements, strict=True))
            for one in lessons_of(host.text, config, edit, statement)
        ]
        chunks, states = self._read(asking)
        others: list[tuple[int, Lesson]] = []
        for e, (draft, edit) in enumerate(part):
            mine = [i for i, (owner, _) in enumerate(asking) if owner == e]
            lessons = [asking[i][1] for i in mine]
            seen = {layer: [some[i] for i in mine] for layer, some in states.layers.items()}
            asked = self._recogniser.recognise(draft, lessons, seen, keys)
            questions[str(edit.id)] = asked
            others += [(e, one) for one in further_lessons(host.text, config, edit, asked, self._calibration)]
        if others:
            bar.set_postfix_str("reading further prompts")
            more = [replace(c, lines=[i + len(asking) for i in c.lines]) for c in self._read(others)[0]]
            chunks = [*chunks, *more]
        return [*asking, *others], chunks

    def _read(self, lessons: Sequence[tuple[int, Lesson]]) -> tuple[list[Chunk], States]:
        places = [[*lesson.subject, *lesson.words] for _, lesson in lessons]
        layers = tuple(dict.fromkeys(self._calibration.layers))
        return self._run(self._host, self._upper, [one.line for _, one in lessons], places, layers)
