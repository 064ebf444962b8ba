"""The report of a comparison: every number is there, means over seeds are right, hostile text stays text."""

from __future__ import annotations

import copy
import json
import re
from itertools import pairwise

import pytest
from example_results import HOSTILE, example
from report_page import Page

from memplug.comparison.report import write_figures, write_html, write_markdown
from memplug.comparison.report.aggregate import aggregate
from memplug.comparison.report.answers import pack
from memplug.comparison.report.page import html, markdown
from memplug.evaluation import Answer

MAIN = "Whole answer, generated, after all edits (%)"


def test_every_method_property_and_measure_is_in_a_table_of_its_own(results, page):
    measures = {
        "generated": "Whole answer, generated",
        "starts": "Begins with, generated",
        "whole": "Whole answer, teacher forced",
        "tokens": "Tokens, teacher forced",
    }
    labels = list(dict.fromkeys(run["method"] for run in results["runs"] if run["status"] == "done"))
    order = ["efficacy", "generalization", "specificity", "same_subject", "portability"]
    order += ["specificity_gold", "same_subject_gold"]
    for moment, when in {"final": "after all edits", "immediate": "right after each batch"}.items():
        for measure, name in measures.items():
            table = page.tables[f"{name}, {when} (%)"]
            asked = [p for p in order if measure != "starts" or p not in ("specificity", "same_subject")]
            for label in labels:
                its = [run for run in results["runs"] if run["method"] == label]
                row = next(cells for head, cells in table.items() if head.startswith(label + " "))
                for prop, cell in zip(asked, row, strict=False):
                    mean = sum(run[moment][prop][measure]["value"] for run in its) / len(its)
                    assert re.search(rf"(^|\D){100 * mean:.1f}\D", cell + " "), (label, prop, measure, cell)


def test_other_tables_of_the_page(page):
    assert page.tables[MAIN]["base model"][2].startswith("100.0")
    (failed,) = page.tables[MAIN]["mend weights"]
    assert failed.startswith("failed: OutOfMemoryError: no room for </script>")
    held = page.tables["Edited retention (%)"]
    assert held["llp memory"][3].startswith("91.0")
    assert held["elder memory"][4].startswith("82.0")
    likelier = page.tables["New answer likelier, whole sequence (%)"]
    assert likelier["base model"][0].startswith("12.0")
    assert likelier["base model"][2].startswith("88.0")
    assert "base model" not in page.tables["New answer likelier, position by position (%)"]
    assert "1.5 MB" in page.tables["Costs"]["elder memory"][4]
    for text in ("First 12: efficacy", "First 12 edits: efficacy", "Σ min(before, after) / Σ before"):
        assert text in page.text  # in the table, above the curves, among the formulas
    assert "Host memory, forward" in page.text
    assert "Device memory, forward" not in page.text  # there was none
    votes = page.tables["llp: votes by layer, above 0.80 (%)"]
    assert votes == {
        "edited (1)": ["100.0", "100.0", "0.0", "100.0"],
        "unrelated (2)": ["100.0", *3 * ["0.0"]],
    }
    assert page.tables["llp: similarities"]["What is the capital of France? edited"] == [
        "0.95", "0.70", "0.20", "e1"
    ]  # fmt: skip


def test_the_best_of_each_column_is_marked(page):
    table = page.tables[MAIN]
    efficacy = {head: cells[0] for head, cells in table.items() if len(cells) > 1 and head != "base model"}
    best = max(efficacy, key=lambda head: float(re.match(r"[\d.]+", efficacy[head])[0]))
    assert [head for head, cell in efficacy.items() if "(best)" in cell] == [best]
    times = {head: cells[0] for head, cells in page.tables["Costs"].items()}
    assert [head for head, cell in times.items() if "(best)" in cell] == ["llp memory"]  # the fastest


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
    results = example(methods=2, seeds=len(ratios[0]), edits=4, failed=False)
    for run in results["runs"]:
        own = ratios[["llp", "elder"].index(run["method"])]
        run["cost"]["forward"]["ratio"] = own[run["seed"]]
    text = html(results)
    cells = {head.split()[0]: cells[1] for head, cells in Page(text).tables["Costs"].items()}
    assert [label for label, cell in cells.items() if "(best)" in cell] == ([winner] if winner else [])
    tile = re.search(r"([^<]*)</b><span>least overhead of a forward</span><strong>([^<]*)", text)
    assert tile[2] == (winner or "llp, elder, not told apart")
    assert ("–" in tile[1]) == (winner is None)
    line = next(line for line in markdown(results).splitlines() if line.startswith("| llp"))
    assert ("**1.0" in line) == (winner is not None)


