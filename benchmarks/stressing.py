"""Many threads ask one model while its edits change: each answer against what the same call gives alone.

The changes are drawn beforehand and made twice. Alone, on a copy of the model: after each of them every call
is answered, and every generation also with the change in the middle, after each of its forwards. And beside
the threads. An answer is right if it is that of a state that was in force between the call's begin and its
end, or of a generation in which the one became the other. Plain forwards have to be right to the last bit.
"""

from __future__ import annotations

import copy
import random
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from memplug.edits import Edit

__all__ = ["Asked", "Outcome", "Stress", "changes", "traces"]

_NEW = 5  # tokens of an answer
_BREATH = 0.02  # seconds between calls that are made only until the changes are


class Asked(NamedTuple):
    """One call: "generate", "forward", or "explain", which is not compared; and the texts of its batch."""

    kind: str
    texts: tuple[str, ...]


class Change(NamedTuple):
    """What is done to the plug, and with which of the facts."""

    what: str
    fact: int = 0


def changes(facts: int, count: int, seed: int) -> list[Change]:
    """``count`` changes of which each can be made after those before; two edits first, a detach last."""
    rng, held, off = random.Random(seed), set[int](), set[int]()
    made: list[Change] = []
    paused = False
    while len(made) < count - 1:
        on = sorted(held - off)
        can = {
            "edit": [] if paused else sorted(set(range(facts)) - held),
            "delete": on if len(held) > 1 else [],
            "disable": on,
            "enable": sorted(off),
            "pause": [] if paused else [0],
            "resume": [0, 0] if paused else [],
        }
        what = "edit" if len(made) < 2 else rng.choice([name for name, some in can.items() if some])
        fact = rng.choice(can[what])
        if what == "edit":
            held.add(fact)
        elif what == "delete":
            held.remove(fact)
        elif what in ("disable", "enable"):
            (off.add if what == "disable" else off.remove)(fact)
        paused = what == "pause" or (paused and what != "resume")
        made.append(Change(what, fact))
    return [*made, *([Change("resume")] if paused else []), Change("detach")]


@dataclass
class Outcome:
    """What was counted.

    Attributes:
        calls, wrong, mixed: of the threads; ``mixed`` are right answers with a change in their middle.
        unjudged: generations that more than one change fell into and that none explains alone.
        errors: of calls, changes and looks, as text.
        learned: whether what was learned is what is learned alone, to the bit.
        clean: whether nothing is left on the model.
        seconds: while the threads ran.
    """

    calls: int = 0
    wrong: int = 0
    mixed: int = 0
    unjudged: int = 0
    errors: list[str] = field(default_factory=list)
    learned: bool = True
    clean: bool = True
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        return not self.wrong and not self.errors and self.learned and self.clean


