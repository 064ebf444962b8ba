"""Learning edits: keys that recognise their subjects, questions that ask for them, and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...calibration import Calibration
from ...edits import Edit
from ...memory import KeyMemory
from ...questions import Question
from ...recall import Recall
from ..base import Host
from .config import LLPConfig
from .entries import Entry
from .lessons import Lesson, further_lessons, lessons_of, statements_of
from .passes import Chunk, States, run_lines
from .recognising import Recogniser
from .teaching import Taught, teach

__all__ = ["Learner"]


class Learner:
    """Learns edits with one calibration.

    Args:
        host, recall, config: the method's.
        memory: the keys that are held already; nothing is added to it here.
        calibration: of the think layers and the relation layer, in this order.
    """

    def __init__(
        self,
        host: Host,
        recall: Recall,
        config: LLPConfig,
        memory: KeyMemory,
        calibration: Calibration,
    ) -> None:
        self._host, self._recall, self._config = host, recall, config
        self._calibration = calibration
        self._recogniser = Recogniser(host, config, memory, calibration)

    def learn(
        self,
        part: Sequence[tuple[Entry, Edit]],
        keys: dict[str, list[Tensor]],
        questions: dict[str, tuple[Question, ...]],
        bar: Any,
    ) -> list[Taught]:
        """Values of some edits.

        Args:
            part: the edits, and the entries of their subjects.
            keys: by subject, keys [R,S,K] that are not in the memory yet; new ones are added here.
            questions: by edit, how it is asked for; added here.
            bar: shows how far it is.

        Raises:
            EditError: a loss is not finite.
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

        def advance(how_far: str) -> None:
            bar.update(len(edits))
            bar.set_postfix_str(how_far)

        return teach(host, self._recall, config, edits, [*asking, *others], chunks, advance)

    def _read(self, lessons: Sequence[tuple[int, Lesson]]) -> tuple[list[Chunk], States]:
        places = [[*lesson.subject, *lesson.words] for _, lesson in lessons]
        layers = tuple(dict.fromkeys(self._calibration.layers))
        return run_lines(self._host, self._recall, [one.line for _, one in lessons], places, layers)
