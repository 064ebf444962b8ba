"""How ELDER learns: allocations, guide, codes, replay, its seed, and failures that change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from elder_tiny import ADA, ORLO, QUICK, ROW, TAM, encode, learned, logits, same

import memplug
from memplug import Edit
from memplug.methods.elder import training
from memplug.methods.elder.training import Batch
from memplug.retrieval.lessons import further_lessons
from memplug.retrieval.passes import run_lines, run_whole


@pytest.fixture(params=[QUICK, ROW], ids=["answer", "row"])
def plug(model, tokenizer, request):
    with memplug.attach(model, tokenizer, "elder", **request.param) as made:
        yield made


def test_parameters_stay_as_many_and_their_start_follows_from_the_seed(plug, model, tokenizer):
    start = learned(plug)
    count = sum(tensor.numel() for tensor in start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        plug.edit([ADA, TAM, ORLO], progress=False)
        assert torch.equal(torch.get_rng_state(), before)
    assert count == sum(tensor.numel() for tensor in learned(plug))
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
            room = plug.method.retriever.room
            room.calibration = replace(room.calibration, relation=(0.95, 0.95))
        compare_losses(plug, model)


def compare_losses(plug, model):
    method, host = plug.method, plug._host
    with host.tracker.off():
        if method.config.scope == "row":
            batch = method._batch([ADA, TAM], [r.allocation for r in method.known.records.values()])
        else:
            batch = own_lessons(method, run_lines)
        config = replace(method.config, steps=0, products="model")
        got = training.train(host, method._upper, method.experts, config, batch).losses.worst
    want = torch.zeros(2)
    for e, lesson in batch.lessons:
        ids, start = torch.tensor([lesson.line.ids]), lesson.line.start + 1
        with plug.prompt_lengths([start]):
            logp = logits(model, input_ids=ids)[0, start - 1 : -1].double().log_softmax(-1)
        nll = -logp.gather(-1, ids[0, start:, None]).mean()
        want[e] = max(want[e], nll)
    assert method.config.scope == "row" or float(want.max()) < 0.05
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


def own_lessons(method, run, further=()):
    """The own prompts of all edits, and further lessons, as a batch."""
    edits = [method.retriever.edit(id) for id in method._learned.queries]
    lessons = [(e, lesson) for e, edit in enumerate(edits) for lesson in method._own(edit)]
    lessons += [(0, lesson) for lesson in further]
    lines = [lesson.line for _, lesson in lessons]
    chunks = run(method._host, method._upper, lines, [()] * len(lines), ())[0]
    return Batch(lessons, chunks, torch.stack(list(method._learned.queries.values())))


def test_rows_run_whole_give_the_same_losses(model, tokenizer):
    """As in models whose layers keep more than keys and values."""
    with memplug.attach(model, tokenizer, "elder", **QUICK | {"steps": 5}) as plug:
        plug.edit([ADA, TAM], progress=False)
        method, found = plug.method, []
        config = replace(method.config, steps=0, products="model")
        asked, calibration = method.retriever.room.questions["e1"], method.retriever.room.calibration
        further = further_lessons(plug._text, config.retrieval, ADA, asked, calibration)
        assert any(not lesson.asks for lesson in further)
        for run in (run_lines, run_whole):
            with plug._host.tracker.off():
                batch = own_lessons(method, run, further)
                looked = training.train(plug._host, method._upper, method.experts, config, batch).losses
            found.append(torch.stack(looked))
        assert float(found[0].max()) > 0
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)


def test_rephrasings_share_an_allocation_and_answers_do_not_group(model, tokenizer):
    again = Edit("The birthplace of Ada Quill is", ADA.target, ADA.subject)
    other = Edit("Where was Tam Wickes born?", ADA.target, "Tam Wickes")
    with memplug.attach(model, tokenizer, "elder", **ROW | {"steps": 1}) as plug:
        plug.edit([ADA, again, other], progress=False)
        given = [record.allocation for record in plug.method.known.records.values()]
        assert given[0] == given[1] != given[2]


def test_the_guide_pulls_routers_to_the_allocation(model, tokenizer):
    for weight in (1.0, 0.0):
        given = ROW | {"guide_weight": weight, "router_lr": 3e-2, "stop_loss": 0.0}
        with memplug.attach(model, tokenizer, "elder", **given) as plug:
            plug.edit([ADA, TAM, ORLO], progress=False)
            records = plug.method.known.records.values()
            reached = all(record.picks.tolist() == list(map(list, record.allocation)) for record in records)
            assert reached == bool(weight)


def test_codes_stay_as_they_were_when_routers_move_on(model, tokenizer):
    with memplug.attach(model, tokenizer, "elder", **ROW) as plug:
        plug.edit(ADA)
        (record,), experts = plug.method.known.records.values(), plug.method.experts
        used = record.picks[0].tolist()
        experts.bias[0, min(set(range(experts.n)) - set(used))] += 100  # as if routers had moved
        plug.edit(TAM)
        now = plug.method.experts.route(record.query[None]).picks[:, 0]
        assert not torch.equal(plug.method.known.records["e1"].picks, now)
        assert torch.equal(plug.method.known.records["e1"].picks, record.picks)


def test_replay_takes_the_edits_that_share_the_most_experts(model, tokenizer, monkeypatch):
    batches, train = [], training.train
    monkeypatch.setattr(
        "memplug.methods.elder.method.train", lambda *given: batches.append(given[4]) or train(*given)
    )
    given = QUICK | {"replay": 1, "batch_size": 1, "steps": 1}
    with memplug.attach(model, tokenizer, "elder", **given) as plug:
        plug.edit([ADA, TAM, ORLO], progress=False)
        assert [len(batch.query) for batch in batches] == [1, 2, 2]
        assert {edit for edit, _ in batches[1].lessons} == {0, 1}  # the earlier one is taught, too
        queries = plug.method._learned.queries
        again = plug.method._beside(plug.method._learned, (), {"e2": queries["e2"]}, [], [])
        assert torch.equal(again.query[1], queries["e2"])
        plug.disable("e2")
        again = plug.method._beside(plug.method._learned, (), {"e2": queries["e2"]}, [], [])
        assert not torch.equal(again.query[1], queries["e2"])


def test_an_edit_that_is_broken_off_in_a_later_batch_changes_nothing(plug, model, tokenizer, monkeypatch):
    plug.edit(ADA)
    inputs = encode(tokenizer, ADA.prompt, TAM.prompt)
    before, tensors, table = logits(model, **inputs), learned(plug), repr(plug.edits)
    calls = []

    def fail(*args):
        calls.append(1)
        if len(calls) == 2:  # the first batch is learned by then
            raise KeyboardInterrupt
        return training.train(*args)

    where = "method" if plug.method.config.scope == "answer" else "published"
    monkeypatch.setattr(f"memplug.methods.elder.{where}.train", fail)
    many = [TAM, *(Edit(f"Orlo {i} is", "Marrow", f"Orlo {i}") for i in range(4))]
    with pytest.raises(KeyboardInterrupt):
        plug.edit([ADA_AGAIN, *many], progress=False)
    assert len(calls) == 2
    assert same(learned(plug), tensors)
    assert repr(plug.edits) == table
    assert torch.equal(logits(model, **inputs), before)


ADA_AGAIN = Edit(ADA.prompt, "Marrow", ADA.subject)
