"""What a report says of costs, of the base model's likelihoods, of what was retained, and of unlike runs."""

from __future__ import annotations

import copy
import re

import pytest
from example_results import example
from report_page import Page

from memplug.comparison.report import write_figures
from memplug.comparison.report.aggregate import aggregate
from memplug.comparison.report.page import html, markdown


def _with_costs(ratios):
    """Results of two methods with these ratios of their forwards, by method and seed."""
    results = example(methods=2, seeds=len(ratios[0]), edits=4, failed=False)
    for run in results["runs"]:
        own = ratios[["llp", "elder"].index(run["method"])]
        run["cost"]["forward"]["ratio"] = own[run["seed"]]
    return results


@pytest.mark.parametrize(
    ("ratios", "winner"),
    [
        ([[1.00], [1.02]], None),  # a single run each: 2 % are noise
        ([[1.00], [1.04]], "llp"),
        ([[1.00, 1.10], [1.08, 1.20]], None),  # the seeds' ranges overlap
        ([[1.00, 1.02], [1.03, 1.04]], "llp"),
    ],
)
def test_noise_crowns_no_cost(ratios, winner):
    results = _with_costs(ratios)
    page = Page(html(results))
    cells = {head.split()[0]: cells[1] for head, cells in page.tables["Costs"].items()}
    assert [label for label, cell in cells.items() if "(best)" in cell] == ([winner] if winner else [])
    tile = re.search(r"([^<]*)</b><span>least overhead of a forward</span><strong>([^<]*)", html(results))
    assert tile[2] == (winner or "llp, elder, not told apart")
    assert ("–" in tile[1]) == (winner is None)
    line = next(line for line in markdown(results).splitlines() if line.startswith("| llp"))
    assert ("**1.0" in line) == (winner is not None)


def test_edited_retention_and_what_held_are_shown(page):
    table = page.tables["Edited retention (%)"]
    assert table["llp memory"][3].startswith("91.0")
    assert table["elder memory"][4].startswith("82.0")
    assert "First 12: efficacy" in page.text
    assert "First 12 edits: efficacy" in page.text  # the curves
    assert "Σ min(before, after) / Σ before" in page.text


def test_likelihoods_of_the_base_model_have_a_row(page):
    table = page.tables["New answer likelier, whole sequence (%)"]
    assert table["base model"][0].startswith("12.0")
    assert table["base model"][2].startswith("88.0")
    assert "base model" not in page.tables["New answer likelier, position by position (%)"]


def test_memory_of_a_forward_is_a_column(page):
    assert "Host memory, forward" in page.text
    assert "Device memory, forward" not in page.text  # there was none
    assert "1.5 MB" in page.tables["Costs"]["elder memory"][4]


def test_runs_that_were_not_made_alike_are_told(results):
    assert aggregate(results).unlike == []
    mixed = copy.deepcopy(results)
    mixed["runs"][0]["environment"] |= {"torch": "2.12.0"}
    mixed["runs"][3]["environment"] |= {"threads": 1}
    told = aggregate(mixed).unlike
    assert told[0].startswith("torch 2.12.0 (llp); 2.13.0 (llp, elder")
    assert told[1].startswith("threads 2 (llp, elder")
    for text in (html(mixed), markdown(mixed)):
        assert "not all made alike" in text
    assert "2026-11-20 12:00 UTC" in html(mixed)


def test_more_than_three_curves_have_an_interval_at_their_end(results):
    many, few = html(results), html(example(methods=3, seeds=1, failed=False))
    assert many.count("stroke-opacity: 0.4") == 12 * 6
    assert "stroke-opacity: 0.4" not in few


def test_what_is_folded_is_printed(results):
    style = html(results)
    assert "details::details-content" in style
    assert "beforeprint" in style
    constants = style[style.index("Constants of the methods") :]
    assert constants.index("<details>") < constants.index('class="screen"')


def test_one_point_is_no_curve(tmp_path):
    results = example(methods=3, seeds=1)
    for run in results["runs"]:
        run["curve"] = run.get("curve", [])[-1:]  # one method failed
    results["settings"]["points"] = results["settings"]["points"][-1:]
    shown = Page(html(results))
    assert "Edited retention (%)" in shown.tables
    assert "edits: efficacy" not in shown.text
    write_figures(results, tmp_path, dpi=30)
    assert not (tmp_path / "retention.png").exists()
