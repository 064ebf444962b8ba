"""The retrieval room: which edits a text asks for, told in a calibrated space.

A subject is found by its keys, and what is asked about it by its words (see `listening`). Knows nothing of
what an edit does where it is asked for: that is each method's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..edits import Edit, EditTable
from ..interface import Host
from ..memory import KeyMemory
from ..model.context import Call
from ..model.hooks import Hook
from ..model.row_state import hold
from ..saving.checked import check_rest
from ..text.printable import brief
from ..text.turns import turns_of
from .calibrate import calibrated
from .calibration import Calibration
from .config import RetrievalConfig
from .listening import Heard, Listener
from .questions import Question, packed, unpacked
from .reading import CLOSES, Reader, Speaking
from .think import think_hooks

__all__ = ["Asking", "Room", "Saved"]


class Asking(NamedTuple):
    """How some edits are asked for, and what answers them.

    Attributes:
        questions: by edit.
        forms: by edit, the token ids of its answer, one tuple for each form of its prompt.
    """

    questions: dict[str, tuple[Question, ...]]
    forms: dict[str, tuple[tuple[int, ...], ...]]


class Saved(NamedTuple):
    """A room's own part of a saved method, checked."""

    calibration: Calibration | None
    questions: dict[str, tuple[Question, ...]]


