"""LLP's keys: the contexts they come from, how a subject looks in them, and what parts them from others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import TEXTS, build

from memplug import Edit
from memplug.interface import Host
from memplug.methods.llp import LLPConfig
from memplug.model.architecture import inspect_model
from memplug.model.hooks import Hook, HookSet
from memplug.model.tracker import CallTracker
from memplug.retrieval.keys import contexts_of, contrast, subject_states, think_states
from memplug.text.names import Written
from memplug.text.tokens import Text, TokenizerError

PROMPT, SUBJECT = "Where was Ada Quill born?", "Ada Quill"
CONFIG = LLPConfig(think_layers=(0, 2), recall_layer=3)


@pytest.fixture(scope="module")
def host(make_tokenizer):
    tokenizer = make_tokenizer(TEXTS)
    model = build("llama", vocab_size=len(tokenizer))
    architecture = inspect_model(model)
    return Host(model, Text(model, tokenizer), architecture, CallTracker(architecture, 1))


def test_contexts_are_the_published_ones_or_the_prompt_and_the_subject():
    edit = Edit(PROMPT, "Zarnow", SUBJECT)
    published = contexts_of(edit, ["One day.", "Then"])
    assert [one.text for one in published] == [f"One day.{PROMPT}", f"Then{PROMPT}"]
    bare = contexts_of(edit, [])
    assert bare == [(PROMPT, 10, 19), (SUBJECT, 0, 9)]
    assert {text[begin:end] for text, begin, end in (*bare, *published)} == {SUBJECT}


def test_the_first_place_of_the_whole_word_counts():
    edit = Edit("Is Nigeria larger than Niger?", "no", "Niger")
    assert contexts_of(edit, ())[0] == (edit.prompt, 23, 28)


def test_states_are_the_outputs_of_the_think_layers(host):
    rows = [host.text.encode(PROMPT), host.text.encode("Who taught Ada Quill?")]
    ran = []
    watch = [
        Hook(layer, "before", lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(host.architecture.layers)
    ]
    host.model.train()
    try:
        with HookSet(watch):
            states = think_states(host, rows, (2, 0))
        assert host.model.training
    finally:
        host.model.eval()
    assert ran == [0, 1, 2]  # no layer above is run
    batch = host.text.batch(rows)
    hidden = host.model(batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
    for row, ids in enumerate(rows):  # in the order asked for
        torch.testing.assert_close(states[0, row, : len(ids)], hidden[3][row, : len(ids)])
        torch.testing.assert_close(states[1, row, : len(ids)], hidden[1][row, : len(ids)])


def test_a_subjects_states_are_grouped_by_how_it_tokenizes(host):
    texts = [Written(PROMPT, 10, 19), Written("Then " + PROMPT, 15, 24), Written(SUBJECT, 0, 9)]
    (groups,) = subject_states(host, [texts], CONFIG)
    ways = {tuple(host.text.encode(piece)[1:]) for piece in (" " + SUBJECT, SUBJECT)}
    assert len(ways) == 2  # at the start of a text it is written otherwise
    assert [len(group) for group in groups] == [2, 1]
    for group, one in zip(groups, (texts[0], texts[2]), strict=True):
        ids, span = host.text.span(*one)
        states = think_states(host, [ids], (0, 2))[:, 0, span.start : span.stop]
        torch.testing.assert_close(group[0], F.normalize(states.float(), dim=-1), atol=1e-5, rtol=1e-4)
        assert group.dtype == torch.float32


def test_the_published_key_is_of_the_last_token(host):
    contexts = [[Written(PROMPT, 10, 19)]]
    (groups,) = subject_states(host, contexts, LLPConfig(think_layers=(0, 2), span_keys=False))
    (spans,) = subject_states(host, contexts, CONFIG)
    assert groups[0].shape == (1, 2, 1, 32)
    assert spans[0].shape[2] > 1
    torch.testing.assert_close(groups[0], spans[0][:, :, -1:])


def test_several_subjects_at_once_are_each_alone(host):
    contexts = [[Written(PROMPT, 10, 19), Written(SUBJECT, 0, 9)], [Written("Who founded Orlo?", 12, 16)]]
    together = subject_states(host, contexts, CONFIG)
    for texts, groups in zip(contexts, together, strict=True):
        (alone,) = subject_states(host, [texts], CONFIG)
        for one, other in zip(groups, alone, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_context_longer_than_the_models(host):
    with pytest.raises(TokenizerError, match="the model's context holds 128"):
        subject_states(host, [[Written("Who? " * 200 + SUBJECT, 1000, 1009)]], CONFIG)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_keys_of_fewer_tokens_are_no_rivals_and_longer_ones_by_their_end():
    states = unit(1, 1, 2, 8)
    shorter = states[0, :, -1:]
    assert torch.equal(contrast(states, [shorter], LLPConfig()), states[0])
    longer = torch.cat([unit(1, 1, 8, seed=1), states[0]], dim=1)
    moved = contrast(states, [longer], LLPConfig())
    assert not torch.equal(moved, states[0])  # it ends just like the subject


def test_a_layer_that_is_told_apart_already_stays():
    states = unit(2, 2, 1, 8)
    rival = torch.stack([-states.mean(0)[0], states.mean(0)[1]])  # opposite in layer 0, the same in layer 1
    key = contrast(states, [rival], LLPConfig(key_steps=8))
    assert torch.equal(key[0], states.mean(0)[0])
    assert not torch.equal(key[1], states.mean(0)[1])
    assert torch.equal(contrast(states, [rival], LLPConfig(key_steps=0)), states.mean(0))
