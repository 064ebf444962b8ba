"""The readers, on made-up rows in the original formats, whole and broken."""

from __future__ import annotations

import json

import pytest

from memplug.data import DataError, load_cases
from memplug.edits import Case, Edit, Probe

ZSRE = {
    "subject": "Mara Voss",
    "src": "Where was Mara Voss born?",
    "rephrase": "What is the birthplace of Mara Voss?",
    "alt": "Quill",
    "answers": ["Tilden", "Old Tilden"],
    "pred": "Marrow",
    "loc": "nq question: who leads the guild of weavers",
    "loc_ans": "Oren Fisk",
    "cond": "Marrow >> Quill || Where was Mara Voss born?",
}
COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "Brackish", "id": "Q1"},
        "target_true": {"str": "Tilden {old}", "id": "Q2"},
        "subject": "Oren {} Fisk",
    },
    "paraphrase_prompts": ["It rained. Oren {} Fisk speaks", "Oren {} Fisk, a native"],
    "neighborhood_prompts": ["Juno Hale speaks", "The language of Sedge is"],
    "attribute_prompts": ["Tilde Brack speaks"],
    "generation_prompts": ["Oren {} Fisk lives where people speak"],
}
SELFCHECK = {
    "prompt": "This is a passage about juno hale. She was a smith.",
    "target_new": "She left Sedge at the age of ten.",
    "subject": "juno hale",
    "locality_prompt": "Ten ways to",
    "locality_ground_truth": "mend a clock",
}
OWN = {
    "id": "x-1",
    "prompt": "Who employs Mara Voss?",
    "target": "Brightmoor Glass",
    "target_true": "the guild",
    "subject": "Mara Voss",
    "rephrases": ["Mara Voss works for"],
    "locality": [{"prompt": "Who is two?", "target": "no one"}],
    "same_subject": [{"prompt": "Mara Voss was born in", "target": "Tilden"}],
    "portability": [{"prompt": "What does Mara Voss's employer make?", "target": "glass"}],
}


