"""A comparison that was stopped goes on where it was; a folder is for one comparison."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import toy
from comparing import CASES, SETTINGS, case, figures, stopped_after

import memplug
from memplug.comparison import SettingsError, checkpoint, run
from memplug.comparison.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def asked():
    return {"methods": ["toy", "toy:strong"], "seeds": [0, 1], **SETTINGS}


@pytest.fixture(scope="module")
def compared(loaded, asked):
    """What was never stopped."""
    return memplug.compare(*loaded, CASES, **asked)


@pytest.fixture
def made(monkeypatch):
    """The number of edits of each batch that is made."""
    sizes, learn = [], toy.Toy.learn
    monkeypatch.setattr(toy.Toy, "learn", lambda *a, **k: (sizes.append(len(a[1])), learn(*a, **k))[1])
    return sizes


@pytest.mark.parametrize("saves", [1, 2])
def test_a_stopped_comparison_goes_on_where_it_was(loaded, tmp_path, compared, asked, made, saves):
    """Also within a method; the figures are those of the run that was never stopped."""
    with stopped_after(3 + saves):  # the second method's
        memplug.compare(*loaded, CASES, out=tmp_path, **asked)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    (state,) = [p for p in (tmp_path / "state").iterdir() if (p / "progress.json").is_file()]
    assert json.loads((state / "progress.json").read_text())["done"] == 2 * saves
    made.clear()
    again = memplug.compare(*loaded, CASES, out=tmp_path, **asked)
    assert sum(made) == (6 - 2 * saves) + 2 * 6
    assert figures(again) == figures(compared)
    assert not list((tmp_path / "state").iterdir())


def test_between_points_it_is_saved_by_the_clock(loaded, tmp_path, monkeypatch):
    """A minute after the last time, and never for more than a twentieth of the time."""
    clock = [100.0]
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    kept, save = [], Checkpoint.save

    def slow(self, plug, state):
        kept.append(state.done)
        clock[0] += 10
        save(self, plug, state)
        self._began -= 10

    learn = toy.Toy.learn
    monkeypatch.setattr(Checkpoint, "save", slow)
    monkeypatch.setattr(
        toy.Toy, "learn", lambda *a, **k: (learn(*a, **k), clock.__setitem__(0, clock[0] + 70))[0]
    )
    memplug.compare(*loaded, CASES, methods=["toy"], batch=1, points=[6], out=tmp_path, max_new_tokens=0)
    assert kept == [1, 4, 6]


@pytest.mark.parametrize(
    ("pattern", "end", "told"),
    [
        ("*.safetensors", 1, "is not the file that was saved"),
        ("progress.json", 40, "progress.json is damaged"),
    ],
)
def test_a_damaged_state_begins_anew(loaded, tmp_path, compared, asked, pattern, end, told):
    with stopped_after(1):
        memplug.compare(*loaded, CASES, out=tmp_path, **asked)
    for file in (tmp_path / "state").rglob(pattern):
        file.write_bytes(file.read_bytes()[:end])
    with pytest.warns(UserWarning, match=f"toy begins anew: .*{told}"):
        again = memplug.compare(*loaded, CASES, out=tmp_path, **asked)
    assert figures(again) == figures(compared)


def test_what_earlier_calls_made_stays_in_the_results(loaded, tmp_path, compared):
    asked = {"out": tmp_path, **SETTINGS}
    memplug.compare(*loaded, CASES, methods="toy", seeds=[0, 1], **asked)
    both = memplug.compare(*loaded, CASES, methods=["toy:strong"], seeds=1, **asked)
    assert both.results["settings"]["methods"] == ["toy:strong", "toy"]
    assert both.results["settings"]["seeds"] == [0, 1]
    assert {(one["method"], one["seed"]) for one in both.results["runs"]} == {
        ("toy", 0), ("toy", 1), ("toy:strong", 1),
    }  # fmt: skip
    assert both.results["base"] == compared.results["base"]
    both.to_html(tmp_path / "report.html")


def test_other_true_answers_are_another_comparison(loaded, tmp_path):
    """They decide which answer has to be likelier."""
    rows = [
        {"prompt": one.edit.prompt, "subject": one.edit.subject, "target_new": one.edit.target}
        for one in CASES
    ]
    file = tmp_path / "facts.jsonl"

    def asked(true):
        file.write_text("".join(json.dumps({**row, "target_true": true}) + "\n" for row in rows))
        return memplug.compare(*loaded, file, methods="toy", out=tmp_path / "out", **SETTINGS)

    asked("Tam")
    with pytest.raises(SettingsError, match="the cases of seed 0 are not the same"):
        asked("Ada")


def test_a_method_that_only_failed_may_get_other_constants(loaded, tmp_path):
    asked = {"out": tmp_path, **SETTINGS}
    made = memplug.compare(*loaded, CASES, methods=["toy"], constants={"toy": {"fail_at": 3}}, **asked)
    assert made.failed
    changed = {"toy": {"strength": 9.0}}
    again = memplug.compare(*loaded, CASES, methods=["toy"], constants=changed, **asked)
    (one,) = again.results["runs"]
    assert (one["status"], one["config"]["strength"]) == ("done", 9.0)
    with pytest.raises(SettingsError, match="toy is .*'constants': {}.* was .*'strength': 9"):
        memplug.compare(*loaded, CASES, methods=["toy"], **asked)
    # the failed seed of a method that is done for another one keeps its constants
    failing = memplug.compare(
        *loaded, CASES, methods=["toy:strong"], constants={"toy:strong": {"fail_at": 1}}, **asked
    )
    assert failing.failed
    path = next((tmp_path / "runs").glob("toy_strong*-seed0.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "done"}))
    with pytest.raises(SettingsError, match="toy:strong is .*'constants': {}"):
        memplug.compare(*loaded, CASES, methods=["toy:strong"], **asked)


def test_what_editors_are_fitted_on_may_change_until_one_was_used(loaded, tmp_path, monkeypatch):
    asked = {"edits": 3, "batch": 3, "max_new_tokens": 6, "progress": False, "out": tmp_path}
    failed = memplug.compare(*loaded, CASES, methods=["toy", "toyfit"], fit_cases=None, **asked)
    assert [one["status"] for one in failed.results["runs"]] == ["done", "failed"]
    made = memplug.compare(*loaded, CASES, methods=["toy", "toyfit"], fit_cases=2, fit_steps=5, **asked)
    assert [one["status"] for one in made.results["runs"]] == ["done", "done"]
    assert made.results["runs"][0] == failed.results["runs"][0]
    with pytest.raises(SettingsError, match="fit_cases is 3, was 2; fit_steps is 7, was 5"):
        memplug.compare(*loaded, CASES, methods=["toy", "toyfit"], fit_cases=3, fit_steps=7, **asked)


def test_a_run_that_fails_when_it_is_judged_is_judged_again(
    loaded, tmp_path, monkeypatch, compared, asked, made
):
    """Its edits are kept."""

    def failing(*_given):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(run, "_judge", failing)
        assert len(memplug.compare(*loaded, CASES, out=tmp_path, **asked).failed) == 4
    assert len(list((tmp_path / "state").iterdir())) == 4
    made.clear()
    again = memplug.compare(*loaded, CASES, out=tmp_path, retry=True, **asked)
    assert figures(again) == figures(compared)
    assert not made
    assert not list((tmp_path / "state").iterdir())


def test_a_folder_of_an_earlier_version_goes_on(loaded, tmp_path, compared, asked):
    """One that knows less: no digests of general sets, no preferences of the base model."""
    memplug.compare(*loaded, CASES, methods=["toy"], seeds=[0, 1], out=tmp_path, **SETTINGS)
    settings = json.loads((tmp_path / "settings.json").read_text())
    del settings["general_sets"], settings["data"]["left_out"]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    for file in (tmp_path / "base").iterdir():
        base = json.loads(file.read_text())
        file.write_text(json.dumps({name: base[name] for name in ("scores", "general")}))
    for file in (tmp_path / "runs").iterdir():
        one = json.loads(file.read_text())
        del one["environment"], one["command"]
        file.write_text(json.dumps(one))
    again = memplug.compare(*loaded, CASES, out=tmp_path, **asked)
    assert [one["status"] for one in again.results["runs"]] == ["done"] * 4
    assert again.results["base"] == compared.results["base"]
    again.to_html(tmp_path / "report.html")
    again.to_markdown(tmp_path / "report.md")


def test_a_folder_is_for_one_comparison(loaded, tmp_path):
    memplug.compare(*loaded, CASES, methods=["toy"], out=tmp_path, **SETTINGS)
    with pytest.raises(
        SettingsError, match="other settings: batch is 3, was 2; points is .* Give the same settings"
    ):
        memplug.compare(
            *loaded, CASES, methods=["toy"], out=tmp_path, **{**SETTINGS, "batch": 3, "points": [6]}
        )
    with pytest.raises(SettingsError, match="toy is .*'strength': 9.* was .*'constants': {}"):
        memplug.compare(
            *loaded, CASES, methods=["toy"], constants={"toy": {"strength": 9}}, out=tmp_path, **SETTINGS
        )
    with pytest.raises(SettingsError, match="data repeated is 1, was 0; the cases of seed 0 are not"):
        memplug.compare(*loaded, [*CASES[:5], case(5 - 2)], methods=["toy"], out=tmp_path, **SETTINGS)
    # What was refused before anything was made leaves the folder free.
    with pytest.raises(ValueError, match="raise it to"):
        memplug.compare(*loaded, CASES, methods=["toy"], out=tmp_path / "new", max_new_tokens=1)
    again = memplug.compare(*loaded, CASES, methods=["toy"], out=tmp_path / "new", **SETTINGS)
    assert again.results["settings"]["batch"] == 2
    # Further methods and seeds may join.
    joined = memplug.compare(
        *loaded, CASES, methods=["toy", "toy:strong"], seeds=[0, 2], out=tmp_path, **SETTINGS
    )
    assert len(joined.results["runs"]) == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(SettingsError, match="files that are not a comparison"):
        memplug.compare(*loaded, CASES, methods=["toy"], out=tmp_path / "other", **SETTINGS)
