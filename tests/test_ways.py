"""Every way transformers generates, with every method: as the prompt alone, at once and without a cache.

Or an error that names the way out: never the base model's answer where an edit is due.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from families import METHODS, lexical, method_of
from test_contract import encode
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, QuantizedCache

import memplug

BORN = "Where was Ada Quill born?"
EDITS = [
    memplug.Edit(BORN, "Zarnow", "Ada Quill"),
    memplug.Edit("Who founded the Orlo Bridge Company?", "Marrow", "Orlo Bridge Company"),
]
GIVEN = {name: METHODS[name] for name in ("llp-answer", "llp", "elder", "elder-row", "grace", "grace-asked")}
GIVEN |= {"icl": {}, "finetune": {"lr": 0.05, "bound": None, "stop_loss": 0.01, "keep": 0}}


@pytest.fixture(scope="module")
def roomy(tokenizer):
    """With room for notes and further turns."""
    return lexical("llama", len(tokenizer), max_position_embeddings=512)


@pytest.fixture(scope="module", params=GIVEN)
def saved(request, roomy, tokenizer, tmp_path_factory):
    """The method, and its plug with the first edit in force and the second one off."""
    path = tmp_path_factory.mktemp("plug") / "facts"
    given = GIVEN[request.param]
    with memplug.attach(copy.deepcopy(roomy), tokenizer, method_of(request.param), **given) as plug:
        for edit in EDITS:
            plug.edit(edit)
        plug.disable("e2")
        plug.save(path)
    return request.param, path


class Caller:
    """A model with a plug, and the tokens of a prompt."""

    def __init__(self, plug, bare, saved):
        self.plug, self.model, self.tokenizer = plug, plug.model, plug.tokenizer
        self.bare, self.saved = bare, saved
        self.ids = self.tokens(BORN)

    def tokens(self, text, front=True):
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=front)["input_ids"]

    def say(self, ids=None, model=None, **given):
        ids = self.ids if ids is None else ids
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False} | given
        return (model or self.model).generate(ids, **given)[:, ids.shape[1] :].tolist()

    def filled(self, *parts, model=None):
        """A cache that these were read into, one after the other."""
        cache = DynamicCache(config=self.model.config)
        with torch.no_grad():
            for part in parts:
                (model or self.model)(part, past_key_values=cache)
        return cache

    def turn(self, first, more, between=lambda: None):
        """A second turn on the cache of the first."""
        cache, said = DynamicCache(config=self.model.config), self.tokens(first)
        mask = {"attention_mask": torch.ones_like(said)}
        said = self.model.generate(said, **mask, past_key_values=cache, max_new_tokens=3, do_sample=False)
        between()
        both = torch.cat([said, self.tokens(f" {more}", front=False)], 1)
        return self.say(both, past_key_values=cache), self.say(both, use_cache=False)


def chunked(size, **given):
    return lambda c: c.say(prefill_chunk_size=size, **given)


def chunked_batch(c):
    inputs = encode(c.tokenizer, BORN, "Who taught him and where was that? I do not know")
    given = {"max_new_tokens": 6, "do_sample": False}
    got = c.model.generate(**inputs, **given, prefill_chunk_size=4)
    return got.tolist(), c.model.generate(**inputs, **given, use_cache=False).tolist()


def off_before(last):
    def way(c):
        c.plug.disable("e1")
        cache = c.filled(c.ids[:, :-last])
        c.plug.enable("e1")
        return c.say(past_key_values=cache)

    return way


def other_before(c):
    c.plug.disable("e1")
    c.plug.enable("e2")
    cache = c.filled(c.ids[:, :-2])
    c.plug.enable("e1")
    return c.say(past_key_values=cache)


def paused_before(c):
    with c.plug.paused():
        cache = c.filled(c.ids[:, :-2])
    return c.say(past_key_values=cache)


def paused_behind(c):
    """What was read with an edit is not left in the base model's answers."""
    cache = c.filled(c.ids[:, :-1])
    with c.plug.paused():
        return c.say(past_key_values=cache), c.say(use_cache=False)