@pytest.fixture
def write(tmp_path):
    def save(content, name="edits.jsonl"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            path.write_text("\n".join(map(json.dumps, content)) + "\n", encoding="utf-8")
        return path

    return save


@pytest.mark.parametrize("prefix", ["zsre:", ""])
@pytest.mark.parametrize("name", ["edits.jsonl", "edits.json"])
def test_zsre(write, prefix, name):
    path = write([ZSRE] if name == "edits.jsonl" else json.dumps([ZSRE], indent=2), name)
    loaded = load_cases(f"{prefix}{path}")
    assert loaded.cases == (
        Case(
            Edit("Where was Mara Voss born?", "Quill", "Mara Voss"),
            rephrases=("What is the birthplace of Mara Voss?",),
            locality=(Probe("who leads the guild of weavers?", "Oren Fisk"),),
        ),
    )
    assert loaded.true_targets == (("Tilden", "Old Tilden"),)


def test_zsre_without_a_counterfactual_edits_the_right_answer_in(write):
    row = {k: v for k, v in ZSRE.items() if k not in ("alt", "answers")} | {"ans": "Tilden"}
    loaded = load_cases(f"zsre:{write([row])}")
    assert loaded.cases[0].edit.target == "Tilden"
    assert loaded.true_targets == ((),)
    assert loaded.noops == 0


@pytest.mark.parametrize("prefix", ["counterfact:", ""])
def test_counterfact(write, prefix):
    loaded = load_cases(f"{prefix}{write([COUNTERFACT])}")
    assert loaded.cases == (
        Case(
            Edit("The mother tongue of Oren {} Fisk is", "Brackish", "Oren {} Fisk"),
            rephrases=("It rained. Oren {} Fisk speaks", "Oren {} Fisk, a native"),
            locality=(
                Probe("Juno Hale speaks", "Tilden {old}"),
                Probe("The language of Sedge is", "Tilden {old}"),
            ),
        ),
    )
    assert loaded.true_targets == (("Tilden {old}",),)


def test_selfcheckgpt(write):
    loaded = load_cases(f"selfcheckgpt:{write([SELFCHECK])}")
    edit = Edit(SELFCHECK["prompt"], SELFCHECK["target_new"], "juno hale")
    assert loaded.cases == (Case(edit, locality=(Probe("Ten ways to", "mend a clock"),)),)


def test_an_empty_locality_answer_drops_the_probe_and_not_the_row(write):
    loaded = load_cases(write([SELFCHECK | {"locality_ground_truth": ""}, OWN]))
    assert loaded.cases[0].locality == ()
    assert loaded.empty_probes == 1
    assert "1 empty probes dropped" in str(loaded)


def test_own_rows_hold_everything_a_case_can(write):
    loaded = load_cases(write([OWN]))
    assert loaded.cases == (
        Case(
            Edit("Who employs Mara Voss?", "Brightmoor Glass", "Mara Voss"),
            rephrases=("Mara Voss works for",),
            locality=(Probe("Who is two?", "no one"),),
            same_subject=(Probe("Mara Voss was born in", "Tilden"),),
            portability=(Probe("What does Mara Voss's employer make?", "glass"),),
        ),
    )
    assert loaded.true_targets == (("the guild",),)


@pytest.mark.parametrize(("name", "delimiter"), [("edits.csv", ","), ("edits.tsv", "\t")])
def test_tables(write, name, delimiter):
    table = (
        "prompt,target,subject,rephrase,locality_prompt,locality_target\r\n"
        '"Who, if anyone, employs\nMara Voss?",Brightmoor Glass,Mara Voss,'
        "Mara Voss works for,Who is two?,no one\r\n"
        "\r\n"
        "Where was Oren Fisk born?,Quill,,,,\r\n"
    )
    path = write("\ufeff" + table.replace(",", delimiter) if delimiter == "," else _tabbed(table), name)
    first, second = load_cases(path).cases
    assert first.edit.subject == "Mara Voss"
    assert first.edit.prompt.startswith("Who, if anyone, employs")
    assert first.rephrases == ("Mara Voss works for",)
    assert first.locality == (Probe("Who is two?", "no one"),)
    assert second == Case(Edit("Where was Oren Fisk born?", "Quill", "Oren Fisk"))


def _tabbed(table):
    """The same table with tabs, its quoted commas kept."""
    import csv
    import io

    out = io.StringIO()
    csv.writer(out, delimiter="\t").writerows(csv.reader(io.StringIO(table, newline="")))
    return out.getvalue()


def test_the_subject_is_found_or_spelled_as_in_the_prompt(write):
    rows = [
        {"prompt": "Where was Mara Voss born?", "target": "Quill"},
        {"prompt": "Where was Oren Fisk born?", "target": "Quill", "subject": "oren fisk"},
    ]
    assert [case.edit.subject for case in load_cases(write(rows)).cases] == ["Mara Voss", "Oren Fisk"]


def test_limit_reads_no_further(write):
    path = write(json.dumps(OWN) + "\nnot json\n")
    assert len(load_cases(path, limit=1).cases) == 1
    with pytest.raises(DataError, match="line 2"):
        load_cases(path, limit=2)
    with pytest.raises(DataError, match="limit is 0"):
        load_cases(path, limit=0)


BROKEN = [
    ('{"prompt": "Who', r"line 2: not valid JSON: .* at column"),
    ("[1, 2]", r"line 2: expected a JSON object, got list"),
    ('{"target": "x"}', r"line 2: no field 'prompt'"),
    ('{"prompt": "Who is Al?"}', r"line 2: no field 'target' or 'target_new'"),
    ('{"prompt": "Who is Al?", "target": " "}', r"line 2: target is empty"),
    ('{"prompt": ["Who is Al?"], "target": "x"}', r"line 2: prompt must be text, got list"),
    (
        '{"prompt": "Who is Al?", "target": "x", "subject": "Bo"}',
        r"line 2: subject 'Bo' is not in the prompt",
    ),
    ('{"prompt": "who is that?", "target": "x"}', r"line 2: no subject found in 'who is that\?'"),
    (
        '{"prompt": "Who is Al?", "target": "x", "rephrases": [1]}',
        r"line 2: rephrases must hold texts, got int",
    ),
    ('{"prompt": "Who is Al?", "target": "x", "locality": "y"}', r"line 2: locality must be a list of"),
    ('{"prompt": "Who is Al?", "target": "x", "locality": ["y"]}', r"line 2: locality must hold"),
    ('{"src": "Who is Al?"}', r"line 2: no field 'alt' or 'answers'"),
    ('{"requested_rewrite": 3}', r"line 2: no field 'requested_rewrite' that holds an object"),
    (
        '{"requested_rewrite": {"prompt": "Al is", "subject": "Al", "target_new": {"str": "x"}}}',
        r"line 2: requested_rewrite.prompt has no \{\} for the subject: 'Al is'",
    ),
    (
        '{"requested_rewrite": {"prompt": "{} is", "subject": "Al"}}',
        r"line 2: no field 'requested_rewrite.target_new.str'",
    ),
    ("[" * 100_000, r"line 2: not usable JSON: nested too deeply"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_broken_line_is_named_and_can_be_skipped(write, line, reason):
    path = write("\n".join([json.dumps(OWN), line, json.dumps(COUNTERFACT)]))
    advice = r"skip_bad=True \(on the command line: --skip-bad\)$"
    with pytest.raises(DataError, match=rf"^edits.jsonl, {reason}.*{advice}"):
        load_cases(path)
    loaded = load_cases(path, skip_bad=True)
    assert len(loaded.cases) == 2
    assert [(bad.source, bad.line) for bad in loaded.skipped] == [("edits.jsonl", 2)]
    assert "1 rows skipped" in str(loaded)


def test_bytes_that_are_no_text_are_named_by_their_line(write):
    path = write(json.dumps(OWN).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        load_cases(path)
    assert len(load_cases(path, skip_bad=True).skipped) == 1
    with pytest.raises(DataError, match=r"edits.json, line 2: not UTF-8; save"):
        load_cases(write(b'[\n"\xff"]', "edits.json"), skip_bad=True)


def test_a_list_names_the_line_of_each_element(write):
    text = json.dumps([OWN, {"prompt": "Who is Al?"}, COUNTERFACT], indent=1)
    second = text[: text.index('"Who is Al?"')].count("\n")  # the line of its opening brace
    path = write(text, "edits.json")
    with pytest.raises(DataError, match=f"edits.json, line {second}: no field 'target'"):
        load_cases(path)
    assert len(load_cases(path, skip_bad=True).cases) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"prompt": "Who is Al?", "target": "x"},\n{"prompt": ', "line 2: not valid JSON"),
        ('[{"prompt": "Who is Al?", "target": "x"}\n', "line 2: the list is not closed"),
        ('[{"prompt": "Who is Al?", "target": "x"} {}]', "line 1: the list is not closed"),
    ],
)
def test_a_list_that_breaks_off_is_refused_even_when_skipping(write, text, reason):
    with pytest.raises(DataError, match=reason):
        load_cases(write(text, "edits.json"), skip_bad=True)


def test_table_rows_of_the_wrong_width_are_named(write):
    path = write('prompt,target\n"Who is\nAl?",x\nWho is Bo?,x,y\n', "edits.csv")
    with pytest.raises(DataError, match="edits.csv, line 4: 3 cells in a table of 2 columns"):
        load_cases(path)
    assert len(load_cases(path, skip_bad=True).cases) == 1
    with pytest.raises(DataError, match="not valid CSV"):
        load_cases(write('prompt,target\n"Who', "cut.csv"))
    with pytest.raises(DataError, match="its first line must name the columns"):
        load_cases(write("", "empty.csv"))


def test_zsre_without_an_alternative_where_others_have_one_is_broken(write):
    """It would be edited to its true answer."""
    for empty in ({"alt": " "}, {"alt": None}, {}):
        row = {k: v for k, v in ZSRE.items() if k != "alt"} | empty
        path = write([row, ZSRE])
        for spec in (path, f"zsre:{path}"):
            with pytest.raises(
                DataError, match=r"edits.jsonl, line 1: alt is empty, but other rows have one"
            ):
                load_cases(spec, limit=1)
            loaded = load_cases(spec, skip_bad=True)
            assert [case.edit.target for case in loaded.cases] == ["Quill"]
            assert [bad.line for bad in loaded.skipped] == [1]
        assert load_cases(write([row, row])).cases[0].edit.target == "Tilden"
    table = write("src,alt,answers\nWho is Al?,,Tam\nWho is Bo?,Ada,Tam\n", "edits.csv")
    with pytest.raises(DataError, match=r"edits.csv, line 2: alt is empty"):
        load_cases(table)


def test_sources_that_cannot_be_read(write, tmp_path):
    with pytest.raises(DataError, match="is a folder; name a file in it"):
        load_cases(str(tmp_path))
    with pytest.raises(DataError, match="is a folder; name a file in it"):
        load_cases(f"zsre:{tmp_path}")
    with pytest.raises(DataError, match="'zsre:' names no file; write zsre:FILE"):
        load_cases("zsre:")
    with pytest.raises(DataError, match="'' names no file"):
        load_cases("")
    with pytest.raises(DataError, match="there is no file .*missing.jsonl"):
        load_cases(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="'zsrr' is no format; the formats are .*zsre"):
        load_cases("zsrr:edits.jsonl")
    with pytest.raises(DataError, match="unknown ending '.parquet'"):
        load_cases(write("x", "edits.parquet"))
    with pytest.raises(DataError, match="no case in"):
        load_cases(write("\n\n"))
    with pytest.raises(
        DataError, match="1 rows skipped, 0 left out; the first: edits.jsonl, line 1: no field"
    ):
        load_cases(write("{}"), skip_bad=True)
