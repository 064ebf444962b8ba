"""Prompts that are messages: what may be handed in, what is refused, how they are shown and kept."""

from __future__ import annotations

import copy
import json

import pytest
from chats import ASKED, BORN, EARLIER, SYSTEM, chatting
from families import TEXTS, lexical

import memplug
from memplug.edits import Case, Edit, EditError, EditTable, Probe, as_edits
from memplug.ids import numbered
from memplug.text.chat import (
    Message,
    PromptError,
    as_prompt,
    behind,
    canonical,
    from_json,
    in_chat,
    is_chat,
    question,
    quoted,
    show,
    to_json,
    with_question,
)

USER = Message("user", BORN)


def test_messages_become_a_tuple_that_cannot_change():
    given = [dict(SYSTEM), *map(dict, EARLIER), dict(ASKED)]
    prompt = as_prompt(given)
    assert prompt == (Message("system", SYSTEM["content"]), *(Message(**m) for m in EARLIER), USER)
    assert hash(prompt) == hash(as_prompt(tuple(given)))
    given[0]["content"] = "else"
    assert prompt[0].content == SYSTEM["content"]
    assert as_prompt(prompt) == prompt
    assert as_prompt(BORN) == BORN


def test_parts_that_are_text_are_joined():
    parts = [{"type": "text", "text": "Where was "}, {"type": "text", "text": "Ada Quill born?"}]
    assert as_prompt([{"role": "user", "content": parts}]) == (USER,)


def test_fields_that_hold_nothing_are_left_out():
    assert as_prompt([{"role": "user", "content": BORN, "tool_calls": None, "name": ""}]) == (USER,)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (7, "must be a string or a list of messages, got int: 7"),
        (ASKED, r"a single message .*put it into a list: \[message\]"),
        (USER, "a single message"),
        ([], "has no messages; give at least one: .*user"),
        ([BORN], "message 1 must have a role and a content, got str: 'Where"),
        ([{"role": "user"}], r"message 1 has no content, only \['role'\]"),
        ([{"content": BORN}], r"message 1 has no role, only \['content'\]"),
        ([SYSTEM], "no user turn, only system; its last message asks"),
        ([ASKED, EARLIER[1]], "ends with an assistant turn .*leave that turn out, or make its"),
        ([ASKED, SYSTEM], "ends with a system turn .*put that turn before it"),
        ([{"role": "tool", "content": "x"}, ASKED], "role 'tool'; choose one of system, .*; what a tool"),
        ([{"role": "boss", "content": "x"}, ASKED], "message 1 has the role 'boss'; choose one of"),
        ([{"role": None, "content": "x"}], "role None; choose one of"),
        ([{"role": "user", "content": 3}], "message 1 must have a string as its content, got int: 3"),
        ([{"role": "user", "content": None}], "string as its content, got NoneType"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of the type 'image'; memplug"),
        ([{"role": "user", "content": [3]}], "a part of the type 'int'"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "a part of the type 'text'"),
        ([ASKED | {"tool_calls": [1]}], "message 1 also has 'tool_calls'; .*a role and a content"),
        ([{"role": "user", "content": " \n"}, ASKED], "message 1, a user turn, is empty"),
        ([{"role": "user", "content": []}], "a user turn, is empty"),
        ([{"role": "user", "content": "Zar\ud83d"}], "message 1 is no text .*mend its encoding"),
    ],
)  # fmt: skip
def test_messages_that_are_no_prompt(given, match):
    with pytest.raises(PromptError, match=match):
        as_prompt(given)
    with pytest.raises(EditError, match=match):
        Edit(given, "Zarnow")


def test_what_is_meant_as_messages():
    assert is_chat([ASKED])
    assert is_chat((USER,))
    for other in (
        BORN,
        [],
        [Edit(BORN, "x")],
        Edit(BORN, "x"),
        USER,
        ASKED,
        [{"prompt": BORN}],
        None,
        iter([ASKED]),
    ):
        assert not is_chat(other)  # fmt: skip


def test_the_question_is_the_last_user_turn():
    prompt = as_prompt([SYSTEM, *EARLIER, {"role": "user", "content": f" {BORN}\n"}])
    assert question(prompt) == BORN
    assert question(f" {BORN}") == f" {BORN}"
    assert with_question(prompt, "Who?") == (*prompt[:-1], Message("user", "Who?"))
    assert with_question(BORN, "Who?") == "Who?"
    assert behind("It rains.", prompt)[-1].content == f"It rains. {BORN}"
    assert behind("It rains.", BORN) == f"It rains. {BORN}"
    assert behind("", prompt) is prompt


def test_one_user_turn_asks_what_its_text_asks():
    assert canonical(BORN) == canonical((USER,)) == canonical((Message("user", f" {BORN} "),)) == BORN
    assert canonical(as_prompt([SYSTEM, ASKED])) != BORN
    assert in_chat(BORN) == (USER,)
    assert in_chat(BORN, "Be brief.") == (Message("system", "Be brief."), USER)
    assert in_chat((USER,)) == (USER,)


def test_how_prompts_are_shown_and_kept():
    prompt = as_prompt([SYSTEM, {"role": "user", "content": "Where was\nAda Quill born?"}])
    assert show(prompt) == f"[chat] system: Answer Tam in one word. | user: {BORN}"
    assert (show(BORN), quoted(BORN), quoted(prompt)) == (BORN, repr(BORN), show(prompt))
    for one in (BORN, prompt):
        assert from_json(json.loads(json.dumps(to_json(one)))) == one
    assert to_json((USER,)) == [ASKED]


