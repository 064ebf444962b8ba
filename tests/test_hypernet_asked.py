"""How an edit is asked while it is made: its forms, where its answer begins, where its subject ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chats import BRACKETS, CHATML, chatting

from memplug.chat import in_chat
from memplug.edits import Edit
from memplug.methods.hypernet.asked import asked, is_open, posed
from memplug.text import Text

OPEN = Edit("The capital of Ankaria is", "Bel", "Ankaria")
QUESTION = Edit("What town rules Ankaria?", "Bel", "Ankaria")


@pytest.fixture(params=[CHATML, BRACKETS], ids=["chatml", "brackets"])
def text(request: Any, make_tokenizer: Callable[..., Any], make_llama: Callable[..., Any]) -> Text:
    tokenizer = make_tokenizer([OPEN.prompt, QUESTION.prompt, "Bel town rules"], 300)
    return Text(make_llama(len(tokenizer)), chatting(tokenizer, request.param))


class _Host:
    def __init__(self, text: Text) -> None:
        self.text = text


def test_a_statement_is_open_and_a_sentence_is_not() -> None:
    assert is_open("The capital of Ankaria is ")
    assert not any(map(is_open, ("Who?", "Name it.", "Q: Who?\nA:", "")))


def test_in_a_chat_the_answer_of_a_statement_stands_behind_the_statement(text: Text) -> None:
    head = text.encode(in_chat(OPEN.prompt))
    pair = posed(text, in_chat(OPEN.prompt), OPEN.target)
    assert pair.ids[: len(head)] == head
    assert text.decode(pair.ids[len(head) : pair.start]).strip() == OPEN.prompt
    assert text.decode(pair.ids[pair.start :]).strip() == OPEN.target
    whole = posed(text, in_chat(OPEN.prompt), OPEN.target, reply=True)
    assert (whole.ids, whole.start) == (pair.ids, len(head))


def test_questions_and_plain_texts_are_answered_at_once(text: Text) -> None:
    for prompt in (QUESTION.prompt, in_chat(QUESTION.prompt), OPEN.prompt):
        assert posed(text, prompt, "Bel") == text.pair(prompt, "Bel")


@pytest.mark.parametrize(("edit", "times"), [(OPEN, 2), (QUESTION, 1)])
def test_the_subjects_last_token_is_found_wherever_it_is_named(text: Text, edit: Edit, times: int) -> None:
    host: Any = _Host(text)
    plain, chat = asked(host, [edit], [text.forms(edit.prompt)])
    assert len(plain.at) == 1
    assert len(chat.at) == times
    for form in (plain, chat):
        for position in form.at:
            assert position < form.start
            assert text.decode(form.ids[: position + 1]).rstrip().endswith("Ankaria")
