"""Teaching values: keys and values per layer that make the model give an edit's answer where it is asked.

A value is a prefix of b columns in every layer from the recall layer on, right in front of the token that
ends the question, so that it does not matter where in a text that stands. It begins as what the model makes
of the prompt and its new answer there (the published initial value), and is moved by Adam in units of each
dimension's own spread, so that a few steps are enough and huge dimensions do not set the scale. What it has
to leave alone is held by the KL divergence to the base model. Edits are independent of each other but for
that spread, which is measured over the prompts of the batch.

Letters: E edits, b columns of a value, H key/value heads, w their width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...edits import Edit, EditError
from ...interface import Host
from ...model.architecture import evaluating, frozen
from ...model.hooks import capture_input
from ...model.prefix import KV, Prefix
from ...model.recall import Recall
from ...model.reduced_precision import has_reduced_products, reduced_products
from ...retrieval.lessons import Lesson, may_go_on
from ...retrieval.passes import Chunk
from ..scaling import GradientScale
from .config import LLPConfig
from .losses import WORD_ENDS, EditLosses, Part, base_of, losses_of, part_of

__all__ = ["Layout", "Taught", "left_out", "products", "teach"]

_WHOLE_STEPS = 3
"""Steps at the beginning that run all lessons; each later one runs every second chunk, with the same result
on SmolLM2 in three quarters of the time."""


_CLOSING = 4  # lessons of an edit that may end with its last word
_GOES_ON = 0.3  # probability that the base model goes on with that word, from which on it has to be ended


class Layout(NamedTuple):
    """How a flat value [n] is laid out: the shape (H, b, w) of keys and of values, layer by layer."""

    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @staticmethod
    def of(kv: KV) -> Layout:
        """That of keys and values [N,H,b,w]."""
        return Layout(tuple((tuple(k.shape[1:]), tuple(v.shape[1:])) for k, v in kv))

    @property
    def size(self) -> int:
        """n."""
        return sum(torch.Size(shape).numel() for pair in self.shapes for shape in pair)

    def flat(self, kv: KV) -> Tensor:
        """[N,n] of keys and values [N,H,b,w]."""
        return torch.cat([t.flatten(1).float() for pair in kv for t in pair], dim=1)

    def kv(self, flat: Tensor, dtype: torch.dtype) -> KV:
        """Keys and values [N,H,b,w] of flat values [N,n]; differentiable."""
        out, at = [], 0
        for pair in self.shapes:
            both = []
            for shape in pair:
                size = torch.Size(shape).numel()
                both.append(flat[:, at : at + size].view(-1, *shape).to(dtype))
                at += size
            out.append((both[0], both[1]))
        return out


class Taught(NamedTuple):
    """A value [n] float16 on the CPU, its loss on the worst of its prompts, the steps it took, and whether it
    ends the last word of its answer."""

    value: Tensor
    loss: float
    steps: int
    closes: bool


def teach(
    host: Host,
    recall: Recall,
    config: LLPConfig,
    edits: Sequence[Edit],
    lessons: Sequence[tuple[int, Lesson]],
    chunks: Sequence[Chunk],
    advance: Callable[[str], None] = lambda text: None,
) -> list[Taught]:
    """The values of ``edits``.

    Args:
        lessons: all lessons, with the number of their edit; ``chunks`` hold them by their place here.
        advance: told after every step how far it is.

    Raises:
        EditError: a loss is not finite.
    """
    furthest = max(int(chunk.positions[:, 0].max()) for chunk in chunks)
    with torch.no_grad():  # how keys are moved is found in the model's own precision
        blank = torch.zeros(1, config.n_values, host.architecture.width, dtype=torch.float32)
        kv = recall.project(blank, torch.zeros(1, dtype=torch.long))
        recall.turned(kv, torch.tensor([(1 << furthest.bit_length()) - 1]))
    with evaluating(host.model), frozen(host.model), products(host, recall.layer, config.products):
        return _Teacher(host, recall, config, edits, lessons, chunks).run(advance)


def left_out(step: int, chunk: int, count: int) -> bool:
    """Whether a step runs without one of ``count`` chunks."""
    return step >= _WHOLE_STEPS and count > 1 and (chunk + step) % 2 == 1


def products(host: Host, layer: int, which: Literal["fastest", "model"]) -> AbstractContextManager[None]:
    """How products with weights from ``layer`` on are computed while values are learned, see `LLPConfig`."""
    if which == "model" or not has_reduced_products():
        return nullcontext()
    head = host.model.get_output_embeddings()
    modules = [*host.architecture.layers[layer:], *([] if head is None else [head])]
    return reduced_products(host.architecture.shadows, modules)


class _Teacher:
    def __init__(
        self,
        host: Host,
        recall: Recall,
        config: LLPConfig,
        edits: Sequence[Edit],
        lessons: Sequence[tuple[int, Lesson]],
        chunks: Sequence[Chunk],
    ) -> None:
        self.host, self.recall, self.config, self.edits = host, recall, config, edits
        with torch.no_grad():
            kv = recall.project(self._initial(), torch.zeros(len(edits), dtype=torch.long))
        self.layout = Layout.of(kv)
        self.initial = self.layout.flat(kv)
        self.unit = self._spread(chunks).to(self.initial.device)
        self.moved = torch.zeros_like(self.initial, requires_grad=True)
        closing, weight = self._closing(lessons), config.statement_weight
        self.parts = [part_of(chunk, lessons, len(edits), weight, closing) for chunk in chunks]
        self.closes = self._closes()
        self.parts = [self._without(part, ~self.closes) for part in self.parts]
        self.base = [base_of(host, recall, part) for part in self.parts]
        self.losses = [EditLosses.zeros(len(edits)) for _ in self.parts]

    def run(self, advance: Callable[[str], None]) -> list[Taught]:
        config, count = self.config, len(self.edits)
        optimizer = torch.optim.Adam([self.moved], lr=config.value_lr, betas=(0.9, 0.99))
        scaler = GradientScale(self.host.model.dtype)
        best: list[Taught | None] = [None] * count
        alive = torch.ones(count, dtype=torch.bool)
        for step in range(config.value_steps + 1):
            last = step == config.value_steps
            gradient, worst, other = self._pass(alive, None if last else scaler.scale, step)
            value = (self.initial + self.unit * self.moved).detach().half().cpu()
            for e in alive.nonzero()[:, 0].tolist():
                if not torch.isfinite(worst[e]) or not torch.isfinite(other[e]):
                    raise EditError(
                        f"learning {self.edits[e].question!r} gave a loss that is not finite; "
                        "nothing was changed"
                    )
                done = last or (worst[e] < config.stop_loss and other[e] < config.stop_divergence)
                if done:
                    best[e] = Taught(value[e], float(worst[e]), step, bool(self.closes[e]))
                    alive[e] = False
            advance(f"step {step} of {config.value_steps}, {int((~alive).sum())} of {count} learned")
            if not bool(alive.any()):
                break
            if gradient is not None and scaler.accept([gradient]):
                gradient[~alive] = 0
                self.moved.grad = gradient / scaler.used
                before = self.moved.detach().clone()
                optimizer.step()
                with torch.no_grad():  # Adam's momentum would carry on what is learned
                    self.moved[~alive] = before[~alive]
        return [one for one in best if one is not None]

    def _pass(
        self, alive: Tensor, scale: float | None, step: int = 0
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """The gradient, and of each edit the loss of its worst prompt and the divergence elsewhere.

        Args:
            alive: BoolTensor [E], the edits that are still taught.
            scale: of the loss; None looks at all lessons, without a gradient.
            step: how many passes there were before; losses of chunks that are left out are those of the last.
        """
        device = self.initial.device
        gradient = torch.zeros_like(self.initial)
        for k, (part, base) in enumerate(zip(self.parts, self.base, strict=True)):
            skipped = scale is not None and left_out(step, k, len(self.parts))
            if skipped or not bool(alive[part.edit.cpu()].any()):
                continue
            with torch.set_grad_enabled(scale is not None):
                value = self.initial + self.unit * self.moved
                kv = self.layout.kv(value[part.edit], self.host.model.dtype)
                kv = self.recall.turned(kv, part.chunk.positions[:, 0])
                seen = torch.ones(
                    len(part.edit), part.chunk.ids.shape[1], kv[0][0].shape[2], dtype=torch.bool
                )
                prefix = Prefix(kv, seen, part.chunk.begins)
                logits = part.chunk.logits(self.host, self.recall, prefix, part.row, part.at)
                loss = losses_of(logits, part.target, base)
            if scale is not None:
                (step_gradient,) = torch.autograd.grad((loss * part.weight).sum() * scale, self.moved)
                gradient += step_gradient
            self.losses[k] = EditLosses.zeros(len(self.edits)).of(part, loss, part.weight)
        worst = torch.stack([one.worst for one in self.losses]).amax(0)
        other = torch.stack([one.other for one in self.losses]).sum(0)
        return (gradient.to(device) if scale is not None else None), worst, other

    def _closing(self, lessons: Sequence[tuple[int, Lesson]]) -> set[int]:
        """The lessons that may end with the last word of their answer: a few of each edit, its own first."""
        found: set[int] = set()
        left = [_CLOSING if may_go_on(edit, self.config) else 0 for edit in self.edits]
        for i, (e, lesson) in enumerate(lessons):
            if lesson.asks and left[e]:
                found.add(i)
                left[e] -= 1
        return found

    @torch.no_grad()
    def _closes(self) -> Tensor:
        """BoolTensor [E]: the edits of whose answers the base model goes on with the last word."""
        going_on = torch.zeros(len(self.edits), dtype=torch.float32)
        for part in self.parts:
            ends = part.target == WORD_ENDS
            if bool(ends.any()):
                logits = part.chunk.logits(self.host, self.recall, None, part.row[ends], part.at[ends])
                others = self.host.text.going_on(logits.shape[-1]).to(logits.device)
                share = logits.float().softmax(-1)[:, others].sum(-1).cpu()
                going_on.scatter_reduce_(0, part.edit[part.row[ends]].cpu(), share, "amax")
        return going_on > _GOES_ON

    @staticmethod
    def _without(part: Part, edits: Tensor) -> Part:
        """The part without the ends of words of some edits, BoolTensor [E]."""
        kept = (part.target != WORD_ENDS) | ~edits.to(part.edit.device)[part.edit[part.row]]
        row, at, target, weight = (one[kept] for one in (part.row, part.at, part.target, part.weight))
        return part._replace(row=row, at=at, target=target, weight=weight)

    @torch.no_grad()
    def _initial(self) -> Tensor:
        """[E,b,D]: states at the recall layer of the last b tokens of prompt and target."""
        host, text, length = self.host, self.host.text, self.config.n_values
        rows = [text.pair(edit.question, edit.target).ids for edit in self.edits]
        hidden = capture_input(
            host.architecture,
            self.recall.layer,
            lambda: host.forward(host.architecture.decoder, text.batch(rows)),
        ).float()
        ends = [h[: len(row)][-length:] for h, row in zip(hidden, rows, strict=True)]
        return torch.stack([torch.cat([end[:1].expand(length - len(end), -1), end]) for end in ends])

    def _spread(self, chunks: Sequence[Chunk]) -> Tensor:
        """[n]: the standard deviation of each dimension of the prompts' own keys and values."""
        units = []
        before = [chunk.mask[:, : chunk.past[0][0].shape[2]].bool() for chunk in chunks]
        for layer, pair in enumerate(self.layout.shapes):
            for which, shape in enumerate(pair):
                states = [
                    chunk.past[layer][which].transpose(1, 2)[seen].float()
                    for chunk, seen in zip(chunks, before, strict=True)
                ]
                spread = torch.cat(states).std(0)[:, None].expand(shape)
                units.append(spread.reshape(-1))
        unit = torch.cat(units)
        # Where every prompt has one token there is nothing to measure.
        return torch.where(torch.isfinite(unit) & (unit > 0), unit, torch.ones_like(unit))
