"""Two processes that share a comparison give what one gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import toy
from comparing import CASES, SETTINGS, figures
from families import TEXTS
from typer.testing import CliRunner

import memplug
from memplug.cli import app
from memplug.comparison import run
from memplug.methods import METHODS

pytest.importorskip("accelerate")

PROGRAM = """
import sys
import torch
import memplug
import toy
from memplug.comparison import runner
from memplug.comparison.processes import Processes
from comparing import CASES, SETTINGS, figures
from transformers import AutoModelForCausalLM, AutoTokenizer
import json

torch.set_num_threads(1)
toy.register()
folder, out, told = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
made, run = [], runner.run
runner.run = lambda *given: (made.append(1), run(*given))[1]
methods = ["toy", "toy:strong", ("broken", toy.ToyConfig(fail_at=1))]
compared = memplug.compare(model, tokenizer, CASES, methods=methods, out=out, **SETTINGS)
rank = Processes.here().rank
with open(f"{told}.{rank}", "w") as file:
    json.dump({"runs": len(made), "figures": figures(compared)}, file)
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(folder, out, told, count):
    """Run the program in ``count`` processes, as a launcher would start them; what each of them wrote."""
    port = free_port()
    here = Path(__file__).parent
    given = {"PYTHONPATH": f"{here}:{here.parent}", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count)}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    running = []
    for rank in range(count):
        environment = {**os.environ, **given, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-c", PROGRAM, str(folder), str(out), str(told)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    return [json.loads(Path(f"{told}.{rank}").read_text()) for rank in range(count)]


def test_two_processes_give_what_one_gives(make_tokenizer, make_llama, tmp_path, monkeypatch):
    tokenizer = make_tokenizer(TEXTS)
    model = make_llama(len(tokenizer), num_hidden_layers=2)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    first, second = launch(tmp_path / "model", tmp_path / "out", tmp_path / "told", 2)
    assert (first["runs"], second["runs"]) == (2, 1)

    monkeypatch.setitem(METHODS, "toy", "toy:Toy:ToyConfig")
    monkeypatch.setitem(sys.modules, "memplug.methods.toy", toy)
    methods = ["toy", "toy:strong", ("broken", toy.ToyConfig(fail_at=1))]
    model.config.name_or_path = str(tmp_path / "model")
    alone = figures(memplug.compare(model, tokenizer, CASES, methods=methods, **SETTINGS))
    for found in (alone, first["figures"]):
        assert [run["method"] for run in found["runs"]] == ["toy", "toy:strong", "broken"]
        assert found["runs"][2].pop("error")["message"] == "edit e1 cannot be made (after 0 of 6 edits)"
    assert first["figures"] == alone
    assert json.loads((tmp_path / "out" / "results.json").read_text())["base"] == alone["base"]


def test_the_launcher_runs_the_command_in_two_processes(make_tokenizer, make_llama, tmp_path, monkeypatch):
    """What the documentation says, word by word, gives what one process gives."""
    program = Path(sys.executable).with_name("accelerate")
    if not program.is_file():
        pytest.skip("accelerate's command is not beside the interpreter")
    tokenizer = make_tokenizer(TEXTS)
    make_llama(len(tokenizer), num_hidden_layers=2).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": c.edit.prompt, "target": c.edit.target, "subject": c.edit.subject} for c in CASES[:2]]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["compare", "--model", tmp_path / "model", "--cases", tmp_path / "facts.jsonl", "--edits", 2]
    given += ["--methods", "finetune,ultraedit", "--set", "finetune.steps=2", "--max-new-tokens", 4]
    given = [str(one) for one in given]
    launcher = [program, "launch", "--num_processes", "2", "--cpu", "--main_process_port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [*map(str, launcher), "-m", "memplug", *given, "--out", str(tmp_path / "two")],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html, report.md, results.json are in") == 1  # one of the two tells
    two = memplug.Comparison.load(tmp_path / "two")
    assert [one["status"] for one in two.results["runs"]] == ["done", "done"], two.failed

    monkeypatch.setattr(run, "overhead", partial(run.overhead, turns=1, steps=2, seconds=0))
    alone = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.output
    one = figures(memplug.Comparison.load(tmp_path / "one"))
    other = figures(two)
    for found in (one, other):
        found["settings"].pop("command")
    assert other == one