class Stress:
    """A model, a way to attach a plug, facts, and what is asked.

    Args:
        model, tokenizer: the model; it is copied for the answers alone.
        attach: ``attach(model, tokenizer)`` gives the plug.
        facts: what is edited.
        asked: the calls to draw from.
        made: see `changes`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        attach: Callable[[Any, Any], Any],
        facts: Sequence[Edit],
        asked: Sequence[Asked],
        made: Sequence[Change],
    ) -> None:
        self.model, self.tokenizer, self._attach = model, tokenizer, attach
        self.facts, self.asked, self.made = list(facts), list(asked), list(made)
        self.trace = traces(model)
        self._alone()

    # ------------------------------------------------------------------ alone

    def _alone(self) -> None:
        model = copy.deepcopy(self.model)
        self.base = {one: self.answer(model, one) for one in self.asked}
        plug = self._attach(model, self.tokenizer)
        hands = _Hands(plug, self.facts)
        self.pure = [dict(self.base)]
        self.between: list[dict[Asked, set[Hashable]]] = []
        for change in self.made:
            begun = {one: list(self._begun(model, one)) for one in self.asked if one.kind == "generate"}
            if change.what == "detach":
                self.learned = state_of(plug)
            hands.do(change)
            self.between.append(
                {one: {self._ended(model, row) for row in rows} for one, rows in begun.items()}
            )
            self.pure.append({one: self.answer(model, one) for one in self.asked})

    def answer(self, model: Any, one: Asked) -> Hashable:
        """What a call gives, so that it can be compared."""
        inputs = self.tokenizer(list(one.texts), return_tensors="pt", padding=True)
        given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        if one.kind == "forward":
            with torch.no_grad():
                return model(**given).logits[:, -1].contiguous().view(torch.uint8).numpy().tobytes()
        if one.kind == "explain":
            return 0
        out = model.generate(
            **given, max_new_tokens=_NEW, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
        )
        return tuple(map(tuple, out[:, given["input_ids"].shape[1] :].tolist()))

    def _begun(self, model: Any, one: Asked) -> Iterator[_Row]:
        """The generation after each of its forwards."""
        inputs = self.tokenizer(list(one.texts), return_tensors="pt", padding=True)
        row = _Row(inputs["input_ids"], inputs["attention_mask"], DynamicCache(config=model.config), ())
        for _ in range(_NEW - 1):
            row = self._next(model, row)
            yield copy.deepcopy(row)

    @torch.no_grad()
    def _next(self, model: Any, row: _Row) -> _Row:
        positions = (row.mask.cumsum(1) - 1).clamp(min=0)[:, -row.ids.shape[1] :]
        out = model(
            input_ids=row.ids, attention_mask=row.mask, position_ids=positions, past_key_values=row.cache
        )
        token = out.logits[:, -1].argmax(-1)
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        for b in range(len(token)):
            if any(int(step[b]) in ends for step in row.said):
                token[b] = self.tokenizer.pad_token_id
        mask = torch.cat([row.mask, torch.ones_like(row.mask[:, :1])], 1)
        return _Row(token[:, None], mask, row.cache, (*row.said, token))

    def _ended(self, model: Any, row: _Row) -> Hashable:
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        while len(row.said) < _NEW and not all(
            ends & {int(s[b]) for s in row.said} for b in range(len(row.ids))
        ):
            row = self._next(model, row)
        return tuple(map(tuple, torch.stack(row.said, 1).tolist()))

    # ------------------------------------------------------------------ beside each other

    def run(self, threads: int, calls: int, seed: int = 0) -> Outcome:
        """``calls`` calls by ``threads`` threads, and more until all changes are made."""
        plug = self._attach(self.model, self.tokenizer)
        hands, outcome, clock = _Hands(plug, self.facts), Outcome(), _Clock(threads)
        for change in self.made[:2]:
            clock.tick(lambda change=change: hands.do(change))  # type: ignore[misc]
        found: list[list[tuple[Asked, int, int, Hashable]]] = [[] for _ in range(threads)]

        def ask(me: int) -> None:
            rng, left = random.Random(seed * 1000 + me), calls // threads
            while left > 0 or not clock.over:
                one = rng.choice(self.asked)
                if one.kind == "explain" and rng.random() < 0.8:  # which keeps changes waiting
                    continue
                left -= 1
                time.sleep(0 if left >= 0 else _BREATH)
                clock.rounds[me] += 1
                first = clock.ended
                try:
                    if one.kind == "explain":
                        plug.explain(one.texts[0])
                    answer = self.answer(self.model, one)
                    found[me].append((one, first, clock.begun, answer))
                except Exception as error:
                    if one.kind != "explain" or "detached" not in str(error):
                        outcome.errors.append(_told(one.kind, error))
            clock.rounds[me] = 1 << 30

        begin = time.perf_counter()
        workers = [threading.Thread(target=ask, args=(me,)) for me in range(threads)]
        for worker in workers:
            worker.start()
        self._change(plug, hands, clock, outcome)
        for worker in workers:
            worker.join()
        outcome.seconds = time.perf_counter() - begin
        for one, first, last, answer in (call for some in found for call in some):
            self._judge(outcome, one, first, last, answer)
        outcome.calls += len(outcome.errors)
        plug.detach()
        outcome.clean = traces(self.model) == self.trace and all(
            self.answer(self.model, one) == right for one, right in self.base.items()
        )
        return outcome

    def _change(self, plug: Any, hands: _Hands, clock: _Clock, outcome: Outcome) -> None:
        """Make the changes, each after every thread has begun a call since the one before; and look."""
        try:
            for number, change in enumerate(self.made[2:]):
                clock.wait()
                if change.what == "detach":
                    outcome.learned = same(state_of(plug), self.learned)
                clock.tick(lambda change=change: hands.do(change))  # type: ignore[misc]
                if change.what != "detach":
                    self._look(plug, number)
        except Exception as error:
            outcome.errors.append(_told("change", error))
        finally:
            clock.over = True

    def _look(self, plug: Any, number: int) -> None:
        """What changes nothing."""
        str(plug.edits)
        if number % 2 == 0:
            with tempfile.TemporaryDirectory() as folder:
                plug.save(folder)

    def _judge(self, outcome: Outcome, one: Asked, first: int, last: int, answer: Hashable) -> None:
        outcome.calls += 1
        if any(self.pure[state][one] == answer for state in range(first, last + 1)):
            return
        if any(answer in self.between[state].get(one, ()) for state in range(first, last)):
            outcome.mixed += 1
        elif one.kind == "generate" and last - first > 1:
            outcome.unjudged += 1
        else:
            outcome.wrong += 1


class _Row(NamedTuple):
    """A generation: the ids to be read next, its mask, its cache, and what was said."""

    ids: torch.Tensor
    mask: torch.Tensor
    cache: Any
    said: tuple[torch.Tensor, ...]


class _Clock:
    """Which changes have begun and which have ended, and how many calls each thread has begun."""

    def __init__(self, threads: int) -> None:
        self.begun = self.ended = 0
        self.rounds = [0] * threads
        self.over = False

    def tick(self, do: Callable[[], None]) -> None:
        self.begun += 1
        do()
        self.ended += 1

    def wait(self) -> None:
        before, until = list(self.rounds), time.monotonic() + 60
        while any(now <= then for now, then in zip(self.rounds, before, strict=True)):
            if time.monotonic() > until:
                raise TimeoutError("a thread has not come back for a minute")
            time.sleep(0.001)


class _Hands:
    """Makes changes on one plug."""

    def __init__(self, plug: Any, facts: Sequence[Edit]) -> None:
        self._plug, self._facts = plug, facts
        self._made: dict[int, Edit] = {}
        self._pause: Any = None

    def do(self, change: Change) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if change.what == "detach":
                self._plug.detach()
            elif change.what == "pause":
                self._pause = self._plug.paused()
                self._pause.__enter__()
            elif change.what == "resume":
                self._pause.__exit__(None, None, None)
            elif change.what == "edit":
                fact = self._facts[change.fact]
                self._made[change.fact] = self._plug.edit(
                    fact.prompt, fact.target, fact.subject, progress=False
                )
            else:
                getattr(self._plug, change.what)(self._made[change.fact])


def state_of(plug: Any) -> dict[str, torch.Tensor]:
    """Copies of all that a plug has learned."""
    return {name: tensor.clone() for name, tensor in plug.method.state().tensors.items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two states are the same to the bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def traces(model: Any) -> dict[str, Any]:
    """What must be as before on a model: each module's attributes and hooks, and the bits of its tensors."""
    found: dict[str, Any] = {"model": sorted(vars(model))}
    for name, module in model.named_modules():
        hooks = [
            len(x) for key, x in sorted(vars(module).items()) if "_hooks" in key and hasattr(x, "__len__")
        ]
        flags = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        found[name] = (sorted(vars(module)), hooks, flags, module.training)
    for name, tensor in model.state_dict().items():
        found[f"bits of {name}"] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


def _told(where: str, error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
    return f"{where}: {type(error).__name__}: {str(error)[:160]} ({place})"
