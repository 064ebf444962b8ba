"""Prompts run once: what is computed from there on is what the whole forward gives."""

from __future__ import annotations

import random

import pytest
import torch
from families import lexical

from memplug.interface import Host
from memplug.model.architecture import inspect_model
from memplug.model.hooks import HookSet
from memplug.model.prefix import Prefix
from memplug.model.recall import Recall
from memplug.model.tracker import CallTracker
from memplug.retrieval.passes import Line, run_lines
from memplug.text.tokens import Text

Z, VALUES = 2, 3


def host_of(family, tokenizer, **settings):
    model = lexical(family, len(tokenizer), **settings)
    model.requires_grad_(False)
    text, architecture = Text(model, tokenizer), inspect_model(model)
    host = Host(model, text, architecture, CallTracker(architecture, text.bos_id))
    recall = Recall(model, architecture, Z)
    HookSet(recall.hooks(lambda: None, lambda: None))
    return host, recall


def some_lines(count, vocab, front=(), seed=0):
    """Rows of several lengths; the start is anywhere before the end."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        ids = (*front, *(draw.randrange(3, vocab) for _ in range(draw.randrange(4, 12))))
        lines.append(Line(ids, draw.randrange(max(1, len(front)), len(ids))))
    return lines


def places_of(lines):
    return [[line.start, line.start // 2, len(line.ids) - 1] for line in lines]


def whole(host, line):
    """The model's own logits [T,V] and hidden states, without a cache."""
    out = host.model(torch.tensor([line.ids]), use_cache=False, output_hidden_states=True)
    return out.logits[0], out.hidden_states


def prefixed(host, recall, kv, line, begin):
    """Logits [T,V] of the whole row, at positions from ``begin`` on, where tokens from ``start`` on see the
    value."""
    ids = torch.tensor([line.ids])
    seen = torch.zeros(1, ids.shape[1], VALUES, dtype=torch.bool)
    seen[:, line.start :] = True
    prefix = Prefix(kv, seen, torch.zeros(1, dtype=torch.long))
    given = {"position_ids": begin + torch.arange(ids.shape[1])[None]} if host.architecture.rotary else {}
    with torch.no_grad():
        hidden = host.model(ids, use_cache=False, output_hidden_states=True, **given).hidden_states[Z]
        flat = torch.arange(ids.shape[1])
        return recall.resume(hidden, lambda: host.model(ids, use_cache=False, **given), prefix, flat)


def close(got, want):
    assert (got - want).abs().max() <= 2e-4 * max(1.0, float(want.abs().max())), (got - want).abs().max()


SOME = ("llama", "mistral", "gpt2", "opt", "gemma2", "mixtral", "bloom", "mpt", "falcon", "gpt_neox", "gptj")


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("shared", [0, 13])
def test_logits_and_states_are_those_of_the_whole_forward(family, shared, tokenizer):
    host, recall = host_of(family, tokenizer)
    vocab = len(tokenizer)
    front = tuple(random.Random(1).randrange(3, vocab) for _ in range(shared))
    lines = some_lines(6, vocab, front) + some_lines(3, vocab, seed=2)
    places = places_of(lines)
    if shared:
        places = [[max(p, shared) if i < 6 else p for p in row] for i, row in enumerate(places)]
    chunks, states = run_lines(host, recall, lines, places, (0, 1))
    assert sorted(i for chunk in chunks for i in chunk.lines) == list(range(len(lines)))
    assert len(chunks) == (2 if shared else 1)
    values = torch.randn(1, VALUES, host.architecture.width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        kv = recall.project(values, torch.zeros(1, dtype=torch.long))
    for chunk in chunks:
        count = len(chunk.lines)
        spread = [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in kv]
        seen = torch.ones(count, chunk.ids.shape[1], VALUES, dtype=torch.bool)
        prefix = Prefix(spread, seen, chunk.begins)
        for n, i in enumerate(chunk.lines):
            line = lines[i]
            length = len(line.ids) - line.start
            assert chunk.ids[n, :length].tolist() == list(line.ids[line.start :])
            row, at = torch.full((length,), n), torch.arange(length)
            want, hidden = whole(host, line)
            with torch.no_grad():
                got = chunk.logits(host, recall, None, row, at)
                close(got, want[line.start :])
                edited = chunk.logits(host, recall, prefix, row, at)
                begin = int(chunk.positions[n, 0]) - line.start
                close(edited, prefixed(host, recall, kv, line, begin)[line.start :])
                assert (edited - got).abs().max() > 1e-2  # it is seen
            for layer in (0, 1):
                assert states.layers[layer][i].device.type == "cpu"
                close(states.layers[layer][i], hidden[layer + 1][0, places[i]])


def test_many_rows_go_in_several_chunks(tokenizer):
    host, recall = host_of("llama", tokenizer)
    lines = [Line((1, 3 + i % 50, 4, 5), 1) for i in range(100)]
    chunks, states = run_lines(host, recall, lines, [[3]] * 100, (1,))
    assert len(chunks) == 3
    alone, one = run_lines(host, recall, lines[:1], [[3]], (1,))
    close(states.layers[1][0], one.layers[1][0])
    assert alone[0].lines == [0]


def test_a_line_that_starts_at_its_first_token(tokenizer):
    """Nothing stands before it, so there are no keys and values to keep."""
    host, recall = host_of("llama", tokenizer)
    lines = [Line((5, 6, 7), 0), Line((8, 9), 0)]
    (chunk,), _ = run_lines(host, recall, lines, [[0], [0]], (1,))
    for n, i in enumerate(chunk.lines):
        with torch.no_grad():
            length = len(lines[i].ids)
            got = chunk.logits(host, recall, None, torch.full((length,), n), torch.arange(length))
        close(got, whole(host, lines[i])[0])


def test_a_front_is_shared_up_to_the_first_place_that_is_asked_for(tokenizer):
    host, recall = host_of("llama", tokenizer)
    front = tuple(range(3, 20))
    lines = some_lines(5, len(tokenizer), front)
    places = [[14, line.start] for line in lines]
    chunks, states = run_lines(host, recall, lines, places, (1,))
    for i, line in enumerate(lines):
        close(states.layers[1][i], whole(host, line)[1][2][0, places[i]])
    assert len(chunks) == 1
