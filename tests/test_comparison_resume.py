"""A comparison that was stopped goes on where it was; a folder is for one comparison."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import toy
from comparing import CASES, SETTINGS, case, figures, quick_toys, tiny

import memplug
from memplug.comparison import SettingsError, progress, run


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_toys():
        yield


@pytest.fixture(scope="module")
def loaded(make_tokenizer, make_llama):
    return tiny(make_tokenizer, make_llama)


@pytest.fixture(scope="module")
def compared(loaded):
    """What was never stopped."""
    return memplug.compare(*loaded, CASES, methods=["toy", "toy:strong"], seeds=[0, 1], **SETTINGS)


@pytest.mark.parametrize("saves", [1, 2])
def test_a_stopped_comparison_goes_on_where_it_was(loaded, tmp_path, monkeypatch, compared, saves):
    """Also within a method; the figures are those of the run that was never stopped."""
    asked = {"methods": ["toy", "toy:strong"], "seeds": [0, 1], "out": tmp_path, **SETTINGS}
    save, count = run.save, []

    def stopping(*given):
        save(*given)
        count.append(given)
        if len(count) == 3 + saves:  # the second method's
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            memplug.compare(*loaded, CASES, **asked)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    (state,) = [p for p in (tmp_path / "state").iterdir() if (p / "progress.json").is_file()]
    assert json.loads((state / "progress.json").read_text())["done"] == 2 * saves
    made = []
    learn = toy.Toy.learn
    monkeypatch.setattr(toy.Toy, "learn", lambda *a, **k: (made.append(len(a[1])), learn(*a, **k))[1])
    again = memplug.compare(*loaded, CASES, **asked)
    assert sum(made) == (6 - 2 * saves) + 2 * 6
    assert figures(again) == figures(compared)
    assert not list((tmp_path / "state").iterdir())


def test_between_points_it_is_saved_by_the_clock(loaded, tmp_path, monkeypatch):
    """A minute after the last time, and never for more than a twentieth of the time."""
    clock = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    kept, save = [], run.save

    def slow(state, plug, tally):
        kept.append(tally.done)
        save(state, plug, tally)
        clock[0] += 10

    learn = toy.Toy.learn
    monkeypatch.setattr(run, "save", slow)
    monkeypatch.setattr(
        toy.Toy, "learn", lambda *a, **k: (learn(*a, **k), clock.__setitem__(0, clock[0] + 70))[0]
    )
    memplug.compare(*loaded, CASES, methods=["toy"], batch=1, points=[6], out=tmp_path, max_new_tokens=0)
    assert kept == [1, 4, 6]


def test_a_damaged_state_begins_anew(loaded, tmp_path, monkeypatch, compared):
    asked = {"methods": ["toy", "toy:strong"], "seeds": [0, 1], "out": tmp_path, **SETTINGS}
    save = run.save

    def stopping(*given):
        save(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            memplug.compare(*loaded, CASES, **asked)
    for file in (tmp_path / "state").rglob("*.safetensors"):
        file.write_bytes(b"x")
    with pytest.warns(UserWarning, match="toy begins anew: .*is not the file that was saved"):
        again = memplug.compare(*loaded, CASES, **asked)
    assert figures(again) == figures(compared)


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
    with pytest.raises(SettingsError, match="data is .*; the cases of seed 0 are not the same"):
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
