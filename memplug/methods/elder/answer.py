"""Edits that are used where they are asked for, by the answer alone.

Which edits a text asks for is found in LLP's retrieval room. An edit that speaks at a token has its experts
added there, as its own query is routed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attending import lowest_layer
from ...call import Call
from ...edits import Edit
from ...hooks import Hook
from ...questions import Question
from ..base import Host
from ..llp.entries import Entry
from ..llp.learning import Learner
from ..llp.lessons import Lesson, lessons_of
from ..llp.passes import Chunk, run_lines
from ..llp.retriever import Prepared, Retriever
from ..llp.room import Asking, Room
from .config import ELDERConfig
from .deferral import distances
from .knowledge import Knowledge
from .routed import Used
from .whole import FromLayer, Whole, run_whole

__all__ = ["AnswerScope", "Coming"]


@dataclass
class Coming:
    """Edits that are being learned.

    Attributes:
        drafts: the entries that change, by subject.
        keys: by subject, new keys [R,S,K].
        questions: by edit, how it is asked for.
    """

    drafts: dict[str, Entry]
    keys: dict[str, list[Tensor]] = field(default_factory=dict)
    questions: dict[str, tuple[Question, ...]] = field(default_factory=dict)


class AnswerScope:
    """See the module.

    Args:
        host: the model.
        config: with its layers filled in.
        known: gives what is known now.

    Attributes:
        width: q, of queries: calibrated states of the subject, and of the question's words.
    """

    def __init__(self, host: Host, config: ELDERConfig, known: Callable[[], Knowledge]) -> None:
        self._host, self._elder, self._known = host, config, known
        self.retriever = Retriever(host, config.retrieval)
        self.width = self.room.width + host.anatomy.width
        self.upper = FromLayer(host.model, host.anatomy, config.first)
        # What stands before the answer is run once where layers keep keys and values, and nothing else.
        attends = lowest_layer(host.model, host.anatomy) <= config.first
        self._run: Any = run_lines if attends else run_whole
        if config.epsilon is not None:
            self.room.listener.agrees = self._agrees

    @property
    def room(self) -> Room:
        """What listens."""
        return self.retriever.room

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Keep what is listened to."""
        return self.room.hooks()

    def decide(self, call: Call) -> Used | None:
        """The experts in use at each token; of several edits, those of the one that is asked for most."""
        asked, known = self.retriever.asked(call), self._known()
        spoken = [
            (b * len(row) + t, edits[0])
            for b, row in enumerate(asked)
            for t, edits in enumerate(row)
            if edits
        ]
        if not spoken:
            return None
        routes = [known.routed(id) for _, id in spoken]
        picks, weights = (torch.cat(parts, dim=1) for parts in zip(*routes, strict=True))
        return Used(torch.tensor([at for at, _ in spoken]), picks, weights)

    def _agrees(self, id: str, key: int, question: Question) -> bool:
        """Whether the code of a question that names a key's subject is near to an edit's."""
        return self.distance(id, self.retriever.memory.get(key), question) < (self._elder.epsilon or 0)

    def distance(self, id: str, key: Tensor, question: Question) -> int:
        """Hamming distance between an edit's code and that of a question about a subject of this key."""
        known = self._known()
        experts = known.experts
        picks = experts.route(self.query(key, question)[None]).picks
        return int(distances(picks, known.records[id].picks[:, None], experts.n)[0, 0])

    def query(self, key: Tensor, question: Question) -> Tensor:
        """[q] float32: the direction of a subject's key [R,S,K] and that of a question's words."""
        subject = F.normalize(key.float().mean((0, 1)), dim=-1)
        both = torch.cat([subject.cpu(), question.vector.float().cpu()])
        both *= self._elder.gain * (self.width / 2) ** 0.5
        return both.to(self._host.text.device)

    # ------------------------------------------------------------------ edits

    def begin(self, edits: Sequence[Edit], replaced: Sequence[Edit]) -> Coming:
        """Nothing is changed before what comes of it is `put`."""
        return Coming(self.retriever.drafts(edits, replaced))

    def read(
        self, coming: Coming, edits: Sequence[Edit], bar: Any
    ) -> tuple[list[tuple[int, Lesson]], Sequence[Chunk | Whole]]:
        """Lessons of edits, with their numbers, and their rows; ``coming`` learns what they are known by."""
        calibration = self.room.calibrate()
        learner = Learner(
            self._host, self.upper, self._elder.retrieval, self.retriever.memory, calibration, self._run
        )
        part = [(coming.drafts[str(edit.subject)], edit) for edit in edits]
        return learner.read(part, coming.keys, coming.questions, bar)

    def again(self, edits: Sequence[Edit]) -> tuple[list[tuple[int, Lesson]], Sequence[Chunk | Whole]]:
        """Lessons of edits that were learned before, in plain text and in chat, and their rows."""
        found = [
            (e, lesson)
            for e, edit in enumerate(edits)
            for lesson in lessons_of(self._host.text, self._elder.retrieval, edit, None)[:2]
        ]
        if not found:
            return [], []
        return found, self._run(
            self._host, self.upper, [one.line for _, one in found], [()] * len(found), ()
        )[0]

    def queries(self, coming: Coming, edits: Sequence[Edit]) -> list[list[Tensor]]:
        """For each edit the queries [q] of the questions that ask for it, that of its own prompt first."""
        found = []
        for edit in edits:
            subject, id = str(edit.subject), str(edit.id)
            numbers = coming.drafts[subject].keys
            if numbers:
                key = self.retriever.memory.get(numbers[0])
            else:  # as it will be stored
                key = F.normalize(coming.keys[subject][0].float(), dim=-1).half()
            found.append([self.query(key, one) for one in coming.questions[id] if one.asks])
        return found

    def prepared(self, coming: Coming) -> Prepared:
        """What is to be `put` once everything is learned."""
        edits = {id: edit for draft in coming.drafts.values() for id, edit in draft.edits.items()}
        forms = {id: self.room.answers_of(edits[id]) for id in coming.questions}
        return Prepared(coming.drafts, Asking(coming.questions, forms), coming.keys)
