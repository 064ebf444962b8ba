"""What edits say is shown as text: no escape reaches a terminal, no tag a page, whoever wrote the edit."""

from __future__ import annotations

import copy
import io
import re
import shutil
import warnings

import pytest
from example_results import example
from families import TEXTS, attach_llp, lexical
from rich.console import Console
from saver import QUICK
from test_cli import call, refused, told

import memplug
from memplug import cli
from memplug.comparison import Comparison
from memplug.comparison.report.page import html, markdown
from memplug.edits import Edit, EditTable
from memplug.ids import listed
from memplug.methods.elder import explain as elder
from memplug.methods.icl import explain as icl
from memplug.methods.inweights import explain as hypernet
from memplug.methods.llp import explain as llp_explain
from memplug.methods.lora import seen as lora
from memplug.methods.prompt_end import Nearest
from memplug.retrieval import explanation as llp
from memplug.text.chat import Message, quoted
from memplug.text.printable import brief, printable

EVIL = "\x1b[31m\x9b2J\r\x07\b\u202e\u200b\x00<script>alert(1)</script><img src=x>\u2028end"
"""Colours, clears the screen, goes back, rings, turns the direction round, hides, and is a tag."""

SHORT = "\x1b[31m\r\u202e"
"""What a tiny model has room for, and a command line can hand over."""


