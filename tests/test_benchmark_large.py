"""The benchmark on a large model's shape, with a small one."""

from __future__ import annotations

import json

from benchmarks import large, overhead


def test_every_method_has_a_row_with_its_costs(tmp_path):
    out = tmp_path / "large.json"
    large.main(["--shape=small", "--methods=icl,rledit", "--edits=2", "--batch=2", f"--out={out}"])
    kept = json.loads(out.read_text())
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


def test_a_method_that_fails_is_a_row_with_its_error():
    failed = {"status": "failed", "method": "mend", "error": {"type": "OutOfMemoryError", "message": "full"}}
    assert large.row(failed) == {"method": "mend", "error": "OutOfMemoryError: full"}


def test_a_memory_filled_with_keys_is_timed_and_recalls_nothing(tmp_path, capsys):
    out = tmp_path / "overhead.json"
    overhead.main(["--shape=small", "--counts=10,100", "--seconds=0.1", f"--out={out}"])
    rows = json.loads(out.read_text())["results"]
    assert [row["edits"] for row in rows] == [10, 100]
    assert all(row["forward"]["ratio"] > 0 for row in rows)
    assert rows[0]["key_bytes_per_edit"] >= rows[1]["key_bytes_per_edit"] / 2 > 0
    assert "| 100 |" in capsys.readouterr().out
