"""One forward taken apart: real tokens, where rows begin, prompts, and what stays with a cache."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass

import pytest
import torch
from families import build
from torch import Tensor
from transformers import DynamicCache

from memplug.model.architecture import inspect_model
from memplug.model.hooks import Hook, HookSet
from memplug.model.row_state import held_by, hold
from memplug.model.tracker import CallTracker

BOS = 1
IDS = torch.tensor([[0, 0, BOS, 5, 6, 7], [BOS, 4, BOS, 5, 6, 7], [0, 3, 4, 5, 6, 7]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
REAL, START = MASK.bool(), [2, 0, 1]
OPEN = {"attention_mask": torch.ones(2, 6, dtype=torch.long)}


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.fixture(scope="module")
def architecture(model):
    return inspect_model(model)


@pytest.fixture
def tracker(architecture):
    return CallTracker(architecture, BOS)


def call_of(model, tracker, run=None, **given):
    """The call as layer 1 sees it, in the last forward."""
    seen = []
    layer = inspect_model(model).layers[1]
    hooks = [*tracker.hooks(lambda: True), Hook(layer, "before", lambda *_: seen.append(tracker.current))]
    with HookSet(hooks), torch.no_grad():
        (run or model)(**given)
    assert tracker.current is None  # closed when the decoder is left
    return seen[-1]


def test_what_stands_for_an_image_is_no_word(model, architecture):
    tracker = CallTracker(architecture, BOS, (5, 6))
    call = call_of(model, tracker, input_ids=IDS, attention_mask=MASK)
    assert torch.equal(call.real, REAL)
    assert torch.equal(call.media, (IDS == 5) | (IDS == 6))
    assert torch.equal(call.words, REAL & ~call.media)
    assert not bool((call.valid & call.media).any())
    call = call_of(model, tracker, inputs_embeds=model.get_input_embeddings()(IDS), attention_mask=MASK)
    assert call.media is None  # nobody knows
    assert torch.equal(call.words, REAL)


def test_padding_and_the_leading_bos_are_not_matched(model, tracker):
    call = call_of(model, tracker, input_ids=IDS, attention_mask=MASK)
    assert torch.equal(call.real, REAL)
    expected = REAL.clone()
    expected[0, 2] = expected[1, 0] = False  # a later BOS is a token like any other
    assert torch.equal(call.valid, expected)
    assert call.start.tolist() == START
    assert call.past == 0


def test_without_a_mask_it_is_as_with_one_that_hides_nothing(model, tracker):
    plain, masked = (call_of(model, tracker, input_ids=IDS[1:], **given) for given in ({}, OPEN))
    assert (plain.whole, masked.whole) == (True, False)
    for name in ("valid", "real", "start", "first"):
        assert torch.equal(getattr(plain, name), getattr(masked, name))
    assert plain.valid.tolist() == [[False, *[True] * 5], [True] * 6]
    assert torch.equal(plain.prompt_end(), masked.prompt_end())


def test_right_padding(model, tracker):
    call = call_of(model, tracker, input_ids=IDS.flip(1), attention_mask=MASK.flip(1))
    assert torch.equal(call.real, REAL.flip(1))
    assert call.start.tolist() == [0, 0, 0]


def test_first_is_the_position_id_of_the_first_real_token(model, tracker):
    positions = (MASK.cumsum(1) - 1).clamp(min=0) + 7
    call = call_of(model, tracker, input_ids=IDS, attention_mask=MASK, position_ids=positions)
    assert call.first.tolist() == [7, 7, 7]
    assert call_of(model, tracker, input_ids=IDS, attention_mask=MASK).first.tolist() == START
    many = call_of(model, tracker, input_ids=IDS, position_ids=torch.arange(3, 9)[None])
    assert many.first.tolist() == [3, 3, 3]


def test_embeddings_instead_of_ids(model, tracker):
    call = call_of(model, tracker, inputs_embeds=model.get_input_embeddings()(IDS), attention_mask=MASK)
    assert torch.equal(call.valid, REAL)  # no telling a BOS
    assert call.ids is None


def test_arguments_by_position(model, architecture, tracker):
    call = call_of(model, tracker, lambda: architecture.decoder(IDS, MASK))
    assert torch.equal(call.real, REAL)


def test_new_tokens_on_a_filled_cache(model, tracker):
    with torch.no_grad():
        cache = model(input_ids=IDS[:, :4], attention_mask=MASK[:, :4], use_cache=True).past_key_values
    full = copy.deepcopy(cache)
    call = call_of(model, tracker, input_ids=IDS[:, 4:], attention_mask=MASK, past_key_values=cache)
    assert call.past == 4
    assert call.real.shape == (3, 2)
    assert bool(call.real.all())
    assert call.start.tolist() == START
    assert call.cache is cache
    # A mask of the new tokens alone: what is cached is taken as real.
    call = call_of(model, tracker, input_ids=IDS[:, 4:], attention_mask=MASK[:, 4:], past_key_values=full)
    assert call.start.tolist() == [0, 0, 0]
    assert bool(call.real.all())


def causal(window=99):
    """Bool [B,1,T,T], True where a query may look: causal, real, and at most ``window`` back."""
    i, j = torch.arange(6)[:, None], torch.arange(6)[None]
    return ((j <= i) & (j > i - window))[None, None] & REAL[:, None, None]


@pytest.mark.parametrize("window", [99, 3, 1])
@pytest.mark.parametrize("kind", ["bool", "additive", "by kind of layer"])
def test_prebuilt_masks_say_the_same_as_flat_ones(window, kind):
    """Under a window the last query does not see the first tokens, which are real all the same."""
    model = build("ministral", layer_types=["sliding_attention"] * 4)
    mask = causal(window)
    if kind != "bool":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    given = {"sliding_attention": mask} if kind == "by kind of layer" else mask
    call = call_of(model, CallTracker(inspect_model(model), BOS), input_ids=IDS, attention_mask=given)
    assert torch.equal(call.real, REAL)
    assert call.start.tolist() == START


def test_of_masks_by_kind_of_layer_the_full_one_counts():
    model = build("ministral")
    given = {"sliding_attention": torch.ones(3, 1, 6, 6, dtype=torch.bool), "full_attention": causal()}
    call = call_of(model, CallTracker(inspect_model(model), BOS), input_ids=IDS, attention_mask=given)
    assert torch.equal(call.real, REAL)


def test_the_end_of_the_prompt(model, tracker):
    assert call_of(model, tracker, input_ids=IDS, attention_mask=MASK).prompt_end().tolist() == [5, 5, 5]
    flipped = {"input_ids": IDS.flip(1), "attention_mask": MASK.flip(1)}
    assert call_of(model, tracker, **flipped).prompt_end().tolist() == [3, 5, 4]
    with tracker.prompt_lengths([2, 3, 99]):
        call = call_of(model, tracker, input_ids=IDS, attention_mask=MASK)
        assert call.prompt_end().tolist() == [3, 2, 5]
        assert call_of(model, tracker, **flipped).prompt_end().tolist() == [1, 2, 4]
    assert call_of(model, tracker, input_ids=IDS, attention_mask=MASK).prompt is None


def test_a_prompt_ends_where_the_logits_that_are_asked_for_begin(model, tracker):
    """So it is in assisted decoding, which hands a draft in behind the prompt."""
    given = {"input_ids": IDS, "attention_mask": MASK}
    assert call_of(model, tracker, **given, logits_to_keep=3).prompt_end().tolist() == [3, 3, 3]
    assert call_of(model, tracker, **given, logits_to_keep=1).prompt is None
    assert call_of(model, tracker, **given).prompt is None  # nothing is left of the forward before
    cache = DynamicCache(config=model.config)
    call_of(model, tracker, **given, past_key_values=cache)
    more = {"input_ids": IDS[:, :2], "past_key_values": cache, "logits_to_keep": 2}
    assert call_of(model, tracker, **more).prompt is None  # the prompt was read before


def test_prompt_lengths_are_dealt_out_to_repeated_rows(model, tracker):
    with tracker.prompt_lengths([2, 3]):
        call = call_of(model, tracker, input_ids=IDS[[0, 0, 1, 1]], attention_mask=MASK[[0, 0, 1, 1]])
        assert call.prompt.tolist() == [2, 2, 3, 3]
        with pytest.raises(ValueError, match="2 prompt lengths for a batch of 3 rows; give one for each row"):
            call_of(model, tracker, input_ids=IDS, attention_mask=MASK)
    assert tracker.current is None
    for wrong in ([], [3, 0]):
        with pytest.raises(ValueError, match="at least 1"), tracker.prompt_lengths(wrong):
            pass


def test_a_call_is_closed_by_an_error(model, architecture, tracker):
    def fail(*_args):
        raise RuntimeError("in a layer")

    hooks = [*tracker.hooks(lambda: True), Hook(architecture.layers[2], "before", fail)]
    with HookSet(hooks), pytest.raises(RuntimeError, match="in a layer"):
        model(input_ids=IDS)
    assert tracker.current is None


def test_a_forward_inside_a_forward_leaves_the_outer_call(model, architecture, tracker):
    seen = []

    def inner(*_args):
        if len(seen) == 0:
            seen.append(tracker.current)
            with tracker.off():
                architecture.decoder(input_ids=IDS[:1])
            seen.append(tracker.current)

    with (
        HookSet([*tracker.hooks(lambda: True), Hook(architecture.layers[2], "before", inner)]),
        torch.no_grad(),
    ):
        model(input_ids=IDS)
    assert seen[0] is seen[1] is not None


def test_forwards_that_are_not_wanted_are_left_alone(model, architecture, tracker):
    seen = []
    look = Hook(architecture.layers[1], "before", lambda *_: seen.append(tracker.current))
    with HookSet([*tracker.hooks(lambda: False), look]), torch.no_grad():
        model(input_ids=IDS)
    with HookSet([*tracker.hooks(lambda: True), look]), torch.no_grad():
        with tracker.off():
            model(input_ids=IDS)
        model(input_ids=IDS)
    assert seen[:2] == [None, None]
    assert seen[2] is not None


def test_threads_have_their_own_call(model, architecture, tracker):
    """One thread waits inside its forward while another runs one, and one is switched off."""
    rows, barrier = {}, threading.Barrier(3, timeout=60)

    def look(*_args):
        barrier.wait()
        call = tracker.current
        rows[threading.current_thread().name] = None if call is None else len(call.real)

    def serve(count):
        with torch.no_grad():
            model(input_ids=IDS[:count])

    def base():
        with tracker.off():
            serve(3)

    with HookSet([*tracker.hooks(lambda: True), Hook(architecture.layers[1], "before", look)]):
        threads = [
            threading.Thread(target=serve, args=(1,), name="one"),
            threading.Thread(target=serve, args=(2,), name="two"),
            threading.Thread(target=base, name="off"),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert rows == {"one": 1, "two": 2, "off": None}


def test_trackers_of_two_models_are_apart(model, tracker):
    second = build("llama", seed=1)
    other = CallTracker(inspect_model(second), BOS)
    with HookSet(tracker.hooks(lambda: True)), tracker.off(), tracker.prompt_lengths([2, 2, 2]):
        call = call_of(second, other, input_ids=IDS[:2])
        assert len(call.real) == 2
        assert call.prompt is None
        assert tracker.current is None


def test_a_cache_that_the_decoder_makes_is_found(model, tracker):
    made = []
    call = call_of(model, tracker, lambda: made.append(model(input_ids=IDS, use_cache=True).past_key_values))
    assert call.cache is made[0]
    assert call_of(model, tracker, input_ids=IDS, use_cache=False).cache is None


@dataclass(frozen=True)
class Names:
    """What a method might keep: a name for each row, and the length it was cropped to."""

    names: tuple[str, ...]
    length: int = -1

    def __len__(self) -> int:
        return len(self.names)

    def select(self, rows: Tensor) -> Names:
        return Names(tuple(self.names[i] for i in rows.tolist()))

    def crop(self, length: int) -> Names:
        return Names(self.names, length)


@pytest.fixture
def cache(model):
    with torch.no_grad():
        cache = model(input_ids=IDS, use_cache=True, past_key_values=DynamicCache()).past_key_values
    hold(cache, Names(("a", "b", "c")))
    return cache


def test_what_is_held_follows_the_rows(cache):
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert held_by(cache).names == ("c", "a", "a")
    cache.batch_select_indices(torch.tensor([1, 0]))
    assert held_by(cache).names == ("a", "c")
    cache.batch_repeat_interleave(2)
    assert held_by(cache).names == ("a", "a", "c", "c")
    assert cache.layers[0].keys.shape[0] == 4  # the cache itself went along


def test_what_is_held_is_cropped_and_reset(cache):
    cache.crop(-2)
    assert held_by(cache).length == 4
    cache.reset()
    assert held_by(cache) is None


def test_a_copied_cache_holds_its_own(cache):
    other = copy.deepcopy(cache)
    other.reorder_cache(torch.tensor([1, 1, 1]))
    assert held_by(cache).names == ("a", "b", "c")
    assert held_by(other).names == ("b", "b", "b")


def test_a_held_cache_is_still_the_callers(cache, model):
    assert isinstance(cache, DynamicCache)
    assert type(cache).__name__ == "DynamicCache"
    kind = type(cache)
    hold(cache, Names(("x", "y", "z")))
    assert type(cache) is kind  # not wrapped twice
    assert held_by(DynamicCache()) is None
    assert held_by(None) is None
