"""General abilities: choices by likelihood, skills, and the same figures as the harness's own."""

from __future__ import annotations

import json
import math
import random
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from families import TEXTS

from memplug import world
from memplug.data import DataError
from memplug.edits import Probe
from memplug.evaluation import answer, teacher_force
from memplug.evaluation.general import Choices, Choosing, Skills, open_general, read_choices
from memplug.evaluation.harness import Harness
from memplug.evaluation.metrics import generated_exact

needs_world = pytest.mark.skipif(
    not (world.FOLDER / "model.safetensors").is_file(), reason="no embedded model"
)


@pytest.fixture
def write(tmp_path):
    def save(rows, name="set.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return save


def test_labels_are_the_answers_of_every_row(write):
    path = write(
        [
            {
                "id": "1",
                "sentence1": "It rains.",
                "sentence2": "It is wet.",
                "label": 1,
                "label_name": "same",
            },
            {"id": "2", "sentence1": "It rains.", "sentence2": "No.", "label": 0, "label_name": "other"},
        ]
    )
    found = read_choices(path)
    assert (found.name, found.labels) == ("set", True)
    assert found.rows[0] == Choosing(
        "sentence1: It rains.\nsentence2: It is wet.\nlabel:", ("other", "same"), 1
    )


def test_rows_may_bring_answers_of_their_own(write):
    found = read_choices(
        write([{"question": "4 x 9?", "choices": ["36", "thirteen"], "label": 0, "topic": "m"}])
    )
    assert not found.labels
    assert found.rows == (Choosing("question: 4 x 9?\nanswer:", ("36", "thirteen"), 0),)
    given = read_choices(write([{"prompt": "4 x 9 is", "choices": ["36", "13"], "label": "0"}]))
    assert given.rows[0].prompt == "4 x 9 is"


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"text": "x", "label": "good"}], "line 1: label is 'good'; give the right answer's index"),
        ([{"text": "x", "label": 0}], "rows need choices, or a label_name for each of at least two labels"),
        ([{"text": "x", "label": 1, "label_name": "good"}], "label_name for each of at least two labels"),
        ([{"text": "x", "label": 2, "choices": ["a", "b"]}], "label 2 is none of 2 choices"),
        ([], "rows need choices"),
    ],
)
def test_broken_sets_are_refused(write, rows, match):
    with pytest.raises(DataError, match=match):
        read_choices(write(rows))


def test_names_of_sets(write):
    assert open_general("skills") == Skills(20)
    assert open_general("skills:3") == Skills(3)
    with pytest.raises(ValueError, match="n must be between 1 and 120"):
        open_general("skills:500")
    with pytest.raises(DataError, match="there is no file 'missing.jsonl'"):
        open_general("missing.jsonl")


def test_a_choice_is_the_likeliest_answer_row_by_row(make_tokenizer, make_llama):
    """Against the literal sums, each row alone."""
    tokenizer = make_tokenizer(TEXTS)
    model = make_llama(len(tokenizer), num_hidden_layers=2).double()
    answers = ("Zarnow", "Marrow is", "Tam Wickes did", "In")
    rows = [
        Choosing(text, answers, i % 4) for i, text in enumerate(["Who", "Where was Ada", "What is", "Who?"])
    ]
    sums = []
    for row in rows:
        start = tokenizer(row.prompt).input_ids
        scores = []
        for choice in row.choices:
            ids = tokenizer(f"{row.prompt} {choice}", return_tensors="pt").input_ids
            with torch.no_grad():
                log_probs = model(ids).logits.log_softmax(-1)
            at = range(len(start), ids.shape[1])
            scores.append(sum(log_probs[0, i - 1, ids[0, i]].item() for i in at))
        sums.append(scores)
    found = Choices("set", tuple(rows), labels=False).score(model, tokenizer, batch_size=3, level=0.9)
    right = [max(range(4), key=s.__getitem__) == r.label for s, r in zip(sums, rows, strict=True)]
    normed = [
        max(range(4), key=lambda i: s[i] / len(answers[i])) == r.label
        for s, r in zip(sums, rows, strict=True)
    ]
    assert {name: score.value for name, score in found.items()} == {
        "set": sum(right) / 4,
        "set_norm": sum(normed) / 4,
    }
    assert found["set"].n == 4
    assert set(Choices("set", tuple(rows), labels=True).score(model, tokenizer, batch_size=3, level=0.9)) == {
        "set"
    }


