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
import time
import traceback
import warnings
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, EncoderDecoderCache

from memplug.edits import Edit
from memplug.text.tokens import Text

__all__ = ["Asked", "Outcome", "Stress", "changes", "traces"]

_NEW = 5  # tokens of an answer


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
        if what in ("edit", "delete"):
            held ^= {fact}
        elif what in ("disable", "enable"):
            off ^= {fact}
        paused = what == "pause" or (paused and what != "resume")
        made.append(Change(what, fact))
    return [*made, *([Change("resume")] if paused else []), Change("detach")]


@dataclass
class Outcome:
    """What was counted of the threads' calls, and for how many seconds.

    ``mixed`` are right answers with a change in their middle, ``unjudged`` those that more than one fell into
    and that none explains. ``learned``: what was learned is what is learned alone, to the bit; ``clean``:
    nothing is left on the model.
    """

    calls: int = 0
    wrong: int = 0
    mixed: int = 0
    unjudged: int = 0
    errors: list[str] = field(default_factory=list)
    learned: bool = True
    clean: bool = True
    seconds: float = 0.0


class Stress:
    """A model, ``attach(model, tokenizer)``, the facts that are edited, calls to draw from, and `changes`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        attach: Any,
        facts: Sequence[Edit],
        asked: Sequence[Asked],
        made: Any,
    ) -> None:
        self.model, self.tokenizer, self._attach = model, tokenizer, attach
        self.facts, self.asked, self.made = list(facts), list(asked), list(made)
        self._begins = Text(model, tokenizer).begins  # of an encoder-decoder
        self.trace, model = traces(model), copy.deepcopy(model)
        self.base = {one: self.answer(model, one) for one in self.asked}
        plug = attach(model, tokenizer)
        hands = _Hands(plug, self.facts)
        self.pure = [dict(self.base)]
        self.between: list[dict[Asked, set[Hashable]]] = []
        for change in self.made:
            begun = {one: list(self._begun(model, one)) for one in self.asked if one.kind == "generate"}
            if change.what == "detach":
                self.learned = state_of(plug)
            hands.do(change)
            ended = {one: {self._ended(model, row) for row in rows} for one, rows in begun.items()}
            self.between.append(ended)
            self.pure.append({one: self.answer(model, one) for one in self.asked})

    def answer(self, model: Any, one: Asked) -> Hashable:
        """What a call gives, so that it can be compared."""
        if one.kind == "explain":
            return 0
        given, pad = self._inputs(one), self.tokenizer.pad_token_id
        if one.kind == "forward":
            with torch.no_grad():
                return _bits(model(**given, **self._said(given)).logits[:, -1])
        out = model.generate(**given, max_new_tokens=_NEW, do_sample=False, pad_token_id=pad)
        return tuple(map(tuple, out[:, len(self._begins) or given["input_ids"].shape[1] :].tolist()))

    def _said(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the decoder of an encoder-decoder reads first."""
        rows = [self._begins] * len(given["input_ids"])
        return {"decoder_input_ids": torch.tensor(rows)} if self._begins else {}

    def _inputs(self, one: Asked) -> dict[str, torch.Tensor]:
        out = self.tokenizer(list(one.texts), return_tensors="pt", padding=True)
        return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}

    def _begun(self, model: Any, one: Asked) -> Iterator[_Row]:
        """The generation after each of its forwards."""
        given, cache = self._inputs(one), DynamicCache(config=model.config)
        row = _Row(*given.values(), cache, ())
        if self._begins:
            cache = EncoderDecoderCache(cache, DynamicCache(config=model.config))
            row = _Row(self._said(given)["decoder_input_ids"], row.mask, cache, (), given)
        for _ in range(_NEW - 1):
            row = self._next(model, row)
            yield copy.deepcopy(row)

    @torch.no_grad()
    def _next(self, model: Any, row: _Row) -> _Row:
        positions = (row.mask.cumsum(1) - 1).clamp(min=0)[:, -row.ids.shape[1] :]
        given = {"input_ids": row.ids, "attention_mask": row.mask, "position_ids": positions}
        if row.source is not None:
            given = row.source | {"decoder_input_ids": row.ids}
        token = model(**given, past_key_values=row.cache).logits[:, -1].argmax(-1)
        token[self._over(model, row)] = self.tokenizer.pad_token_id
        mask = torch.cat([row.mask, torch.ones_like(row.mask[:, :1])], 1)
        return _Row(token[:, None], mask, row.cache, (*row.said, token), row.source)

    def _ended(self, model: Any, row: _Row) -> Hashable:
        while len(row.said) < _NEW and not bool(self._over(model, row).all()):
            row = self._next(model, row)
        return tuple(map(tuple, torch.stack(row.said, 1).tolist()))

    def _over(self, model: Any, row: _Row) -> torch.Tensor:  # which rows have said a token that ends them
        ends = torch.tensor(model.generation_config.eos_token_id).flatten()
        said = torch.stack(row.said, 1) if row.said else row.ids[:, :0]
        return torch.isin(said, ends).any(1)

    def run(self, threads: int, calls: int, seed: int = 0) -> Outcome:
        """``calls`` calls by ``threads`` threads, and more until all changes are made."""
        plug = self._attach(self.model, self.tokenizer)
        hands, outcome, clock = _Hands(plug, self.facts), Outcome(), _Clock(threads)
        for change in self.made[:2]:
            clock.tick(hands, change)
        found: list[tuple[Asked, int, int, Hashable]] = []

        def ask(me: int) -> None:
            rng, left = random.Random(seed * 1000 + me), calls // threads
            while left > 0 or not clock.over:
                one, left = rng.choice(self.asked), left - 1
                time.sleep(0 if left >= 0 else 0.02)  # once only the changes are waited for
                clock.rounds[me] += 1
                first = clock.ended
                try:
                    if one.kind == "explain":
                        plug.explain(one.texts[0])
                    answer = self.answer(self.model, one)
                    found.append((one, first, clock.begun, answer))
                except Exception as error:
                    if one.kind != "explain" or "detached" not in str(error):
                        outcome.errors.append(_told(one.kind, error))
            clock.rounds[me] = 1 << 30

        begin = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            for me in range(threads):
                pool.submit(ask, me)
            try:  # each change after every thread has begun a call since the one before
                for number, change in enumerate(self.made[2:]):
                    clock.wait()
                    if change.what == "detach":
                        outcome.learned = state_of(plug) == self.learned
                    clock.tick(hands, change)
                    str(plug.edits)
                    if change.what != "detach" and number % 2 == 0:
                        with tempfile.TemporaryDirectory() as folder:
                            plug.save(folder)
            except Exception as error:
                outcome.errors.append(_told("change", error))
            clock.over = True
        outcome.seconds = time.perf_counter() - begin
        for call in found:
            self._judge(outcome, *call)
        outcome.calls += len(outcome.errors)
        plug.detach()
        again = {one: self.answer(self.model, one) for one in self.asked}
        outcome.clean = traces(self.model) == self.trace and again == self.base
        return outcome

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
    """A generation: ``ids`` are to be read next; ``source`` is what an encoder reads."""

    ids: torch.Tensor
    mask: torch.Tensor
    cache: Any
    said: tuple[torch.Tensor, ...]
    source: dict[str, torch.Tensor] | None = None


