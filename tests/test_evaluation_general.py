"""General abilities: choices by likelihood, skills, and the same figures as the harness's own."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from families import TEXTS

from memplug import world
from memplug.data import DataError
from memplug.edits import Probe
from memplug.evaluation import answer, teacher_force
from memplug.evaluation.general import Choices, Choosing, Harness, Skills, open_general, read_choices
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
