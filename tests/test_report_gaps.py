"""A report of results in which something is missing, failed or of another format."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from example_results import example
from report_page import Page

from memplug.comparison.report import write_figures, write_html, write_markdown
from memplug.comparison.report.aggregate import aggregate
from memplug.comparison.report.page import html, markdown


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
    text = html(results)
    page = Page(text)
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


def test_a_method_that_failed_for_one_seed_says_so():
    results = example(methods=1, seeds=2, failed=False)
    results["runs"][1] |= {"status": "failed", "error": {"type": "RuntimeError", "message": "lost it"}}
    page = Page(html(results))
    heads = list(page.tables["Whole answer, generated, after all edits (%)"])
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


@pytest.mark.parametrize(("write", "module"), [(write_html, "jinja2"), (write_figures, "matplotlib.figure")])
def test_a_missing_package_names_the_extra(write, module, results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install \"memplug\[report\]\""):
        write(results, tmp_path / "x")


def test_the_package_ships_the_page():
    setup = (Path(__file__).parent.parent / "setup.py").read_text(encoding="utf-8")
    assert '"memplug.comparison.report": ["page/*"]' in setup