def another_plug(c):
    """What was read with the edits of a plug that is gone, and with as many changes behind it."""
    cache = c.filled(c.ids[:, :-2])
    c.plug.detach()
    with memplug.load(c.saved, c.model, c.tokenizer) as plug:
        plug.disable("e1")
        got = c.say(past_key_values=copy.deepcopy(cache))
        assert c.say(use_cache=False) == got
        plug.enable("e1")
        return c.say(past_key_values=cache), c.say(use_cache=False)


def off_between_turns(c):
    c.plug.disable("e1")
    return c.turn("Who taught Ada Quill?", BORN, lambda: c.plug.enable("e1"))


def before_attach(last):
    return lambda c: c.say(past_key_values=c.filled(c.ids[:, :-last], model=c.bare))


def packed(c):
    other = c.tokens("Who taught him and where was that?")
    positions = torch.cat([torch.arange(c.ids.shape[1]), torch.arange(other.shape[1])])[None]
    with torch.no_grad():
        row = torch.cat([c.ids, other], 1)
        got = c.model(row, position_ids=positions, use_cache=False).logits[0].argmax(-1).tolist()
        alone = [c.model(ids, use_cache=False).logits[0].argmax(-1).tolist() for ids in (c.ids, other)]
    return got, alone[0] + alone[1]


def paged(c):
    given = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    settings = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    rows = [c.ids[0].tolist(), c.tokens("Who taught him?")[0].tolist()]
    out = c.model.generate_batch(rows, GenerationConfig(**given), settings)
    first = out[min(out)]
    if first.error is not None:  # which is how it tells
        raise memplug.UnsupportedModelError(first.error)
    return [list(first.generated_tokens)], c.say(use_cache=False)


def looked_up(c):
    ids = c.tokens(f"{BORN} Zarnow. {BORN}")
    return c.say(ids, prompt_lookup_num_tokens=3), c.say(ids, use_cache=False)


def sampled(c):
    found = []
    for cached in (True, False):
        torch.manual_seed(0)
        found.append(c.say(do_sample=True, num_return_sequences=3, use_cache=cached))
    return found[0], found[1]


def embedded(c):
    """Without a BOS, which nobody can tell among embeddings."""
    vectors = c.model.get_input_embeddings()(c.ids[:, 1:]).detach()
    given = {"attention_mask": torch.ones_like(c.ids[:, 1:]), "max_new_tokens": 6, "do_sample": False}
    got = c.model.generate(inputs_embeds=vectors, **given).tolist()
    assert c.model.generate(inputs_embeds=vectors, use_cache=False, **given).tolist() == got
    return got, c.say(c.ids[:, 1:], use_cache=False)


def trained(c):
    """A step of training sees the edits, and puts nothing out of order."""
    with torch.no_grad():
        want = c.model(c.ids, use_cache=False).logits[0, -1]
    c.model.train()
    got = c.model(c.ids, use_cache=False).logits[0, -1]
    got.sum().backward()
    c.model.eval()
    return [torch.allclose(got, want, atol=1e-4)], [True]


def checkpointed(c):
    c.model.gradient_checkpointing_enable()
    return trained(c)


def compiled(c):
    run = torch.compile(c.model, backend="eager")
    with torch.no_grad():
        try:
            got = run(c.ids, use_cache=False).logits[0, -1]
        finally:
            torch.compiler.reset()
        return [torch.allclose(got, c.model(c.ids, use_cache=False).logits[0, -1], atol=1e-4)], [True]


def doubled(c):
    want = c.say(use_cache=False)
    c.model.double()
    return c.say(), want


