"""Teaching values: what counts, its gradient, and when it ends."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from families import lexical
from transformers import DynamicCache

from memplug.edits import Edit, EditError
from memplug.interface import Host
from memplug.methods.llp import LLPConfig, teaching
from memplug.methods.llp.losses import WORD_ENDS
from memplug.methods.llp.teaching import Layout, _Teacher, teach
from memplug.model.architecture import inspect_model
from memplug.model.hooks import HookSet
from memplug.model.recall import Recall
from memplug.model.tracker import CallTracker
from memplug.retrieval.lessons import Lesson
from memplug.retrieval.passes import Line, run_lines
from memplug.text.tokens import Text

Z = 2
CONFIG = LLPConfig(think_layers=(0, 1), recall_layer=Z, n_values=2, n_fronts=1, statement_weight=0.7).resolve(
    4
)
EDITS = [
    Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill", "e1"),
    Edit("Who founded the Orlo Bridge Company?", "Marrow did", "Orlo Bridge Company", "e2"),
]


def host_of(tokenizer, family="llama"):
    model = lexical(family, len(tokenizer))
    text, architecture = Text(model, tokenizer), inspect_model(model)
    recall = Recall(model, architecture, Z)
    HookSet(recall.hooks(lambda: None, lambda: None))
    return Host(model, text, architecture, CallTracker(architecture, text.bos_id)), recall


def lesson(host, words, target=None):
    """A line that asks for ``target``, or one that is to be continued as before."""
    if target is None:
        ids = host.text.encode(words)
        start = len(ids)
    else:
        ids, start, _ = host.text.pair(words, target, stop=CONFIG.train_stop)
    line = Line(tuple(ids), start - 1)
    return Lesson(line=line, subject=range(1, 2), words=range(start), asks=target is not None, plain=True)


def lessons_for(host, edits=EDITS, others=True):
    """Each edit's prompt in two places, and two texts that are to be continued as before."""
    lessons = []
    for e, edit in enumerate(edits):
        for words in (edit.question, f"Tam Wickes did. {edit.question}"):
            lessons.append((e, lesson(host, words, edit.target)))
    for e, edit in enumerate(edits if others else []):
        for words in (f"{edit.subject} is", f"Who taught {edit.subject}?"):
            lessons.append((e, lesson(host, words)))
    return lessons


def teacher_of(host, recall, lessons, edits=EDITS, config=CONFIG):
    lines = [one.line for _, one in lessons]
    chunks, _ = run_lines(host, recall, lines, [[0]] * len(lines), (1,))
    host.model.requires_grad_(False)
    return _Teacher(host, recall, config, edits, lessons, chunks), chunks


def literal_logits(host, kv, line, position):
    """[T,V] of ``line`` from its start on: a cache in which the value stands before the row's own tokens.

    The value's columns are hidden from the tokens before ``start``, by filling the cache in two steps.
    """
    model, ids = host.model, torch.tensor([line.ids])
    at = position + torch.arange(ids.shape[1])[None]
    before = DynamicCache(config=model.config)
    if line.start:
        model(ids[:, : line.start], position_ids=at[:, : line.start], past_key_values=before, use_cache=True)
    joined = DynamicCache()
    blank = torch.zeros(1, kv[0][0].shape[1], 0, kv[0][0].shape[3])
    width = kv[0][0].shape[2]
    for index in range(len(host.architecture.layers)):
        own = before.layers[index] if line.start else None
        keys, values = (blank, blank) if own is None else (own.keys, own.values)
        if index >= Z:
            keys = torch.cat([kv[index - Z][0], keys], 2)
            values = torch.cat([kv[index - Z][1], values], 2)
        else:  # the lower layers see columns of nothing, which the mask hides from them
            keys = torch.cat([torch.zeros(1, *blank.shape[1:2], width, blank.shape[3]), keys], 2)
            values = torch.cat([torch.zeros(1, *blank.shape[1:2], width, blank.shape[3]), values], 2)
        joined.update(keys, values, index)
    length = ids.shape[1] - line.start
    past = line.start + width
    floor = torch.finfo(torch.float32).min
    causal = torch.full((length, length), floor).triu(1)
    low = torch.cat([torch.full((length, width), floor), torch.zeros(length, line.start), causal], 1)
    high = torch.cat([torch.zeros(length, past), causal], 1)

    def hook(index):
        mask = (low if index < Z else high)[None, None]

        def before_layer(_m, args, kwargs):
            return args, kwargs | {"attention_mask": mask}

        return before_layer

    handles = [
        layer.register_forward_pre_hook(hook(i), with_kwargs=True)
        for i, layer in enumerate(host.architecture.layers)
    ]
    try:
        out = model(
            ids[:, line.start :], position_ids=at[:, line.start :], past_key_values=joined, use_cache=True
        )
    finally:
        for handle in handles:
            handle.remove()
    return out.logits[0]


