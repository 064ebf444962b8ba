"""The script that trains the embedded model: its options, and that it feeds the world's lines."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from memplug.world.corpus import Corpus

OPTIONS = ["--steps=2", "--batch-tokens=64", "--hidden=16", "--layers=2", "--vocabulary=500", "--threads=1"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("train_world")


def test_the_script_trains_on_the_world_and_writes_model_and_measurements(script, tmp_path, monkeypatch):
    given = [f"--{name}={tmp_path / name}" for name in ("out", "run", "results")]
    seeds = []
    monkeypatch.setattr("sys.argv", ["train_world.py", *OPTIONS, *given])
    monkeypatch.setattr(script, "Corpus", lambda seed: seeds.append(seed) or Corpus(seed))
    monkeypatch.setattr(script, "train_texts", lambda n, seed: ["Where is Aa Bb?"] * 3)
    monkeypatch.setattr(script, "measure", lambda folder: {"files": sorted(f.name for f in folder.iterdir())})
    script.main()
    assert seeds == ["0 0"]
    written = json.loads((tmp_path / "results").read_text())
    assert "model.safetensors" in written["files"]
    assert "tokenizer.json" in written["files"]
    assert written["settings"]["hidden"] == 16
    assert written["training"]["tokens"] > 0
