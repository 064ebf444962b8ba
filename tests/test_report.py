"""The report of a comparison: every number is there, means over seeds are right, hostile text stays text."""

from __future__ import annotations

import copy
import json
import random
import re
from itertools import pairwise

import numpy as np
import pytest
from example_results import HOSTILE, example
from report_page import Page

from memplug.comparison.report import write_figures, write_html, write_markdown
from memplug.comparison.report.aggregate import aggregate, combine, over_cases
from memplug.comparison.report.answers import pack
from memplug.comparison.report.page import html, markdown
from memplug.evaluation import Answer

VOID = {"meta", "input", "br", "wbr", "hr", "link", "img"}


def test_every_method_property_and_measure_is_in_a_table_of_its_own(results, page):
    measures = {
        "generated": "Whole answer, generated",
        "starts": "Begins with, generated",
        "whole": "Whole answer, teacher forced",
        "tokens": "Tokens, teacher forced",
    }
    moments = {"final": "after all edits", "immediate": "right after each batch"}
    labels = list(dict.fromkeys(run["method"] for run in results["runs"] if run["status"] == "done"))
    order = ["efficacy", "generalization", "specificity", "same_subject", "portability"]
    order += ["specificity_gold", "same_subject_gold"]
    for moment, when in moments.items():
        for measure, name in measures.items():
            table = page.tables[f"{name}, {when} (%)"]
            asked = [p for p in order if measure != "starts" or p not in ("specificity", "same_subject")]
            for label in labels:
                its = [run for run in results["runs"] if run["method"] == label]
                row = next(cells for head, cells in table.items() if head.startswith(label + " "))
                for prop, cell in zip(asked, row, strict=False):
                    mean = sum(run[moment][prop][measure]["value"] for run in its) / len(its)
                    assert re.search(rf"(^|\D){100 * mean:.1f}\D", cell + " "), (label, prop, measure, cell)


def test_the_base_model_and_the_failed_method_have_rows(page):
    table = page.tables["Whole answer, generated, after all edits (%)"]
    assert table["base model"][2].startswith("100.0")
    (failed,) = table["mend weights"]
    assert failed.startswith("failed: OutOfMemoryError: no room for </script>")


def test_the_best_of_each_column_is_marked(page):
    table = page.tables["Whole answer, generated, after all edits (%)"]
    efficacy = {head: cells[0] for head, cells in table.items() if len(cells) > 1 and head != "base model"}
    best = max(efficacy, key=lambda head: float(re.match(r"[\d.]+", efficacy[head])[0]))
    assert [head for head, cell in efficacy.items() if "(best)" in cell] == [best]
    times = {head: cells[0] for head, cells in page.tables["Costs"].items()}
    assert [head for head, cell in times.items() if "(best)" in cell] == ["llp memory"]  # the fastest


def test_hostile_text_stays_text(results, page):
    assert [tag for tag, _ in page.tags].count("script") == 2  # the answers, and the page's own
    assert "bold</b>" in page.text
    assert "alert(" not in page.scripts[1]
    assert HOSTILE.strip() in " ".join(page.text.split())
    rows = results["runs"][0]["answers"]["final"]
    changed = copy.deepcopy(results)
    changed["runs"][0]["answers"]["final"] = [{**row, "text": HOSTILE} for row in rows]
    changed["runs"][0]["method"] = HOSTILE
    hostile = Page(html(changed))
    assert [tag for tag, _ in hostile.tags].count("script") == 2
    assert HOSTILE in json.loads(hostile.scripts[0])["texts"]


def test_the_page_loads_nothing(results):
    text = html(results)
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


def test_headings_descend_in_order_and_figures_are_described(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    drawn = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawn) == 5 + 3 + 4 + 2 + 2 + 1 - 1  # dots, costs, retention, tasks, modules and codes
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
            rows = source["answers"][moment]
            assert len(found) == len(rows)
            for row in rows:
                letter = "y" if Answer.of(row).right else "n"
                assert found[row["case"], row["prompt"]] == (row["target"], row["text"], letter)


