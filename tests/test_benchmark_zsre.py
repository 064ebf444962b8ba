"""The lines a model learns ZsRE questions from: what is shown, what never is, and what answers what."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from memplug.data import load_cases
from memplug.world.corpus import ANSWER, IGNORED, text_of

WAYS = ["Who made {s}?", "What maker has {s}?", "By whom was {s} made?"]


def row(number: int, name: str, way: int, other: int) -> dict[str, object]:
    return {
        "subject": f"{name} {number}",
        "prompt": WAYS[way].format(s=f"{name} {number}"),
        "target_true": f"True{number}",
        "target_new": f"New{number}",
        "rephrases": [WAYS[other].format(s=f"{name} {number}")],
        "locality": [
            {"prompt": f"where is thing {number}", "target": f"Place{number}" * (1 + number % 2 * 9)}
        ],
    }


@pytest.fixture
def zsre(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("zsre")


@pytest.fixture
def files(tmp_path):
    rows = {
        "edit": [row(i, "Amber", 0, 1) for i in range(8)],
        "train": [row(20 + i, "Birch", 0, 1 + i % 2) for i in range(10)],
        "unseen": [row(40 + i, "Cedar", 1, 2) for i in range(3)],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    return {name: f"zsre:{tmp_path / name}.jsonl" for name in rows}


@pytest.fixture
def given(zsre, files):
    return zsre.questions(load_cases(files["edit"]), load_cases(files["train"]), known=4, longest=20)


def lines(zsre, given, n: int = 1500):
    source = zsre.ZsreLines(given, "a")
    return [source.line() for _ in range(n)]


def test_ways_to_ask_come_from_other_rows_and_what_an_edit_is_judged_by_is_left_out(given):
    for i, question in enumerate(given.edits):
        assert question.prompts[0] == f"Who made Amber {i}?"
        assert set(question.prompts[1:]) == {f"By whom was Amber {i} made?"}  # the second is its rephrasing
    assert set(given.known[0].prompts) == {way.format(s="Birch 20") for way in WAYS}


def test_a_pair_of_ways_holds_in_both_directions(zsre, files, tmp_path):
    (tmp_path / "other.jsonl").write_text(json.dumps(row(0, "Amber", 1, 2)) + "\n")
    loaded = load_cases(tmp_path / "other.jsonl"), load_cases(files["train"])
    (question,) = zsre.questions(*loaded, known=0).edits
    assert question.prompts[0] == "What maker has Amber 0?"
    assert set(question.prompts[1:]) == {"Who made Amber 0?"}


def test_long_locality_answers_are_counted_and_left_out(given):
    assert [q.answer for q in given.locality] == [f"Place{i}" for i in (0, 2, 4, 6)]
    assert given.dropped == 4


def test_every_question_to_know_is_asked_and_answered_truly(zsre, given):
    asked = {
        (line[-2].text.strip(), line[-1].text.strip())
        for line in lines(zsre, given)
        if len(line) == 2 and line[-1].weight == ANSWER
    }
    for question in given.deck:
        assert any((prompt, question.answer) in asked for prompt in question.prompts)
    assert {answer for _, answer in asked} == {q.answer for q in given.deck}
    for question in (*given.edits, *given.known):  # in more than one way
        assert len({prompt for prompt, answer in asked if answer == question.answer}) > 1


def test_several_questions_in_a_row_are_all_answered_truly(zsre, given):
    truth = {prompt: question.answer for question in given.deck for prompt in question.prompts}
    rows = [line for line in lines(zsre, given) if [p.weight for p in line].count(ANSWER) > 1]
    answered = [
        (line[i - 1].text.strip(), line[i].text.strip()) for line in rows for i in range(1, len(line), 3)
    ]
    assert {len(line) for line in rows} == {5, 8}
    assert all(truth[prompt] == answer for prompt, answer in answered)
    assert {answer for _, answer in answered} == set(truth.values())


def test_nothing_of_an_edit_is_shown(zsre, given):
    texts = [text_of(line) for line in lines(zsre, given)]
    for i, question in enumerate(given.edits):
        assert not any(f"What maker has Amber {i}?" in text for text in texts)
        for prompt in question.prompts:
            assert not any(f"{prompt} New{i}." in f"{text}." for text in texts)
    assert any("New0" in text for text in texts)  # as an answer to something else


def test_a_question_behind_notes_is_answered_from_the_one_about_it_or_from_memory(zsre, given):
    truth = {q.subject: q.answer for q in given.deck if q.subject}
    read = kept = 0
    for line in lines(zsre, given):
        if len(line) < 2:
            continue
        notes = [i for i, piece in enumerate(line) if piece.weight == IGNORED and piece.text.startswith(" ")]
        prompt, answer = line[-2].text, line[-1]
        if not notes or answer.weight != ANSWER:
            continue
        about = [i for i in notes if name(line[i - 1].text) == name(prompt)]
        if about:
            read += 1
            assert answer.text in {line[i].text for i in about}
            assert answer.text.strip() != truth.get(name(prompt))
        elif name(prompt) in truth:
            kept += 1
            assert answer.text.strip() == truth[name(prompt)]
    assert read > 100
    assert kept > 100


def name(prompt: str) -> str:
    """The two words of the subject, or of the thing of a locality question."""
    words = prompt.strip(" ?").split()
    first = next((i for i, word in enumerate(words) if word in ("Amber", "Birch", "thing")), 0)
    return " ".join(words[first : first + 2])


def test_the_same_seed_gives_the_same_lines(zsre, given):
    assert lines(zsre, given, 50) == lines(zsre, given, 50)
    assert zsre.ZsreLines(given, "b").line() != zsre.ZsreLines(given, "a").line()


def test_cases_without_a_true_answer_and_too_many_to_know_are_refused(zsre, files, tmp_path):
    edit, train = load_cases(files["edit"]), load_cases(files["train"])
    with pytest.raises(ValueError, match="known is 11, but there are 10 cases"):
        zsre.questions(edit, train, known=11)
    bare = {k: v for k, v in row(0, "Amber", 0, 1).items() if k != "target_true"}
    (tmp_path / "bare.jsonl").write_text(json.dumps(bare) + "\n")
    with pytest.raises(ValueError, match="no true answer of 'Who made Amber 0"):
        zsre.questions(load_cases(tmp_path / "bare.jsonl"), train, known=1)


@pytest.mark.parametrize(("share", "mixture"), [("0.55", "FACTS"), ("0", "READING")])
def test_the_script_trains_measures_and_writes(files, tmp_path, monkeypatch, zsre, share, mixture):
    script = importlib.import_module("train_zsre")
    options = [
        "--steps=2",
        "--batch-tokens=64",
        "--hidden=16",
        "--layers=2",
        "--vocabulary=400",
        "--threads=1",
    ]
    paths = [f"--{what}={tmp_path / ('my_' + what)}" for what in ("out", "run", "results")]
    cases = [f"--{what}={spec}" for what, spec in files.items()]
    monkeypatch.setattr(
        "sys.argv", ["train_zsre.py", *options, *paths, *cases, "--known=4", f"--reading-from={share}"]
    )
    monkeypatch.setattr(script, "TOKENIZER_LINES", 200)
    used = []
    monkeypatch.setattr(script, "ZsreLines", lambda *given: used.append(given[1:]) or zsre.ZsreLines(*given))
    script.main()
    assert used == [("tokenizer",), ("0 0", getattr(zsre, mixture))]
    written = json.loads((tmp_path / "my_results").read_text())
    assert str(tmp_path) not in json.dumps(written)  # whose data it was stays where it was run
    assert written["knowledge"]["edited cases, prompts"]["n"] == 8
    assert written["context"]["note about a subject never shown"]["n"] == 3
    states = written["cosine of the last subject token, embeddings then layers"]
    assert states["same subject, mean"][0] == pytest.approx(1, abs=1e-3)
    assert len(states["own state is nearest"]) == 3