def literal_loss(host, teacher, lessons):
    """What an edit is taught by, from whole rows one by one; differentiable in ``teacher.moved``."""
    value = teacher.initial + teacher.unit * teacher.moved
    kv = teacher.layout.kv(value, torch.float32)
    asking = [sum(e == k and one.asks for e, one in lessons) for k in range(len(teacher.edits))]
    staying = [sum(e == k and not one.asks for e, one in lessons) for k in range(len(teacher.edits))]
    total = torch.zeros(())
    worst, other = [0.0] * len(asking), [0.0] * len(asking)
    closing = {i for i in teacher._closing(lessons) if teacher.closes[lessons[i][0]]}
    for i, (e, lesson) in enumerate(lessons):
        mine = [(k[e : e + 1], v[e : e + 1]) for k, v in kv]
        logp = literal_logits(host, mine, lesson.line, -lesson.line.start).log_softmax(-1)
        with torch.no_grad():
            whole = torch.tensor([lesson.line.ids])
            base = host.model(whole, use_cache=False).logits[0, lesson.line.start :]
        if lesson.asks:
            answer = torch.tensor(lesson.answer)
            count = len(answer)
            loss = F.nll_loss(logp[: len(answer)], answer)
            worst[e] = max(worst[e], float(loss))
            total = total + loss / asking[e]
            if i in closing:  # the base model's choice among the tokens that do not go on the word
                keep = ~host.text.going_on(base.shape[-1])
                ends = base[len(answer), keep].softmax(-1)
                loss = (ends * (ends.log() - logp[len(answer), keep])).sum()
                total = total + loss / count / asking[e]
                other[e] += float(loss / count / asking[e])
        else:
            base = base[0].log_softmax(-1)
            loss = (base.exp() * (base - logp[0])).sum()
            total = total + 0.7 * loss / staying[e]
            other[e] += float(0.7 * loss / staying[e])
    return total, worst, other


def test_the_gradient_is_that_of_whole_rows_with_the_value_in_front(tokenizer):
    host, recall = host_of(tokenizer)
    lessons = lessons_for(host)
    teacher, chunks = teacher_of(host, recall, lessons)
    with torch.no_grad():
        teacher.moved += 0.3 * torch.randn(teacher.moved.shape, generator=torch.Generator().manual_seed(0))
    got, worst, other = teacher._pass(torch.ones(2, dtype=torch.bool), 1.0)
    total, want_worst, want_other = literal_loss(host, teacher, lessons)
    (want,) = torch.autograd.grad(total, teacher.moved)
    assert float(want.abs().max()) > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    assert worst.tolist() == pytest.approx(want_worst, rel=1e-4)
    assert other.tolist() == pytest.approx(want_other, rel=1e-3)


