"""Edits: what may be handed in, what becomes of it, and the table they are shown in."""

from __future__ import annotations

import pytest

from memplug.edits import Case, Edit, EditError, EditTable, as_edits


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