def test_too_many_answers_keep_whole_cases_and_say_so(results):
    packed = pack(aggregate(results), 2000)
    assert 0 < packed["shown"] < packed["cases"] == 12
    assert max(probe[1] for probe in packed["probes"]) == packed["shown"] - 1
    assert f"the first {packed['shown']} of 12 cases" in html(results, answers=2000)


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


def _rows(seed, cases, hits):
    return [
        Answer(i, "efficacy", f"p{c}", "t", tokens=float(h), whole=h, perplexity=1.0)
        for i, (c, h) in enumerate(zip(cases, hits, strict=True))
    ]


def test_the_bootstrap_over_seeds_draws_distinct_cases_with_all_their_values():
    rng = random.Random(5)
    cases = [list(range(60)), random.Random(1).sample(range(60), 60)]
    hits = [[c % 3 > 0 for c in order] for order in cases]  # a case has the same result under both seeds
    hits[1] = [h if rng.random() < 0.9 else not h for h in hits[1]]
    key = "final.efficacy.whole"
    seeds = [_rows(s, c, h) for s, (c, h) in enumerate(zip(cases, hits, strict=True))]
    scores = {key: combine([{"value": np.mean(h), "low": 0.0, "high": 1.0, "n": 60} for h in hits])}
    found = over_cases(seeds, scores, "final")[key]
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
    scores = {"final.efficacy.whole": combine([{"value": 0.9, "low": 0.8, "high": 1.0, "n": 2}] * 2)}
    seeds = [_rows(0, [1, 2], [True, False]), _rows(1, [1, 2], [True, True])]
    assert over_cases(seeds, scores, "final") == {}


def test_markdown_is_this_table():
    results = example(methods=2, seeds=1, edits=4)
    for run in results["runs"]:
        if run["status"] == "done":
            run["final"] = {
                "efficacy": {"generated": {"value": 0.75, "low": 0.5, "high": 1.0, "n": 4}},
                "specificity": {"generated": {"value": 1.0, "low": 1.0, "high": 1.0, "n": 4}},
            }
            run["answers"] = None
    results["runs"][1]["final"]["efficacy"]["generated"]["value"] = 0.5
    results["runs"][2]["error"]["message"] = "a | b\n*c*"
    likelier = [("efficacy", 0.75), ("neighborhood", 0.7)], [("efficacy", 0.5), ("neighborhood", 0.7)]
    for run, pairs in zip(results["runs"], likelier, strict=False):
        run["preference"] = {"rome": {k: {"value": v, "low": 0.5, "high": 1.0, "n": 4} for k, v in pairs}}
        run["preference"]["rome"]["neighborhood"] |= {"low": 0.6, "high": 0.8}
    base = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 4}, {"value": 0.9, "low": 0.8, "high": 1.0, "n": 4}
    results["base"] = {
        "0": {
            "scores": {"efficacy": {"generated": None}},
            "general": {},
            "preference": {"rome": dict(zip(("efficacy", "neighborhood"), base, strict=True))},
        }
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
    results = example(methods=5, seeds=2, edits=6)  # up to and with hiedit
    files = write_figures(results, tmp_path / "figures", dpi=50)
    names = ["quality", "retention", "general", "costs", "layers", "codes"]
    assert [file.stem for file in files] == names
    for file, columns in zip(files, (3, 3, 2, 3, 1, 1), strict=True):
        with image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.width == pytest.approx(50 * 4.6 * columns, abs=2)
            low, high = picture.convert("L").getextrema()
            assert (low < 100, high) == (True, 255)


def test_writes_into_a_new_folder_and_replaces(results, tmp_path):
    path = tmp_path / "new" / "report.html"
    write_html(results, path)
    first = path.read_text(encoding="utf-8")
    assert first == html(results)
    assert path.stat().st_mode & 0o444 == 0o444
    write_html(example(methods=1, seeds=1, failed=False), str(path))
    assert "1 editing method compared" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    write_markdown(results, path.with_suffix(".md"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(results)
