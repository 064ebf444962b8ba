"""The script for a machine with a GPU, in a small size on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from chats import chatting

from memplug.demo.facts import FACTS

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"


def test_each_step_writes_its_result_and_none_begins_too_late(make_llama, make_tokenizer, tmp_path):
    tokenizer = chatting(make_tokenizer([fact.prompt for fact in FACTS]))
    model = tmp_path / "model"
    make_llama(len(tokenizer), max_position_embeddings=1024).save_pretrained(model)
    tokenizer.save_pretrained(model)
    small = {
        "DEVICE": "cpu",
        "SHAPE": "small",
        "METHODS": "icl",
        "LARGE": "icl",
        "EDITS": "2",
        "COUNTS": "10",
    }
    given = {**os.environ, **small, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    subprocess.run([SCRIPT, tmp_path / "late", model, "0"], check=True, env=given, capture_output=True)
    steps = (tmp_path / "late" / "steps.txt").read_text().splitlines()
    assert len(steps) == 7
    assert all("left out" in step for step in steps)
    subprocess.run([SCRIPT, tmp_path / "new", model, "400"], check=True, env=given, capture_output=True)
    for step in (tmp_path / "new" / "steps.txt").read_text().splitlines():
        assert "exit status 0" in step or step.startswith("tests: exit status 5"), step  # all were deselected
    found = {name: json.loads((tmp_path / "new" / f"{name}.json").read_text()) for name in
             ("own-float32", "own-bfloat16", "overhead", "overhead-large", "large")}  # fmt: skip
    assert found["own-float32"]["runs"]["icl"]["status"] == "done"
    assert found["overhead"]["results"][0]["edits"] == 10