def test_the_gradient_against_finite_differences(tokenizer):
    host, recall = host_of(tokenizer)
    lessons = lessons_for(host)
    teacher, chunks = teacher_of(host, recall, lessons)
    gradient, _, _ = teacher._pass(torch.ones(2, dtype=torch.bool), 1.0)
    direction = torch.randn(teacher.moved.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2

    def loss(at):
        with torch.no_grad():
            teacher.moved.copy_(at * direction)
            return float(literal_loss(host, teacher, lessons)[0])

    slope = (loss(step) - loss(-step)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-2)


def test_an_edit_that_learned_stays_put(tokenizer):
    """However many steps the others still take."""
    host, recall = host_of(tokenizer)
    config = LLPConfig(
        think_layers=(0, 1), recall_layer=Z, n_values=2, value_lr=0.3, value_steps=30, stop_loss=1.0,
        stop_divergence=10.0, n_fronts=1,
    ).resolve(4)  # fmt: skip

    lessons = lessons_for(host, EDITS)
    lines = [one.line for _, one in lessons]
    chunks, _ = run_lines(host, recall, lines, [[0]] * len(lines), (1,))
    both = teach(host, recall, config, EDITS, lessons, chunks)
    assert both[0].steps != both[1].steps  # one goes on when the other is done
    first = min(both, key=lambda one: one.steps)
    assert first.loss < 1.0
    assert first.value.dtype == torch.float16
    done, seen = int(both[0] is not first), {}

    def look(text):
        seen[len(seen)] = text

    again = teach(host, recall, config, EDITS, lessons, chunks, look)
    assert torch.equal(again[done].value, first.value)  # the same bits again
    assert seen[first.steps].startswith(f"step {first.steps} of 30, 1 of 2 learned")
    shorter = LLPConfig(**{**_fields(config), "value_steps": first.steps})
    cut = teach(host, recall, shorter, EDITS, lessons, chunks)
    assert torch.equal(cut[done].value, first.value)  # no later step moved it
    assert not torch.equal(cut[1 - done].value, both[1 - done].value)


def _fields(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_later_steps_run_every_second_chunk(tokenizer):
    """What is left out keeps its losses; a pass that looks at all lessons leaves nothing out."""
    host, recall = host_of(tokenizer)
    front = "Tam Wickes did. Tam Wickes did. Tam Wickes did."
    lessons = lessons_for(host)
    lessons += [
        (e, lesson(host, f"{front} {edit.question}", edit.target)) for e, edit in enumerate(EDITS)
    ] * 2
    teacher, chunks = teacher_of(host, recall, lessons)
    assert len(chunks) == 2
    alive, ran = torch.ones(2, dtype=torch.bool), []
    for part in teacher.parts:
        object.__setattr__(part.chunk, "logits", _noted(part.chunk, ran))
    _, worst, other = teacher._pass(alive, 1.0, 0)
    assert [chunks.index(chunk) for chunk in ran] == [0, 1]
    for step in (3, 4, 5):
        del ran[:]
        _, *losses = teacher._pass(alive, 1.0, step)
        assert [chunks.index(chunk) for chunk in ran] == [step % 2]
        torch.testing.assert_close(losses, [worst, other])  # nothing has moved
    del ran[:]
    teacher._pass(alive, None, 5)
    assert len(ran) == 2


def _noted(chunk, ran):
    def logits(*given):
        ran.append(chunk)
        return type(chunk).logits(chunk, *given)

    return logits


def test_edits_end_their_words_where_the_base_model_goes_on(tokenizer, monkeypatch):
    """Which tokens go on a word is made up here: all, or none."""
    host, recall = host_of(tokenizer)
    for goes_on in (True, False):
        monkeypatch.setattr(Text, "going_on", lambda _, width, on=goes_on: torch.full((width,), on))
        teacher, _ = teacher_of(host, recall, lessons_for(host))
        assert teacher.closes.tolist() == [goes_on] * 2
        ends = [int((part.target == WORD_ENDS).sum()) for part in teacher.parts]
        assert sum(ends) == (4 if goes_on else 0)  # each edit asks twice


def test_no_steps_give_the_initial_value(tokenizer):
    """What the model makes of the prompt's and the answer's last tokens, seen from before the text."""
    host, recall = host_of(tokenizer)
    lessons = lessons_for(host, EDITS[:1], others=False)
    lines = [one.line for _, one in lessons]
    chunks, _ = run_lines(host, recall, lines, [[0]] * len(lines), (1,))
    config = LLPConfig(**{**_fields(CONFIG), "value_steps": 0, "products": "model"})
    host.model.requires_grad_(False)
    (got,) = teach(host, recall, config, EDITS[:1], lessons, chunks)
    ids = torch.tensor([host.text.pair(EDITS[0].question, "Zarnow").ids])
    with torch.no_grad():
        states = host.model(ids, output_hidden_states=True, use_cache=False).hidden_states[Z][:, -2:]
        kv = recall.project(states, torch.zeros(1, dtype=torch.long))
    want = Layout.of(kv).flat(kv)[0]
    assert torch.allclose(got.value.float(), want, rtol=2e-3, atol=1e-3)
    assert got.steps == 0


def test_products_are_rounded_where_that_is_fast_and_wanted(tokenizer, monkeypatch):
    def values(fast, products):
        monkeypatch.setattr(teaching, "has_reduced_products", lambda: fast)
        host, recall = host_of(tokenizer)
        lessons = lessons_for(host, EDITS[:1])
        lines = [one.line for _, one in lessons]
        chunks, _ = run_lines(host, recall, lines, [[0]] * len(lines), (1,))
        host.model.requires_grad_(False)
        config = LLPConfig(**{**_fields(CONFIG), "value_steps": 3, "products": products})
        (taught,) = teach(host, recall, config, EDITS[:1], lessons, chunks)
        return taught.value

    exact = values(True, "model")
    assert torch.equal(values(False, "fastest"), exact)
    rounded = values(True, "fastest")
    assert not torch.equal(rounded, exact)
    assert float((rounded.float() - exact.float()).norm()) < 0.1 * float(exact.float().norm())


def test_a_layout_puts_together_what_it_took_apart():
    draw = torch.Generator().manual_seed(0)
    kv = [
        (torch.randn(3, 2, 4, 8, generator=draw), torch.randn(3, 2, 4, 6, generator=draw)) for _ in range(2)
    ]
    layout = Layout.of(kv)
    assert layout.size == 2 * (2 * 4 * 8 + 2 * 4 * 6)
    flat = layout.flat(kv)
    assert flat.shape == (3, layout.size)
    for one, other in zip(layout.kv(flat, torch.float32), kv, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_the_model_is_left_as_it_was_and_a_loss_that_is_not_finite_is_named(tokenizer):
    host, recall = host_of(tokenizer)
    host.model.train()
    host.model.requires_grad_(True)
    before = copy.deepcopy(host.model.state_dict())
    lessons = lessons_for(host, EDITS[:1])
    lines = [one.line for _, one in lessons]
    chunks, _ = run_lines(host, recall, lines, [[0]] * len(lines), (1,))
    config = LLPConfig(**{**_fields(CONFIG), "value_steps": 2})
    teach(host, recall, config, EDITS[:1], lessons, chunks)
    assert host.model.training
    assert all(p.requires_grad and p.grad is None for p in host.model.parameters())
    for name, tensor in host.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    with torch.no_grad():
        host.model.lm_head.weight[random.Random(0).randrange(50)] = torch.nan
    with pytest.raises(EditError, match="'Where was Ada Quill born\\?' gave a loss that is not finite"):
        teach(host, recall, config, EDITS[:1], lessons, chunks)