def test_hostile_text_stays_text(results, page):
    assert [tag for tag, _ in page.tags].count("script") == 2  # the answers, and the page's own
    assert "bold</b>" in page.text
    assert "alert(" not in page.scripts[1]
    assert HOSTILE.strip() in " ".join(page.text.split())
    changed = example(methods=2, seeds=1)
    for row in changed["runs"][0]["answers"]["final"]:
        row["text"] = HOSTILE
    changed["runs"][0]["method"] = HOSTILE
    hostile = Page(html(changed))
    assert [tag for tag, _ in hostile.tags].count("script") == 2
    assert HOSTILE in json.loads(hostile.scripts[0])["texts"]
    for name in ("edits", "batch", "model", "cases", "device", "dtype"):
        changed["settings"][name] = HOSTILE
    assert "<script>" not in markdown(changed)


def test_the_page_loads_nothing_and_prints_what_is_folded():
    text = html(example(methods=3, seeds=1))
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith(("#", "https://"))
        if "href" in attrs and not attrs["href"].startswith("#"):
            assert tag == "a"
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none'")
    assert "details::details-content" in text
    assert "beforeprint" in text
    constants = text[text.index("Constants of the methods") :]
    assert constants.index("<details>") < constants.index('class="screen"')


def test_headings_descend_in_order_and_figures_are_described(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    drawn = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawn) == 5 + 3 + 4 + 2 + 1 + 1  # dots, costs, retention, tasks, modules and codes
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 20 for attrs in drawn)
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")


def test_packed_answers_are_the_results_answers(results):
    packed = json.loads(json.dumps(pack(aggregate(results), 10**9)))
    texts = packed["texts"]
    for run in packed["runs"]:
        label, seed = packed["methods"][run["method"]], packed["seeds"][run["seed"]]
        source = next(r for r in results["runs"] if r["method"] == label and r["seed"] == seed)
        probes = [probe for probe in packed["probes"] if probe[0] == run["seed"]]
        for moment in ("immediate", "final"):
            found = {}
            for probe, text, letter in zip(probes, run["after"][moment], run["right"][moment], strict=True):
                found[probe[1], texts[probe[3]]] = (texts[probe[4]], texts[text], letter)
            assert len(found) == len(source["answers"][moment])
            for row in source["answers"][moment]:
                letter = "y" if Answer.of(row).right else "n"
                assert found[row["case"], row["prompt"]] == (row["target"], row["text"], letter)


def test_too_many_answers_keep_whole_cases_and_say_so():
    results = example(methods=3, seeds=1)
    packed = pack(aggregate(results), 300)
    assert 0 < packed["shown"] < packed["cases"] == 12
    assert max(probe[1] for probe in packed["probes"]) == packed["shown"] - 1
    assert f"the first {packed['shown']} of 12 cases" in html(results, answers=300)


def test_markdown_is_this_table():
    results = example(methods=2, seeds=1, edits=4)
    score = {"value": 0.75, "low": 0.5, "high": 1.0, "n": 4}
    for run in results["runs"][:2]:
        whole = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 4}
        run["final"] = {"efficacy": {"generated": dict(score)}, "specificity": {"generated": whole}}
        run["answers"] = None
        near = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 4}
        run["preference"] = {"rome": {"efficacy": dict(score), "neighborhood": near}}
    results["runs"][1]["final"]["efficacy"]["generated"]["value"] = 0.5
    results["runs"][1]["preference"]["rome"]["efficacy"]["value"] = 0.5
    results["runs"][2]["error"]["message"] = "a | b\n*c*"
    base = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 4}, {"value": 0.9, "low": 0.8, "high": 1.0, "n": 4}
    results["base"]["0"] = {
        "scores": {"efficacy": {"generated": None}},
        "general": {},
        "preference": {"rome": dict(zip(("efficacy", "neighborhood"), base, strict=True))},
    }
    assert markdown(results) == (
        "4 edits in batches of 1; 1 seed; model embedded world model; cases world; cpu, float32. In percent "
        "after all edits, whole answer, generated; 95 % intervals over cases in brackets.\n"
        "\n"
        "| method | Efficacy | Specificity | Time per edit | Forward | Bytes per edit |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| base model | – | – | – | – | – |\n"
        "| llp | **75.0** (50.0–100.0) | 100.0 (100.0–100.0) | **20 ms** | **1.00×** | **4 kB** |\n"
        "| elder | 50.0 (50.0–100.0) | 100.0 (100.0–100.0) | 42 ms | 1.10× | 6.8 kB |\n"
        "| mend | failed: OutOfMemoryError: a \\| b \\*c\\* |  |  |  |  |\n"
        "\n"
        "New answer likelier, whole sequence (%):\n"
        "\n"
        "| method | Efficacy | Neighborhood |\n"
        "| --- | ---: | ---: |\n"
        "| base model | 10.0 (0.0–20.0) | 90.0 (80.0–100.0) |\n"
        "| llp | **75.0** (50.0–100.0) | 70.0 (60.0–80.0) |\n"
        "| elder | 50.0 (50.0–100.0) | 70.0 (60.0–80.0) |\n"
    )


