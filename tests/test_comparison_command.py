"""``memplug compare`` on a saved model: what it writes and shows, going on, mistakes in one line."""

from __future__ import annotations

import json

import pytest
from comparing import tiny
from typer.testing import CliRunner

import memplug
from memplug.cli import app

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def files(make_tokenizer, make_llama, tmp_path_factory):
    """A saved model, cases with true answers in the form of CounterFact, and a set of choices."""
    folder = tmp_path_factory.mktemp("files")
    model, tokenizer = tiny(make_tokenizer, make_llama)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [
        {
            "requested_rewrite": {
                "prompt": "Where was {} born?",
                "subject": f"Ada {name}",
                "target_new": {"str": "Marrow"},
                "target_true": {"str": "Zarnow" if name != "Bo" else "Marrow"},
            },
            "paraphrase_prompts": [f"Ada {name} was born in"],
            "neighborhood_prompts": ["Who taught?"],
        }
        for name in ("Quill", "Tam", "Wick", "Bo")
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "facts.jsonl").write_text(f"not json\n{text}")
    choice = {"text": "It rains.", "label": 0, "choices": ["Tam", "Ada Quill"]}
    (folder / "tasks.jsonl").write_text(json.dumps(choice) + "\n")
    return folder


def call(files, out, *more):
    given = ["--model", files / "model", "--cases", f"counterfact:{files / 'facts.jsonl'}", "--skip-bad"]
    given += ["--drop", "no-op", "--max-new-tokens", 6, "--out", out, *more]
    return CliRunner().invoke(app, ["compare", *map(str, given)])


