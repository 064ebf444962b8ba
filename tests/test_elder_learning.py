"""How ELDER learns: allocations, guide, codes, replay, its seed, and failures that change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from elder_tiny import ADA, ORLO, QUICK, ROW, TAM, answer, encode, learned, logits, same
from tqdm.auto import tqdm

import memplug
from memplug import Edit, EditError
from memplug.methods.elder import training
from memplug.methods.elder.whole import run_whole
from memplug.methods.llp.passes import run_lines


@pytest.fixture(params=[QUICK, ROW], ids=["answer", "row"])
def plug(model, tokenizer, request):
    with memplug.attach(model, tokenizer, "elder", **request.param) as made:
        yield made


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
    config = plug.method.config
    plug.detach()
    with memplug.attach(model, tokenizer, config) as again:
        assert same(learned(again), start)
        again.edit([ADA, TAM, ORLO], progress=False)
        assert same(learned(again), first)


@pytest.mark.parametrize("given", [QUICK, ROW], ids=["answer", "row"])
def test_losses_in_training_are_those_of_a_plain_forward(model, tokenizer, given):
    """With a limit that a question without its mark does not exceed: training leaves out that an edit speaks
    before the end."""
    with memplug.attach(model, tokenizer, "elder", **given) as plug:
        plug.edit([ADA, TAM], progress=False)
        if given is QUICK:
            room = plug.method.scope.room
            room.calibration = replace(room.calibration, relation=(0.95, 0.95))
        compare_losses(plug, model)


def compare_losses(plug, model):
    method, host = plug.method, plug._host
    with host.tracker.off():
        batch = method._learner._batch(([], []), [], [], list(method.known.records.values()))
        config = replace(method.config, steps=0, products="model")
        got = training.train(host, method.scope.upper, method.known.experts, config, batch).worst
    want = torch.zeros(2)
    for e, lesson in batch.lessons:
        ids, start = torch.tensor([lesson.line.ids]), lesson.line.start + 1
        with plug.prompt_lengths([start]):
            logp = logits(model, input_ids=ids)[0, start - 1 : -1].double().log_softmax(-1)
        nll = -logp.gather(-1, ids[0, start:, None]).mean()
        want[e] = max(want[e], nll)
    assert method.config.scope == "row" or float(want.max()) < 0.05
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


def test_rows_run_whole_give_the_same_losses(model, tokenizer):
    """As in models whose layers keep more than keys and values."""
    with memplug.attach(model, tokenizer, "elder", **QUICK | {"steps": 5, "rehearse": 0}) as plug:
        plug.edit([ADA, TAM], progress=False)
        method, found = plug.method, []
        config = replace(method.config, steps=0, products="model")
        for run in (run_lines, run_whole):
            method.scope._run = run
            with plug._host.tracker.off():
                coming = method.scope.begin([ADA_LATER], ())
                with tqdm(disable=True) as bar:
                    lessons, chunks = method.scope.read(coming, [ADA_LATER], bar)
                queries = torch.stack(method.scope.queries(coming, [ADA_LATER])[0][:1])
                batch = training.Batch(lessons, chunks, queries)
                looked = training.train(plug._host, method.scope.upper, method.known.experts, config, batch)
            found.append(torch.stack([looked.worst, looked.other]))
        assert float(found[0].min()) > 0
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)


def test_rephrasings_share_an_allocation_and_answers_do_not_group(plug):
    again = Edit("The birthplace of Ada Quill is", ADA.target, ADA.subject)
    other = Edit("Where was Tam Wickes born?", ADA.target, "Tam Wickes")
    plug.edit([ADA, again, other], progress=False)
    given = [record.allocation for record in plug.method.known.records.values()]
    assert given[0] == given[1] != given[2]


@pytest.mark.parametrize("given", [QUICK | {"allocation": "random"}, ROW], ids=["answer", "row"])
def test_the_guide_pulls_routers_to_the_allocation(model, tokenizer, given):
    strong = given | {"guide_weight": 1.0, "router_lr": 3e-2, "stop_loss": 0.0}
    for guide in ("guided", "none"):
        with memplug.attach(model, tokenizer, "elder", **strong, guide=guide) as plug:
            plug.edit([ADA, TAM, ORLO], progress=False)
            records = plug.method.known.records.values()
            reached = all(record.picks.tolist() == list(map(list, record.allocation)) for record in records)
            assert reached == (guide == "guided")


def test_load_balancing_trains_the_routers(model, tokenizer):
    with memplug.attach(model, tokenizer, "elder", **ROW | {"guide": "balance", "guide_weight": 1.0}) as plug:
        start = plug.method.known.experts.gates.clone()
        plug.edit([ADA, TAM], progress=False)
        assert not torch.equal(plug.method.known.experts.gates, start)
        assert answer(model, tokenizer, ADA.prompt) == ADA.target


@pytest.mark.parametrize("scope", ["answer", "row"])
def test_codes_follow_the_routers_but_in_the_published_procedure(model, tokenizer, scope):
    with memplug.attach(model, tokenizer, "elder", **QUICK if scope == "answer" else ROW) as plug:
        plug.edit(ADA)
        known = plug.method.known
        used = known.records["e1"].picks[0].tolist()
        known.experts.bias[0, min(set(range(known.experts.n)) - set(used))] += 100  # as if routers had moved
        plug.edit(TAM)
        (record, _), experts = plug.method.known.records.values(), plug.method.known.experts
        now = experts.route(record.query[None]).picks[:, 0]
        assert torch.equal(record.picks, now) == (scope == "answer")


def test_replay_takes_the_edits_that_share_the_most_experts(model, tokenizer, monkeypatch):
    rows, train = [], training.train
    monkeypatch.setattr(
        "memplug.methods.elder.learning.train",
        lambda *given: rows.append(len(given[4].query)) or train(*given),
    )
    given = QUICK | {"replay": 1, "batch_size": 1, "rehearse": 0}
    with memplug.attach(model, tokenizer, "elder", **given) as plug:
        plug.edit([ADA, TAM, ORLO], progress=False)
        assert rows == [1, 2, 2]
        records = list(plug.method.known.records.values())
        (found,) = plug.method._learner._endangered(plug.method.known, [records[1].allocation])
        assert found is records[1]
        plug.disable(str(records[1].edit.id))
        (found,) = plug.method._learner._endangered(plug.method.known, [records[1].allocation])
        assert found is not records[1]


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
        return training.train(*args)

    monkeypatch.setattr("memplug.methods.elder.learning.train", fail)
    many = [TAM, *(Edit(f"Orlo {i} is", "Marrow", f"Orlo {i}") for i in range(4))]
    with pytest.raises(type(failure)):
        plug.edit([ADA_AGAIN, *many], progress=False)
    assert len(calls) == 2
    assert same(learned(plug), tensors)
    assert repr(plug.edits) == table
    assert torch.equal(logits(model, **inputs), before)


ADA_LATER = Edit("Who taught Ada Quill?", "Marrow", "Ada Quill", id="e9")
ADA_AGAIN = Edit(ADA.prompt, "Marrow", ADA.subject)


def test_a_loss_that_is_not_finite_is_an_error(model, tokenizer):
    with memplug.attach(
        model, tokenizer, "elder", **ROW | {"lr": 1e3, "init": "published", "stop_loss": 0}
    ) as plug:
        model.get_output_embeddings().weight.data.mul_(1e36)
        try:
            with pytest.raises(EditError, match="not finite"):
                plug.edit(ADA)
        finally:
            model.get_output_embeddings().weight.data.div_(1e36)
        assert not plug.edits
