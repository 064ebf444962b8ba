"""What an edit is recognised by: keys of its subject, and in which words it is asked for.

Both are made from the states that its lessons' prompts have in the base model, in a calibrated space.

Letters: R think layers, S tokens of a subject, D width, K dimensions of calibrated states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..interface import Host
from ..memory import KeyMemory, count_votes, span_similarity
from .calibration import Calibration
from .config import RetrievalConfig
from .entries import Entry
from .keys import contrast, spellings, think_states
from .lessons import Lesson
from .questions import Question, told

__all__ = ["Recogniser"]

_ALIKE = 0.98  # cosine of keys of which one is enough
_ROUNDING = 1e-3  # stored keys are rounded: what just passes here might fail there


class Recogniser:
    """Makes keys and questions with one calibration.

    Args:
        host, config: the method's.
        memory: the keys that are held already; nothing is added to it here.
        calibration: of the think layers and the relation layer, in this order.
    """

    def __init__(
        self, host: Host, config: RetrievalConfig, memory: KeyMemory, calibration: Calibration
    ) -> None:
        self._host, self._config = host, config
        self._memory, self._calibration = memory, calibration
        self._layers, self._relation = calibration.layers[:-1], calibration.layers[-1]

    def recognise(
        self,
        draft: Entry,
        lessons: Sequence[Lesson],
        states: Mapping[int, Sequence[Tensor]],
        keys: dict[str, list[Tensor]],
    ) -> tuple[Question, ...]:
        """How an edit is asked for.

        Args:
            draft: the entry of its subject.
            lessons: those of the edit that ask for it.
            states: by layer, [t,D] for each lesson: those of its subject's tokens, and of its question's.
            keys: by subject, keys [R,S,K] that are not in the memory yet; new ones are added here.
        """
        asked = self._asked(lessons, states[self._relation])
        spans = [
            self._span(
                torch.stack([states[layer][i][: len(one.subject)] for layer in self._layers]), one.subject
            )
            for i, one in enumerate(lessons)
        ]
        self._keys_of(draft, [(one.line.ids, one.subject) for one in lessons], spans, keys)
        return asked

    def _asked(self, lessons: Sequence[Lesson], states: Sequence[Tensor]) -> tuple[Question, ...]:
        """In which words the edit is asked for; ``states`` are those of each lesson's subject and words."""
        found: dict[tuple[object, ...], Question] = {}
        for one, seen in zip(lessons, states, strict=True):
            words = [t for t in one.words if t not in one.subject]
            key = (one.plain, *(one.line.ids[t] for t in words))
            if one.words and key not in found:
                rows = [len(one.subject) + one.words.index(t) for t in told(words)]
                at = seen[rows].to(self._calibration.mean.device)
                found[key] = self._calibration.metric.question(at, not one.plain)
        # Alone, and behind another sentence, where the first word is told from others.
        plain = [i for i, one in enumerate(lessons) if one.plain and one.words][:2]
        begun = [one for i in plain for one in self._unfinished(lessons[i], states[i])]
        return (*found.values(), *begun)

    def _unfinished(self, own: Lesson, states: Tensor) -> list[Question]:
        """The beginnings of an edit's prompt in plain text, where each token may be the last one; those that
        name the subject already."""
        found = []
        for end in own.words[:-1]:
            words = [t for t in own.words if t <= end and t not in own.subject]
            if end >= own.subject[-1] and words:
                rows = [len(own.subject) + own.words.index(t) for t in told(words)]
                at = states[rows].to(self._calibration.mean.device)
                found.append(self._calibration.metric.question(at, False)._replace(asks=False))
        return found

    def _span(self, states: Tensor, span: range) -> Tensor:
        """[R,S,K], calibrated, of states [R,S,D] of the tokens ``span`` of a text."""
        begins = None
        if self._host.text.bos_id is None and span[0] == 0:
            begins = torch.zeros(1, len(span), dtype=torch.bool)
            begins[0, 0] = True
        return torch.cat([self._units(r, one[None], begins) for r, one in enumerate(states)]).cpu()

    def _units(self, index: int, states: Tensor, begins: Tensor | None = None) -> Tensor:
        return self._calibration.apply(index, states.to(self._calibration.mean.device), begins)

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
        scores = span_similarity(F.normalize(span.float(), dim=-1), valid, F.normalize(key.float(), dim=-1))
        passing = scores[:, -1] > self._calibration.least(key) + _ROUNDING
        return bool(count_votes(passing, self._memory.quorum)[1])


def _alike(old: Tensor, key: Tensor) -> bool:
    return old.shape == key.shape and bool(((F.normalize(key, dim=-1) * old).sum(-1) > _ALIKE).all())