def test_it_writes_results_and_reports_and_shows_a_table(files, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/memplug", "compare", "--cases", "my facts.jsonl"])
    given = ("--methods", "toy,hard=toy:strong,toyfit", "--edits", 2, "--batch", 1, "--seed", "0,3")
    more = (
        "--general",
        files / "tasks.jsonl",
        "--fit-cases",
        1,
        "--fit-steps",
        2,
        "--set",
        "hard.strength=50",
    )
    result = call(files, tmp_path / "out", *given, *more)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for text in ("base model", "hard", "2 edits in batches of 1, seeds 0, 3"):
        assert text in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (tmp_path / "out" / "report.html").read_text().lower().startswith("<!doctype html>")
    assert "toyfit" in (tmp_path / "out" / "report.md").read_text()
    assert [one["status"] for one in results["runs"]] == ["done"] * 6, results["runs"]
    assert {one["config"]["strength"] for one in results["runs"] if one["method"] == "hard"} == {50}
    assert results["data"].items() >= {
        "read": 5, "used": 2, "no_op": 1, "repeated": 0, "contradicting": 0, "left_out": 1,
        "skipped_lines": 1,
        "skipped": [{"line": 1, "reason": "not valid JSON: Expecting value at column 1"}],
    }.items()  # fmt: skip
    assert results["fingerprint"]
    assert results["settings"]["command"] == "memplug compare --cases 'my facts.jsonl'"
    assert set(results["base"]["3"]["general"]) == {"tasks", "tasks_norm"}
    for point in (results["base"]["3"], *results["runs"][0]["curve"]):  # every answer is there, at any point
        (said,) = point["general_answers"]["tasks"]
        right = max(range(2), key=lambda i, said=said: said["log_probs"][i]) == said["label"]
        assert point["general"]["tasks"]["value"] == float(right)
    assert results["runs"][0]["preference"]["before"] == {"data": 2, "base model": 0}
    assert set(results["runs"][0]["preference"]["rome"]) == {"efficacy", "generalization", "neighborhood"}

    again = call(files, tmp_path / "out", *given, *more)  # all there already
    assert again.exit_code == 0, again.output
    same = json.loads((tmp_path / "out" / "results.json").read_text())
    assert same["runs"] == results["runs"]
    shown = memplug.Comparison.load(tmp_path / "out")
    assert shown.results == same
    assert repr(shown) == "<Comparison of toy, hard, toyfit: 6 runs, 0 failed>"


def test_fitting_can_be_left_out_and_probes_limited(files, tmp_path):
    given = ("--methods", "toyfit", "--edits", 2, "--fit-cases", "none", "--probes", 1)
    result = call(files, tmp_path / "out", *given)
    assert result.exit_code == 1, result.output
    assert "no run was finished; the table says why" in result.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    assert "No run was finished." in text
    assert "generated" not in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "'toyfit' has to be fitted to this model first" in results["runs"][0]["error"]["message"]
    assert (results["settings"]["fit_cases"], results["settings"]["probes"]) == (None, 1)


def test_the_report_is_made_anew_from_the_results(files, tmp_path):
    out = tmp_path / "out"
    assert call(files, out, "--methods", "toy", "--edits", 2).exit_code == 0
    before = {name: (out / name).read_text() for name in ("report.html", "report.md")}
    for name in before:
        (out / name).unlink()
    result = CliRunner().invoke(app, ["report", str(out)])
    assert result.exit_code == 0, result.output
    assert {name: (out / name).read_text() for name in before} == before
    assert not (out / "figures").exists()
    result = CliRunner().invoke(app, ["report", str(out / "results.json"), "--png"])
    assert result.exit_code == 0, result.output
    assert f"report.html, report.md, figures are in {out}" in result.stdout.replace("\n", "")
    assert (out / "figures" / "quality.png").read_bytes().startswith(b"\x89PNG")
    lost = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert lost.exit_code == 2
    assert "holds no comparison" in lost.stderr


def test_general_sets_of_one_name(files, tmp_path):
    """Refused in one call, and in a folder that was made with the other one."""
    (files / "other").mkdir(exist_ok=True)
    choice = {"text": "It snows.", "label": 1, "choices": ["Tam", "Ada Quill"]}
    (files / "other" / "tasks.jsonl").write_text(json.dumps(choice) + "\n")
    one, two = files / "tasks.jsonl", files / "other" / "tasks.jsonl"
    given = ("--methods", "toy", "--edits", 2, "--general")
    both = call(files, tmp_path / "out", *given, f"{one},{two}")
    assert both.exit_code == 2
    assert "general has several sets whose figures would be called 'tasks'" in both.stderr.replace("\n", " ")
    assert call(files, tmp_path / "out", *given, one).exit_code == 0
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert settings["general_sets"]["tasks"]["file"] == str(one)
    other = call(files, tmp_path / "out", *given, two)
    assert other.exit_code == 2
    assert "other settings: general tasks is {'kind': 'choices'" in " ".join(other.stderr.split())
    (files / "other" / "tasks.jsonl").write_text(one.read_text())
    assert call(files, tmp_path / "out", *given, two).exit_code == 0  # the same set elsewhere


def test_mistakes_are_told_in_one_line(files, tmp_path):
    def refused(*more):
        result = call(files, tmp_path / "out", *more)
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        lines = [line for line in result.stderr.splitlines() if line.strip() and "Loading" not in line]
        assert len(lines) == 1, lines
        return lines[0]

    assert "no method 'tou'; did you mean 'toy'" in refused("--methods", "tou")
    assert "edits is 9, but counterfact:" in refused("--methods", "toy", "--edits", 9)
    assert "seed has 'x'; give whole numbers" in refused("--methods", "toy", "--seed", "0,x")
    assert "write METHOD.KEY=VALUE" in refused("--methods", "toy", "--set", "strength=3")
    assert "drop has 'odd'" in refused("--methods", "toy", "--drop", "odd")
    assert "there is no file" in refused("--methods", "toy", "--general", "nowhere.jsonl")
    assert "there is no file" in refused("--methods", "toy", "--fit-cases", "nowhere.jsonl")
    assert "-5" in refused("--methods", "toy", "--fit-cases", "-5")
    assert "device is 'cuda:99', and torch sees" in refused("--methods", "toy", "--device", "cuda:99")
    assert "device is 'tpu9', which torch does not know" in refused("--methods", "toy", "--device", "tpu9")
    leak = call(files, tmp_path / "out", "--methods", "toy", "--set", "toy.leak=true")
    assert leak.exit_code == 2
    assert "error: 'toy' did not leave the model as it was" in leak.stderr


def test_results_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="holds no comparison"):
        memplug.Comparison.load(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"format": "memplug comparison", "version": 99}))
    with pytest.raises(ValueError, match="this memplug reads 'memplug comparison' up to 1; upgrade"):
        memplug.Comparison.load(tmp_path)
    head = {"format": "memplug comparison"}
    for broken in ([], head, head | {"version": "one"}, head | {"version": 1}, head | {"version": None}):
        (tmp_path / "results.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="holds no comparison|is damaged"):
            memplug.Comparison.load(tmp_path)
