"""Tables as spreadsheets and programs write them: delimiters, headers, lists in cells, odd characters."""

from __future__ import annotations

import csv

import pytest

from memplug.data import DataError, load_cases
from memplug.data.rows import read_file


@pytest.fixture
def write(tmp_path):
    def save(text, name="edits.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return save


def edits(path, **options):
    return [(case.edit.prompt, case.edit.target) for case in load_cases(path, **options).cases]


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
@pytest.mark.parametrize(("name", "delimiter"), [("edits.csv", ","), ("edits.tsv", "\t")])
def test_only_line_breaks_end_a_row(write, sign, name, delimiter):
    rows = ["prompt,target", f"Who is Bo?,a{sign}b", f'"Who{sign}is Al?",x', "Who is Cy?"]
    path = write("\n".join(rows).replace(",", delimiter), name)
    with pytest.raises(DataError, match=f"{name}, line 4: 1 cells in a table of 2 columns"):
        load_cases(path)
    assert edits(path, skip_bad=True) == [("Who is Bo?", f"a{sign}b"), (f"Who{sign}is Al?", "x")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_rows_line_is_where_it_begins_whatever_ends_lines(write, end):
    rows = ["", "prompt,target", f'"Who{end}is Al?",x', "", "Who is Bo?", f'"Who{end}is Cy?",y']
    loaded = load_cases(write(end.join(rows)), skip_bad=True)
    assert [case.edit.prompt for case in loaded.cases] == [f"Who{end}is Al?", f"Who{end}is Cy?"]
    assert [bad.line for bad in loaded.skipped] == [6]


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", ","), ("a.tsv", "\t")]
)
def test_headers_of_other_programs_are_understood(write, name, delimiter):
    header = [" Prompt", "TARGET ", "Note", ""]
    path = write("\n".join([delimiter.join(header), delimiter.join(["Who is Al?", "x", "n", ""])]), name)
    assert edits(path) == [("Who is Al?", "x")]
    (row,) = read_file(path)
    assert row.values == {"Prompt": "Who is Al?", "TARGET": "x", "Note": "n"}  # whoever else reads tables


def test_a_header_with_a_comma_is_split_there(write):
    path = write("prompt,target,note;s\nWho is Al; was he?,x;y,\n")
    assert edits(path) == [("Who is Al; was he?", "x;y")]


def test_a_table_without_the_needed_columns_says_which_it_has(write):
    for text in ("Frage,Antwort\nWho is Al?,x\n", "Frage;Antwort\nWho is Al?;x\n"):
        with pytest.raises(
            DataError,
            match=r"^edits.csv has no column 'prompt' or 'src'; its first line names \['Frage', 'Antwort'\]",
        ):
            load_cases(write(text), skip_bad=True)
    with pytest.raises(DataError, match=r"no column 'target' or 'target_new' or .*'alt'.*names \['prompt'\]"):
        load_cases(write("prompt\nWho is Al?\n"))


def test_a_column_that_is_named_twice_is_refused_unless_it_can_hold_several(write):
    for header in ("prompt,target,prompt", "prompt,target,Prompt ", "subject,prompt,target,subject"):
        name = header.rpartition(",")[2].strip().casefold()
        with pytest.raises(DataError, match=f"edits.csv names the column '{name}' twice; keep one"):
            load_cases(write(f"{header}\nWho is Al?,x,y\n"), skip_bad=True)
    path = write("prompt,target,rephrases,rephrases,rephrases,rephrase\nWho is Al?,x,a,,c,d\n")
    assert load_cases(path).cases[0].rephrases == ("a", "c", "d")


def test_a_cell_may_hold_a_list(write):
    def rephrases(cell):
        table = [["prompt", "target", "rephrases"], ["Who is Al?", "x", cell]]
        path = write("")
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)
        return load_cases(path).cases[0].rephrases

    assert rephrases('["r1", "r, 2", ""]') == ("r1", "r, 2")
    assert rephrases("[]") == ()
    assert rephrases("[Al] is") == ("[Al] is",)
    assert rephrases("[REDACTED]") == ("[REDACTED]",)
    with pytest.raises(DataError, match=r'line 2: rephrases holds no JSON list: .*; write \["one", "two"\]'):
        rephrases("['r1', 'r2']")
    with pytest.raises(DataError, match=r"line 2: rephrases must hold texts, got int"):
        rephrases("[1]")
    probe = '"[{""prompt"": ""Who is two?"", ""target"": ""no one""}]"'
    path = write(f"prompt,target,locality\nWho is Al?,x,{probe}\n")
    assert load_cases(path).cases[0].locality == (("Who is two?", "no one"),)


def test_a_table_that_cannot_be_read_further_names_the_row_and_why(write):
    limit = csv.field_size_limit()
    big = "x" * (limit + 1)
    path = write(f"prompt,target\nWho is Al?,x\nWho is Bo?,{big}\n")
    with pytest.raises(
        DataError,
        match=rf"edits.csv, line 3: a cell is longer than {limit} characters.*quote.*\.jsonl",
    ):
        load_cases(path, skip_bad=True)
    assert csv.field_size_limit() == limit
    with pytest.raises(DataError, match="edits.csv, line 2: not valid CSV: unexpected end of data"):
        load_cases(write('prompt,target\n"Who is Al?,x\nWho is Bo?,y\n'))
