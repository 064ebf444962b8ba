"""The benchmark on a large model's shape, with a small one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest


@pytest.fixture
def large(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(importlib.import_module("common"), "RESULTS", tmp_path)
    return importlib.import_module("large")


def test_every_method_has_a_row_with_its_costs(large, tmp_path):
    large.main(["--shape=small", "--methods=icl,rledit", "--edits=2", "--batch=2"])
    kept = json.loads((tmp_path / "large-small.json").read_text())
    rows = {row["method"]: row for row in kept["results"]}
    assert list(rows) == ["icl", "rledit"]
    for row in rows.values():
        assert row["seconds_per_edit"] > 0
        assert row["forward_ratio"] > 0
        assert row["decode_ratio"] > 0
        assert row["bytes_per_edit"] > 0
    assert rows["rledit"]["seconds_per_fitting_step"] > 0
    assert rows["icl"]["seconds_per_fitting_step"] is None
    assert kept["settings"]["parameters"] > 0


def test_a_method_that_fails_is_a_row_with_its_error(large):
    failed = {"status": "failed", "method": "mend", "error": {"type": "OutOfMemoryError", "message": "full"}}
    assert large.row(failed) == {"method": "mend", "error": "OutOfMemoryError: full"}
