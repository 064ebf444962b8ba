"""Means over seeds with their intervals, and reports of results in which something is missing or failed."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from example_results import example
from report_page import Page

from memplug.comparison.report import write_figures, write_html, write_markdown
from memplug.comparison.report.aggregate import aggregate, combine, over_cases
from memplug.comparison.report.page import html, markdown
from memplug.evaluation import Answer

PATH = "final.efficacy.whole"


def test_right_means_the_target_or_for_what_must_stay_the_base_models_answer():
    row = Answer(0, "efficacy", "p", "Lyon", tokens=0.0, whole=False, perplexity=1.0, text=" Lyon")
    assert row.right is True
    assert row._replace(text=None).right is False
    stays = row._replace(group="specificity", text="Rome", base_text="Rome", target="Bern", agreement=0.5)
    assert stays.right is True
    assert stays._replace(text="Bern").right is False
    assert stays._replace(text=None).right is False
    assert stays._replace(text=None, agreement=None).right is None


def test_intervals_combine_as_of_independent_means():
    one = {"value": 0.5, "low": 0.4, "high": 0.7, "n": 10}
    two = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 30}
    mean = combine([one, two])
    assert mean[:3] == pytest.approx((0.7, 0.7 - (0.02**0.5) / 2, 0.7 + (0.05**0.5) / 2))
    assert mean.seeds == (0.5, 0.9)
    assert combine([one])[:3] == (0.5, 0.4, 0.7)


def _rows(cases, hits):
    return [
        Answer(i, "efficacy", f"p{c}", "t", tokens=float(h), whole=h, perplexity=1.0)
        for i, (c, h) in enumerate(zip(cases, hits, strict=True))
    ]


def test_the_bootstrap_over_seeds_draws_distinct_cases_with_all_their_values():
    rng = random.Random(5)
    cases = [list(range(60)), random.Random(1).sample(range(60), 60)]
    hits = [[c % 3 > 0 for c in order] for order in cases]  # a case has the same result under both seeds
    hits[1] = [h if rng.random() < 0.9 else not h for h in hits[1]]
    means = {PATH: combine([{"value": np.mean(h), "low": 0.0, "high": 1.0, "n": 60} for h in hits])}
    found = over_cases([_rows(*pair) for pair in zip(cases, hits, strict=True)], means, "final")[PATH]
    assert found.value == pytest.approx((np.mean(hits[0]) + np.mean(hits[1])) / 2)
    values = np.zeros(60)
    for order, hit in zip(cases, hits, strict=True):
        for case, h in zip(order, hit, strict=True):
            values[case] += h / 2
    draw = np.random.default_rng(9)
    means = [values[draw.integers(60, size=60)].mean() for _ in range(4000)]
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)
    # were they taken as 120 independent cases, the interval would be narrower by about the root of two
    pooled = np.concatenate(hits)
    naive = np.quantile([pooled[draw.integers(120, size=120)].mean() for _ in range(4000)], [0.025, 0.975])
    assert found.high - found.low > 1.2 * (naive[1] - naive[0])


def test_scores_that_the_answers_do_not_give_keep_their_own_intervals():
    means = {PATH: combine([{"value": 0.9, "low": 0.8, "high": 1.0, "n": 2}] * 2)}
    assert over_cases([_rows([1, 2], [True, False]), _rows([1, 2], [True, True])], means, "final") == {}


def _without(tree, keys):
    """The results with everything under these keys gone."""
    if isinstance(tree, dict):
        return {k: None if k in keys else _without(v, keys) for k, v in tree.items()}
    return [_without(v, keys) for v in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize(
    "keys",
    [
        ("answers", "details", "curve", "general", "preference", "fit", "cost", "base"),
        ("generated", "starts", "text", "base_text"),
        ("low", "high", "forward", "decode", "perplexity", "same_subject", "command", "environment"),
        ("final", "immediate", "first", "recent"),
    ],
)
def test_what_is_missing_is_left_out(keys, tmp_path):
    results = _without(example(methods=3, seeds=2, edits=4), keys)
    page = Page(html(results))
    assert "mend" in page.text
    assert "None" not in page.text.replace("NoneType", "")
    assert "nan" not in re.findall(r"\w+", page.text.lower())
    assert markdown(results).count("\n") >= 6
    if "low" in keys or "answers" in keys:
        write_figures(results, tmp_path, dpi=30)
    if "generated" in keys:
        assert "After all edits, whole answer, teacher forced." in page.text


def test_all_failed_still_gives_a_report(tmp_path):
    results = example(methods=0, seeds=1)
    page = Page(html(results))
    assert "No run was finished" in page.text
    assert "failed: OutOfMemoryError" in page.text
    assert "failed: OutOfMemoryError" in markdown(results)
    assert write_figures(results, tmp_path) == []


def test_a_run_that_left_the_model_changed_still_gives_a_report(tmp_path):
    results = example(methods=1, seeds=1, failed=False)
    results["base"]["0"] = None  # ended before the base model was judged
    assert "base model" not in markdown(results)
    assert "llp" in Page(html(results)).text


def test_a_method_that_failed_for_one_seed_says_so():
    results = example(methods=1, seeds=2, failed=False)
    results["runs"][1] |= {"status": "failed", "error": {"type": "RuntimeError", "message": "lost it"}}
    heads = list(Page(html(results)).tables["Whole answer, generated, after all edits (%)"])
    assert heads[1] == "llp memory 1 of 2 runs failed: RuntimeError: lost it"
    assert "llp: 1 of 2 runs failed: RuntimeError: lost it" in markdown(results)


def test_begins_with_leads_where_answers_do_not_stop():
    results = example(methods=1, seeds=1, failed=False)
    for row in results["runs"][0]["answers"]["final"]:
        row["text"] += ", and so on"
    final = results["runs"][0]["final"]
    final["efficacy"]["generated"] = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 12}
    assert aggregate(results).main == "starts"
    assert "After all edits, begins with, generated." in " ".join(Page(html(results)).text.split())


@pytest.mark.parametrize("write", [write_html, write_markdown, write_figures])
def test_other_results_are_refused(write, results, tmp_path):
    with pytest.raises(ValueError, match="format is 'else'; a report needs the results of a comparison"):
        write({"format": "else"}, tmp_path / "x")
    with pytest.raises(ValueError, match="version is 2, this memplug reads .* up to 1; upgrade"):
        write({**results, "version": 2}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("write", "module"),
    [(write_html, "jinja2"), (write_markdown, "jinja2"), (write_figures, "matplotlib.figure")],
)
def test_a_missing_package_names_the_extra(write, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install \"memplug\[report\]\""):
        write(example(methods=1, seeds=1), tmp_path / "x")


def test_the_package_ships_the_page():
    setup = (Path(__file__).parent.parent / "setup.py").read_text(encoding="utf-8")
    assert '"memplug.comparison.report": ["page/*"]' in setup
