"""Statistics and a step size from the base model alone, where no cases are at hand.

The model's own sampled text stands in for cases: a text is cut, and a token that the model thinks possible
there is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...interface import Host
from ...model.hooks import Hook, OwnHooks, run_through
from ...retrieval.samples import ordinary_texts, text_rows
from ...text.chat import in_chat
from ...text.tokens import Pair
from ...weights.modules import LinearModule
from ..inweights.branch import side_branch
from ..inweights.rows import chunks, flat_rows, predicting
from .editor import Editor
from .features import Request, capture
from .nets import Change

__all__ = ["answered", "find_step", "ordinary_inputs", "stand_ins"]

_PIECES = 32
_LONGEST = 16  # tokens of a stand-in
_ROWS = 16
LADDER = tuple(1e-4 * 2.0**n for n in range(24))
"""Step sizes that are tried, from small to large."""


def ordinary_inputs(host: Host, sites: Sequence[LinearModule], seed: int) -> list[Tensor]:
    """[n,d_k] by module: what it reads on the base model's own text, plain and in the chat template.

    Nothing is predicted there: logits of thousands of tokens would take many times the model's memory.
    """
    text, last = host.text, max(site.layer for site in sites)
    pieces = ordinary_texts(text, seed)[:_PIECES]
    pairs = text_rows(text, pieces, seed)
    if text.has_chat:
        pairs += text_rows(text, [in_chat(piece) for piece in pieces], seed)
    rows = [pair._replace(ids=pair.ids[: text.max_length - 1]) for pair in pairs]
    rows = sorted(rows, key=lambda pair: len(pair.ids))
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    for part in chunks(range(len(rows)), _ROWS):
        batch = text.batch([rows[i] for i in part])
        real = batch.mask.bool().flatten()

        def keep(site: LinearModule, real: Tensor = real) -> Hook:
            def before(_m: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
                inputs = args[0].detach().reshape(-1, site.d_k)
                found[site.name].append(inputs[real.to(inputs.device)].float().to(text.device))

            return Hook(site.module, "before", before)

        with OwnHooks(map(keep, sites)):
            run_through(host.architecture, last, partial(host.forward, host.architecture.decoder, batch))
    return [torch.cat(found[site.name]) for site in sites]


@torch.no_grad()
def stand_ins(host: Host, count: int, seed: int) -> list[Pair]:
    """Up to ``count`` pairs of a sampled text and one of the 2nd to 32nd likeliest next tokens."""
    rng = random.Random(f"stand-ins {seed}")
    ends, pairs = {host.text.pad_id, *host.text.eos_ids}, []
    for row in text_rows(host.text, ordinary_texts(host.text, seed)[:count], seed):
        ids = row.ids[:_LONGEST]
        # What an encoder read is answered from the first token on, where answers are chosen.
        cut = row.start if row.source else rng.randint(min(2, len(ids)), len(ids))
        begun = row._replace(ids=ids[:cut], start=cut)
        with predicting(host, torch.tensor([cut - 1])):
            logits = host.forward(host.model, host.text.batch([begun])).logits[0, 0]
        likely = [token for token in logits.topk(32).indices[1:].tolist() if token not in ends]
        pairs.append(begun._replace(ids=[*begun.ids, rng.choice(likely)]))
    return pairs


@torch.no_grad()
def find_step(host: Host, editor: Editor, asked: Sequence[Request]) -> float:
    """The step size at which single edits of the base model gain half of what any step size gains them.

    Larger steps make a single edit surer and wear the model out sooner. Each request is edited alone, in its
    own row of one batch: changes are linear in the step size, so that one capture and one solve serve the
    whole ladder. Editors of S steps get it divided by the root of S, since each step sees what those before
    it left to do, and those that choose k of their modules as many times more as modules are left out. The
    networks' step sizes are set to what is found.
    """
    editor.set_step(1.0)
    pairs = [one.pair for one in asked]
    features = capture(host, editor.sites, asked)
    rows = _by_owner(features.owner, len(pairs))
    units = []
    for change in editor.changes(features, 0):
        ridge = None if change.log_ridge is None else change.log_ridge.expand(len(pairs))
        keys, values = _padded(change.keys[0], rows), _padded(change.values[0], rows)
        directions = None if change.directions is None else _padded(change.directions[0], rows)
        units.append(Change(keys, values, ridge, directions).factors())
    reached: list[float] = []
    for step in LADDER:
        hooks = [
            side_branch(site, lambda a=a, b=b, step=step: (a, step * b))  # type: ignore[misc]
            for site, (a, b) in zip(editor.sites, units, strict=True)
        ]
        with OwnHooks(hooks):
            reached.append(float(answered(host, pairs, len(pairs)).mean()))
        if reached[-1] > 0.95 or reached[-1] < max(reached) - 0.1:
            break
    half = (reached[0] + max(reached)) / 2
    found = next(step for step, share in zip(LADDER, reached, strict=False) if share >= half)
    found /= editor.config.steps**0.5
    if editor.gate is not None:
        found *= len(editor.sites) / editor.gate.k
    editor.set_step(found)
    return found


def _by_owner(owner: Tensor, count: int) -> Tensor:
    """[count,n] the rows of each owner, padded with -1."""
    mine = [(owner == i).nonzero()[:, 0] for i in range(count)]
    return torch.nn.utils.rnn.pad_sequence(mine, batch_first=True, padding_value=-1)


def _padded(features: Tensor, rows: Tensor) -> Tensor:
    """[P,n,width] of [N,width]; rows of zeros, which change nothing, where ``rows`` is -1."""
    return features[rows.clamp(min=0)] * (rows >= 0)[..., None]


@torch.no_grad()
def answered(host: Host, pairs: Sequence[Pair], micro_batch: int = 256) -> Tensor:
    """[N] share of each pair's answer tokens that are the model's first choice (teacher forced)."""
    found = []
    for part in chunks(range(len(pairs)), micro_batch):
        rows = [pairs[i] for i in part]
        batch = host.text.batch([pair.read for pair in rows])
        at = flat_rows(rows, batch.ids.shape[1], batch.ids.device)
        with predicting(host, at.flat):
            logits = host.forward(host.model, batch).logits[0]
        right = (logits.argmax(-1) == at.target).float() / at.size
        start = torch.zeros(len(rows), device=right.device, dtype=torch.float32)
        found.append(start.index_add(0, at.row, right))
    return torch.cat(found)
