"""Edits that are used by whole rows, as published: those whose prompts have a code near to some edit's.

A row's query is read at its last prompt token, once; it decides for all tokens of the row, those to be
generated included. In a plain forward over prompt and answer, `Plug.prompt_lengths` says where the prompt
ends; unsaid, the last real token counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...call import Call
from ...chat import Prompt
from ...edits import Edit
from ...holding import hold
from ...hooks import Hook, OwnHooks, StopForward
from ...layers import evaluating
from ...text import Pair
from ..base import Host
from ..continuing import Continuing, not_in_pieces, rows_of, unflat
from ..llp.lessons import Lesson
from ..llp.passes import Line
from .config import ELDERConfig
from .deferral import Decision, blocked, decide
from .experts import Routing
from .knowledge import Knowledge
from .places import find_site
from .routed import Used
from .whole import FromLayer, Whole, run_whole

__all__ = ["Held", "RowScope"]

_ROWS = 128  # prompts that are looked at together


@dataclass(frozen=True)
class Held:
    """What the rows of a cache were routed by.

    Attributes:
        owner: the scope that decided; another one's decisions do not count.
        version: the state of the edits then; with another one the query decides again.
        query: [B,q].
        scope: BoolTensor [B]; rows out of scope are the base model's.
        routing: of all rows.
        length: columns of the cache when it was decided.
    """

    owner: Any
    version: int
    query: Tensor
    scope: Tensor
    routing: Routing | None
    length: int = 0

    def __len__(self) -> int:
        return len(self.query)

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return self  # nothing in it is ever changed in place

    def select(self, rows: Tensor) -> Held:
        """The same for rows ``rows`` of it."""
        routing = self.routing and Routing(*(x[:, rows.to(x.device)] for x in self.routing))
        query, scope = rows_of(self.query, rows), rows_of(self.scope, rows)
        return Held(self.owner, self.version, query, scope, routing, self.length)

    def crop(self, length: int) -> Held | None:
        """The same for a cache cut to ``length`` columns; None where the prompt is cut as well."""
        return self if length >= self.length else None


class RowScope:
    """See the module.

    Args:
        host: the model.
        config: with its layers filled in.
        known: gives what is known now.

    Attributes:
        width: q, of queries: inputs of the linear below the first edited one.
    """

    def __init__(self, host: Host, config: ELDERConfig, known: Callable[[], Knowledge]) -> None:
        self._host, self._config, self._known = host, config, known
        self._site = find_site(host.model, host.anatomy, config.first - 1, "input")
        self._continuing = Continuing()
        self.width = self._site.width
        self.upper = FromLayer(host.model, host.anatomy, config.first)

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Look at the queries of rows that have none yet."""
        tracker = self._host.tracker

        def look(states: Tensor) -> None:
            call = tracker.current
            if call is None:
                return
            call.check()
            if call.asks or self._held(call) is None:
                call.scratch = unflat(states.detach(), len(call.valid))

        return [self._site.hook(self._host.anatomy, look)]

    def _held(self, call: Call) -> Held | None:
        held = call.held
        mine = isinstance(held, Held) and held.owner is self and len(held) == len(call.valid)
        return held if mine else None

    def decide(self, call: Call) -> Used | None:
        """The experts in use: as decided when the rows' cache was begun, or now if this is the beginning.

        Raises:
            UnsupportedModelError: more of a prompt comes, and decides otherwise than what the cache holds.
        """
        before, known = self._held(call), self._known()
        if before is None and not call.asks:
            return None  # a cache begun without us; what follows is an answer's token, not a prompt's
        held = before
        if held is None or held.version != known.version or call.asks:
            query = self._query(call) if held is None or call.asks else held.query
            if held is None and call.cache is None and not call.past:
                query = self._continuing.keep(call, query, rows_of)
            scope, routing = torch.zeros(len(query), dtype=torch.bool), None
            if known.on():
                routing, decision = self.look(query)
                scope = decision.scope
            length = held.length if held is not None and not call.asks else call.past + call.prompt_width
            held = Held(self, known.version, query, scope, routing, length)
            if call.past and call.asks and any(one is not None and one.scope.any() for one in (before, held)):
                raise not_in_pieces("elder", 'scope="answer"')
            if call.cache is not None:
                hold(call.cache, held)
        if held.routing is None or not bool(held.scope.any()):
            return None
        columns = call.valid.shape[1]
        rows = held.scope.nonzero()[:, 0].repeat_interleave(columns)
        at = rows * columns + torch.arange(columns, device=rows.device).repeat(len(rows) // columns)
        return Used(at, *(rows_of(x.transpose(0, 1), rows).transpose(0, 1) for x in held.routing))

    def _query(self, call: Call) -> Tensor:
        states, ends = call.scratch, call.prompt_end()
        query: Tensor = states[torch.arange(len(ends), device=states.device), ends.to(states.device)]
        return query.float()

    @torch.no_grad()
    def look(self, query: Tensor) -> tuple[Routing, Decision]:
        """Where queries [B,q] are routed, and which are in scope; there has to be an edit in force."""
        known = self._known()
        routing = known.experts.route(query)
        decision = decide(routing.picks, known.codes(), known.experts.n, self._config.epsilon or 0)
        out = blocked(query, [*known.blocks.values()], [record.query for record in known.on()])
        return routing, decision._replace(scope=decision.scope & ~out, blocked=out)

    # ------------------------------------------------------------------ edits

    def rows(self, edits: Sequence[Edit]) -> tuple[list[tuple[int, Lesson]], list[Whole]]:
        """Lessons of edits, with their numbers, and their rows: each one's own prompt and answer."""
        found = []
        for e, edit in enumerate(edits):
            pair: Pair = self._host.text.pair(edit.prompt, edit.target, stop=self._config.train_stop)
            line = Line(tuple(pair.ids), pair.start - 1)
            found.append((e, Lesson(line, range(0), range(0), True, isinstance(edit.prompt, str))))
        lines = [lesson.line for _, lesson in found]
        return found, run_whole(self._host, self.upper, lines, [()] * len(lines), ())[0]

    @torch.no_grad()
    def queries(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """The query [q] of each prompt."""
        text, found = self._host.text, list[Tensor]()
        for at in range(0, len(prompts), _ROWS):
            batch = text.batch([text.encode(prompt) for prompt in prompts[at : at + _ROWS]])
            seen: list[Tensor] = []

            def look(states: Tensor, seen: list[Tensor] = seen, rows: int = len(batch.ids)) -> None:
                seen.append(unflat(states, rows).float())
                raise StopForward

            hook = self._site.hook(self._host.anatomy, look)
            with evaluating(self._host.model), OwnHooks([hook]), suppress(StopForward):
                self._host.forward(self._host.anatomy.decoder, batch)
            ends = (batch.mask.sum(1) - 1).to(seen[0].device)
            found += seen[0][torch.arange(len(ends), device=ends.device), ends].unbind(0)
        return found