WAYS = {
    "cached": lambda c: c.say(),
    **{f"chunks of {n}": chunked(n) for n in (1, 4)},
    "chunks, the last of one": lambda c: c.say(prefill_chunk_size=c.ids.shape[1] - 1),
    "chunks of a batch": chunked_batch,
    "chunks, static": chunked(4, cache_implementation="static"),
    "chunks, beams": lambda c: (
        c.say(num_beams=3, prefill_chunk_size=4),
        c.say(num_beams=3, use_cache=False),
    ),
    "pieces": lambda c: c.say(past_key_values=c.filled(c.ids[:, :3], c.ids[:, 3:-2])),
    "pieces, copied": lambda c: c.say(past_key_values=copy.deepcopy(c.filled(c.ids[:, :-3]))),
    "all but one": lambda c: c.say(past_key_values=c.filled(c.ids[:, :-1])),
    "off before, one": off_before(1),
    "off before": off_before(3),
    "another before": other_before,
    "paused before": paused_before,
    "paused behind": paused_behind,
    "another plug": another_plug,
    "before attach": before_attach(2),
    "before attach, one": before_attach(1),
    "pickled cache": lambda c: c.say(
        past_key_values=pickle.loads(pickle.dumps(c.filled(c.ids[:, :-3]))),
    ),
    "second turn": lambda c: c.turn("Who taught him?", BORN),
    "second turn, again": lambda c: c.turn(BORN, BORN),
    "second turn, another": lambda c: c.turn(EDITS[1].prompt, f"Tam Wickes did. {BORN}"),
    "second turn, off in the first": off_between_turns,
    "packed": packed,
    "paged": paged,
    "static": lambda c: c.say(cache_implementation="static"),
    "float8": lambda c: c.say(past_key_values=QuantizedCache("fp8", c.model.config), max_new_tokens=1),
    "looked up": looked_up,
    "early exit": lambda c: c.say(assistant_early_exit=2),
    "sampled": sampled,
    "embeddings": embedded,
    "training": trained,
    "checkpointing": checkpointed,
    "compiled": compiled,
    "double": doubled,
    "model copied": lambda c: c.say(model=copy.deepcopy(c.model)),
    "model pickled": lambda c: c.say(model=pickle.loads(pickle.dumps(c.model))),
}

_ROWS = ("elder-row", "grace")  # which decide by a prompt's last token what all of it is read with
_READS = tuple(name for name in GIVEN if name != "finetune")
_PIECES = [
    *("chunks of 1", "chunks of 4", "chunks, the last of one", "chunks of a batch"),
    *("chunks, static", "chunks, beams", "pieces", "pieces, copied", "all but one", "off before, one"),
    *("off before", "another before", "paused before", "another plug", "second turn, again"),
]
_NAMED_LATE = [  # the subject is complete in a later piece only
    *("chunks of 1", "chunks of 4", "chunks of a batch", "chunks, static", "chunks, beams"),
    *("pieces", "pieces, copied", "off before", "second turn", "second turn, another"),
]
_INSIDE = ("elder", "elder-row", "grace", "grace-asked")  # edits take effect on modules inside the layers
REFUSED = {
    **{(name, way): "give the whole prompt at once" for name in _ROWS for way in _PIECES},
    ("elder-row", "second turn"): "give the whole prompt at once",
    ("elder-row", "second turn, off in the first"): "give the whole prompt at once",
    **{("llp", way): "give the whole prompt at once" for way in _NAMED_LATE},
    **{
        (name, way): "begin with a new cache"
        for name in _READS
        for way in ("before attach", "before attach, one", "pickled cache")
    },
    **{(name, "packed"): "give each text a row of its own" for name in _READS},
    **{(name, "paged"): "continuous batching.*a row of its own" for name in _READS},
    **{(name, "checkpointing"): "gradient_checkpointing_disable" for name in _INSIDE},
    **{(name, "compiled"): "run the model uncompiled" for name in _INSIDE},
    **{(name, f"model {how}"): "detach" for name in GIVEN for how in ("copied", "pickled")},
}
DIFFERS = {
    ("finetune", "pickled cache"),  # nobody can tell what it holds
    ("finetune", "before attach"),
    ("finetune", "before attach, one"),
    ("finetune", "float8"),  # its first token is the base model's
}


@pytest.mark.parametrize("way", WAYS)
def test_a_way_to_generate(saved, roomy, tokenizer, way):
    name, path = saved
    if (name, way) in DIFFERS:
        pytest.skip("documented")
    with memplug.load(path, copy.deepcopy(roomy), tokenizer) as plug:
        caller = Caller(plug, roomy, path)
        if (name, way) in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[name, way]):
                WAYS[way](caller)
            return
        got = WAYS[way](caller)
        got, want = got if isinstance(got, tuple) else (got, None)
        if want is None:
            given = {"max_new_tokens": 1} if way == "float8" else {}
            want = caller.say(use_cache=False, **given) if way != "double" else got
            with plug.paused():
                assert caller.say(use_cache=False, **given) != want
        assert got == want
