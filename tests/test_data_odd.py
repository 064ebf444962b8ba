"""What is odd about a data set's edits is counted, and left out on request."""

from __future__ import annotations

import json

import pytest

from memplug.data import DataError, load_cases, sift

OWN = {
    "prompt": "Who employs Mara Voss?",
    "target_true": "the guild",
    "target_new": "Brightmoor Glass",
    "subject": "Mara Voss",
    "locality": [{"prompt": "Who is two?", "target": "no one"}],
}


@pytest.fixture
def write(tmp_path):
    def save(rows):
        path = tmp_path / "edits.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        return path

    return save


def test_odd_edits_are_counted_and_left_out_on_request(write):
    def row(prompt, target, **more):
        return {"prompt": prompt, "target": target, **more}

    rows = [
        row("Where was Al Fisk born?", "Quill"),
        row("Where was Al Fisk born?", " quill "),  # the same again
        row("where was  Al Fisk born?", "Sedge"),  # contradicts the first
        row("Where was Bo Voss born?", "Tilden", target_true="TILDEN"),  # already true
        row("Where was Cy Hale born?", "Marrow", target_true="Tilden"),
    ]
    path = write(rows)
    loaded = load_cases(path)
    assert (len(loaded.cases), loaded.noops, loaded.repeats, loaded.conflicts, loaded.left_out) == (
        5,
        1,
        1,
        1,
        0,
    )
    cleaned = load_cases(path, clean=True)
    assert [case.edit.target for case in cleaned.cases] == ["Quill", "Marrow"]
    assert (cleaned.noops, cleaned.repeats, cleaned.conflicts, cleaned.left_out) == (1, 1, 1, 3)
    assert len(cleaned.true_targets) == 2
    part = load_cases(path, drop=["repeated", "no-op"])
    assert [case.edit.target for case in part.cases] == ["Quill", "Sedge", "Marrow"]
    assert (part.conflicts, part.left_out) == (1, 2)
    with pytest.raises(DataError, match="drop has 'odd'; the kinds are no-op, repeated, contradicting"):
        load_cases(path, drop=["odd"])
    again = sift(loaded.cases, loaded.true_targets, drop=["repeated", "no-op"])
    assert (again.cases, again.conflicts, again.noops) == (part.cases, 1, 1)
    with pytest.raises(DataError, match="no case is left of 1; drop fewer kinds"):
        sift([loaded.cases[3]], [["Tilden"]], drop=["no-op"])
    assert str(cleaned) == "2 cases, 1 already true, 1 repeated, 1 contradicting, 3 of these left out"


def test_a_known_set_may_be_in_rows_of_ones_own(write):
    """Its name then says where it is from, and the fields how to read it."""
    path = write([OWN])
    assert (
        load_cases(f"zsre:{path}").cases == load_cases(f"counterfact:{path}").cases == load_cases(path).cases
    )
    with pytest.raises(DataError, match="no field 'alt' or 'answers'"):
        load_cases(f"zsre:{write([{'src': 'Where was Mara Voss born?', 'target': 'Quill'}])}")
