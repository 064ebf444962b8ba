"""Every way to generate: greedy, sampled, beams, drafts, static and continued caches, pipelines, streams."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from families import TEXTS, attach_llp, lexical
from test_contract import Trace, answers, encode
from transformers import DynamicCache, TextIteratorStreamer, pipeline

import memplug

BORN, TARGET, SUBJECT = "Where was Ada Quill born?", "Zarnow", "Ada Quill"
LONGER = "Who founded the Orlo Bridge Company? Tam Wickes did."


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    tokenizer = make_tokenizer(TEXTS)
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.fixture(scope="module")
def base(tokenizer):
    return lexical("llama", len(tokenizer))


@pytest.fixture(scope="module", params=["row", "answer"])
def scope(request):
    return request.param


row_only = pytest.mark.parametrize("scope", ["row"], indirect=True)


@pytest.fixture(scope="module")
def saved(base, tokenizer, tmp_path_factory, scope):
    path = tmp_path_factory.mktemp("plug") / "facts"
    with attach_llp(copy.deepcopy(base), tokenizer, scope) as plug:
        plug.edit(BORN, TARGET, SUBJECT)
        plug.save(path)
    return path


@pytest.fixture
def plug(base, tokenizer, saved):
    with memplug.load(saved, copy.deepcopy(base), tokenizer) as plug:
        yield plug


def generate(plug, *texts, seed=0, **given):
    inputs = encode(plug.tokenizer, *texts)
    torch.manual_seed(seed)
    out = plug.model.generate(**inputs, **({"max_new_tokens": 6} | given))
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def first_word(plug, row):
    return plug.tokenizer.decode(row, skip_special_tokens=True).strip()


def test_sampled_with_and_without_cache(plug):
    given = {"do_sample": True, "temperature": 2.0, "top_k": 20, "max_new_tokens": 10}
    cached = [generate(plug, BORN, LONGER, seed=seed, **given) for seed in range(3)]
    assert cached[0] != cached[1]
    for seed, rows in enumerate(cached):
        assert generate(plug, BORN, LONGER, seed=seed, use_cache=False, **given) == rows


def test_beams_with_and_without_cache(plug):
    given = {"num_beams": 3, "do_sample": False, "max_new_tokens": 8}
    cached = generate(plug, BORN, LONGER, **given)
    assert first_word(plug, cached[0]) == TARGET
    assert generate(plug, BORN, LONGER, use_cache=False, **given) == cached
    with plug.paused():
        assert generate(plug, BORN, LONGER, **given) != cached


def test_several_sequences_a_prompt(plug):
    rows = generate(plug, BORN, "Who", num_beams=4, num_return_sequences=2, do_sample=False)
    assert len(rows) == 4
    assert first_word(plug, rows[0]) == TARGET
    sampled = generate(plug, BORN, num_return_sequences=4, do_sample=True, top_k=2, temperature=0.3)
    assert all(first_word(plug, row).startswith(TARGET) for row in sampled)


def test_prompt_lookup_decoding_gives_the_greedy_tokens(plug):
    text = "Where was Ada Quill born? Zarnow. Where was Ada Quill born?"
    greedy = generate(plug, text, do_sample=False, max_new_tokens=12)
    drafted = generate(plug, text, do_sample=False, max_new_tokens=12, prompt_lookup_num_tokens=3)
    assert drafted == greedy


@row_only
def test_a_draft_that_is_taken_back_leaves_no_match(plug):
    """Tokens of a rejected draft name the subject; after the crop nothing is recalled."""
    model, tokenizer = plug.model, plug.tokenizer
    prompt, name = (
        encode(tokenizer, "Who taught")["input_ids"],
        encode(tokenizer, " Ada Quill")["input_ids"][:, 1:],
    )
    end = encode(tokenizer, " did")["input_ids"][:, 1:]
    cache = DynamicCache(config=model.config)

    def draft(*parts):
        """As assisted decoding does, which asks for the logits of all that it hands in."""
        ids = torch.cat(parts, 1)
        return model(input_ids=ids, past_key_values=cache, logits_to_keep=ids.shape[1]).logits

    with torch.no_grad():
        model(input_ids=prompt, past_key_values=cache)
        drafted = draft(name)
        with plug.paused():
            plain = model(input_ids=torch.cat([prompt, name], 1)).logits[:, prompt.shape[1] :]
        assert (drafted - plain).abs().max() > 1e-2  # the draft is recalled for
        cache.crop(-name.shape[1])
        after = draft(end)
        with plug.paused():
            expected = model(input_ids=torch.cat([prompt, end], 1)).logits[:, prompt.shape[1] :]
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)

        cache.crop(-end.shape[1])
        draft(name, end)
        cache.crop(-end.shape[1])  # the name stays
        after = draft(end)
        with plug.paused():
            plain = model(input_ids=torch.cat([prompt, name, end], 1)).logits[:, -end.shape[1] :]
        assert (after - plain).abs().max() > 1e-2


def test_static_cache(plug):
    greedy = generate(plug, BORN, LONGER, do_sample=False)
    assert generate(plug, BORN, LONGER, do_sample=False, cache_implementation="static") == greedy


def test_text_generation_pipeline(plug):
    run = pipeline("text-generation", model=plug.model, tokenizer=plug.tokenizer, device="cpu")
    out = run([BORN, LONGER], max_new_tokens=6, do_sample=False, batch_size=2, return_full_text=False)
    assert out[0][0]["generated_text"].strip() == TARGET


def test_a_cache_continued_over_two_turns(plug):
    """The subject is named in the first turn; what was read of it is there in the second."""
    model, tokenizer = plug.model, plug.tokenizer
    first = encode(tokenizer, "Who taught Ada Quill?")["input_ids"]
    second = encode(tokenizer, " Where was she born?")["input_ids"][:, 1:]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        one = model.generate(first, past_key_values=cache, max_new_tokens=3, do_sample=False)
        both = torch.cat([one, second], dim=1)
        two = model.generate(both, past_key_values=cache, max_new_tokens=4, do_sample=False)
        whole = model.generate(both, max_new_tokens=4, do_sample=False)
    assert two.tolist() == whole.tolist()


def test_a_copied_cache_goes_its_own_way(plug):
    model, tokenizer = plug.model, plug.tokenizer
    ids = encode(tokenizer, "Where was Ada Quill")["input_ids"]
    end = encode(tokenizer, " born?")["input_ids"][:, 1:]
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
        copied = copy.deepcopy(cache)
        expected = model(input_ids=end, past_key_values=cache).logits
        assert torch.equal(model(input_ids=end, past_key_values=copied).logits, expected)
        whole = model(input_ids=torch.cat([ids, end], 1)).logits[:, -end.shape[1] :]
    torch.testing.assert_close(expected, whole, atol=1e-5, rtol=1e-4)


def test_rows_of_a_cache_selected_and_repeated(plug):
    """What rows recall follows them when a caller reorders the cache by hand."""
    model, tokenizer = plug.model, plug.tokenizer
    inputs = encode(tokenizer, BORN, LONGER)
    end = encode(tokenizer, f" {TARGET}")["input_ids"][:, 1:]
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        cache.batch_select_indices(torch.tensor([1, 0]))
        cache.batch_repeat_interleave(2)
        mask = inputs["attention_mask"][[1, 1, 0, 0]]
        mask = torch.cat([mask, torch.ones(4, end.shape[1], dtype=torch.long)], 1)
        position = {"position_ids": (mask.cumsum(1) - 1)[:, -end.shape[1] :]}
        got = model(
            input_ids=end.expand(4, -1), past_key_values=cache, attention_mask=mask, **position
        ).logits
        ids = torch.cat([inputs["input_ids"][[1, 1, 0, 0]], end.expand(4, -1)], 1)
        whole = model(input_ids=ids, attention_mask=mask).logits[:, -end.shape[1] :]
    torch.testing.assert_close(got[:2], whole[:2], atol=1e-5, rtol=1e-4)
    assert (got[2] - got[0]).abs().max() > 1e-2


def test_input_embeddings_instead_of_ids(plug):
    model, tokenizer = plug.model, plug.tokenizer
    inputs = encode(tokenizer, BORN, LONGER)
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach()
    by_ids = generate(plug, BORN, LONGER, do_sample=False)
    out = model.generate(
        inputs_embeds=embedded, attention_mask=inputs["attention_mask"], max_new_tokens=6, do_sample=False
    )
    assert out.tolist() == by_ids


def test_streaming_the_base_model_from_another_thread(plug):
    inputs = encode(plug.tokenizer, BORN)
    with plug.paused():
        expected = generate(plug, BORN, do_sample=False)[0]
        streamer = TextIteratorStreamer(plug.tokenizer, skip_prompt=True, timeout=60)
        given = inputs | {"max_new_tokens": 6, "do_sample": False, "streamer": streamer}
        thread = threading.Thread(target=plug.model.generate, kwargs=given)
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text == plug.tokenizer.decode(expected)
    assert first_word(plug, generate(plug, BORN, do_sample=False)[0]) == TARGET


@row_only
def test_a_subject_first_named_while_decoding(base, tokenizer, saved):
    """Recalled from the token that completes its name on."""
    with memplug.load(saved, copy.deepcopy(base), tokenizer) as loaded:
        entries, memory = loaded.method.state()
        edits = loaded.edits
    with attach_llp(copy.deepcopy(base), tokenizer) as plug:
        plug.method.restore(entries, memory, edits)
        model = plug.model
        prompt = encode(tokenizer, "Who taught")["input_ids"]
        name = encode(tokenizer, " Ada Quill did")["input_ids"][0, 1:].tolist()
        last = len(encode(tokenizer, " Ada Quill")["input_ids"][0, 1:]) - 1
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        with torch.no_grad():
            for step, ids in enumerate([prompt, *(torch.tensor([[token]]) for token in name)], start=-1):
                got = model(input_ids=ids, past_key_values=caches[0]).logits
                with plug.paused():
                    plain = model(input_ids=ids, past_key_values=caches[1]).logits
                assert torch.equal(got, plain) is not (step >= last), step


@pytest.mark.parametrize("where", ["one device", "two devices", "offloaded"])
def test_accelerate_dispatched_models(base, tokenizer, saved, scope, where):
    accelerate = pytest.importorskip("accelerate")
    model = copy.deepcopy(base)
    if where == "offloaded":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        last = {"model.layers.3": "cpu", "lm_head": "cpu"} if where == "two devices" else {}
        names = [
            "model.embed_tokens",
            "model.norm",
            "model.rotary_emb",
            *(f"model.layers.{i}" for i in range(3)),
        ]
        full = dict.fromkeys(names, "cpu") | {"model.layers.3": "cpu", "lm_head": "cpu"} | last
        accelerate.dispatch_model(model, {"": "cpu"} if where == "one device" else full, force_hooks=True)
    with memplug.load(saved, copy.deepcopy(base), tokenizer) as plain:
        expected = answers(plain.model, tokenizer, BORN, LONGER)
    with attach_llp(model, tokenizer, scope) as plug:
        plug.edit(BORN, TARGET, SUBJECT)
        assert answers(model, tokenizer, BORN, LONGER) == expected


def test_evaluation_by_the_trainer(plug, tmp_path):
    from transformers import Trainer, TrainingArguments

    row = encode(plug.tokenizer, f"{BORN} {TARGET}")["input_ids"][0]
    labels = row.clone()
    labels[:-1] = -100
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    trainer = Trainer(plug.model, arguments, eval_dataset=[{"input_ids": row, "labels": labels}])
    edited = trainer.evaluate()["eval_loss"]
    with plug.paused():
        base_loss = trainer.evaluate()["eval_loss"]
    assert edited < 0.5 < base_loss


def test_nothing_is_left_after_generating(plug, base):
    trace = Trace(copy.deepcopy(base))
    generate(plug, BORN, LONGER, do_sample=False, num_beams=2)
    plug.detach()
    assert not [name for name in vars(plug.model) if "memplug" in name]
    after = Trace(plug.model)
    assert {name: m[2] for name, m in after.modules.items()} == {
        name: m[2] for name, m in trace.modules.items()
    }
