"""ELDER on a tiny model: edits, rows, prompts and answers, deferral, forgetting, saving, failing."""

from __future__ import annotations

import pytest
import torch
from families import TEXTS, lexical

import memplug
from memplug import Edit, EditError
from memplug.hooks import capture_input, resume
from memplug.methods.elder import method as method_module
from memplug.methods.elder import training
from memplug.methods.elder.allocation import pack

QUICK = {
    "edit_layers": (2, 3),
    "query_layer": 1,
    "query": "input",
    "n_experts": 4,
    "top_k": 2,
    "rank": 8,
    "gain": 2,
    "allocation": "random",
    "lr": 1e-2,
    "relative_lr": False,
    "router_lr": None,
    "replay": 0,
    "steps": 120,
    "stop_loss": 0.02,
    "threshold": 0.9,
    "heldout": 8,
}
ADA = Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill")
TAM = Edit("Tam Wickes was taught by", "Marrow", "Tam Wickes")
ORLO = Edit("The Orlo Bridge Company is based in", "Vestland", "Orlo Bridge Company")


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    made = make_tokenizer(TEXTS)
    made.padding_side = "left"
    return made


@pytest.fixture(scope="module")
def model(tokenizer):
    return lexical("llama", len(tokenizer))


@pytest.fixture
def plug(model, tokenizer):
    with memplug.attach(model, tokenizer, "elder", **QUICK) as made:
        yield made


def encode(tokenizer, *texts, side="left"):
    tokenizer.padding_side = side
    out = tokenizer(list(texts), return_tensors="pt", padding=True)
    tokenizer.padding_side = "left"
    return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}


def answer(model, tokenizer, text, **given):
    inputs = encode(tokenizer, text)
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False, **given)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@torch.no_grad()
def logits(model, **inputs):
    return model(**inputs).logits


