"""Comparisons of quick methods on a tiny model: protocol, failures, what is left behind."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import toy
from comparing import CASES, SETTINGS, figures, no_nan

import memplug
from memplug.comparison import NotRestoredError, runner
from memplug.comparison.context import RunContext
from memplug.comparison.model_state import bare, bits_of, hooks_of
from memplug.comparison.preference import preferences
from memplug.edits import Case, Edit
from memplug.evaluation import Scores, ask, refer

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def compared(loaded):
    """Two variants of one method, two seeds."""
    before = bits_of(loaded[0])
    comparison = memplug.compare(*loaded, CASES, methods=["toy", "toy:strong"], seeds=[0, 1], **SETTINGS)
    assert bits_of(loaded[0]) == before
    assert not hasattr(loaded[0], "_memplug_plug")
    return comparison


def test_every_run_has_what_the_report_needs(compared):
    results = compared.results
    json.dumps(results, allow_nan=False)
    assert no_nan(results)
    assert [(one["method"], one["seed"]) for one in results["runs"]] == [
        ("toy", 0), ("toy:strong", 0), ("toy", 1), ("toy:strong", 1)
    ]  # fmt: skip
    assert results["settings"]["methods"] == ["toy", "toy:strong"]
    assert results["settings"]["points"] == [2, 4, 6]
    assert results["data"]["used"] == 6
    for one in results["runs"]:
        assert (one["status"], one["restored"], one["error"]) == ("done", True, None)
        assert [point["edits"] for point in one["curve"]] == [2, 4, 6]
        assert one["config"]["strength"] == (30.0 if one["method"] == "toy:strong" else 3.0)
        assert one["config"]["seed"] == one["seed"]
        assert len(one["answers"]["final"]) == len(one["answers"]["immediate"]) == 6 * 4
        assert all(row["base_text"] is not None for row in one["answers"]["final"])
        cost = one["cost"]
        assert cost["parameters"] == results["runs"][0]["cost"]["parameters"]
        assert cost["bytes_per_edit"] == cost["bytes"] / 6
        assert cost["forward"]["tokens"] == 64
        assert cost["forward"]["ratio"] == cost["forward"]["edited_ms"] / cost["forward"]["bare_ms"]
        assert min(cost["decode"].values()) > 0
        assert min(cost["forward"][f"{which}peak_host_bytes"] for which in ("", "bare_")) >= 0
        assert one["environment"]["made"].endswith("+00:00")
        assert one["environment"]["torch"] == torch.__version__


def test_scores_are_those_of_the_method_by_hand(loaded, compared):
    """Immediate: after the edit's own batch; final: after all; each as `score` gives it."""
    model, tokenizer = loaded
    order = runner.open_cases(CASES).draw(6, seed=1).cases
    assert [c.edit.prompt for c in order] != [c.edit.prompt for c in CASES]
    options = {"max_new_tokens": 6}
    reference = refer(model, tokenizer, order, **options)
    rows = []
    with memplug.attach(model, tokenizer, "toy", seed=1) as plug:
        for start in (0, 2, 4):
            plug.edit(order[start : start + 2])
            found = ask(model, tokenizer, order[start : start + 2], reference, **options)
            rows += [row._replace(case=row.case + start) for row in found]
            if start == 2:
                middle = ask(model, tokenizer, order[:4], reference, **options)
        final = Scores.from_answers(ask(model, tokenizer, order, reference, **options))
    found = next(r for r in compared.results["runs"] if (r["method"], r["seed"]) == ("toy", 1))
    assert found["final"] == final.to_dict()
    assert found["first"] == final.to_dict()
    assert found["immediate"] == Scores.from_answers(rows).to_dict()
    assert found["immediate"] != found["final"]
    early, late = ([row for row in middle if row.case // 2 == half] for half in (0, 1))
    assert found["curve"][1]["first"] == Scores.from_answers(early).to_dict()
    assert found["curve"][1]["recent"] == Scores.from_answers(late).to_dict()
    held = [{**answer, "base_text": None} for answer in found["curve"][1]["answers"]]
    assert held == [row._replace(base_text=None).to_dict() for row in middle]
    assert found["curve"][2]["answers"] is None  # they are the run's
    assert found["curve"][2]["first"] == Scores.from_answers(r for r in final.answers if r.case < 2).to_dict()


def test_the_base_model_is_scored_once_a_seed(loaded, compared):
    base = compared.results["base"]["1"]["scores"]
    assert base["specificity"]["generated"]["value"] == 1.0
    model, tokenizer = loaded
    order = runner.open_cases(CASES).draw(6, seed=1).cases
    reference = refer(model, tokenizer, order, everything=True, max_new_tokens=6)
    told = Scores.from_answers(ask(model, tokenizer, order, reference, max_new_tokens=6))
    assert base == told.to_dict()
    kept = compared.results["base"]["1"]["answers"]
    assert [(row["prompt"], row["text"]) for row in kept] == [(row.prompt, row.text) for row in told.answers]


def test_preference_takes_the_base_models_answers_where_the_data_gives_none(compared):
    found = compared.results["runs"][0]["preference"]
    assert found["before"]["data"] == 0
    assert 0 < found["before"]["base model"] <= 6
    assert found["rome"]["efficacy"]["n"] == found["before"]["base model"]
    assert set(found["rledit"]) == {"efficacy", "generalization", "neighborhood"}


def test_preferences_of_the_base_model_are_those_of_the_unedited_model(loaded, compared):
    order = runner.open_cases(CASES).draw(6, seed=1)
    reference = refer(*loaded, order.cases, everything=True, max_new_tokens=6)
    settings = SimpleNamespace(batch_size=3, level=0.95)
    found = preferences(RunContext(*loaded, settings, None, None, drawn=order, reference=reference))
    assert compared.results["base"]["1"]["preference"] == found
    assert found != compared.results["runs"][2]["preference"]


def test_a_method_that_fails_is_a_row(loaded, tmp_path):
    asked = {"methods": [("broken", toy.ToyConfig(fail_at=3)), "toy"], "out": tmp_path, **SETTINGS}
    made = memplug.compare(*loaded, CASES, **asked)
    broken, fine = made.results["runs"]
    assert (broken["status"], broken["error"]["type"]) == ("failed", "RuntimeError")
    assert "edit e3 cannot be made (after 2 of 6 edits)" in broken["error"]["message"]
    assert "Traceback" in broken["error"]["traceback"]
    assert broken["restored"]
    assert fine["status"] == "done"
    assert made.failed == [broken]
    shown = list(made.table().columns[0].cells)
    assert shown == ["base model", "broken", "toy"]
    assert list(made.table().columns[1].cells)[1] == "[red]failed[/red]"
    # It stays a row.
    assert figures(memplug.compare(*loaded, CASES, **asked)) == figures(made)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_not_the_methods_fault_stops_the_comparison(loaded, tmp_path, monkeypatch, error):
    def stop(*_args, **_given):
        raise error

    monkeypatch.setattr(toy.Toy, "learn", stop)
    with pytest.raises(type(error)):
        memplug.compare(*loaded, CASES, methods=["toy"], out=tmp_path, **SETTINGS)
    assert not list((tmp_path / "runs").iterdir())
    assert not hasattr(loaded[0], "_memplug_plug")


def test_a_model_that_is_not_restored_stops_the_comparison(loaded, tmp_path):
    model, _ = loaded
    before = next(model.parameters()).detach().clone()
    try:
        leaky = ("leaky", toy.ToyConfig(leak=True))
        with pytest.raises(NotRestoredError, match="'leaky' did not leave the model as it was"):
            memplug.compare(*loaded, CASES, methods=[leaky, "toy"], out=tmp_path, **SETTINGS)
    finally:
        next(model.parameters()).data.copy_(before)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [(one["method"], one["status"], one["restored"]) for one in runs] == [("leaky", "failed", False)]


def test_editors_are_fitted_once_and_kept(loaded, tmp_path, monkeypatch):
    fits = []
    fit = toy.ToyFit.fit
    monkeypatch.setattr(
        toy.ToyFit, "fit", lambda self, cases, **k: (fits.append(cases), fit(self, cases, **k))[1]
    )
    asked = {"edits": 3, "batch": 3, "max_new_tokens": 6, "progress": False, "out": tmp_path}
    made = memplug.compare(*loaded, CASES, methods=["toyfit"], fit_cases=2, fit_steps=7, **asked)
    (one,) = made.results["runs"]
    assert one["status"] == "done", one["error"]
    assert one["fit"]["steps"] == 7
    assert one["fit"]["seconds_per_step"] == 0.5 / 7
    assert (one["fit"]["parameters"], one["fit"]["cases"], one["fit"]["shipped"]) == (1, 2, False)
    edited = {row["prompt"] for row in one["answers"]["final"] if row["group"] == "efficacy"}
    assert len(fits) == 1
    assert not edited & {c.edit.prompt for c in fits[0]}
    (tmp_path / "runs" / "toyfit-seed0.json").unlink()
    again = memplug.compare(*loaded, CASES, methods=["toyfit"], fit_cases=2, fit_steps=7, **asked)
    assert len(fits) == 1
    assert figures(again) == figures(made)


def test_an_editor_without_cases_to_fit_on_is_a_failed_row(loaded):
    asked = {"methods": ["toyfit"], "progress": False, "max_new_tokens": 0}
    made = memplug.compare(*loaded, CASES, **asked)
    assert (
        "no case is left to fit on that shares no subject with the 6 edits"
        in made.failed[0]["error"]["message"]
    )
    made = memplug.compare(*loaded, CASES, edits=4, **asked)
    assert made.results["runs"][0]["fit"]["cases"] == 2
    made = memplug.compare(*loaded, CASES, fit_cases=None, **asked)
    assert "'toyfit' has to be fitted to this model first" in made.failed[0]["error"]["message"]


def test_bare_is_the_model_without_the_plugs_hooks(loaded):
    model, tokenizer = loaded
    own = model.model.layers[0].register_forward_hook(lambda *_: None)
    before, ids = hooks_of(model), tokenizer("Who taught?", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(ids).logits
        with memplug.attach(model, tokenizer, "toy") as plug:
            plug.edit(CASES[0])
            everything = hooks_of(model)
            assert not torch.equal(model(ids).logits, expected)
            with bare(model, before):
                assert torch.equal(model(ids).logits, expected)
                assert hooks_of(model) == before
            assert hooks_of(model) == everything > before
            assert not torch.equal(model(ids).logits, expected)
    own.remove()


def test_mistakes_are_told_before_anything_runs(loaded, tmp_path):
    def refused(match, **given):
        with pytest.raises(ValueError, match=match):
            memplug.compare(
                *loaded, given.pop("cases", CASES), **({"methods": ["toy"], "out": tmp_path} | given)
            )

    refused("no method 'toyy'; did you mean 'toy'", methods=["toyy"])
    refused("no preset 'weak'", methods=["toy:weak"])
    refused("'toy' is there twice", methods=["toy", "toy"])
    refused("no methods to compare", methods=[])
    refused("constants for 'llp', which is not compared", constants={"llp": {"threshold": 1}})
    refused("edits is 7, but cases has 6", edits=7)
    refused("batch is 0; it must be", batch=0)
    refused(r"seeds are \[0, 0\]", seeds=[0, 0])
    refused("there is no point at 9 edits; a run has 6", points=[9])
    refused("level is 95", level=95)
    refused("drop has 'odd'; the kinds are no-op, repeated, contradicting", drop=["odd"])
    refused("there are no cases to compare on", cases=[])
    refused("expected a Case, got Edit", cases=[CASES[0].edit])
    refused("the token that ends it take", max_new_tokens=1)
    with (
        memplug.attach(*loaded, "toy"),
        pytest.raises(ValueError, match="this model has a plug; call detach"),
    ):
        memplug.compare(*loaded, CASES, methods=["toy"])


@pytest.mark.gpu
def test_memory_of_the_gpu_is_counted(loaded):
    model, tokenizer = loaded
    model.to("cuda")
    try:
        made = memplug.compare(
            model, tokenizer, CASES, methods=["llp", "toy"], edits=2, **SETTINGS | {"points": None}
        )
    finally:
        model.to("cpu")
    for one in made.results["runs"]:
        assert one["status"] == "done", one["error"]
        assert one["cost"]["peak_device_bytes"] > 0


def test_all_seeds_are_looked_at_before_the_first_run(loaded, tmp_path):
    """The one case that does not fit is drawn by one of the seeds alone."""
    name = "Ada Quill"
    long = Case(Edit(f"Where was {name} born?", "Zarnow " * 60, name))
    given = {"methods": "toy", "edits": 1, "max_new_tokens": 6, "progress": False}
    for seeds in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        out = tmp_path / str(seeds[0])
        with pytest.raises(ValueError, match="max_new_tokens is 6"):
            memplug.compare(*loaded, [*CASES[1:4], long], seeds=seeds, out=out, **given)
        assert not list((out / "runs").iterdir())


def test_one_of_a_thing_needs_no_list(loaded, tmp_path):
    result = memplug.compare(
        *loaded, CASES, methods="toy,toy:strong", seeds=3, points=2, drop="no-op", batch=2, max_new_tokens=6,
        out=tmp_path, progress=False,
    )  # fmt: skip
    assert [(one["method"], one["seed"]) for one in result.done] == [("toy", 3), ("toy:strong", 3)]
    assert result.results["settings"]["points"] == [2, 6]
    assert result.results["settings"]["drop"] == ["no-op"]
