"""The command line on a small saved model: the whole round, and mistakes told in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from families import METHODS, TEXTS, lexical
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from memplug import attaching as opening
from memplug import cli
from memplug.cli import app
from memplug.commands.shared import load_model
from memplug.methods.hypernet.fit import _Run
from memplug.plugin import Plug

BORN, FOUNDED = "Where was Ada Quill born?", "Who founded the Orlo Bridge Company?"


@pytest.fixture(scope="module")
def model(make_tokenizer, tmp_path_factory):
    """The folder of a saved model with its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), make_tokenizer(TEXTS)
    lexical("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_quick(patch):
    """New plugs get constants that suit the small model; loaded ones have theirs."""
    attach = opening.attach

    def quick(model, tokenizer, method, **given):
        return attach(model, tokenizer, method, **(METHODS["llp"] | given if method == "llp" else given))

    patch.setattr(opening, "attach", quick)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    make_quick(monkeypatch)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments):
    """What a command that succeeds prints."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments):
    """The one line that a command says about a mistake."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)  # no traceback
    shown = [line for line in result.stderr.splitlines() if line.strip()]
    lines = [line for line in shown if "Loading weights" not in line]  # a progress bar
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert not result.stdout
    return lines[0]


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A plug with one edit, made on the command line."""
    folder = tmp_path_factory.mktemp("made") / "facts"
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        printed = told("edit", folder, BORN, "Zarnow", "--subject", "Ada Quill", "--model", model)
    assert "1 edits, 1 in force" in printed
    return folder


@pytest.fixture
def facts(made, tmp_path):
    return shutil.copytree(made, tmp_path / "facts")


def test_the_whole_round(facts, model):
    listed = told("list", facts)
    assert listed.startswith("method llp: 1 edits, 1 in force")
    assert "e1" in listed
    asked = told("ask", facts, BORN, "Who", "--model", model, "--base", "--explain", "--max-new-tokens", 6)
    lines = asked.splitlines()
    assert lines[0].startswith(f"{BORN} Zarnow   (base model: ")
    assert not lines[0].endswith("(base model: Zarnow)")
    assert "Ada Quill is recalled with 2 votes" in asked
    assert "nothing is recalled" in asked

    assert "1 edits, 0 in force" in told("disable", facts, "e1", "--model", model)
    assert not told("ask", facts, BORN, "-m", model, "--max-new-tokens", 6).startswith(f"{BORN} Zarnow")
    assert "1 edits, 1 in force" in told("enable", facts, "e1", "-m", model)
    assert told("ask", facts, BORN, "-m", model, "--max-new-tokens", 6).startswith(f"{BORN} Zarnow")
    assert "0 edits" in told("delete", facts, "e1", "-m", model)
    assert told("list", facts).strip() == "method llp: 0 edits, 0 in force"


def test_many_edits_from_a_file(facts, model, tmp_path):
    rows = [{"prompt": FOUNDED, "target": "Marrow", "subject": "Orlo Bridge Company"}, {"prompt": "Who?"}]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "edits.jsonl, line 2: no field 'target'" in refused("edit", facts, "--cases", file, "-m", model)
    result = call("edit", facts, "--cases", file, "--skip-bad", "-m", model)
    assert result.exit_code == 0, result.output
    assert "left out 1 broken rows" in result.stderr
    assert "2 edits, 2 in force" in result.stdout
    assert "2 edits, 2 in force" in told("list", facts)


def test_many_edits_go_on_where_they_were_stopped(facts, model, tmp_path, monkeypatch):
    rows = [
        {"prompt": f"Who rules {name}?", "target": "Marrow", "subject": name}
        for name in ("Elba", "Oru", "Ix")
    ]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(cli, "_together", lambda plug: 1)
    made, edit = [], Plug.edit

    def stop(plug, some):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.extend(some)
        return edit(plug, some, progress=False)

    with monkeypatch.context() as patch:
        patch.setattr(Plug, "edit", stop)
        assert call("edit", facts, "--cases", file, "-m", model).exit_code
    assert "3 edits" in told("list", facts)  # one was there
    made.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Plug, "edit", stop)
        result = call("edit", facts, "--cases", file, "-m", model)
    assert "2 of 3 edits were made before" in result.stderr
    assert [case.edit.prompt for case in made] == ["Who rules Ix?"]
    assert "4 edits, 4 in force" in result.stdout


def test_mistakes_are_told_in_one_line(facts, model, tmp_path, make_tokenizer):
    before = sorted((path.name, path.read_bytes()) for path in facts.iterdir())
    for command in ("delete", "disable", "enable"):
        assert "no edit has the id 'e11'; did you mean 'e1'?" in refused(command, facts, "e11", "-m", model)
    nowhere = tmp_path / "nowhere"
    assert "is not a saved plug" in refused("list", nowhere)
    assert "is not a saved plug" in refused("ask", nowhere, BORN, "-m", model)
    assert not nowhere.exists()
    assert "give a PROMPT and a TARGET, or --cases" in refused("edit", facts, BORN, "-m", model)
    assert "was made with --method llp, not elder; leave it out" in refused(
        "edit", facts, BORN, "x", "-m", model, "--method", "elder"
    )
    assert "either a PROMPT or --cases" in refused("edit", facts, BORN, "x", "--cases", "f", "-m", model)
    assert "no subject found in" in refused("edit", facts, "who is it?", "Tam", "-m", model)
    assert "dtype is 'int8'; choose one of" in refused("ask", facts, BORN, "-m", model, "--dtype", "int8")
    assert "no method 'lpp'; did you mean 'llp'" in refused(
        "edit", nowhere, BORN, "x", "--method", "lpp", "-m", model
    )
    assert "nowhere.jsonl" in refused("edit", facts, "--cases", tmp_path / "nowhere.jsonl", "-m", model)
    (tmp_path / "letter").mkdir()
    (tmp_path / "letter" / "a.txt").write_text("dear")
    assert "is not a saved plug" in refused("edit", tmp_path / "letter", BORN, "Tam", "-m", model)
    assert sorted((path.name, path.read_bytes()) for path in facts.iterdir()) == before


@pytest.mark.parametrize("is_new", [True, False])
def test_what_another_command_saved_meanwhile_is_not_overwritten(facts, model, is_new, tmp_path, monkeypatch):
    """The other one loads, edits and saves while this one makes its edit."""
    folder = tmp_path / "new" if is_new else facts
    original, others = Plug.edit, [("edit", folder, FOUNDED, "Marrow", "-m", model)]

    def slow(plug, *given, **how):
        while others:
            assert call(*others.pop()).exit_code == 0
        return original(plug, *given, **how)

    monkeypatch.setattr(Plug, "edit", slow)
    line = refused("edit", folder, BORN, "Tam", "-m", model)
    assert "was saved by another process or plug since this one was loaded" in line
    assert "give the command again" in line
    assert "Marrow" in told("list", folder)
    assert "Tam" in told("edit", folder, BORN, "Tam", "-m", model)
    assert "Marrow" in told("list", folder)


def test_an_unknown_edit_or_plug_is_told_before_a_model_is_loaded(facts, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "load_model", lambda *_args: pytest.fail("a model was loaded"))
    for command in ("delete", "disable", "enable"):
        assert "no edit has the id 'e11'; did you mean 'e1'?" in refused(command, facts, "e1", "e11")
        assert "is not a saved plug" in refused(command, tmp_path / "nowhere", "e1")


def test_another_base_model(facts, model, make_tokenizer, tmp_path):
    other, tokenizer = tmp_path / "other", make_tokenizer(TEXTS)
    lexical("llama", len(tokenizer), seed=1).save_pretrained(other)
    tokenizer.save_pretrained(other)
    line = refused("ask", facts, BORN, "-m", other)
    assert "was saved on a LlamaForCausalLM with the fingerprint" in line
    assert "Load the same base model" in line
    assert "was saved on a" in refused("ask", facts, BORN, "-m", model, "--dtype", "bfloat16")


def test_a_model_that_is_not_there(facts, tmp_path):
    assert "nowhere" in refused("ask", facts, BORN, "--model", tmp_path / "nowhere")


def test_a_mistake_of_ours_keeps_its_traceback(facts, model, monkeypatch):
    def fail(*_args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(opening, "load", fail)
    result = call("ask", facts, BORN, "-m", model)
    assert isinstance(result.exception, RuntimeError)


def test_import_and_help_need_no_torch():
    code = (
        "import sys\n"
        "from memplug.__main__ import app\n"
        "try:\n    app(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("edit", "list", "ask", "disable", "enable", "delete", "demo"):
        assert command in done.stdout


def test_the_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "memplug", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Give a language model an editable memory." in done.stdout


def test_half_precision_becomes_single_on_a_cpu_unless_asked_for(model, tmp_path):
    AutoModelForCausalLM.from_pretrained(model).half().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    given = {"auto": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    for dtype, loaded in given.items():
        assert load_model(str(tmp_path), "cpu", dtype)[0].dtype == loaded


@pytest.mark.parametrize(("name", "near"), [("smolm2", "smollm2"), ("SmolLM2", "smollm2"), ("wrld", "world")])
def test_the_name_of_a_model_that_is_nearly_right(name, near):
    with pytest.raises(ValueError, match=f"no model folder {name!r}; did you mean {near!r}?"):
        load_model(name, "cpu", "auto")


def test_an_editor_is_fitted_and_goes_on_where_it_was_stopped(model, tmp_path, monkeypatch):
    rows = [
        {"prompt": f"Who rules {name}?", "target": who, "subject": name, "rephrases": [f"{name} is ruled by"],
         "locality": [{"prompt": "Is it big?", "target": "No"}]}
        for name, who in (("Ankaria", "Ada"), ("Vestland", "Tam"), ("Zarnow", "Bo"))
    ]  # fmt: skip
    cases, out = tmp_path / "cases.jsonl", tmp_path / "editors" / "rledit.safetensors"
    cases.write_text("\n".join(map(json.dumps, rows)))
    given = [
        "--cases",
        cases,
        "--model",
        model,
        "--set",
        "fit_steps=2",
        "--set",
        "fit_batch=2",
        "--set",
        "rank=4",
    ]
    assert "2 steps in" in told("fit", out, *given)
    assert not out.with_name("rledit.safetensors.checkpoint").exists()
    with opening.attach(*load_model(model, "cpu", "auto"), "rledit", editor=out) as plug:
        assert plug.method.config.rank == 4
        plug.edit("Who rules Elba?", "Ann", "Elba")
    step = _Run._step

    def stop(run, *args):
        if run.done == 1:
            raise KeyboardInterrupt
        return step(run, *args)

    again = out.with_name("again.safetensors")
    fit = Plug.fit
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", stop)
        patch.setattr(Plug, "fit", lambda plug, cases, **how: fit(plug, cases, checkpoint_every=1, **how))
        assert call("fit", again, *given).exit_code
    assert again.with_name("again.safetensors.checkpoint").exists()
    assert not again.exists()
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", lambda *args: steps.append(args) or step(*args))
        assert "2 steps in" in told("fit", again, *given)
    assert len(steps) == 1
    assert again.read_bytes() == out.read_bytes()
    out.with_name("rledit.safetensors.checkpoint").write_bytes(b"nonsense")
    assert "is no checkpoint of a fitting" in call("fit", out, *given).output
    assert "needs no fitting" in refused("fit", out, *given[:4], "--method", "ultraedit")