def test_markdown_of_several_seeds_gives_their_range():
    results = example(methods=2, seeds=2, edits=4, failed=False)
    for value, run in zip((0.25, 0.5, 0.75, 1.0), results["runs"], strict=True):
        run["final"] = {"efficacy": {"generated": {"value": value, "low": value, "high": value, "n": 4}}}
        run["answers"], run["preference"] = None, None
    results["base"] = {}
    lines = markdown(results).splitlines()
    assert "in brackets, with the range of the seeds' means." in lines[0]
    assert lines[4].startswith("| llp | 37.5 (37.5–37.5; seeds 25.0–50.0) | **20 ms** |")
    assert lines[5].startswith("| elder | **87.5** (87.5–87.5; seeds 75.0–100.0) |")


def test_pictures_are_written_at_their_size(tmp_path):
    image = pytest.importorskip("PIL.Image")
    results = example(methods=4, seeds=2, edits=6)  # up to and with hiedit
    files = write_figures(results, tmp_path / "figures", dpi=50)
    assert [file.stem for file in files] == ["quality", "retention", "general", "costs", "layers", "codes"]
    for file, columns in zip(files, (3, 3, 2, 3, 1, 1), strict=True):
        with image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.width == pytest.approx(50 * 4.6 * columns, abs=2)
            low, high = picture.convert("L").getextrema()
            assert (low < 100, high) == (True, 255)


def test_more_than_three_curves_have_an_interval_at_their_end(results):
    many, few = html(results), html(example(methods=3, seeds=1, failed=False))
    assert many.count("stroke-opacity: 0.4") == 7 * 6
    assert "stroke-opacity: 0.4" not in few


def test_one_point_is_no_curve(tmp_path):
    results = example(methods=3, seeds=1)
    for run in results["runs"]:
        run["curve"] = run.get("curve", [])[-1:]  # one method failed
    shown = Page(html(results))
    assert "Edited retention (%)" in shown.tables
    assert "edits: efficacy" not in shown.text
    write_figures(results, tmp_path, dpi=30)
    assert not (tmp_path / "retention.png").exists()


def test_writes_into_a_new_folder_and_replaces(tmp_path):
    path, results = tmp_path / "new" / "report.html", example(methods=2, seeds=1)
    write_html(results, path)
    assert path.read_text(encoding="utf-8") == html(results)
    assert path.stat().st_mode & 0o444 == 0o444
    write_html(example(methods=1, seeds=1, failed=False), str(path))
    assert "1 editing method compared" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    write_markdown(results, path.with_suffix(".md"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(results)


def test_runs_that_were_not_made_alike_are_told():
    results = example(methods=2, seeds=2, edits=4, failed=False)
    assert aggregate(results).unlike == []
    mixed = copy.deepcopy(results)
    mixed["runs"][0]["environment"] |= {"torch": "2.12.0"}
    mixed["runs"][2]["environment"] |= {"threads": 1}
    assert aggregate(mixed).unlike == [
        "torch 2.12.0 (llp); 2.13.0 (llp, elder)", "threads 2 (llp, elder); 1 (elder)"
    ]  # fmt: skip
    page = html(mixed)
    assert "2026-11-20 12:00 UTC" in page
    assert "not all made alike" in page
    assert "not all made alike" in markdown(mixed)