@needs_world
def test_skills_are_known_by_the_embedded_model_and_by_no_other(make_tokenizer, make_llama):
    known = Skills(2).score(*world.load(), batch_size=14, level=0.95)["skills"]
    assert known.n == 14
    assert known.value > 0.7
    tokenizer = make_tokenizer(TEXTS)
    other = Skills(2).score(
        make_llama(len(tokenizer), num_hidden_layers=1), tokenizer, batch_size=14, level=0.95
    )
    assert other["skills"].value == 0.0


CHOOSE = """
task: choosing
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ANSWER = """
task: answering
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 16, do_sample: false}}
filter_list: [{{name: strip, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match}}]
"""


@needs_world
def test_the_harness_counts_the_same(write, tmp_path, monkeypatch):
    """Accuracy by likelihood and exact match of generated answers, on a task of our own, offline."""
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = world.load()
    cases = world.cases(16, seed=5)
    probes = [Probe(*probe) for case in cases for probe in case.same_subject[:1]]
    others = [probes[(i + 1) % len(probes)].target + " of old" for i in range(len(probes))]
    # Half of the labels are wrong, so that there is something to count.
    rows = [
        {
            "prompt": p.prompt,
            "target": p.target if i % 3 else "nobody",
            "choices": [p.target, o],
            "label": i % 2,
        }
        for i, (p, o) in enumerate(zip(probes, others, strict=True))
    ]
    file = write(rows)
    (tmp_path / "choosing.yaml").write_text(CHOOSE.format(file=file))
    (tmp_path / "answering.yaml").write_text(ANSWER.format(file=file))
    settings = {"task_manager": TaskManager(include_path=str(tmp_path), include_defaults=False)}
    options = {"batch_size": 8, "level": 0.95}

    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state())
    chosen = Harness("choosing", settings=settings).score(model, tokenizer, **options)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state())
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    mine = read_choices(write([{k: v for k, v in row.items() if k != "target"} for row in rows], "own.jsonl"))
    own = mine.score(model, tokenizer, **options)
    assert 0 < own["own"].value < 1
    assert chosen["choosing:acc"].value == own["own"].value
    assert chosen["choosing:acc_norm"].value == own["own_norm"].value
    assert chosen["choosing:acc"].n == len(rows)
    assert [said["doc_id"] for said in chosen.answers] == list(range(len(rows)))
    assert all(said["task"] == "choosing" and said["resps"] for said in chosen.answers)
    assert chosen["choosing:acc"].low < chosen["choosing:acc"].value < chosen["choosing:acc"].high

    answered = Harness("answering", settings=settings).score(model, tokenizer, **options)
    texts = answer(model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=16)
    exact = [generated_exact(text, row["target"]) for text, row in zip(texts, rows, strict=True)]
    assert 0 < sum(exact) < len(rows)
    assert answered["answering:exact_match"].value == pytest.approx(sum(exact) / len(rows))
    half = Harness("answering", limit=4, settings=settings).score(model, tokenizer, **options)
    assert half["answering:exact_match"].n == 4


@needs_world
def test_log_likelihoods_are_those_of_the_harness(tmp_path):
    """Sum of the target's log-probabilities, and whether it is the greedy answer, request by request."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = world.load()
    probes = [Probe(c.edit.prompt, t) for c in world.cases(4, seed=6) for t in (c.edit.target, "nobody")]
    requests = [
        Instance("loglikelihood", {}, (probe.prompt, f" {probe.target}"), i) for i, probe in enumerate(probes)
    ]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3).loglikelihood(
        requests, disable_tqdm=True
    )
    ours = teacher_force(model, tokenizer, probes, batch_size=3)
    for (total, greedy), found in zip(theirs, ours, strict=True):
        assert sum(found.log_probs) == pytest.approx(total, abs=1e-3)
        assert greedy == (found.predicted == found.target)


