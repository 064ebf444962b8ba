"""The protocol on a tiny model that has learned facts and then, as its edits, other answers to some."""

from __future__ import annotations

import copy
import io
import json
from contextlib import contextmanager

import pytest
import torch
from rich.console import Console

from memplug.edits import Case, Edit, Probe
from memplug.evaluation import Answer, Scores, evaluate, refer, score
from memplug.text.tokens import Text

PEOPLE = ["Mara Voss", "Oren Fisk", "Tilde Brack", "Juno Hale"]
BIRTH = ["Tilden", "Marrow", "Quill", "Sedge"]
JOBS = ["baker", "weaver", "piper", "smith"]
NEW = ["Quill", "Sedge", "Tilden", "Marrow"]


def _born(name):
    return f"Where was {name} born?"


def _work(name):
    return f"What is {name}?"


def _birth_again(name):
    return f"{name} was born in"


BEFORE = {
    **{_born(name): place for name, place in zip(PEOPLE, BIRTH, strict=True)},
    **{_birth_again(name): place for name, place in zip(PEOPLE, BIRTH, strict=True)},
    **{_work(name): job for name, job in zip(PEOPLE, JOBS, strict=True)},
    "What is two and two?": "four",
}
# Three of four edits hold, two rephrasings follow, one subject's job and an unrelated answer are spoiled.
AFTER = BEFORE | {
    **{_born(name): place for name, place in zip(PEOPLE[:3], NEW[:3], strict=True)},
    **{_birth_again(name): place for name, place in zip(PEOPLE[:2], NEW[:2], strict=True)},
    _work(PEOPLE[0]): "poet",
    _work(PEOPLE[3]): "sailor",
}
CASES = [
    Case(
        Edit(_born(name), new, name),
        rephrases=(_birth_again(name),),
        locality=(Probe("What is two and two?", "four"), Probe(_work(PEOPLE[3]), JOBS[3])),
        same_subject=(Probe(_work(name), JOBS[i]),) if i < 2 else (),
    )
    for i, (name, new) in enumerate(zip(PEOPLE, NEW, strict=True))
]


def _learn(model, tokenizer, answers, steps):
    """Train until the answers, closed by the end token, come greedily."""
    text = Text(model, tokenizer)
    pairs = [text.pair(prompt, target, stop=True) for prompt, target in answers.items()]
    ids, mask = text.batch(pairs)[:2]
    labels = ids.masked_fill(mask == 0, -100)
    for row, pair in enumerate(pairs):
        labels[row, : pair.start] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            return
    raise RuntimeError(f"the tiny model did not learn its facts: loss {loss.item():.3f}")


class _Plug:
    """Two sets of weights on one model; pausing puts the first one back."""

    def __init__(self, model, tokenizer, base, edited):
        self.model, self.tokenizer = model, tokenizer
        self.edits = {str(i): case.edit for i, case in enumerate(CASES)}
        self._base, self._edited = base, edited
        self.pauses = 0
        model.load_state_dict(edited)

    @contextmanager
    def paused(self):
        self.pauses += 1
        self.model.load_state_dict(self._base)
        try:
            yield self
        finally:
            self.model.load_state_dict(self._edited)


@pytest.fixture(scope="module")
def trained(make_tokenizer, make_llama):
    """Model, tokenizer, and its weights before and after."""
    tokenizer = make_tokenizer([f"{prompt} {target}" for prompt, target in [*BEFORE.items(), *AFTER.items()]])
    model = make_llama(len(tokenizer), num_hidden_layers=2, hidden_size=48)
    _learn(model, tokenizer, BEFORE, 400)
    base = copy.deepcopy(model.state_dict())
    _learn(model, tokenizer, AFTER, 400)
    return model, tokenizer, base, copy.deepcopy(model.state_dict())


@pytest.fixture
def plug(trained):
    return _Plug(*trained)


def _values(measures):
    return {name: None if s is None else round(s.value, 4) for name, s in vars(measures).items()}


def test_scores_are_the_shares_that_were_trained_in(plug):
    scores = evaluate(plug, CASES, max_new_tokens=8)
    assert plug.pauses == 1

    assert scores.efficacy.generated.value == 0.75
    assert scores.efficacy.whole.value == 0.75
    assert scores.efficacy.starts.value == 0.75
    assert scores.efficacy.generated.n == 4
    assert scores.generalization.generated.value == 0.5
    assert scores.generalization.whole.value == 0.5
    # Per case: "four" stays, Juno Hale's job is lost, for the base answer and the right one alike.
    assert scores.specificity.generated.value == 0.5
    assert scores.specificity.whole.value == 0.5
    assert scores.specificity_gold.generated.value == 0.5
    # Two cases have such probes; one of them is spoiled.
    assert scores.same_subject.generated.value == 0.5
    assert scores.same_subject.generated.n == 2
    assert scores.same_subject_gold.generated.value == 0.5
    assert _values(scores.portability) == {"tokens": None, "whole": None, "generated": None, "starts": None}
    assert scores.specificity.starts is None

    texts = {(row.case, row.group, row.prompt): row for row in scores.answers}
    assert texts[0, "efficacy", _born(PEOPLE[0])].text == NEW[0]
    assert texts[3, "efficacy", _born(PEOPLE[3])].text == BIRTH[3]
    spoiled = texts[0, "same_subject", _work(PEOPLE[0])]
    assert (spoiled.text, spoiled.base_text, spoiled.target) == ("poet", JOBS[0], JOBS[0])
    assert len(scores.answers) == 4 + 4 + 8 + 2


def test_agreement_is_with_the_base_model_and_not_with_the_right_answer(plug):
    """A probe whose right answer nobody knows still counts as unchanged."""
    cases = [Case(CASES[0].edit, locality=(Probe("What is two and two?", "a bird"),))]
    scores = evaluate(plug, cases, max_new_tokens=16)
    assert scores.specificity.generated.value == 1.0
    assert scores.specificity_gold.generated.value == 0.0


