"""Chat on the command line, in files of cases, and in comparisons."""

from __future__ import annotations

import json

import pytest
from chats import ASKED, BORN, BRACKETS, EARLIER, SYSTEM, chatting
from comparing import CASES, SETTINGS, quick_toys, tiny
from families import METHODS, TEXTS, lexical
from test_cli import call, refused, told
from typer.testing import CliRunner

import memplug
from memplug import attaching as opening
from memplug.cli import app
from memplug.comparison.settings import SettingsError
from memplug.data import DataError, load_cases
from memplug.evaluation import answer
from memplug.saving.plugs import peek
from memplug.text.chat import as_prompt
from memplug.text.printable import printable


@pytest.fixture(scope="module")
def models(make_tokenizer, tmp_path_factory):
    """Folders of the same model, with a chat template and without."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), make_tokenizer(TEXTS)
    model = lexical("llama", len(tokenizer))
    for name, one in (("chat", chatting(tokenizer)), ("plain", tokenizer)):
        model.save_pretrained(folder / name)
        one.save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """New plugs get constants that suit the small model; loaded ones have theirs."""
    attach = opening.attach

    def made(model, tokenizer, method, **given):
        return attach(model, tokenizer, method, **(METHODS["grace"] if method == "grace" else given))

    monkeypatch.setattr(opening, "attach", made)


def edited(folder, model, *more):
    return told("edit", folder, BORN, "Zarnow", "--method", "grace", "-m", model, *more)


def test_an_edit_in_a_chat_is_asked_in_one(models, tmp_path):
    shown = edited(tmp_path / "facts", models / "chat", "--chat", "--system", SYSTEM["content"])
    assert f"[chat, 2 turns] {BORN}" in shown
    assert f"[chat, 2 turns] {BORN}" in told("list", tmp_path / "facts")
    (edit,) = peek(tmp_path / "facts")[1].values()
    assert edit.prompt == as_prompt([SYSTEM, ASKED])

    ask = ("ask", tmp_path / "facts", BORN, "-m", models / "chat", "--max-new-tokens", 6)
    given = call(*ask, "--system", SYSTEM["content"], "--explain")
    assert given.exit_code == 0, given.output
    assert given.stdout.startswith(
        f"{BORN} Zarnow\n[chat] system: {SYSTEM['content']} | user: {BORN}: answered"
    )
    assert "asked through the chat template; --plain asks the text as it is" in given.stderr

    model, tokenizer = memplug.commands.shared.load_model(str(models / "chat"), "cpu", "auto")
    with memplug.load(tmp_path / "facts", model, tokenizer):
        chat, plain = answer(model, tokenizer, [[ASKED], BORN], max_new_tokens=6)
    assert chat != plain
    for how, text, noted in (((), chat, True), (("--chat",), chat, False), (("--plain",), plain, False)):
        given = call(*ask, *how)
        assert given.stdout.rstrip() == f"{BORN} {printable(text)}".rstrip(), how
        assert ("through the chat template" in given.stderr) == noted


def test_a_plain_edit_is_asked_plainly_without_a_template(models, tmp_path):
    edited(tmp_path / "facts", models / "plain")
    ask = ("ask", tmp_path / "facts", BORN, "-m", models / "plain", "--max-new-tokens", 6)
    given = call(*ask)
    assert given.exit_code == 0, given.output
    assert given.stdout.startswith(f"{BORN} Zarnow")
    assert "template" not in given.stderr
    for how in (("--chat",), ("--system", "Be brief.")):
        assert "has no chat template; give a plain prompt, or set" in refused(*ask, *how)
    assert "leave out --plain, or --system" in refused(*ask, "--plain", "--system", "x")
    before = (tmp_path / "facts" / "plug.json").read_bytes()
    edit = ("edit", tmp_path / "facts", BORN, "Tam", "-m", models / "plain")
    assert "has no chat template" in refused(*edit, "--chat")
    assert "give it with --chat and without --cases" in refused(*edit, "--system", "x")
    assert (tmp_path / "facts" / "plug.json").read_bytes() == before


ROW = {
    "prompt": [SYSTEM, *EARLIER, ASKED],
    "target": "Zarnow",
    "subject": "ada quill",
    "rephrases": [[ASKED], "Ada Quill was born in", ""],
    "locality": [{"prompt": [ASKED], "target": "x"}, {"prompt": [ASKED], "target": ""}],
}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_messages_in_a_file(models, tmp_path):
    file = written(tmp_path / "edits.jsonl", ROW, {"prompt": "Who taught Ada Quill?", "target": "Marrow"})
    loaded = load_cases(file)
    case = loaded.cases[0]
    assert case.edit == memplug.Edit(ROW["prompt"], "Zarnow", "Ada Quill")
    assert case.rephrases == (as_prompt([ASKED]), "Ada Quill was born in")
    assert case.locality == (memplug.Probe(as_prompt([ASKED]), "x"),)
    assert loaded.empty_probes == 1
    one = written(tmp_path / "one.jsonl", ROW | {"rephrases": [ASKED]})
    assert load_cases(one).cases[0].rephrases == (as_prompt([ASKED]),)
    shown = told(
        "edit", tmp_path / "facts", "--cases", file, "--chat", "--method", "grace", "-m", models / "chat"
    )
    assert "2 edits, 2 in force" in shown
    assert "[chat] user: Who taught Ada Quill?" in shown


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"prompt": [SYSTEM]}, "line 1: prompt: the prompt has no user turn"),
        ({"prompt": EARLIER}, "line 1: prompt: the prompt ends with an assistant turn"),
        ({"prompt": []}, "line 1: prompt must be text, got list"),
        ({"subject": "Tam Wickes"}, "line 1: subject 'Tam Wickes' is in the assistant turn"),
        ({"rephrases": [EARLIER]}, "line 1: rephrases: the prompt ends with an assistant"),
        ({"rephrases": [3]}, "line 1: rephrases must hold texts, got int"),
        (
            {"locality": [{"prompt": [SYSTEM], "target": "x"}]},
            "line 1: locality.prompt: the prompt has no user",
        ),
    ],
)
def test_broken_messages_in_a_file(tmp_path, row, match):
    with pytest.raises(DataError, match=match):
        load_cases(written(tmp_path / "edits.jsonl", ROW | row))


def test_the_same_question_in_either_form_is_repeated(tmp_path):
    plain = {"prompt": BORN, "target": "Zarnow"}
    rows = (plain, {"prompt": [ASKED], "target": "Zarnow"}, {"prompt": [ASKED], "target": "Tam"})
    loaded = load_cases(written(tmp_path / "edits.jsonl", *rows))
    assert (loaded.repeats, loaded.conflicts) == (1, 1)


@pytest.fixture(scope="module")
def loaded_chat(make_tokenizer, make_llama):
    model, tokenizer = tiny(make_tokenizer, make_llama)
    return model, chatting(tokenizer, BRACKETS)


def test_a_comparison_in_chat(loaded_chat, tmp_path):
    with quick_toys():
        given = {**SETTINGS, "methods": "toy", "edits": 4, "out": tmp_path / "out"}
        found = memplug.compare(*loaded_chat, CASES, chat=True, **given)
        (run,) = found.done
        assert found.results["settings"]["chat"] is True
        assert json.loads((tmp_path / "out" / "settings.json").read_text())["chat"] is True
        rows = run["answers"]["final"] + found.results["base"]["0"]["answers"]
        assert all(row["prompt"].startswith("[chat] user: ") for row in rows)
        assert "Asked in the chat template" in found.table().caption
        found.to_html(tmp_path / "report.html")
        found.to_markdown(tmp_path / "report.md")
        for file in ("report.html", "report.md"):
            assert "in the chat template" in (tmp_path / file).read_text()
        with pytest.raises(SettingsError, match="chat is False, was True"):
            memplug.compare(*loaded_chat, CASES, **given)
        again = memplug.compare(*loaded_chat, CASES, chat=True, **given)
        assert again.done[0]["answers"] == run["answers"]


def test_a_folder_of_a_version_before_chat_goes_on(loaded_chat, tmp_path):
    with quick_toys():
        given = {**SETTINGS, "methods": "toy", "edits": 2, "points": [2], "out": tmp_path}
        memplug.compare(*loaded_chat, CASES, **given)
        path = tmp_path / "settings.json"
        settings = json.loads(path.read_text())
        assert settings.pop("chat") is False
        path.write_text(json.dumps(settings))
        memplug.compare(*loaded_chat, CASES, **given)
        with pytest.raises(SettingsError, match="chat is True, was False"):
            memplug.compare(*loaded_chat, CASES, chat=True, **given)


def test_a_comparison_in_chat_needs_a_template(make_tokenizer, make_llama, models, tmp_path):
    with quick_toys(), pytest.raises(memplug.ChatTemplateError, match="has no chat template"):
        memplug.compare(
            *tiny(make_tokenizer, make_llama), CASES, chat=True, out=tmp_path / "out", methods="toy"
        )
    assert not (tmp_path / "out").exists()
    given = ["compare", "--chat", "--model", models / "plain", "--cases", written(tmp_path / "e.jsonl", ROW)]
    result = CliRunner().invoke(app, [*map(str, given), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "has no chat template" in result.stderr