class StandIn:
    """lm-eval as far as `Harness` uses it: some names, and one result for any of them."""

    def __init__(self, patch, results):
        self.given = []

        class TaskManager:
            all_tasks = ("arc_challenge", "arc_easy", "mmlu", "mmlu_law", "mmlu_math")

        def simple_evaluate(**given):
            self.given.append(given)
            return results

        package, tasks, models, hf = (
            ModuleType(f"lm_eval{part}") for part in ("", ".tasks", ".models", ".models.huggingface")
        )
        package.simple_evaluate, tasks.TaskManager = simple_evaluate, TaskManager
        package.__spec__ = ModuleSpec("lm_eval", None)
        hf.HFLM = lambda **given: given
        for module in (package, tasks, models, hf):
            patch.setitem(sys.modules, module.__name__, module)


def metrics(acc, spread="N/A"):
    return {"alias": "x", "acc,none": acc, "acc_stderr,none": spread, "sample_len": 4}


GROUP = {
    "results": {"mmlu": metrics(0.5, 0.1), "mmlu_law": metrics(0.25), "mmlu_math": metrics(0.75)},
    "groups": {"mmlu": metrics(0.5, 0.1)},
    "group_subtasks": {"mmlu": ["mmlu_law", "mmlu_math"]},
    "n-samples": {"mmlu_law": {"original": 9, "effective": 4}, "mmlu_math": {"original": 9, "effective": 3}},
}


def test_a_task_that_the_harness_does_not_have_is_refused_when_the_set_is_opened(monkeypatch):
    stand_in = StandIn(monkeypatch, GROUP)
    with pytest.raises(ValueError, match="lm-eval has no task 'arc_eazy'; did you mean 'arc_easy'"):
        open_general("arc_eazy")
    with pytest.raises(ValueError, match="has no task 'xyzzy'; `lm-eval ls tasks` lists all"):
        open_general("task:xyzzy:3")
    for text in ("arc_easy:many", "arc_easy:0"):
        with pytest.raises(ValueError, match=f"'{text}': write TASK or TASK:N"):
            open_general(text)
    assert open_general("arc_easy:5") == Harness("arc_easy", 5)
    assert not stand_in.given


def test_of_a_group_the_harness_sum_is_taken_with_the_questions_of_its_parts(monkeypatch):
    stand_in = StandIn(monkeypatch, GROUP)
    found = open_general("mmlu:4").score(None, None, batch_size=3, level=0.95)
    assert set(found) == {"mmlu:acc"}
    assert found["mmlu:acc"] == pytest.approx((0.5, 0.5 - 0.196, 0.5 + 0.196, 7), abs=1e-4)
    (given,) = stand_in.given
    assert (given["tasks"], given["limit"]) == (["mmlu"], 4)
    assert given["bootstrap_iters"] > 0  # with 0 it reports no standard errors
    assert "mmlu" in given["task_manager"].all_tasks


def test_of_a_group_that_is_not_summed_up_every_part_is_taken(monkeypatch):
    results = {**GROUP["results"], "mmlu": {" ": " ", "alias": "mmlu"}}
    StandIn(monkeypatch, {**GROUP, "results": results})
    found = open_general("mmlu").score(None, None, batch_size=3, level=0.95)
    assert {name: (score.value, score.n) for name, score in found.items()} == {
        "mmlu_law:acc": (0.25, 4), "mmlu_math:acc": (0.75, 3)
    }  # fmt: skip
    assert math.isnan(found["mmlu_law:acc"].low)  # no standard error, no interval
    StandIn(monkeypatch, {**GROUP, "results": {"mmlu": {"alias": "mmlu"}}})
    with pytest.raises(ValueError, match="reports no figures for 'mmlu'"):
        open_general("mmlu").score(None, None, batch_size=3, level=0.95)


def test_sets_of_one_name_are_told_apart_by_what_was_asked(write, tmp_path):
    assert Skills(20).asked() != Skills(3).asked()
    assert Harness("arc_easy", 3).asked() != Harness("arc_easy").asked()
    rows = [{"prompt": "4 x 9 is", "choices": ["36", "13"], "label": 0}]
    (tmp_path / "other").mkdir()
    one, same = read_choices(write(rows)), read_choices(write(rows, "other/set.jsonl"))
    changed = read_choices(write([rows[0] | {"label": 1}], "other/set.jsonl"))
    assert (one.name, one.asked()["sha256"]) == (same.name, same.asked()["sha256"])
    assert one.asked()["sha256"] != changed.asked()["sha256"]