def clean(text):
    return all(char.isprintable() or char == "\n" for char in text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zürich 東京 naïve -- é", "Zürich 東京 naïve -- é"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud83d", "\\ud83d"),
        ("a\\b'c\"", "a\\b'c\""),
        (None, "None"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_brief():
    assert brief("\x1b" * 5) == "'\\x1b\\x1b\\x1b\\x1b\\x1b'"
    assert len(brief("x" * 10_000_000)) == len(brief([1] * 1000)) == 80


def evil_edit():
    return Edit(f"Who {EVIL} is Ada Quill?", f"Tam {EVIL}", f"{EVIL} is Ada Quill", id=f"e{EVIL}x")


def explanations():
    edit, text = evil_edit(), f"Who {EVIL}?"
    chat = (Message("system", EVIL), Message("user", text))
    vote = llp.LayerVote(0, EVIL, 0, 0.5, True)
    one = llp.Candidate(str(edit.subject), (edit,), 2, 0.9, (vote,), None, 0.7)
    for prompt in (text, chat):
        for best, other in ((one, None), (None, one), (one, one), (one, one._replace(votes=0))):
            reason = llp_explain._reason(best, other, 1, 0.5)
            yield llp.Explanation(prompt, (EVIL,), 1, 0.5, best, other, reason)
        yield elder.Explanation(prompt, (edit,), "in scope", (edit,), 2.0, 4.0, ())
        yield elder.Answered(prompt, (EVIL,), 1, 0.5, one, None, "in scope")
        yield Nearest(prompt, (edit, edit), "near", (edit, edit), 0.1, 0.5)
        found = llp.Explanation(prompt, (EVIL,), 1, 0.5, one, one, "asked for", 0.5, (0.4, 0.4))
        yield icl.Explanation(found, (edit,), f"Note: {EVIL}")
        yield lora.Explanation(prompt, EVIL, EVIL, (("up", 0.5),))
        report = hypernet.EditReport(str(edit.id), prompt, edit.target, True, (), {}, ())
        yield hypernet.Explanation(prompt, EVIL, EVIL, {"up": 0.5}, (report,))


def test_explanations():
    found = list(explanations())
    assert len(found) == 20
    for one in found:
        assert clean(str(one)), repr(str(one))
        if hasattr(one, "reason"):
            assert clean(one.reason)


def test_tables_and_messages():
    edit = evil_edit()
    table = EditTable({str(edit.id): edit}, [str(edit.id)])
    assert clean(repr(table))
    assert repr(table).count("\n") == 2  # no line break of an edit makes a row
    with pytest.raises(memplug.UnknownEditError) as told:
        table[f"{EVIL}!"]
    assert clean(str(told.value))
    with pytest.raises(memplug.EditError) as told:
        Edit((Message("user", f"Who {EVIL}?"),), "x", "Ada")
    assert clean(str(told.value))
    assert clean(listed([EVIL] * 7))
    assert clean(quoted((Message("user", EVIL),)))


def test_the_reason_of_what_answers(make_tokenizer):
    tokenizer = make_tokenizer(TEXTS)
    evil = "Ada\x1b[31m\u202eQuill"
    given = {"value_steps": 1, "stop_loss": 1e3}
    with attach_llp(lexical("llama", len(tokenizer)), tokenizer, "answer", **given) as plug:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plug.edit(f"Where was {evil} born?", "Zar\x1bnow", evil)
            plug.edit(Edit(f"Where was {evil} born?", "Zar\x1bnow", evil, id="\x1b[0m"))
        assert caught
        assert all(clean(str(one.message)) for one in caught)
        for prompt in (f"Where was {evil} born?", f"{evil} is there.", "Who is it?"):
            found = plug.explain(prompt)
            assert clean(str(found))
            assert clean(found.reason)
        assert clean(repr(plug))


@pytest.fixture(scope="module")
def evil_plug(make_tokenizer, tmp_path_factory):
    """A folder with such edits, and the model they are for."""
    tokenizer, folder = make_tokenizer(TEXTS), tmp_path_factory.mktemp("evil") / "facts"
    model = lexical("llama", len(tokenizer))
    with memplug.attach(model, tokenizer, "icl", **QUICK) as plug:
        plug.edit(
            Edit(f"Who {SHORT} is Ada Quill?", f"Tam {SHORT}", f"{SHORT} is Ada Quill", id=f"e{SHORT}x")
        )
        plug.save(folder)
    return folder, model, tokenizer


def test_the_command_line(evil_plug, tmp_path, monkeypatch):
    made, model, tokenizer = evil_plug
    folder = shutil.copytree(made, tmp_path / "facts")
    monkeypatch.setattr(cli, "load_model", lambda *_: (copy.deepcopy(model), tokenizer))
    assert clean(told("list", folder))
    for question in (f"Who {SHORT} is Ada Quill?", "Who is Tam Wickes?"):
        with monkeypatch.context() as patch:
            patch.setattr("memplug.evaluation.answer", lambda *_, **__: [EVIL])
            shown = told("ask", folder, question, "--explain", "--base", "--plain")
        assert clean(shown)
        assert "\\x1b[31m" in shown
    for line in (
        refused("delete", folder, "e\x1b[31m"),
        refused("edit", folder, "who\x1b is it?", "Tam\x1b"),
        refused("ask", tmp_path / "no\x1b[31mwhere", "Who?"),
        refused("list", tmp_path / "no\x1b[31mwhere"),
    ):
        assert clean(line)
        assert "\\x1b" in line
    result = call("edit", folder, "Where was Ada\x1b[31m Quill born?", "Zar\x1b[5mnow", "--subject", "Ada")
    assert result.exit_code == 0, result.output
    assert clean(result.stdout)


def poisoned(value):
    """The same with every text of a run's own made a bad one."""
    if isinstance(value, dict):
        return {
            key: f"{item} {EVIL}"
            if key in ("message", "traceback", "prompt", "target", "text", "base_text", "recalled", "kind")
            and isinstance(item, str)
            else poisoned(item)
            for key, item in value.items()
        }
    return [poisoned(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def results():
    found = poisoned(example())
    for run in found["runs"]:
        run["method"] = f"{run['method']}{EVIL}"
        run["warnings"] = [f"1 of 1 were not learned well: {EVIL}"]
    found["settings"] |= {"model": EVIL, "cases": EVIL, "command": f"memplug {EVIL}\nmemplug report"}
    return found


def test_the_markdown_report(results):
    text = markdown(results)
    assert clean(text)
    assert "<" not in text
    assert "&lt;script&gt;" in text
    assert "\\\\x1b" in text


def test_the_page(results):
    page = html(results)
    assert clean(page)
    body = page[page.index("<body>") :]
    assert not re.search(r"<script>alert|<img", body)
    assert "\\x1b[31m" in body


def test_the_table_of_a_comparison():
    error = {"type": "EditError", "message": f"cannot edit {EVIL}"}
    run = {"method": f"llp{EVIL}", "seed": 0, "status": "failed", "general": {}, "error": error}
    settings = {"max_new_tokens": 8, "edits": 1, "batch": 1, "seeds": [0]}
    head = {"format": "memplug comparison", "version": 1, "data": {}}
    comparison = Comparison({**head, "settings": settings, "base": {}, "runs": [run]})
    console = Console(width=400, file=io.StringIO())
    console.print(comparison.table())
    shown = console.file.getvalue()
    assert clean(shown)
    assert shown.count("\\x1b[31m") == 3  # the label, twice, and the message
    assert clean(repr(comparison))