def test_an_edit_of_messages():
    (edit,) = as_edits([SYSTEM, *EARLIER, ASKED], "Zarnow")
    assert (edit.subject, edit.question) == ("Ada Quill", BORN)
    assert hash(edit) == hash(copy.deepcopy(edit))
    assert f"[chat, 4 turns] {BORN}  Zarnow" in repr(EditTable({"e1": edit}))
    assert f"[chat] user: {BORN}  Zarnow" in repr(EditTable({"e1": Edit([ASKED], "Zarnow")}))
    with pytest.raises(EditError, match="call edit"):
        as_edits([ASKED])
    with pytest.raises(EditError, match="no subject found in 'who is it"):
        as_edits([SYSTEM, {"role": "user", "content": "who is it?"}], "Zarnow")


def test_a_subject_that_another_turn_names():
    with pytest.raises(
        EditError, match=r"'Tam' is in the system turn \(message 1\) and not in the question 'Wh"
    ):
        Edit([SYSTEM, ASKED], "Zarnow", "Tam")
    with pytest.raises(EditError, match=r"'Tam Wickes' is in the assistant turn \(message 2\) and not"):
        Edit([*EARLIER, ASKED], "Zarnow", "Tam Wickes")
    with pytest.raises(EditError, match=r"'Orlo' is not in the prompt \[chat\] user: Where"):
        Edit([ASKED], "Zarnow", "Orlo")


def test_cases_of_messages():
    case = Case(Edit(BORN, "Zarnow"), [[ASKED], BORN], (Probe([ASKED], "x"),), portability=[([ASKED], "y")])
    assert case.rephrases == ((USER,), BORN)
    assert case.locality == (Probe((USER,), "x"),)
    assert case.portability == (Probe((USER,), "y"),)
    turned = case.in_chat()
    assert turned.edit == Edit([ASKED], "Zarnow")
    assert turned.rephrases == ((USER,), (USER,))
    assert turned.in_chat() == turned
    with pytest.raises(PromptError, match="ends with an assistant turn"):
        Case(Edit(BORN, "Zarnow"), rephrases=(EARLIER,))


def test_the_same_prompt_in_either_form_is_replaced():
    held = {"e1": Edit(BORN, "Zarnow", "Ada Quill", "e1"), "e2": Edit([SYSTEM, ASKED], "Marrow", "Ada", "e2")}
    fresh, replaced = numbered([Edit([ASKED], "Tam", "Ada Quill")], held, 2)
    assert (fresh[0].id, replaced) == ("e3", ["e1"])
    assert numbered([Edit([SYSTEM, ASKED], "Tam", "Ada Quill")], held, 2)[1] == ["e2"]
    assert numbered([Edit([SYSTEM, *EARLIER, ASKED], "Tam", "Ada Quill")], held, 2)[1] == []
    with pytest.warns(UserWarning, match="1 edits repeat a prompt"):
        assert len(numbered([Edit(BORN, "x"), Edit([ASKED], "y")], {}, 0)[0]) == 1


GRACE = {"scope": "radius", "layer": 2, "epsilon": 0.03, "steps": 2}


@pytest.fixture(scope="module")
def talking(make_tokenizer):
    return chatting(make_tokenizer(TEXTS))


@pytest.fixture
def base(talking):
    return lexical("llama", len(talking))


def test_edits_of_messages_are_saved_and_loaded(base, talking, tmp_path):
    with memplug.attach(base, talking, "grace", **GRACE) as plug:
        edit = plug.edit([SYSTEM, *EARLIER, ASKED], "Zarnow")
        plain = plug.edit("Who taught Ada Quill?", "Marrow")
        plug.save(tmp_path)
        assert isinstance(edit, Edit)
        said = str(plug.explain([ASKED]))
        assert said.startswith(f"[chat] user: {BORN}: ")
    kept = json.loads((tmp_path / "plug.json").read_text())["edits"]
    assert kept[0]["prompt"] == [SYSTEM, *EARLIER, ASKED]
    assert kept[1]["prompt"] == "Who taught Ada Quill?"
    with memplug.load(tmp_path, base, talking) as plug:
        assert list(plug.edits.values()) == [edit, plain]
        with pytest.warns(UserWarning, match="replaced e1: the same prompt"):
            plug.edit(edit.prompt, "Marrow", "Ada Quill")
        with pytest.warns(UserWarning, match="replaced e2: the same prompt"):
            plug.edit([{"role": "user", "content": "Who taught Ada Quill?"}], "Tam")


def test_a_plug_of_the_format_before(base, talking, tmp_path):
    with memplug.attach(base, talking, "grace", **GRACE) as plug:
        plug.edit(BORN, "Zarnow")
        plug.save(tmp_path)
        edits = dict(plug.edits)
    manifest = json.loads((tmp_path / "plug.json").read_text())
    del manifest["sha256"]  # which it had none of
    (tmp_path / "plug.json").write_text(json.dumps(manifest | {"format": 1}))
    with memplug.load(tmp_path, base, talking) as plug:
        assert dict(plug.edits) == edits


def test_messages_without_a_template_change_nothing(base, make_tokenizer):
    with memplug.attach(base, make_tokenizer(TEXTS), "grace", **GRACE) as plug:
        with pytest.raises(
            memplug.ChatTemplateError, match="no chat template; give a plain prompt, or set tok"
        ):
            plug.edit([ASKED], "Zarnow")
        assert not plug.edits
