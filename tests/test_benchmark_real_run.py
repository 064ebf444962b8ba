"""The benchmark on a real model: what is asked, and whole runs with a small model."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest

from benchmarks.real import alike, gate, measure, run, sets, tables, unrelated
from benchmarks.real.asking import Asker, chat, plain
from benchmarks.real.facts import Fact, Known, own
from benchmarks.real.find import find
from benchmarks.real.probes import near, probes
from memplug import pretrained, world


@pytest.fixture(scope="module")
def small():
    """The embedded model, with a chat template that leaves a message as it is."""
    model, tokenizer = world.load()
    tokenizer.chat_template = "{{ messages[-1].content }}"
    return model, tokenizer


@pytest.fixture(scope="module")
def facts():
    return [
        Fact(
            id=f"world-{i}",
            kind="fact",
            prompt=case.edit.prompt,
            subject=str(case.edit.subject),
            target=case.edit.target,
            truth=("nothing",),
            rephrases=case.rephrases[:1],
            neighbours=tuple(Known(p.prompt, (p.target,)) for p in case.locality[:1]),
            mentions=(f"Names: {case.edit.subject} and",),
        )
        for i, case in enumerate(world.cases(3))
    ]


# ---------------------------------------------------------------- prompts


def test_unrelated_prompts_name_no_subject_as_whole_words():
    named = unrelated.naming(["Rain", "Romeo and Juliet"])
    assert named("The rain stopped.")
    assert not named("The rainbow")
    assert named("I saw romeo and juliet")
    assert not unrelated.naming([])("anything")
    found = unrelated.unrelated(None, ["Python"])
    assert len(found) >= 60
    assert not any("Python" in one.turns[0][1] for one in found)
    assert {one.turns[0][0] for one in found} == {"text", "user"}
    assert len(unrelated.unrelated(None, [], limit=5)) == 5


def test_no_own_request_names_a_subject_of_the_own_facts():
    assert len(unrelated.unrelated(None, [fact.subject for fact in own()])) == len(
        unrelated.unrelated(None, [])
    )


def test_neighbours_are_of_the_same_kind_and_about_nobody_edited():
    made = [Fact(f"f{i}", "abc"[i % 2], f"p{i}", f"s{i // 2}", "t", ("o",)) for i in range(12)]
    found = near(made, made[:2])
    assert all(prompt not in ("p0", "p1") for some in found.values() for prompt, _ in some)
    assert {int(prompt[1:]) % 2 for prompt, _ in found["f0"]} == {0}
    assert near(made[:2], made[:2]) == {"f0": (), "f1": ()}


def rows(name, n):
    return [
        {
            "id": f"{name}-{i}",
            "subject": f"Subject {i}",
            "prompt": f"Subject {i} lives in",
            "target_new": "Rome",
            "target_true": "Oslo",
            "rephrases": [f"The home of Subject {i} is"],
            "locality": [{"prompt": "Somebody lives in", "target": "Oslo"}],
            **({"relation": "P1"} if name == "counterfact" else {}),
            **({"flags": ["noop"]} if i == 0 else {}),
        }
        for i in range(n)
    ]


@pytest.fixture
def data(tmp_path):
    for name, files in (("counterfact", ["edit"]), ("zsre", ["edit", "val", "train"])):
        (tmp_path / name).mkdir()
        for file in files:
            made = rows(name, 60)
            (tmp_path / name / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    folders = ("natural_questions/efficientqa_dev", *(f"glue/{name}" for name in unrelated.SENTENCES))
    for path in folders:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        words = "one two three four five six seven eight"
        made = [
            {
                "id": f"{path}-{i}",
                "question": "where is it",
                "text": words,
                "sentence1": words,
                "premise": words,
            }
            for i in range(4)
        ]
        (tmp_path / f"{path}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return tmp_path


def test_public_questions_are_asked_both_ways_and_sentences_are_halved(data):
    found = unrelated.unrelated(data, ["zebra"])[len(unrelated.unrelated(None, [])) :]
    assert [one.turns for one in found[:3]] == [
        plain("where is it?"),
        chat("where is it?"),
        plain("one two three four"),
    ]
    assert len(found) == 6


def test_rows_are_for_tables_or_for_choosing_constants_by_subject(data):
    table, tuning = sets.counterfact(data), sets.counterfact(data, "tuning")
    assert len(table) + len(tuning) == 59, "the row with a flag is left out"
    assert not {fact.subject for fact in table} & {fact.subject for fact in tuning}
    assert len(table) > len(tuning) > 0
    assert sets.part("NIGER") == sets.part("niger")
    (one,) = sets.counterfact(data, ids=[table[0].id])
    assert one == table[0]
    assert all(one.subject in text for text in one.mentions)
    assert sets.zsre(data)[0].kind == "question"


def test_known_rows_exist_once_and_are_on_their_side():
    for name in ("counterfact", "zsre"):
        table, tuning = sets.known(name), sets.known(name, "tuning")
        assert table
        assert all(id.startswith(f"{name}-") for id in (*table, *tuning))
        assert len({*table, *tuning}) == len(table) + len(tuning)


def test_finding_stops_where_enough_is_found(data, monkeypatch, small):
    asker = Asker(*small)
    monkeypatch.setattr(Asker, "texts", lambda self, prompts, tokens: ["Oslo" for _ in prompts])
    found = find(asker, data, "counterfact", time.monotonic() + 60, {"table": 5, "tuning": 3})
    assert len(found["table"]) == 5
    assert len(found["tuning"]) == 3
    assert all(sets.part(f"Subject {id.split('-')[1]}") == "table" for id in found["table"])


# ---------------------------------------------------------------- a whole run


def test_chat_turns_are_put_through_the_template(small):
    model, tokenizer = small
    asker = Asker(model, tokenizer, batch=2)
    text = world.cases(1)[0].edit.prompt
    assert asker.text.decode(asker.encode(chat(text))) == text
    assert asker.encode(plain(text)) == asker.text.encode(text)
    prompts = [plain(case.edit.prompt) for case in world.cases(3)]
    assert asker.continuations([*prompts, prompts[0]], 4)[3] == asker.continuations(prompts, 4)[0]
    scores = asker.perplexities(prompts, [[5, 6], [], [7]])
    assert scores[1] == 1
    assert min(scores[0], scores[2]) > 1


def test_the_base_models_texts_are_made_once(small, facts, tmp_path, monkeypatch):
    asked = probes(facts, unrelated.unrelated(None, [], 3))
    first = measure.refer(Asker(*small), asked, tmp_path, "bits")
    monkeypatch.setattr(Asker, "continuations", lambda *_: pytest.fail("asked again"))
    assert measure.refer(Asker(*small), asked, tmp_path, "bits") == first


@pytest.fixture
def pretended(monkeypatch, small, facts):
    """``memplug.pretrained`` gives the embedded model, and the own facts are of its world."""
    monkeypatch.setattr(pretrained, "load", lambda *_: small)
    monkeypatch.setattr(run, "own", lambda part="table": facts)
    monkeypatch.setattr(run, "overhead", partial(run.overhead, steps=2, turns=1, seconds=0))


def test_a_run_writes_every_methods_measures_and_takes_up_where_it_was(pretended, tmp_path, capsys, small):
    out = tmp_path / "own.json"
    given = [
        "--edits=2",
        "--limit-unrelated=4",
        f"--out={out}",
        f"--cache={tmp_path}",
        "--set=icl.k=1",
    ]
    run.main([*given, "--methods=icl"])
    kept = json.loads(out.read_text())
    icl = kept["runs"]["icl"]
    assert icl["status"] == "done"
    assert icl["learned"] == 2
    assert icl["seconds_per_single_edit"] > 0
    same = [form["same"] for form in icl["measures"]["unrelated"].values()]
    assert [share for share, _ in same] == [1.0, 1.0], "they ask for no edit"
    assert sum(n for _, n in same) == 4
    assert icl["measures"]["as asked"]["plain"]["right"][1] == 2
    assert "| as asked, plain: right | 2 |" in capsys.readouterr().out
    run.main([*given, "--methods=icl,grace"])
    again = json.loads(out.read_text())["runs"]
    assert again["icl"] == icl
    assert again["grace"]["status"] == "done"
    assert len(out.read_text()) < 100_000
    assert not hasattr(small[0], "_memplug_plug")
    with pytest.raises(SystemExit, match="another seed"):
        run.main([*given, "--methods=grace", "--seed=1"])


def test_a_method_that_takes_too_long_is_stopped_and_said_to_be(pretended, tmp_path):
    out = tmp_path / "own.json"
    run.main(["--methods=grace", "--edits=2", "--limit-unrelated=4", f"--out={out}", "--max-seconds=0.2"])
    kept = json.loads(out.read_text())["runs"]["grace"]
    assert kept["status"] == "stopped"
    assert "stopped after" in tables.tables(json.loads(out.read_text()))


def test_rows_of_public_sets_need_their_folder():
    with pytest.raises(ValueError, match="--data"):
        run.choose("counterfact", None, 3, 0)


def test_gate_counts_recalls_by_group():
    asked = [("asked, plain", "e1"), ("asked, plain", "e2"), ("unrelated, chat", None)]
    found = gate.rates(asked, [["e1", "e3"], ["e1"], []], {"e1": "France", "e2": "Italy", "e3": "France"})
    assert found["asked, plain"] == {"own": 500.0, "another": 500.0, "n": 2}
    assert found["unrelated, chat"] == {"own": 0.0, "another": 0.0, "n": 1}


def test_gate_asks_a_method_what_each_prompt_recalls(pretended, data, tmp_path, capsys):
    out = tmp_path / "gate.json"
    given = ["--counts=2,4", "--method=grace", "--limit-unrelated=3", f"--out={out}"]
    gate.main([f"--data={data}", *given])
    points = json.loads(out.read_text())["points"]
    assert [point["edits"] for point in points] == [2, 4]
    assert points[0]["rates"]["asked, plain"]["own"] > 0
    assert {"neighbours, plain", "mentions, chat", "unrelated, chat"} <= points[0]["rates"].keys()
    assert "| 4 | asked, chat |" in capsys.readouterr().out


def test_shares_of_what_passes_by_hand():
    """Rephrasings score .1 .1 .1 .6 .6 .7 .7 .7 .8 .8 .9 .9: limits are .2 and .1."""
    score = dict(zip("abcdexyzm", (0.9, 0.9, 0.8, 0.7, 0.6, 0.7, 0.1, 0.1, 0.15), strict=True))
    asked = {"r": list("abcde"), "s": list("xyz"), "passing mentions": ["m"]}
    found = alike.shares([asked], lambda _edit: score.__getitem__)
    assert found == {
        "80%": {"others": 0.75, "passing mentions": 0.0},  # a, b, c, d, e twice and x twice, of 16
        "90%": {"others": 0.75, "passing mentions": 1.0},
    }


def test_every_wording_names_its_subject():
    total = 0
    for subject, texts in alike.groups():
        assert len(texts) >= 8
        for name, some in texts.items():
            assert len(some) > alike.EDITS, name
            assert all(subject in text for text in some)
            total += len(some)
    assert total == 1106 + 208
