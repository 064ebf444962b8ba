"""The demo on the embedded model: it runs through and says what it checked."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from memplug import cli, demo, world

pytestmark = pytest.mark.skipif(
    not (world.FOLDER / "model.safetensors").is_file(), reason="no embedded model"
)


def test_it_ends_with_the_base_model_to_the_bit(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "_METHODS", ("icl", "mend", "no such method"))
    monkeypatch.setattr(demo, "_GENERAL", ())
    assert demo.run(edits=4, compared=1, out=tmp_path / "demo") == 0
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
    assert str(demo._new_folder()) == "memplug-demo"
    (tmp_path / "memplug-demo").mkdir()
    (tmp_path / "memplug-demo-2").mkdir()
    assert str(demo._new_folder()) == "memplug-demo-3"


def test_a_changed_model_is_noticed(monkeypatch, capsys):
    """A plug that leaves a weight changed makes the demo fail, also on the command line."""

    class Leaking:
        def __init__(self, plug):
            self.plug = plug

        def __getattr__(self, name):
            return getattr(self.plug, name)

        def detach(self):
            self.plug.detach()
            with torch.no_grad():
                self.plug.model.lm_head.weight[0, 0] += 1

    monkeypatch.setattr(demo, "attach", lambda *args, **given: Leaking(demo_attach(*args, **given)))
    for name in ("_changes", "_unchanged"):
        monkeypatch.setattr(demo, name, lambda *_: "")
    monkeypatch.setattr(demo, "evaluate", lambda *_args, **_given: None)
    monkeypatch.setattr(demo, "_summary", lambda *_: "")
    result = CliRunner().invoke(cli.app, ["demo", "--edits", "2"])
    assert result.exit_code == 1, result.output
    assert "to the bit: False" in " ".join(result.stdout.split())


demo_attach = demo.attach
