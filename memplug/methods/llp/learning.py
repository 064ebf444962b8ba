"""Learning edits: keys that recognise their subjects, questions that ask for them, and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...calibration import Calibration
from ...edits import Edit
from ...listening import span_scores
from ...memory import KeyMemory
from ...questions import Question, likeness
from ...recall import Recall
from ..base import Host
from .calibrating import question_of
from .config import LLPConfig
from .entries import Entry
from .keys import contrast, spellings, think_states
from .lessons import Lesson, lessons_of, other_lessons, statements_of
from .passes import Chunk, States, run_lines
from .teaching import Taught, teach

__all__ = ["Learner"]

_ALIKE = 0.98  # cosine of keys of which one is enough
_ROUNDING = 1e-3  # stored keys are rounded: what just passes here might fail there


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
        self._memory, self._calibration = memory, calibration
        self._layers, self._relation = calibration.layers[:-1], calibration.layers[-1]

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
            asked = self._asked(lessons, [states.layers[self._relation][i] for i in mine])
            questions[str(edit.id)] = asked
            named = [(one.line.ids, one.subject) for one in lessons]
            self._keys_of(draft, named, [self._named(states.layers, asking, i) for i in mine], keys)
            similar, same = self._similar(asked), self._calibration.same
            others += [(e, one) for one in other_lessons(host.text, config, edit, similar, same)]
        if others:
            bar.set_postfix_str("reading what stays")
            more = [replace(c, lines=[i + len(asking) for i in c.lines]) for c in self._read(others)[0]]
            chunks = [*chunks, *more]

        def advance(how_far: str) -> None:
            bar.update(len(edits))
            bar.set_postfix_str(how_far)

        return teach(host, self._recall, config, edits, [*asking, *others], chunks, advance)

    def _read(self, lessons: Sequence[tuple[int, Lesson]]) -> tuple[list[Chunk], States]:
        places = [[*lesson.subject, *lesson.words] for _, lesson in lessons]
        layers = tuple(dict.fromkeys((*self._layers, self._relation)))
        return run_lines(self._host, self._recall, [one.line for _, one in lessons], places, layers)

    def _asked(self, lessons: Sequence[Lesson], states: Sequence[Tensor]) -> tuple[Question, ...]:
        """In which words the edit is asked for; ``states`` are those of each lesson's subject and words."""
        found: dict[tuple[object, ...], Question] = {}
        for one, seen in zip(lessons, states, strict=True):
            words = [t for t in one.words if t not in one.subject]
            key = (one.plain, *(one.line.ids[t] for t in words))
            if one.words and key not in found:
                rows = [len(one.subject) + one.words.index(t) for t in words]
                found[key] = question_of(
                    self._host.text, self._calibration, one.line.ids, words, seen[rows], not one.plain
                )
        return tuple(found.values())

    def _similar(self, asked: Sequence[Question]) -> Tensor:
        """[M]: how like each neutral prompt is to what asks for the edit."""
        lexicon, embed = self._calibration.lexicon, self._host.text.embed
        scores = [
            max(
                (likeness(lexicon, embed, one, other) for one in asked if one.chat == other.chat), default=0.0
            )
            for other in self._calibration.others
        ]
        return torch.tensor(scores, dtype=torch.float32)

    def _units(self, index: int, states: Tensor, begins: Tensor | None = None) -> Tensor:
        return self._calibration.apply(index, states.to(self._calibration.mean.device), begins)

    # ------------------------------------------------------------------ keys

    def _named(
        self, states: Mapping[int, list[Tensor]], lessons: Sequence[tuple[int, Lesson]], i: int
    ) -> Tensor:
        """[R,S,K]: the subject in a lesson, calibrated."""
        span = lessons[i][1].subject
        return self._span(torch.stack([states[layer][i][: len(span)] for layer in self._layers]), span)

    def _span(self, states: Tensor, span: range) -> Tensor:
        """[R,S,K] of states [R,S,D] of the tokens ``span`` of a text."""
        begins = None
        if self._host.text.bos_id is None and span[0] == 0:
            begins = torch.zeros(1, len(span), dtype=torch.bool)
            begins[0, 0] = True
        return torch.cat([self._units(r, one[None], begins) for r, one in enumerate(states)]).cpu()

    def _keys_of(
        self,
        draft: Entry,
        named: Sequence[tuple[Sequence[int], range]],
        spans: Sequence[Tensor],
        keys: dict[str, list[Tensor]],
    ) -> None:
        """A key for each way in which tokens write the subject; one more where none would do in a prompt.

        Args:
            named: the ids of the edit's prompts, and where in each the subject stands.
            spans: its states [R,S,K] there.
        """
        known = [*map(self._memory.get, draft.keys), *keys.get(draft.subject, ())]
        groups: dict[tuple[object, ...], list[Tensor]] = {}
        for (ids, place), span in (*zip(named, spans, strict=True), *(() if known else self._spelled(draft))):
            first = self._host.text.bos_id is None and place[0] == 0
            groups.setdefault((first, *(ids[t] for t in place)), []).append(span)
        others = [self._memory.get(n) for n in self._memory.ids()[-self._config.negatives :]]
        others += [key for name, some in keys.items() if name != draft.subject for key in some]
        mine = keys.setdefault(draft.subject, [])
        for group in groups.values():
            key = contrast(torch.stack(group), others, self._config)
            if not any(_alike(old, key) for old in known):
                mine.append(key)
        for span in spans:
            if not any(self._recognises(key, span) for key in (*known, *mine)):
                mine.append(span)
        if not mine:
            del keys[draft.subject]

    def _spelled(self, draft: Entry) -> list[tuple[tuple[list[int], range], Tensor]]:
        """Other ways to write the subject, and its states there."""
        written = spellings(self._host.text, draft.subject)
        states = think_states(self._host, [ids for ids, _ in written], self._layers)
        return [
            ((ids, span), self._span(states[:, k, span[0] : span[-1] + 1].float(), span))
            for k, (ids, span) in enumerate(written)
        ]

    def _recognises(self, key: Tensor, span: Tensor) -> bool:
        if key.shape[1] > span.shape[1]:
            return False
        valid = torch.ones(span.shape[1], dtype=torch.bool)
        scores = span_scores(F.normalize(span.float(), dim=-1), valid, F.normalize(key.float(), dim=-1))
        return int((scores[:, -1] > self._calibration.threshold + _ROUNDING).sum()) >= self._memory.quorum


def _alike(old: Tensor, key: Tensor) -> bool:
    return old.shape == key.shape and bool(((F.normalize(key, dim=-1) * old).sum(-1) > _ALIKE).all())