class _Clock:
    """Which changes have begun and which have ended, and how many calls each thread has begun."""

    def __init__(self, threads: int) -> None:
        self.begun = self.ended = 0
        self.rounds = [0] * threads
        self.over = False

    def tick(self, hands: _Hands, change: Change) -> None:
        self.begun += 1
        hands.do(change)
        self.ended += 1

    def wait(self) -> None:
        before, until = list(self.rounds), time.monotonic() + 60
        while any(now <= then for now, then in zip(self.rounds, before, strict=True)):
            assert time.monotonic() < until, "a thread has not come back for a minute"
            time.sleep(0.001)


class _Hands:
    """Makes changes on one plug."""

    def __init__(self, plug: Any, facts: Sequence[Edit]) -> None:
        self._plug, self._facts = plug, facts
        self._made: dict[int, Edit] = {}
        self._pause = ExitStack()

    def do(self, change: Change) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if change.what == "detach":
                self._plug.detach()
            elif change.what == "pause":
                self._pause.enter_context(self._plug.paused())
            elif change.what == "resume":
                self._pause.close()
            elif change.what == "edit":
                self._made[change.fact] = self._plug.edit(self._facts[change.fact], progress=False)
            else:
                getattr(self._plug, change.what)(self._made[change.fact])


def state_of(plug: Any) -> dict[str, bytes]:
    """The bits of all that a plug has learned."""
    return {name: _bits(tensor) for name, tensor in plug.method.state().tensors.items()}


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def traces(model: Any) -> dict[str, Any]:
    """What must be as before on a model: each module's attributes and hooks, and the bits of its tensors."""
    found: dict[str, Any] = {f"bits of {name}": _bits(tensor) for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        hooks = [
            len(x) for key, x in sorted(vars(module).items()) if key.endswith("_hooks") and x is not None
        ]
        flags = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        found[name] = (sorted(vars(module)), hooks, flags, module.training)
    return found


def _told(where: str, error: Exception) -> str:
    return f"{where}: {error!r:.200} {traceback.extract_tb(error.__traceback__)[-1]}"