def learned(plug):
    return [tensor.clone() for tensor in plug.method.known.experts.snapshot()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_edits_are_answered_cached_or_not_by_one_beam_or_more(plug, model, tokenizer):
    plug.edit([ADA, TAM], progress=False)
    for edit in (ADA, TAM):
        assert answer(model, tokenizer, edit.prompt) == edit.target
        assert answer(model, tokenizer, edit.prompt, use_cache=False) == edit.target
        assert answer(model, tokenizer, edit.prompt, num_beams=3).startswith(edit.target)


def test_rows_of_a_batch_do_not_know_of_each_other(plug, model, tokenizer):
    texts = [ADA.prompt, "Nothing of that kind, one says", TAM.prompt]
    base = [logits(model, **encode(tokenizer, text)) for text in texts]
    plug.edit([ADA, TAM], progress=False)
    for side in ("left", "right"):
        inputs = encode(tokenizer, *texts, side=side)
        together = logits(model, **inputs)
        for i, text in enumerate(texts):
            alone = logits(model, **encode(tokenizer, text))[0]
            real = inputs["attention_mask"][i].bool()
            torch.testing.assert_close(together[i][real], alone, atol=2e-4, rtol=1e-3)
            assert torch.equal(alone, base[i][0]) == (i == 1)


def test_a_deferred_output_is_not_touched(plug, model, tokenizer):
    inputs = encode(tokenizer, "Nothing of that kind, one says")
    base = logits(model, **inputs)
    plug.edit(ADA)
    assert plug.explain("Nothing of that kind, one says").deferred
    assert torch.equal(logits(model, **inputs), base)


def test_the_answer_has_no_say_in_the_routing(plug, model, tokenizer):
    plug.edit([ADA, TAM], progress=False)
    prompt = encode(tokenizer, ADA.prompt)
    length = prompt["input_ids"].shape[1]
    both = encode(tokenizer, f"{ADA.prompt} Zarnow was it")
    alone = logits(model, **prompt)
    with plug.prompt_lengths([length]):
        told = logits(model, **both)
    torch.testing.assert_close(told[:, :length], alone, atol=1e-4, rtol=1e-3)
    with plug.paused():
        base = logits(model, **both)
    assert torch.equal(logits(model, **both), base)  # untold, the end of the answer is what is looked at
    steps = model(**prompt, use_cache=True)
    for t in range(length, both["input_ids"].shape[1]):
        steps = model(both["input_ids"][:, t : t + 1], past_key_values=steps.past_key_values, use_cache=True)
    torch.testing.assert_close(steps.logits[:, -1], told[:, -1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("lengths", [[], [0], [3, 4, 5]])
def test_prompt_lengths_that_do_not_fit_are_refused(plug, model, tokenizer, lengths):
    plug.edit(ADA)
    inputs = encode(tokenizer, ADA.prompt, TAM.prompt)
    with pytest.raises(ValueError, match="prompt lengths"), plug.prompt_lengths(lengths):
        logits(model, **inputs)


def test_a_resumed_forward_is_the_whole_forward(plug, model, tokenizer):
    anatomy = plug.method._host.anatomy
    inputs = encode(tokenizer, ADA.prompt)
    hidden = capture_input(anatomy, 2, lambda: model(**inputs))
    flat = torch.arange(inputs["input_ids"].shape[1])
    with torch.no_grad():
        got = resume(model, anatomy, 2, hidden, lambda: model(**inputs, use_cache=False), flat)
    torch.testing.assert_close(got, logits(model, **inputs)[0])


def test_parameters_stay_as_many_and_their_start_follows_from_the_seed(plug, model, tokenizer):
    count, start = plug.method.known.experts.count, learned(plug)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        plug.edit([ADA, TAM, ORLO], progress=False)
        assert torch.equal(torch.get_rng_state(), before)
    assert plug.method.known.experts.count == count == sum(t.numel() for t in learned(plug))
    first = learned(plug)
    assert not same(first, start)
    plug.detach()
    with memplug.attach(model, tokenizer, "elder", **QUICK) as again:
        assert same(learned(again), start)
        again.edit([ADA, TAM, ORLO], progress=False)
        assert same(learned(again), first)


def test_rephrasings_share_an_allocation_and_answers_do_not_group(plug):
    again = Edit("The birthplace of Ada Quill is", ADA.target, ADA.subject)
    other = Edit("Where was Tam Wickes born?", ADA.target, "Tam Wickes")
    plug.edit([ADA, again, other], progress=False)
    given = [record.allocation for record in plug.method.known.records.values()]
    assert given[0] == given[1] != given[2]


@pytest.mark.parametrize("allocation", ["random", "spread"])
def test_the_guide_pulls_routers_to_the_allocation(model, tokenizer, allocation):
    strong = QUICK | {"guide_weight": 1.0, "router_lr": 3e-2, "stop_loss": 0.0, "allocation": allocation}
    for guide in ("guided", "none"):
        with memplug.attach(model, tokenizer, "elder", **strong, guide=guide) as plug:
            plug.edit([ADA, TAM, ORLO], progress=False)
            known = plug.method.known
            wanted = torch.tensor([record.allocation for record in known.records.values()]).transpose(0, 1)
            reached = (pack(wanted, known.experts.n) == known.deferral.codes).all()
            assert reached == (guide == "guided")


def test_load_balancing_trains_the_routers(model, tokenizer):
    with memplug.attach(
        model, tokenizer, "elder", **QUICK | {"guide": "balance", "guide_weight": 1.0}
    ) as plug:
        start = plug.method.known.experts.gates.clone()
        plug.edit([ADA, TAM], progress=False)
        assert not torch.equal(plug.method.known.experts.gates, start)
        assert answer(model, tokenizer, ADA.prompt) == ADA.target


@pytest.mark.parametrize("refresh", [True, False])
def test_codes_follow_the_routers_if_they_are_refreshed(model, tokenizer, refresh):
    with memplug.attach(model, tokenizer, "elder", **QUICK, refresh=refresh) as plug:
        plug.edit(ADA)
        known = plug.method.known
        used = known.experts.route(known.deferral.queries).picks[0].flatten().tolist()
        known.experts.bias[0, min(set(range(known.experts.n)) - set(used))] += 100  # as if routers had moved
        plug.edit(TAM)
        now = pack(known.experts.route(known.deferral.queries).picks, known.experts.n)
        assert (now[0] == known.deferral.codes[0]).all() == refresh


def test_replay_takes_the_edits_that_share_the_most_experts(model, tokenizer, monkeypatch):
    rows = []
    monkeypatch.setattr(
        "memplug.methods.elder.learning.observe_rows",
        lambda host, site, first, pairs: (
            rows.append(len(pairs)) or training.observe_rows(host, site, first, pairs)
        ),
    )
    with memplug.attach(model, tokenizer, "elder", **QUICK | {"replay": 1, "batch_size": 1}) as plug:
        plug.edit([ADA, TAM, ORLO], progress=False)
        assert rows == [1, 2, 2]
        records = list(plug.method.known.records.values())
        (found,) = plug.method._learner._endangered(plug.method.known, [records[1].allocation])
        assert found is records[1]
        plug.disable(str(records[1].edit.id))
        (found,) = plug.method._learner._endangered(plug.method.known, [records[1].allocation])
        assert found is not records[1]


def test_sampled_contexts_are_further_rows(model, tokenizer):
    with memplug.attach(model, tokenizer, "elder", **QUICK, n_prefixes=2) as plug:
        plug.edit(ADA)
        fronts = plug.method._learner._fronts()
        assert fronts
        assert answer(model, tokenizer, ADA.prompt) == ADA.target


def test_deleting_says_what_still_covers(plug, model, tokenizer):
    rephrased = Edit("Where was Ada Quill born ?", ADA.target, ADA.subject)
    kept, gone, far = plug.edit([rephrased, ADA, ORLO], progress=False)
    base_inputs = encode(tokenizer, ADA.prompt)
    with plug.paused():
        base = logits(model, **base_inputs)
    plug.method.known.deferral.limit(1000, 0.2)
    (left,) = plug.delete(gone)
    assert (left.edit, left.covered_by) == (gone, kept)
    assert torch.equal(logits(model, **base_inputs), base)  # its own prompt is kept out all the same
    assert answer(model, tokenizer, kept.prompt) == kept.target
    plug.method.known.deferral.limit(1000, 0.999)
    (left,) = plug.delete(far)
    assert left.covered_by is None


def test_a_deleted_prompt_can_be_edited_again(plug, model, tokenizer):
    plug.delete(plug.edit(ADA))
    plug.edit(ADA.prompt, "Marrow", ADA.subject)
    assert answer(model, tokenizer, ADA.prompt) == "Marrow"


def test_retraining_leaves_nothing_of_the_deleted(plug, model, tokenizer):
    plug.edit([ADA, TAM, ORLO], progress=False)
    plug.disable("e3")
    plug.delete("e1", retrain=True)
    assert not plug.edits.enabled("e3")
    assert answer(model, tokenizer, TAM.prompt) == TAM.target
    assert plug.explain(ORLO.prompt).deferred
    assert plug.explain(ADA.prompt).deferred
    got = learned(plug)
    plug.detach()
    with memplug.attach(model, tokenizer, "elder", **QUICK) as fresh:
        fresh.edit([TAM, ORLO], progress=False)
        assert same(learned(fresh), got)


def test_other_methods_refuse_retraining(model, tokenizer):
    with memplug.attach(model, tokenizer, "llp", n_statements=0, n_prefixes=0, value_steps=1) as plug:
        plug.edit(ADA)
        with pytest.raises(ValueError, match="retrain=True"):
            plug.delete("e1", retrain=True)
        assert len(plug.edits) == 1


def test_a_loaded_plug_goes_on_where_the_saved_one_was(plug, model, tokenizer, tmp_path):
    plug.edit([ADA, TAM], progress=False)
    plug.delete(plug.edit(ORLO))
    plug.disable("e2")
    inputs = encode(tokenizer, ADA.prompt, TAM.prompt, ORLO.prompt)
    before = logits(model, **inputs)
    plug.save(tmp_path / "facts")
    plug.edit(ORLO.prompt, "Zarnow", ORLO.subject)
    after, explained = logits(model, **inputs), str(plug.explain(ORLO.prompt))
    plug.detach()
    with memplug.load(tmp_path / "facts", model, tokenizer) as loaded:
        assert torch.equal(logits(model, **inputs), before)
        loaded.edit(ORLO.prompt, "Zarnow", ORLO.subject)
        assert torch.equal(logits(model, **inputs), after)
        assert str(loaded.explain(ORLO.prompt)) == explained


def test_a_damaged_state_is_refused(plug):
    plug.edit([ADA, TAM], progress=False)
    tensors, meta = plug.method.state()
    before = learned(plug)
    with pytest.raises(ValueError, match="codes do not belong"):
        plug.method.restore(tensors, meta | {"numbers": [0]}, plug.edits)
    with pytest.raises(ValueError, match="queries are"):
        plug.method.restore(tensors | {"queries": tensors["queries"][:, :3]}, meta, plug.edits)
    with pytest.raises(ValueError, match="shapes"):
        plug.method.restore(tensors | {"experts.0": tensors["experts.0"][:1]}, meta, plug.edits)
    assert same(learned(plug), before)


@pytest.mark.parametrize("failure", [EditError("no"), KeyboardInterrupt()])
def test_a_failing_edit_changes_nothing(plug, model, tokenizer, monkeypatch, failure):
    plug.edit(ADA)
    inputs = encode(tokenizer, ADA.prompt, TAM.prompt)
    before, tensors, table = logits(model, **inputs), learned(plug), repr(plug.edits)
    calls = []

    def fail(*args):
        calls.append(1)
        if len(calls) == 2:  # the first batch is learned by then
            raise failure
        return training.train_batch(*args)

    monkeypatch.setattr("memplug.methods.elder.learning.train_batch", fail)
    many = [TAM, *(Edit(f"Orlo {i} is", "Marrow", f"Orlo {i}") for i in range(4))]
    with pytest.raises(type(failure)):
        plug.edit([ADA_AGAIN, *many], progress=False)
    assert len(calls) == 2
    assert same(learned(plug), tensors)
    assert repr(plug.edits) == table
    assert torch.equal(logits(model, **inputs), before)


ADA_AGAIN = Edit(ADA.prompt, "Marrow", ADA.subject)


def test_a_loss_that_is_not_finite_is_an_error(model, tokenizer):
    with memplug.attach(
        model, tokenizer, "elder", **QUICK | {"lr": 1e3, "init": "published", "stop_loss": 0}
    ) as plug:
        model.get_output_embeddings().weight.data.mul_(1e36)
        try:
            with pytest.raises(EditError, match="not finite"):
                plug.edit(ADA)
        finally:
            model.get_output_embeddings().weight.data.div_(1e36)
        assert not plug.edits


def test_explaining_names_experts_and_the_nearest_edit(plug):
    assert "no edit is in force" in plug.explain(ADA.prompt).reason
    plug.edit([ADA, TAM], progress=False)
    found = plug.explain(ADA.prompt)
    assert not found.deferred
    assert (found.nearest.prompt, found.distance) == (ADA.prompt, 0)
    assert found.similar.prompt == ADA.prompt
    assert found.similarity > 0.999
    assert [use.layer for use in found.uses] == [2, 3]
    assert all(len(use.experts) == plug.method.config.top_k for use in found.uses)
    assert "layer 2 mlp.down_proj: experts" in str(found)
    plug.disable("e1")
    assert "switched off" in plug.explain(ADA.prompt).reason
    with pytest.raises(ValueError, match="the prompt is empty"):
        plug.explain(" ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_experts_in_full(tokenizer, dtype):
    half = lexical("llama", len(tokenizer)).to(dtype)
    with memplug.attach(half, tokenizer, "elder", **QUICK) as plug:
        plug.edit(ADA)
        assert all(tensor.dtype == torch.float32 for tensor in learned(plug))
        assert answer(half, tokenizer, ADA.prompt) == ADA.target
        assert logits(half, **encode(tokenizer, ADA.prompt)).dtype == dtype


def test_two_plugs_on_two_models_keep_apart(plug, model, tokenizer):
    other = lexical("llama", len(tokenizer), seed=3)
    inputs = encode(tokenizer, ADA.prompt)
    base = logits(other, **inputs)
    with memplug.attach(other, tokenizer, "elder", **QUICK):
        plug.edit(ADA)
        assert torch.equal(logits(other, **inputs), base)


def test_a_cache_that_is_cut_into_the_prompt_is_decided_anew(plug, model, tokenizer):
    plug.edit(ADA)
    inputs = encode(tokenizer, ADA.prompt)
    cache = model(**inputs, use_cache=True).past_key_values
    held = cache._memplug_rows
    assert isinstance(held, method_module.Routed)
    assert held.crop(inputs["input_ids"].shape[1]) is held
    cache.crop(-3)
    assert cache._memplug_rows is None
