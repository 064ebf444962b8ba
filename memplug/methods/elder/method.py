"""ELDER: mixtures of LoRAs in the later layers, routed once a row, by the end of its prompt."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...calls import Call, hold
from ...contexts import sample_prefixes
from ...edits import Edit
from ...hooks import Hook
from ...text import Pair
from ..base import Host, State
from .allocation import Allocation, draw, draw_spread
from .calibration import Heldout, calibrate
from .config import ELDERConfig
from .deferral import Deferral
from .experts import Experts
from .explain import Explanation, explained
from .places import find_places, find_site
from .routed import Routed, continued
from .training import Rehearsed, Rows, goals, observe, observe_rows, train_batch, unflat

__all__ = ["ELDER", "Record", "Removed"]


@dataclass(frozen=True)
class Record:
    """An edit as it was learned.

    Attributes:
        number: its number in the deferral.
        edit: the edit.
        allocation: the experts it was to use; its rephrasings (same subject and target) have the same.
        on: whether it is in force.
    """

    number: int
    edit: Edit
    allocation: Allocation
    on: bool = True


class Removed(NamedTuple):
    """What is left of a deleted edit.

    Attributes:
        edit: the edit.
        covered_by: another edit whose code, and query if that is asked for, still lets rows like the deleted
            edit's prompt into scope; None where there is none. The prompt itself is kept out all the same.
        distance: Hamming distance of its code, None where there is none.
    """

    edit: Edit
    covered_by: Edit | None
    distance: int | None


class ELDER:
    """Mixture of LoRAs with guided routing and deferral, over a base model whose weights never change.

    All edits share the LoRAs and routers: sum over edited linears (p, o) of N r (p + o) + N q + N learnable
    parameters, however many edits there are (3,164,184 for six linears of 11008 to 4096 with N = 4, r = 8).

    Args:
        host: the model.
        config: constants; layers left open are chosen from the model's depth.

    Raises:
        ValueError: layers out of range.
        UnsupportedModelError: a layer without a linear that can be edited.
    """

    def __init__(self, host: Host, config: ELDERConfig) -> None:
        self.config = config.resolve(len(host.anatomy.layers))
        layers = self.config.layers or ()
        self._host = host
        self._places = tuple(find_places(host.model, host.anatomy, layers))
        self._site = find_site(host.model, host.anatomy, self.config.query_layer or 0, self.config.query)
        self._width = self._site.width
        self._center = torch.zeros(self._width, device=self._site.device)
        self._records: dict[str, Record] = {}
        self._next = 0
        self._version = 0
        self._prefixes: list[str] | None = None
        self._heldout: Heldout | None = None
        self._local = threading.local()
        self._reset()

    def _reset(self) -> None:
        c = self.config
        self.experts = Experts(self._places, self._width, c.n_experts, c.top_k, c.rank, c.init, c.seed)
        device = self._site.device
        bits = 2 * c.top_k * len(self._places)
        self.deferral = Deferral(self._width, c.n_experts, c.epsilon or bits + 2, c.block, device)

    @property
    def active(self) -> bool:
        """Whether any edit is in force."""
        return bool(self.deferral.on.any())

    # ------------------------------------------------------------------ forwards

    def hooks(self) -> list[Hook]:
        """Look at the query, decide before the first edited layer, add the experts' output."""
        tracker, anatomy = self._host.tracker, self._host.anatomy

        def look(states: Tensor) -> None:
            call = tracker.current
            if call is not None and self._held(call.held, call) is None:
                states = unflat(states.detach(), len(call.valid))
                at = call.prompt_end().to(states.device)
                call.scratch = states[torch.arange(len(at), device=at.device), at].float()

        def decide(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = tracker.current
            if call is not None:
                call.scratch = self._decide(call, anatomy.bind(args, kwargs).get(anatomy.cache_arg))

        def make(index: int) -> Hook:
            def after(_m: nn.Module, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor | None:
                call = tracker.current
                if call is None or not isinstance(call.scratch, Routed):
                    return None
                return call.scratch.apply(self.experts, index, args[0], output)

            return Hook(self._places[index].module, "after", after)

        before = Hook(anatomy.layers[self._places[0].layer], "before", decide)
        edited = [make(index) for index in range(len(self._places))]
        return [self._site.hook(anatomy, look), before, *edited]

    def _held(self, held: Any, call: Call) -> Routed | None:
        mine = isinstance(held, Routed) and held.owner is self and len(held) == len(call.valid)
        return held if mine else None

    def _decide(self, call: Call, cache: Any) -> Routed | None:
        """What the rows use: as decided when their cache was begun, or now if this is the beginning."""
        held = self._held(call.held, call)
        if held is not None and held.version == self._version:
            return held
        query = call.scratch if held is None else held.query
        if held is None and call.past and call.valid.shape[1] == 1:
            return None  # a cache begun without us; what follows is an answer's token, not a prompt's
        if held is None and cache is None and not call.past:
            query = continued(self._local, call, query)
        routed = self._route(query)
        if cache is not None:
            hold(cache, routed)
        return routed

    @torch.no_grad()
    def _route(self, query: Tensor) -> Routed:
        prepared = self._prepare(query)
        routing = self.experts.route(prepared)
        decision = self.deferral.decide(prepared, routing.picks)
        return Routed(self, self._version, query, decision.scope, routing)

    def _prepare(self, query: Tensor) -> Tensor:
        """[B,q] queries as they are routed and compared."""
        query = query.to(self._center.device)
        if not self.config.normalise:
            return query
        query = query - self._center
        return query * (self._width**0.5 / query.norm(dim=-1, keepdim=True).clamp(min=1e-12))

    # ------------------------------------------------------------------ edits

    def check(self, edits: Sequence[Edit]) -> None:
        """Raises TokenizerError for a target without tokens or a prompt longer than the context."""
        for edit in edits:
            self._pair(edit.prompt, edit.target)

    def _pair(self, prompt: str, target: str) -> Pair:
        return self._host.text.pair(prompt, target, stop=self.config.train_stop)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """On any error everything learned is as it was before the ``with``."""
        experts, tensors = self.experts, self.experts.snapshot()
        before = self.deferral.copy(), dict(self._records), self._next, self._version, self._center
        try:
            with self._host.tracker.off():
                yield
        except BaseException:
            self.experts = experts
            self.experts.load(tensors)
            self.deferral, self._records, self._next, self._version, self._center = before
            raise
        self._version += 1

    def learn(self, edits: Sequence[Edit], replaced: Sequence[Edit], *, progress: bool) -> None:
        """Train the shared LoRAs and routers on ``edits``, a few at a time, in their order."""
        with self._all_or_nothing():
            if replaced:
                numbers = [self._records.pop(str(edit.id)).number for edit in replaced]
                self.deferral.remove(numbers, block=False)
            self._learn(edits, progress)

    def _learn(self, edits: Sequence[Edit], progress: bool) -> None:
        size = self.config.batch_size
        self._sample()
        quiet = not progress or len(edits) < 2
        with tqdm(total=len(edits), desc="learning", unit="edit", disable=quiet, leave=False) as bar:
            for at in range(0, len(edits), size):
                self._learn_batch(edits[at : at + size])
                bar.update(len(edits[at : at + size]))
        if self.config.refresh:
            self.deferral.refresh(self.experts.route(self.deferral.queries).picks)
        self._calibrate()

    def _learn_batch(self, edits: Sequence[Edit]) -> None:
        config, count = self.config, len(edits)
        old = self._earlier(config.replay)
        pairs = [self._pair(edit.prompt, edit.target) for edit in edits]
        pairs += [self._pair(record.edit.prompt, record.edit.target) for record in old]
        owners = list(range(count + len(old)))
        for front in self._fronts():
            for i, edit in enumerate(edits):
                pair = self._pair(f"{front} {edit.prompt}", edit.target)
                if len(pair.ids) <= self._host.text.max_length:
                    pairs.append(pair)
                    owners.append(i)
        rows = observe_rows(self._host, self._site, self._places[0].layer, pairs)
        rows.query = self._prepare(rows.query)
        given = self._allocate(edits, rows.query[:count]) + [record.allocation for record in old]
        rows.goal = goals([given[i] for i in owners], config.n_experts, rows.query.device)
        picks = self._train(rows)
        numbers = list(range(self._next, self._next + count))
        self._next += count
        for number, edit, allocation in zip(numbers, edits, given, strict=False):
            self._records[str(edit.id)] = Record(number, edit, allocation)
        self.deferral.add(numbers, rows.query[:count], picks[:, :count])

    def _train(self, rows: Rows) -> Tensor:
        """Train on ``rows``; the picks [l,B,k] of the last step."""
        rehearsed = None
        old = self._earlier(self.config.router_replay)
        if old and self.config.guide == "guided":
            place = {number: i for i, number in enumerate(self.deferral.numbers)}
            at = torch.tensor([place[record.number] for record in old], device=rows.query.device)
            goal = goals([record.allocation for record in old], self.config.n_experts, rows.query.device)
            rehearsed = Rehearsed(self.deferral.queries[at], goal)
        first = self._places[0].layer
        picks, _ = train_batch(self._host, self.experts, self.config, first, rows, rehearsed)
        return picks

    def _earlier(self, count: int) -> list[Record]:
        """At most ``count`` of the edits in force, drawn anew for every batch."""
        on = [record for record in self._records.values() if record.on]
        if len(on) <= count:
            return on
        return random.Random(f"{self.config.seed} {self._next}").sample(on, count)

    def _allocate(self, edits: Sequence[Edit], query: Tensor) -> list[Allocation]:
        """The experts of each edit; edits with the same subject and target are rephrasings of one fact."""
        c, linears = self.config, len(self._places)
        known = {(r.edit.subject, r.edit.target): r.allocation for r in self._records.values()}
        own = self.experts.route(query).picks.transpose(0, 1).tolist() if c.allocation == "own" else []
        given = []
        for i, edit in enumerate(edits):
            fact = edit.subject, edit.target
            if fact not in known:
                if own:
                    known[fact] = tuple(map(tuple, own[i]))
                else:
                    pick = draw if c.allocation == "random" else draw_spread
                    key = f"{edit.subject}\x1f{edit.target}"
                    known[fact] = pick(set(known.values()), linears, c.n_experts, c.top_k, c.seed, key)
            given.append(known[fact])
        return given

    def _fronts(self) -> list[str]:
        """Sampled texts to stand before prompts; drawn once, so that they do not depend on the edits."""
        c = self.config
        if self._prefixes is None:
            text = self._host.text
            self._prefixes = (
                sample_prefixes(text, c.n_prefixes, c.prefix_tokens, c.sample_top_k, c.seed)
                if c.n_prefixes
                else []
            )
        return self._prefixes

    # ------------------------------------------------------------------ calibration

    def _sample(self) -> None:
        """Sample held-out text once, where anything is asked of it."""
        c = self.config
        if self._heldout is not None or not (c.normalise or c.epsilon is None or c.gate == "auto"):
            return
        text = self._host.text
        texts = sample_prefixes(text, c.heldout, c.heldout_tokens, c.sample_top_k, c.seed + 1)
        queries, tokens, owner = [torch.zeros(0, self._width, device=self._center.device)], [], []
        for at in range(0, len(texts), 64):
            batch = text.batch([text.encode(piece) for piece in texts[at : at + 64]])
            seen, _ = observe(self._host, self._site, None, batch)
            real = batch.mask.bool() & (batch.positions > 0)
            queries.append(seen[real])
            tokens += batch.ids[real].tolist()
            owner += (real.nonzero()[:, 0] + at).tolist()
        all_ = torch.cat(queries)
        self._heldout = Heldout(texts, all_, torch.tensor(tokens), torch.tensor(owner))
        if c.normalise and len(all_) and not len(self.deferral):
            self._center = all_.mean(0)

    def _calibrate(self) -> None:
        c = self.config
        if self._heldout is None or (c.epsilon is not None and c.gate == "off") or not self.active:
            return
        on = [record for record in self._records.values() if record.on]
        limits = calibrate(
            self.deferral,
            self.experts,
            self._heldout,
            self._prepare(self._heldout.queries),
            [str(record.edit.subject) for record in on],
            {self._host.text.encode(record.edit.prompt)[-1] for record in on},
            c.false_accept,
            c.epsilon,
            c.gate == "auto",
        )
        self.deferral.limit(limits.epsilon, limits.threshold)

    # ------------------------------------------------------------------ forgetting

    def forget(self, edits: Sequence[Edit], *, progress: bool, retrain: bool = False) -> tuple[Removed, ...]:
        """Take the edits' codes out and keep their own queries out of scope.

        What was learned stays in the shared LoRAs and may still show where another edit covers the same
        inputs; the result says which. ``retrain=True`` starts from fresh LoRAs and learns the kept edits
        anew: the only true removal, at the price of learning them all.
        """
        gone = [self._records[str(edit.id)] for edit in edits]
        numbers = [record.number for record in gone]
        places = [self.deferral.numbers.index(number) for number in numbers]
        queries = self.deferral.queries[places]
        with self._all_or_nothing():
            for record in gone:
                del self._records[str(record.edit.id)]
            self.deferral.remove(numbers, block=True)
            if retrain:
                self._relearn(progress)
        return self._left([record.edit for record in gone], queries)

    def _relearn(self, progress: bool) -> None:
        kept = list(self._records.values())
        blocks = {n: q for n, q in self.deferral.blocks.items() if n not in {r.number for r in kept}}
        self._records = {}
        self._reset()
        self.deferral.blocks = blocks
        if kept:
            self._learn([record.edit for record in kept], progress)
        self._switch([record.edit for record in kept if not record.on], False)

    def _left(self, edits: Sequence[Edit], queries: Tensor) -> tuple[Removed, ...]:
        bare = self.deferral.copy()
        bare.blocks = {}
        decision = bare.decide(queries, self.experts.route(queries).picks)
        by_number = {record.number: record.edit for record in self._records.values()}
        found = decision.nearest if bare.threshold is None else decision.similar
        return tuple(
            Removed(edit, by_number[int(n)], int(d)) if scope else Removed(edit, None, None)
            for edit, scope, n, d in zip(edits, decision.scope, found, decision.distance, strict=True)
        )

    def switch(self, edits: Sequence[Edit], on: bool, *, progress: bool) -> None:
        """Take edits' codes out and keep their queries out of scope, or undo that."""
        with self._all_or_nothing():
            self._switch(edits, on)

    def _switch(self, edits: Sequence[Edit], on: bool) -> None:
        for edit in edits:
            self._records[str(edit.id)] = replace(self._records[str(edit.id)], on=on)
        if edits:
            self.deferral.switch([self._records[str(edit.id)].number for edit in edits], on)

    # ------------------------------------------------------------------ looking, saving

    @torch.no_grad()
    def explain(self, prompt: str) -> Explanation:
        """The allocation linear by linear, the nearest edit's code, and whether the base model answers.

        Raises:
            ValueError: the prompt is empty.
        """
        if not prompt.strip():
            raise ValueError(f"the prompt is empty ({prompt!r}); give it some text")
        with self._host.tracker.off():
            batch = self._host.text.batch([self._host.text.encode(prompt)])
            seen, _ = observe(self._host, self._site, None, batch)
        query = self._prepare(seen[:, -1])
        routing = self.experts.route(query)
        decision = self.deferral.decide(query, routing.picks)
        edits = {record.number: record.edit for record in self._records.values()}
        limits = self.deferral.epsilon, self.deferral.threshold
        return explained(prompt, self._places, routing, decision, edits, *limits)

    def state(self) -> State:
        """Parameters, codes, queries and limits."""
        d = self.deferral
        tensors = {f"experts.{i}": tensor for i, tensor in enumerate(self.experts.snapshot())}
        tensors |= {"queries": d.queries, "codes": torch.from_numpy(d.codes.copy()), "center": self._center}
        if d.blocks:
            tensors["blocks"] = torch.stack(list(d.blocks.values()))
        records = [
            {"id": str(r.edit.id), "number": r.number, "allocation": r.allocation, "on": r.on}
            for r in self._records.values()
        ]
        meta = {
            "records": records,
            "numbers": d.numbers,
            "blocks": list(d.blocks),
            "epsilon": d.epsilon,
            "threshold": d.threshold,
            "next": self._next,
            "config": asdict(self.config),
        }
        return State(tensors, meta)

    def restore(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], edits: Mapping[str, Edit]
    ) -> None:
        """Take over what `state` gave."""
        records = {}
        for item in meta["records"]:
            allocation = tuple(tuple(map(int, picks)) for picks in item["allocation"])
            records[item["id"]] = Record(int(item["number"]), edits[item["id"]], allocation, bool(item["on"]))
        numbers = [int(number) for number in meta["numbers"]]
        if sorted(numbers) != sorted(record.number for record in records.values()):
            raise ValueError("its codes do not belong to its edits")
        queries, codes = tensors["queries"], tensors["codes"]
        if tuple(queries.shape) != (len(numbers), self._width) or len(codes) != len(numbers):
            raise ValueError(
                f"queries are {tuple(queries.shape)} and codes {tuple(codes.shape)} for {len(numbers)} edits "
                f"of a model whose queries have the width {self._width}"
            )
        self.experts.load([tensors[f"experts.{i}"] for i in range(len(self.experts.snapshot()))])
        d, device = self.deferral, self._center.device
        d.numbers, d.queries, d.codes = numbers, queries.to(device), codes.numpy().copy()
        on = {record.number for record in records.values() if record.on}
        d.on = torch.tensor([number in on for number in numbers], dtype=torch.bool).numpy()
        d.blocks = dict(zip(map(int, meta["blocks"]), tensors.get("blocks", queries[:0]), strict=True))
        self.deferral = d.copy()
        self.deferral.limit(int(meta["epsilon"]), meta["threshold"])
        self._records, self._next = records, int(meta["next"])
        self._center = tensors["center"].to(device)
        self._version += 1
