"""Every method learns an edit that was asked in a chat, explains it, and forgets it."""

from __future__ import annotations

import pytest
from chats import ASKED, BORN, EARLIER, SYSTEM, chatting
from families import METHODS, TEXTS, lexical

import memplug
from memplug.edits import Case, Edit, Probe
from memplug.evaluation import answer, evaluate, refer, score
from memplug.text.chat import Message

CHAT = [SYSTEM, *EARLIER, ASKED]
MADE = {
    "elder": METHODS["elder"],
    "grace": METHODS["grace"],
    "ultraedit": {},
    "finetune": {"train_stop": True, "lr": 0.05, "bound": 0.3, "keep": 0},
    "lora": {"epochs": 60, "keep": 0},
    "icl": {},
    "memit": {"max_change": 1e6, "lr": 0.5},
    "alphaedit": {"max_change": 1e6, "steps": 5},
    "mend": METHODS["mend"],
}
TOWNS = ("Marrow", "Vestland")
LEARNED = ("elder", "grace", "finetune", "lora")
"""Those that make a random model say the new answer and stop, with these constants."""


@pytest.fixture(scope="module")
def talking(make_tokenizer):
    return chatting(make_tokenizer(TEXTS))


@pytest.mark.parametrize("method", MADE)
def test_an_edit_in_a_chat(method, talking):
    model = lexical("llama", len(talking), max_position_embeddings=256)  # for ICL's note
    asked = [CHAT, "Who founded the Orlo Bridge Company?"]
    before = answer(model, talking, asked, max_new_tokens=6)
    with memplug.attach(model, talking, method, **MADE[method]) as plug:
        if method == "mend":
            cases = [Case(Edit(BORN, town), ([ASKED],), (Probe([SYSTEM, ASKED], "Tam"),)) for town in TOWNS]
            plug.fit(cases, progress=False)
        edit = plug.edit(CHAT, "Zarnow")
        assert (edit.subject, edit.question) == ("Ada Quill", BORN)
        after = answer(model, talking, asked, max_new_tokens=6)
        assert after[0] != before[0]
        assert (after[0] == "Zarnow") or method not in LEARNED
        told = str(plug.explain(CHAT))
        assert told.startswith(
            "[chat] system: Answer Tam in one word. | user: Who taught Ada Quill? | assist"
        )
        if method == "icl":
            assert "Use this fact to answer: Where was Ada Quill born? Zarnow." in told
        plug.disable(edit)
        assert answer(model, talking, asked, max_new_tokens=6) == before
        plug.enable(edit)
        assert answer(model, talking, asked, max_new_tokens=6) == after
    assert answer(model, talking, asked, max_new_tokens=6) == before


@pytest.mark.parametrize("method", ["memit"])
def test_a_prefix_stands_before_the_question(method, talking):
    """Methods that put sampled texts before a prompt put them into the user turn."""
    asked = []
    model = lexical("llama", len(talking))
    render = talking.apply_chat_template
    talking.apply_chat_template = lambda messages, **how: asked.append(messages) or render(messages, **how)
    try:
        given = MADE[method] | {"n_prefixes": 2, "prefix_tokens": 4}
        with memplug.attach(model, talking, method, **given) as plug:
            plug.edit(CHAT, "Zarnow")
    finally:
        del talking.apply_chat_template
    last = {messages[-1]["content"] for messages in asked if messages[-1]["role"] == "user"}
    assert any(text.endswith(f" {BORN}") for text in last)
    assert all(messages[:-1] == CHAT[:-1] for messages in asked if len(messages) > 2)


def test_cases_are_judged_in_chat(talking):
    model = lexical("llama", len(talking))
    case = Case(
        Edit(BORN, "Zarnow"),
        rephrases=("Ada Quill was born in", CHAT),
        locality=(Probe("Who founded the Orlo Bridge Company?", "Tam"),),
    )
    given = {"max_new_tokens": 6}
    with memplug.attach(model, talking, "grace", **METHODS["grace"]) as plug:
        plug.edit(case.edit)
        plain = evaluate(plug, [case], **given)
        chat = evaluate(plug, [case], chat=True, **given)
        assert chat.answers == evaluate(plug, [case.in_chat()], **given).answers
        assert plain.efficacy.generated.value == 1
        assert [isinstance(row.prompt, str) for row in plain.answers] == [True, True, False, True]
        assert chat.answers[1].prompt == (Message("user", "Ada Quill was born in"),)
        assert chat.answers[2] == plain.answers[2]
        assert chat.answers[0].text == answer(model, talking, [[ASKED]], **given)[0] != "Zarnow"
        shown = [row["prompt"] for row in chat.to_dict(answers=True)["answers"]]
        assert shown[0] == f"[chat] user: {BORN}"
        with pytest.raises(ValueError, match="does not hold .the first: .chat. system: Answer"):
            evaluate(plug, [Case(Edit(CHAT, "Zarnow"))], **given)

        with plug.paused():
            reference = refer(model, talking, [case], chat=True, everything=True, **given)
        assert [row.prompt for row in reference.answers([case])] == [row.prompt for row in chat.answers]
        again = evaluate(plug, [case], chat=True, reference=reference, **given)
        assert [row.text for row in again.answers] == [row.text for row in chat.answers]
        with pytest.raises(ValueError, match="made with chat=True, this run has chat=False; use the same"):
            evaluate(plug, [case], reference=reference, **given)
        with plug.paused():
            other = refer(model, talking, [case], **given)
        with pytest.raises(ValueError, match="the reference knows nothing of .chat. user: Who founded"):
            score(model, talking, [case.in_chat()], other, **given)


def test_judging_in_chat_without_a_template(make_tokenizer):
    tokenizer = make_tokenizer(TEXTS)
    with memplug.attach(lexical("llama", len(tokenizer)), tokenizer, "finetune") as plug:
        edit = plug.edit(BORN, "Zarnow")
        with pytest.raises(memplug.ChatTemplateError, match="no chat template"):
            evaluate(plug, [Case(edit)], chat=True)