class Room:
    """Listens to forwards for the edits that a method holds.

    Args:
        host: the model.
        config: constants, with the layers filled in.
        memory: the keys of the edits' subjects, searched and never changed here.
        edits_of: the edits in force of a key's subject.
        edit: the edit of an id.

    Attributes:
        think, relation: the layers that are listened to; the last one says what is asked.
        width: K, of calibrated states.
        calibration: made or loaded with the first edit.
        questions: by edit, how it is asked for.
    """

    def __init__(
        self,
        host: Host,
        config: RetrievalConfig,
        memory: KeyMemory,
        edits_of: Callable[[int], Sequence[str]],
        edit: Callable[[str], Edit],
    ) -> None:
        self._host, self._config, self._edit = host, config, edit
        self.closes: set[str] = set()
        """Edits that end the last word of their answers, see `reading.CLOSES`."""
        self.think = config.think_layers or ()
        self.relation = config.relation_layer or 0
        self.width = min(host.architecture.width, config.rank)
        self.calibration: Calibration | None = None
        self.questions: dict[str, tuple[Question, ...]] = {}
        self._forms: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._matched: dict[str, int | None] = {}
        self.longest = 1
        """Tokens of the longest subject."""
        self._pieces: dict[int, str] = {-1: ""}
        self.turns = turns_of(host.text)
        """The ids around a user's turn; None where there is no template, or it marks none."""
        reader = Reader(self._piece, self.turns, edits_of, self._answers, config.most_recalled)
        self.listener = Listener(
            memory,
            reader,
            self.think,
            self.relation,
            self._asked,
            host.text.bos_id is None,
            host.tracker.gate.looking,
        )

    def _piece(self, token: int) -> str:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._host.text.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            self._pieces[token] = piece
        return piece

    def _asked(self, id: str) -> tuple[Sequence[Question], int | None]:
        asked = self.questions[id]
        if id not in self._matched and self.calibration is not None:
            self._matched[id] = self.calibration.matched(asked)
        return asked, self._matched.get(id)

    def _answers(self, id: str) -> tuple[tuple[int, ...], ...]:
        found = self._forms.get(id)
        if found is None:
            found = self._forms[id] = self.answers_of(self._edit(id), id in self.closes)
        return found

    def answers_of(self, edit: Edit, closes: bool = False) -> tuple[tuple[int, ...], ...]:
        """Token ids of an edit's answer, one tuple for each form of its prompt, ended by `CLOSES` or not."""
        forms: dict[tuple[int, ...], None] = {}
        closing = (CLOSES,) if closes else ()
        for prompt in (edit.prompt, *self._host.text.forms(edit.prompt)[1:]):
            with contextlib.suppress(ValueError):  # a template that rewrites the question
                pair = self._host.text.pair(prompt, edit.target, stop=self._config.train_stop)
                forms[(*pair.ids[pair.start :], *closing)] = None
        return tuple(forms)

    # ------------------------------------------------------------------ forwards

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers that are listened to, each once."""
        return tuple(dict.fromkeys((*self.think, self.relation)))

    def hooks(self) -> list[Hook]:
        """Keep the states of these layers in the running call; `listen` is for a later layer's hook."""
        return think_hooks(self._host.architecture, self._host.tracker, self.layers)

    def listen(self, call: Call) -> tuple[Heard, list[list[tuple[Speaking, ...]]]] | None:
        """What the rows of a forward have read after it, and which edits speak at each of its columns.

        What they have read is kept with their cache. None before the first edit.
        """
        if self.calibration is None:
            return None
        heard, spoken = self.listener.listen(self.calibration, call, self.longest)
        if call.cache is not None:
            hold(call.cache, heard)
        return heard, spoken

    # ------------------------------------------------------------------ edits

    def calibrate(self) -> Calibration:
        """The calibration, made if there is none yet."""
        if self.calibration is None:
            self.calibration = calibrated(self._host, self._config, self.think, self.relation)
        return self.calibration

    def take(self, asking: Asking, keys: Mapping[str, Sequence[Tensor]], held: Collection[str]) -> None:
        """Take over how edits are asked for, inside `Gate.changing`.

        Args:
            asking: of new edits.
            keys: the keys [R,S,K] that were added to the memory.
            held: all edits that are held now; others are forgotten.
        """
        self.questions.update(asking.questions)
        self._forms.update(asking.forms)
        tables: tuple[dict[str, object], ...] = (self.questions, self._forms, self._matched)  # type: ignore[assignment]
        for table in tables:
            for id in table.keys() - held:
                del table[id]
        self.longest = max([self.longest, *(key.shape[1] for some in keys.values() for key in some)])

    # ------------------------------------------------------------------ saving

    def tensors(self) -> dict[str, Tensor]:
        """Questions ("question.*") and the calibration ("calibration.*"), for saving."""
        tensors: dict[str, Tensor] = {}
        for id, asked in self.questions.items():
            tensors |= packed(asked, f"question.{id}.")
        if self.calibration is not None and self.questions:  # one that was made for nothing is not kept
            tensors |= {f"calibration.{name}": t for name, t in self.calibration.tensors().items()}
        return tensors

    def read(self, tensors: Mapping[str, Tensor], edits: EditTable) -> Saved:
        """What `tensors` gave for these edits, checked; nothing is changed.

        Raises:
            ValueError: it is not that, or does not fit the model.
        """
        asked, space = (
            {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)}
            for kind in ("question.", "calibration.")
        )
        made = None
        if space or len(edits):
            layers = (*self.think, self.relation)
            made = Calibration.of(space, layers, self._host.architecture.width, self.width)
        questions = {
            id: tuple(unpacked(tensors, f"question.{id}.", self._host.architecture.width)) for id in edits
        }
        check_rest(asked, (f"{id}.{name}" for id in edits for name in packed((), "")))
        empty = [id for id, some in questions.items() if not some]
        if empty:
            raise ValueError(f"the questions of edit {brief(empty[0])} are empty")
        return Saved(made, questions)

    def take_over(self, saved: Saved, memory: KeyMemory) -> None:
        """Put what `read` gave in place, inside `Gate.changing`; ``memory`` holds the saved keys already."""
        self.calibration = None if saved.calibration is None else saved.calibration.to(self._host.text.device)
        self.questions.clear()
        self._matched.clear()
        self.questions.update(saved.questions)
        self.longest = max((memory.get(n).shape[1] for n in memory.ids()), default=1)
        self._forms.clear()
