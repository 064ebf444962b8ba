"""From hidden states to the entry a row recalls: kept over steps, rows, drafts and changes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from families import TEXTS, attach_llp, build, lexical
from test_contract import encode

from memplug.memory import KeyMemory
from memplug.model.architecture import inspect_model
from memplug.model.context import Call
from memplug.model.hooks import HookSet
from memplug.model.prefix import Prefix
from memplug.model.tracker import CallTracker
from memplug.retrieval.think import Recalling, draft_of, match_rows, think_hooks

LAYERS = (0, 2)
NOTHING = torch.zeros(4)
A, B, C = torch.eye(4)[:3]


@pytest.fixture
def memory():
    """Entry 5 is the word A, entry 6 the words B C; a vote of both layers is needed."""
    memory = KeyMemory(2, 4, threshold=0.9, quorum=2)
    memory.add(5, A.expand(2, 1, 4))
    memory.add(6, torch.stack([B, C]).expand(2, 2, 4))
    return memory


def call_with(*rows, past=0, held=None, second=None, valid=None):
    """A call whose think layers both saw these words; ``second`` is what the second layer saw."""
    states = torch.stack([torch.stack(row) for row in rows])
    other = states if second is None else torch.stack([torch.stack(row) for row in second])
    ok = torch.ones(states.shape[:2], dtype=torch.bool) if valid is None else torch.tensor(valid)
    none = torch.zeros(len(rows), dtype=torch.long)
    return Call(ok, ok, past, none, none, held=held, states={0: states, 2: other})


def match(memory, call, version=0):
    key, state = match_rows(memory, call, LAYERS, version)
    return key.tolist(), state


def held(memory, key, state=None, version=0, **given):
    key = torch.tensor(key)
    none = torch.zeros(len(key), dtype=torch.long)
    return Recalling(memory, version, key, state, none, none, None, **given)


def test_each_row_recalls_its_own_entry(memory):
    call = call_with([A, NOTHING], [B, C], [C, B], [NOTHING, NOTHING])
    assert match(memory, call)[0] == [5, 6, -1, -1]


def test_both_layers_have_to_vote(memory):
    assert match(memory, call_with([A], second=[[NOTHING]]))[0] == [-1]
    assert match(memory, call_with([A], second=[[A]]))[0] == [5]


@pytest.mark.parametrize(("threshold", "key"), [(0.59, 5), (0.6, -1), (0.61, -1)])
def test_a_threshold_has_to_be_exceeded(threshold, key):
    memory = KeyMemory(2, 4, threshold=threshold)
    memory.add(5, A.expand(2, 1, 4))
    assert match(memory, call_with([3 * A + 4 * B]))[0] == [key]  # cosine 0.6


def test_padding_is_not_matched(memory):
    assert match(memory, call_with([A, NOTHING], valid=[[False, True]]))[0] == [-1]


def test_a_subject_is_put_together_from_steps(memory):
    """Token by token the same entry is recalled as in one forward; layers may see it at other times."""
    _, state = match(memory, call_with([NOTHING, B]))
    key, state = match(memory, call_with([C], past=2, held=held(memory, [-1], state)))
    assert key == [6]
    early = call_with([A], second=[[NOTHING]])
    _, state = match(memory, early)
    late = call_with([NOTHING], second=[[A]], past=1, held=held(memory, [-1], state))
    assert match(memory, late)[0] == [5]
    assert match(memory, call_with([NOTHING], second=[[A]], past=1))[0] == [-1]  # nothing was held


def test_a_row_keeps_what_it_recalled(memory):
    both = held(memory, [5, -1])
    key, state = match(memory, call_with([B, C], [B, C], past=3, held=both))
    assert key == [5, 6]
    full = held(memory, [5, 6], state)
    key, same = match(memory, call_with([B, C], [A, A], past=5, held=full))
    assert key == [5, 6]
    assert same is state  # nothing had to be searched


def test_entries_that_went_are_not_kept(memory):
    both = held(memory, [5, 6])
    memory.set_enabled(5, False)
    assert match(memory, call_with([NOTHING], [NOTHING], past=3, held=both), version=0)[0] == [5, 6]
    assert match(memory, call_with([NOTHING], [NOTHING], past=3, held=both), version=1)[0] == [-1, 6]
    memory.remove(6)
    assert match(memory, call_with([NOTHING], [NOTHING], past=3, held=both), version=1)[0] == [-1, -1]


def test_what_another_memory_decided_or_for_other_rows_does_not_count(memory):
    other = KeyMemory(2, 4)
    cases = [held(other, [5]), held(memory, [5, 5]), "a stranger's", None]
    for kept in cases:
        call = call_with([NOTHING], past=3, held=kept)
        assert Recalling.of(call, memory) is None
        assert match(memory, call)[0] == [-1]
    mine = held(memory, [5])
    assert Recalling.of(call_with([NOTHING], past=3, held=mine), memory) is mine


def test_rows_are_selected_with_everything_they_hold(memory):
    _, state = match(memory, call_with([B], [NOTHING], [A]))
    kv = [(torch.arange(3.0).view(3, 1, 1, 1), torch.arange(3.0).view(3, 1, 1, 1) + 10)]
    prefix = Prefix(kv, torch.tensor([False, False, True]), torch.arange(3))
    kept = Recalling(
        memory, 4, torch.tensor([-1, -1, 5]), state, torch.arange(3) + 7, torch.arange(3), prefix
    )
    some = kept.select(torch.tensor([2, 0, 0]))
    assert some.key.tolist() == [5, -1, -1]
    assert (some.first.tolist(), some.start.tolist()) == ([9, 7, 7], [2, 0, 0])
    assert some.prefix.open.tolist() == [True, False, False]
    assert some.prefix.start.tolist() == [2, 0, 0]
    assert some.prefix.kv[0][0].flatten().tolist() == [2, 0, 0]
    assert some.prefix.kv[0][1].flatten().tolist() == [12, 10, 10]
    assert (some.version, len(some)) == (4, 3)
    # Row 1 and 2 now have seen B, so that C completes entry 6 there.
    assert match(memory, call_with([C], [C], [C], past=1, held=some), version=4)[0] == [5, 6, 6]
    assert copy.deepcopy(kept) is kept  # never changed in place


def drafted(memory, words, key=(-1,), state=None, past=2):
    """What is held after a forward of a draft: `words` after `past` others."""
    before = held(memory, list(key), state)
    call = call_with(words, past=past, held=before)
    draft = draft_of(memory, call, LAYERS)
    found, after = match(memory, call)
    return held(memory, found, after, draft=draft)


def test_words_of_a_draft_that_are_taken_back_are_forgotten(memory):
    _, state = match(memory, call_with([NOTHING, NOTHING]))
    after = drafted(memory, [B, C, NOTHING], state=state)
    assert after.key.tolist() == [6]
    assert after.crop(5) is after  # nothing was taken back
    assert after.crop(4).key.tolist() == [6]
    for length in (2, 3):
        kept = after.crop(length)
        assert kept.key.tolist() == [-1]
        assert kept.draft is None
        assert kept.version == -1  # what was injected has to be made anew
        # The word that stays counts, the one that went does not.
        call = call_with([C], past=length, held=kept)
        assert match(memory, call)[0] == [6 if length == 3 else -1]


def test_a_draft_keeps_what_was_recalled_before_it(memory):
    after = drafted(memory, [B, C], key=[5])
    for length in (2, 3):
        kept = after.crop(length)
        assert kept.key.tolist() == [5]
        assert kept.version == 0
    assert after.crop(1) is after  # cut further back than the draft


@pytest.mark.parametrize("given", [{"past": 0}, {"past": 2, "held": None}])
def test_forwards_that_are_no_draft(memory, given):
    call = call_with([A, B], **({"held": held(memory, [-1])} | given))
    assert draft_of(memory, call, LAYERS) is None
    single = call_with([A], past=2, held=held(memory, [-1]))
    assert draft_of(memory, single, LAYERS) is None  # one token is never taken back alone
    assert draft_of(memory, call_with([A, B], past=2, held=held(memory, [-1])), LAYERS) is not None


def test_hooks_keep_the_outputs_of_the_think_layers():
    model = build("llama")
    architecture = inspect_model(model)
    tracker = CallTracker(architecture, None)
    ids, seen = torch.arange(3, 9)[None], []

    def wanted():
        return True

    with HookSet([*tracker.hooks(wanted), *think_hooks(architecture, tracker, (0, 2))]), torch.no_grad():
        handle = architecture.layers[3].register_forward_pre_hook(
            lambda *_: seen.append(tracker.current.states)
        )
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        with tracker.off():
            handle.remove()
            model(input_ids=ids)
    assert seen[0].keys() == {0, 2}
    assert torch.equal(seen[0][0], states[1])
    assert torch.equal(seen[0][2], states[3])


@pytest.fixture(scope="module")
def plug(make_tokenizer):
    """An edit whose value is not trained, since only where it is recalled counts here."""
    tokenizer = make_tokenizer(TEXTS)
    tokenizer.padding_side = "left"
    with attach_llp(lexical("llama", len(tokenizer)), tokenizer, value_steps=0) as plug:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plug.edit("Where was Ada Quill born?", "Zarnow", "Ada Quill")
        yield plug


def test_a_value_stands_right_before_its_row_wherever_that_begins(plug):
    """Left padding without position ids moves a row's tokens, so its value moves along."""
    short, long = "Where was Ada Quill born?", "Who founded it? Where was Ada Quill born?"
    inputs = encode(plug.tokenizer, short, long)
    begin = int((inputs["attention_mask"][0] == 0).sum())
    assert begin > 3
    with torch.no_grad():
        alone = plug.model(**encode(plug.tokenizer, short)).logits
        together = plug.model(**inputs).logits
        with plug.paused():
            plain = plug.model(**inputs).logits
    assert (together[0, begin:] - plain[0, begin:]).abs().max() > 1e-2
    torch.testing.assert_close(together[0, begin:], alone[0], atol=1e-4, rtol=1e-3)


def test_a_cache_whose_rows_were_cut_by_hand_is_matched_anew(plug):
    """Its rows cannot be told apart any more; the forward goes on and nothing is recalled by mistake."""
    inputs = encode(plug.tokenizer, "Where was Ada Quill born?", "Where was Ada Quill born?")
    end = torch.tensor([[50]])
    with torch.no_grad():
        cache = plug.model(**inputs, use_cache=True).past_key_values
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:1], layer.values[:1]
        after = copy.deepcopy(cache)
        got = plug.model(input_ids=end, past_key_values=cache).logits
        with plug.paused():
            plain = plug.model(input_ids=end, past_key_values=after).logits
    assert torch.equal(got, plain)


def test_what_a_known_prompt_recalls_is_not_changed_by_the_answer(memory):
    asked = call_with([B, C, A], [NOTHING, NOTHING, A])
    assert match(memory, asked)[0] == [5, 5]  # as one text, the older of two equals
    asked.prompt = torch.tensor([2, 2])
    assert match(memory, asked)[0] == [6, 5]  # the answer is matched where the prompt recalls nothing