def test_tokens_and_perplexity_come_from_the_same_pass(plug):
    scores = evaluate(plug, CASES, max_new_tokens=8)
    rows = [row for row in scores.answers if row.group == "efficacy"]
    assert scores.efficacy.tokens.value == pytest.approx(sum(row.tokens for row in rows) / 4)
    assert scores.perplexity.value == pytest.approx(sum(row.perplexity for row in rows) / 4)
    held = [row.perplexity for row in rows[:3]]
    assert max(held) < 1.1 < rows[3].perplexity


@pytest.mark.parametrize("batch_size", [1, 5])
def test_scores_do_not_depend_on_the_batch(plug, batch_size):
    expected = evaluate(plug, CASES, max_new_tokens=8)
    found = evaluate(plug, CASES, max_new_tokens=8, batch_size=batch_size)
    assert [(r.text, r.base_text, r.tokens, r.whole, r.agreement) for r in found.answers] == [
        (r.text, r.base_text, r.tokens, r.whole, r.agreement) for r in expected.answers
    ]


def test_a_reference_saves_the_base_run(plug):
    expected = evaluate(plug, CASES, max_new_tokens=8)
    with plug.paused():
        reference = refer(plug.model, plug.tokenizer, CASES, max_new_tokens=8)
    before = plug.pauses
    assert evaluate(plug, CASES, max_new_tokens=8, reference=reference) == expected
    assert plug.pauses == before
    with pytest.raises(ValueError, match="generated with max_new_tokens=8, this run has 9"):
        evaluate(plug, CASES, max_new_tokens=9, reference=reference)
    other = [Case(CASES[0].edit, locality=(Probe("Who?", "Oren Fisk"),))]
    with pytest.raises(ValueError, match="the reference knows nothing of 'Who\\?'"):
        evaluate(plug, other, max_new_tokens=8, reference=reference)


def test_the_base_model_agrees_with_itself(plug):
    with plug.paused():
        reference = refer(plug.model, plug.tokenizer, CASES, max_new_tokens=8)
        scores = score(plug.model, plug.tokenizer, CASES, reference, max_new_tokens=8)
    assert scores.efficacy.generated.value == 0.0
    for measures in (scores.specificity, scores.same_subject):
        assert measures.tokens.value == measures.whole.value == measures.generated.value == 1.0


def test_without_generation_only_teacher_forced_scores(plug):
    scores = evaluate(plug, CASES, max_new_tokens=0)
    assert scores.efficacy.generated is None
    assert scores.efficacy.starts is None
    assert scores.specificity.generated is None
    assert scores.efficacy.whole.value == 0.75


def test_scores_of_some_cases_come_from_their_answers(plug):
    scores = evaluate(plug, CASES, max_new_tokens=8)
    early = Scores.from_answers(row for row in scores.answers if row.case < 3)
    assert early.efficacy.generated.value == 1.0
    assert early.efficacy.generated.n == 3


def test_a_case_counts_once_however_many_probes_it_has():
    rows = [Answer(0, "generalization", "p", "t", 1.0, True, 1.0)] * 3
    rows.append(Answer(1, "generalization", "p", "t", 0.0, False, 1.0))
    scores = Scores.from_answers(rows)
    assert scores.generalization.tokens.value == 0.5
    assert scores.generalization.tokens.n == 2


def test_table_prints_a_dash_for_what_was_not_asked(plug):
    table = evaluate(plug, CASES, max_new_tokens=8).table("tiny")
    rows = {name: cells for name, *cells in zip(*(column.cells for column in table.columns), strict=True)}
    assert rows["portability"] == ["–"] * 5
    assert rows["efficacy"][2] == "75.0 (25–100)"
    assert rows["efficacy"][4] == "4"
    assert rows["specificity"][3] == "–"
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    printed = console.file.getvalue()
    assert "generalization" in printed
    assert "(25–100)" in printed  # nothing is cut off on a narrow screen
    assert "…" not in printed
    assert "nan" not in printed.lower()


def test_to_dict_is_json(plug):
    scores = evaluate(plug, CASES, max_new_tokens=8)
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["efficacy"]["generated"]["value"] == 0.75
    assert plain["portability"]["tokens"] is None
    assert "answers" not in plain
    assert len(scores.to_dict(answers=True)["answers"]) == len(scores.answers)
    broken = Scores.from_answers([Answer(0, "efficacy", "p", "t", 0.0, False, float("inf"))])
    assert broken.to_dict()["perplexity"] == {"value": None, "low": None, "high": None, "n": 1}


def test_bad_input_is_refused(plug):
    with pytest.raises(ValueError, match="no cases to evaluate"):
        evaluate(plug, [])
    with pytest.raises(ValueError, match="expected a Case, got Edit"):
        evaluate(plug, [CASES[0].edit])
    unknown = Case(Edit("Where was Ada Lum born?", "Quill", "Ada Lum"))
    with pytest.raises(ValueError, match=r"1 of 2 cases ask for edits that the plug does not hold .*Ada Lum"):
        evaluate(plug, [CASES[0], unknown])
    with pytest.raises(ValueError, match="the token that ends it take 2; raise it to 2 or more"):
        evaluate(plug, [Case(CASES[0].edit)], max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_tokens is -1"):
        evaluate(plug, CASES, max_new_tokens=-1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluate(plug, CASES, batch_size=0)


def test_a_raising_model_leaves_the_plug_edited(plug, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(plug.model), "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(plug, CASES)
    monkeypatch.undo()
    assert evaluate(plug, CASES, max_new_tokens=8).efficacy.generated.value == 0.75
