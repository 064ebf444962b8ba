"""Edits: what may be handed in, what becomes of it, and the table they are shown in."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest

from memplug.edits import Case, Edit, EditError, EditTable, as_edits
from memplug.ids import numbered


def test_ends_are_stripped():
    edit = Edit("  Where was Ada born? ", " Zarnow\n", " Ada ")
    assert (edit.prompt, edit.target, edit.subject) == ("Where was Ada born?", "Zarnow", "Ada")


def test_what_may_be_handed_to_edit():
    edit = Edit("Where was Ada Quill born?", "Zarnow")
    assert as_edits(edit.prompt, edit.target) == [Edit(edit.prompt, edit.target, "Ada Quill")]
    assert as_edits(edit) == as_edits(Case(edit)) == as_edits(iter([edit])) == as_edits((Case(edit),))
    assert as_edits(edit.prompt, "x", "Ada")[0].subject == "Ada"


def test_a_prompt_that_names_nothing():
    with pytest.raises(
        EditError, match="no subject found in 'who is it.'.*edit\\(prompt, target, subject=...\\)"
    ):
        as_edits("who is it?", "Zarnow")


def test_the_table_shows_every_edit_and_its_switch():
    edits = {f"e{i}": Edit(f"Where was Ada {i} born?", "Zarnow", "Ada", id=f"e{i}") for i in range(3)}
    lines = repr(EditTable(edits, ["e1"])).splitlines()
    assert lines[0] == "3 edits, 2 in force"
    assert [line.split()[:2] for line in lines[2:]] == [["e0", "on"], ["e1", "off"], ["e2", "on"]]
    assert len({line.index("Zarnow") for line in lines[2:]}) == 1  # in columns


def test_a_long_table_shows_both_ends_and_how_many_are_between():
    edits = {f"e{i}": Edit("Where was Ada born?" + " x" * 50, "Zarnow", "Ada", id=f"e{i}") for i in range(90)}
    lines = repr(EditTable(edits)).splitlines()
    assert len(lines) == 43
    assert lines[22].split() == ["...", "50", "more"]
    assert lines[21].startswith("e19 ")
    assert lines[23].startswith("e70 ")
    assert max(map(len, lines)) < 110


def test_a_row_of_the_table_is_one_line():
    table = EditTable({"e1": Edit("Q: Where was Ada born?\nA:", "In\nZarnow", "Ada", id="e1")})
    assert len(repr(table).splitlines()) == 3


@pytest.mark.parametrize(
    ("prompt", "target"), [("Where was Ada born? ", "Zar "), ("Ada? ", "x" * 10_000_000)]
)
def test_texts_of_millions_of_characters_are_refused_at_once(prompt, target):
    prompt = prompt * (1 + 2_000_000 // len(prompt))
    for given in (prompt, [{"role": "system", "content": prompt}, {"role": "user", "content": "Ada?"}]):
        with pytest.raises(EditError, match="characters, an edit has 1048576 at most; shorten it"):
            as_edits(given, "Zar")


NFD = unicodedata.normalize("NFD", "São Tomé")
TEXT = "The capital of São Tomé is"


@pytest.mark.parametrize(
    ("prompt", "given", "subject"),
    [
        (TEXT, NFD, "São Tomé"),
        (unicodedata.normalize("NFD", TEXT), "São Tomé", NFD),
        ("Who wrote The Hitchhiker’s Guide?", "The Hitchhiker's Guide", "The Hitchhiker’s Guide"),
        ("who leads the bank of england?", "Bank of England", "bank of england"),
        ("Who produced the Beatles record?", "The Beatles", "the Beatles"),
        ("La capitale de l’Espagne est", "L'Espagne", "l’Espagne"),
        ("What's France's capital?", "France's", "France's"),
        ("Is Nigeria larger than Niger?", "Niger", "Niger"),
    ],
)
def test_a_subject_is_kept_as_the_question_writes_it(prompt, given, subject):
    edit = Edit(prompt, "x", given)
    assert edit.subject == subject
    assert edit.prompt == prompt  # the model reads what the user wrote
    assert prompt[edit.place.begin : edit.place.end] == subject
    assert replace(edit) == edit


def test_the_place_is_that_of_the_word():
    assert Edit("Is Nigeria larger than Niger?", "no", "Niger").place == (23, 28)
    with pytest.raises(EditError, match="has no subject"):
        assert Edit("Is Nigeria larger than Niger?", "no").place


REFUSED = [
    ("What is the capital of Nigeria?", "Niger", "only inside of 'Nigeria'; .* (found there: 'Nigeria')"),
    ("Who flew on Apollo 11?", "Apollo 1", "only inside of 'Apollo 11'"),
    ("Where was Ada Quill born?", "Ada Quil l", "copy it from the prompt .* (found there: 'Ada Quill')"),
    ("Did Tolkien teach at Oxford?", "Lewis", "(found there: 'Tolkien' or 'Oxford')"),
    ("What is the capital of France?", "Fr\u0430nce", "(which has no U+0430)"),
    ("What is the capital of France?", "France\u200b", "(which has no U+200B)"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "subject", "message"), REFUSED)
def test_a_subject_that_the_prompt_does_not_name(prompt, subject, message):
    with pytest.raises(EditError, match=message.replace("(", "\\(").replace(")", "\\)").replace("+", "\\+")):
        Edit(prompt, "x", subject)


def test_a_subject_that_is_found_stands_in_the_last_user_turn():
    talk = [
        {"role": "user", "content": "Who is Ada Quill?"},
        {"role": "assistant", "content": "Ada Quill is a painter."},
        {"role": "user", "content": "Where was Tam Wickes born?"},
    ]
    assert as_edits(talk, "Zarnow")[0].subject == "Tam Wickes"
    with pytest.raises(EditError, match="'ada quill' is in the user turn"):
        Edit(talk, "Zarnow", "ada quill")
    talk[2]["content"] = "Where was she born?"
    with pytest.raises(EditError, match="no subject found in 'Where was she born"):
        as_edits(talk, "Zarnow")


def test_the_same_prompt_in_other_unicode_is_edited_again():
    held = {"e1": Edit(TEXT, "x", "São Tomé", id="e1")}
    fresh, replaced = numbered(as_edits(unicodedata.normalize("NFD", TEXT), "y"), held, 1)
    assert replaced == ["e1"]
    assert fresh[0].prompt == unicodedata.normalize("NFD", TEXT)
