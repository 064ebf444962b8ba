"""Which methods, which cases, which points: all that is settled before anything runs."""

from __future__ import annotations

import json

import pytest
from families import TEXTS

import memplug
from memplug import world
from memplug.comparison.cases import open_cases, open_fitting
from memplug.comparison.folder import Folder, plain
from memplug.comparison.settings import SettingsError, points_of
from memplug.comparison.specs import method_specs, parse_constants
from memplug.data import DataError, sift
from memplug.edits import Case, Edit, Probe
from memplug.methods.llp import LLPConfig
from memplug.methods.ultraedit import UltraEditConfig


def named(i, target="Quill"):
    return Case(Edit(f"Where was Mara V{i} born?", target, f"Mara V{i}"))


def test_methods_are_named_in_many_ways():
    found = method_specs(["llp", "llp:paper", "slow=ultraedit", "elder"])
    assert [(one.label, one.name, one.preset) for one in found] == [
        ("llp", "llp", "default"),
        ("llp:paper", "llp", "paper"),
        ("slow", "ultraedit", "default"),
        ("elder", "elder", "default"),
    ]
    config = UltraEditConfig(batch_size=3)
    plain_one, labelled = method_specs([config, ("mine", config)])
    assert (plain_one.label, plain_one.name, plain_one.chosen()) == ("ultraedit", "ultraedit", config)
    assert (labelled.label, labelled.config) == ("mine", config)
    assert [one.family for one in method_specs(["llp", "ultraedit", "mend", "elder"])] == [
        "memory", "weights", "weights", "memory"
    ]  # fmt: skip


def test_constants_go_to_a_label_or_to_all_variants_of_a_method():
    set_ = parse_constants(
        ["llp.threshold=0.8", "llp:paper.top_k=3", "ultraedit.mode=side", "llp.order=mean"]
    )
    assert set_ == {
        "llp": {"threshold": 0.8, "order": "mean"},
        "llp:paper": {"top_k": 3},
        "ultraedit": {"mode": "side"},
    }
    base, paper, side = method_specs(["llp", "llp:paper", "x=ultraedit"], {**set_, "llp": {"threshold": 0.8}})
    assert (base.constants, paper.constants) == ({"threshold": 0.8}, {"top_k": 3})
    assert side.chosen().mode == "side"
    for wrong in ("llp.threshold", "threshold=3", "=3", "llp.=3"):
        with pytest.raises(ValueError, match="write METHOD.KEY=VALUE"):
            parse_constants([wrong])
    with pytest.raises(ValueError, match="has no field 'nope'"):
        method_specs(["llp"], {"llp": {"nope": 1}})
    with pytest.raises(ValueError, match="'ultraedit' is a config object, which comes with its constants"):
        method_specs([UltraEditConfig()], {"ultraedit": {"batch_size": 2}})
    with pytest.raises(ValueError, match="is no pair of a label and a method"):
        method_specs([("llp", "llp", 3)])


def test_what_nobody_set_takes_the_runs_seed():
    (free,) = method_specs(["llp"])
    assert free.with_constants(seed=3, fit_steps=9).chosen().seed == 3
    (fixed,) = method_specs(["llp"], {"llp": {"seed": 5}})
    assert fixed.with_constants(seed=3).chosen().seed == 5
    (given,) = method_specs([LLPConfig(seed=7)])
    assert given.with_constants(seed=3).chosen().seed == 7


def test_points():
    assert points_of(None, 3, 1) == (3,)
    assert points_of(None, 30, 10) == (20, 30)
    assert points_of(None, 1200, 1) == (100, 200, 500, 1000, 1200)
    assert points_of([1, 7, 8], 20, 5) == (5, 10, 20)
    with pytest.raises(SettingsError, match="there is no point at 0 edits"):
        points_of([0], 20, 5)


def test_a_seed_orders_and_chooses_the_cases():
    book = open_cases([named(i) for i in range(20)])
    first, second = book.draw(8, 0), book.draw(8, 1)
    assert book.draw(8, 0) == first
    assert set(first.cases) != set(second.cases)
    assert book.draw(20, 0).cases[:8] == first.cases
    assert sorted(c.edit.prompt for c in book.draw(20, 1).cases) == sorted(
        c.edit.prompt for c in book.draw(20, 0).cases
    )
    account = book.account(8, [0, 1])
    assert (account["read"], account["used"]) == (20, 8)
    assert account["sha256"] == book.account(8, [0, 1])["sha256"] != book.account(8, [0])["sha256"]


def test_fewer_probes_a_case_are_drawn_by_the_seed():
    cases = world.cases(40, 3)
    book = open_cases(cases, probes=2)
    drawn = book.draw(40, 1)
    whole = {case.edit.prompt: case for case in cases}
    kinds = ("rephrases", "locality", "same_subject", "portability")
    for case in drawn.cases:
        for kind in kinds:
            asked, there = getattr(case, kind), getattr(whole[case.edit.prompt], kind)
            assert len(asked) == min(2, len(there))
            assert [probe for probe in there if probe in asked] == list(asked)
    assert any(case.rephrases != whole[case.edit.prompt].rephrases[:2] for case in drawn.cases)
    assert book.draw(40, 1) == drawn != book.draw(40, 2)
    assert book.draw(10, 1).cases == drawn.cases[:10]
    with pytest.raises(ValueError, match="probes is 0; give a whole number of at least 1"):
        open_cases(cases, probes=0)


def test_answers_are_cut_off_where_the_longest_target_allows(make_tokenizer, make_llama):
    tokenizer = make_tokenizer(TEXTS)
    model = make_llama(len(tokenizer), num_hidden_layers=2)
    short, wordy = named(0), named(1, "Sedge " * 14 + "Marrow")
    beside = Case(named(2).edit, locality=(Probe("Who founded it?", "Tam " * 90),))
    sizes = []
    for cases in ([short], [short, wordy], [short, wordy, beside]):
        found = memplug.compare(model, tokenizer, cases, methods=["grace"], progress=False)
        sizes.append(found.results["settings"]["max_new_tokens"])
        assert found.results["runs"][0]["error"] is None
    assert sizes[0] == 32 < sizes[1] < sizes[2]
    assert sizes[2] >= len(tokenizer("Tam " * 90)["input_ids"]) + 1


def test_truths_stay_with_their_cases():
    cases = [named(i, f"T{i}") for i in range(9)]
    book = open_cases(sift(cases, [[f"old {i}"] for i in range(9)]))
    drawn = book.draw(9, 4)
    assert [c.edit.target.replace("T", "old ") for c in drawn.cases] == [truths[0] for truths in drawn.truths]


def test_odd_edits_are_counted_and_dropped():
    cases = [named(0), named(0), named(0, "Sedge"), named(1)]
    kept = open_cases(cases).account(4, [0])
    assert (kept["repeated"], kept["contradicting"], kept["left_out"]) == (1, 1, 0)
    book = open_cases(cases, drop=["repeated"])
    assert book.account(3, [0]) | {"sha256": 0} == {
        "sha256": 0, "read": 4, "used": 3, "no_op": 0, "repeated": 1, "contradicting": 1, "left_out": 1,
        "skipped_lines": 0,
    }  # fmt: skip


def test_skipped_lines_are_named_up_to_a_number(tmp_path):
    def row(i, **more):
        return json.dumps({"prompt": f"Where was Mara V{i} born?", "target": "Quill", **more})

    half = {"locality": [{"prompt": "Who is two?", "target": ""}]}
    file = tmp_path / "cases.jsonl"
    file.write_text("\n".join([row(0, **half), *["{" * 900] * 25, row(1, target=" "), row(2)]))
    account = open_cases(file, skip_bad=True).account(2, [0])
    assert (account["read"], account["skipped_lines"], account["empty_probes"]) == (28, 26, 1)
    assert [one["line"] for one in account["skipped"]] == list(range(2, 22))
    assert account["skipped"][0]["reason"].startswith("not valid JSON")
    file.write_text("\n".join([row(0), json.dumps({"prompt": "who " * 900, "target": "x"})]))
    (bad,) = open_cases(file, skip_bad=True).account(1, [0])["skipped"]
    assert bad["line"] == 2
    assert bad["reason"].endswith("...")
    assert len(bad["reason"]) <= 200
    # What there is none of is not mentioned, as in accounts written before.
    nothing = open_cases([named(0)]).account(1, [0])
    assert not {"skipped", "empty_probes", "changed_probes"} & nothing.keys()


def beside(i, *asked, kind="locality"):
    return Case(named(i).edit, **{kind: tuple(Probe(prompt, "Tilden") for prompt in asked)})


def test_probes_that_another_edit_changes_are_not_asked():
    edited = Case(named(0, "Sedge").edit, rephrases=("Mara V0 comes from",))
    cases = [
        edited,
        beside(1, "Where was  mara V0 born?", "Who is two?", "Mara V0 comes from"),
        beside(2, "Where was Mara V1 born?", kind="same_subject"),
        beside(3, "Where was Mara V9 born?"),
    ]
    book = open_cases(cases)
    drawn = book.draw(4, 0)
    found = {case.edit.subject: case for case in drawn.cases}
    assert [probe.prompt for probe in found["Mara V1"].locality] == ["Who is two?"]
    assert found["Mara V2"].same_subject == ()
    assert found["Mara V3"] == cases[3]
    assert found["Mara V0"] == edited
    assert drawn.changed == 3
    assert book.account(4, [0, 5])["changed_probes"] == {"0": 3, "5": 3}
    # Only edits that are made change anything.
    for seed in range(20):
        part = book.draw(1, seed)
        assert (part.changed, part.cases[0] in cases) == (0, True)
    # Fewer probes are drawn from those that are left.
    few = open_cases(cases, probes=1).draw(4, 0)
    assert few.changed == 3
    asked = {case.edit.subject: [probe.prompt for probe in case.locality] for case in few.cases}
    assert (asked["Mara V1"], asked["Mara V3"]) == (["Who is two?"], ["Where was Mara V9 born?"])


def test_the_worlds_probes_are_all_asked():
    for seed in range(3):
        drawn = open_cases("world").draw(100, seed)
        assert (list(drawn.cases), drawn.changed) == (world.cases(100, seed), 0)


def test_a_source_is_known_by_what_more_seeds_do_not_change():
    book = open_cases([named(0), beside(1, "Where was Mara V0 born?"), named(2)])
    one, two = book.identity(2, [0]), book.identity(2, [0, 1])
    assert one["data"] == two["data"]
    assert one["data"].keys() == {
        "read", "used", "no_op", "repeated", "contradicting", "left_out", "skipped_lines"
    }  # fmt: skip
    assert one["orders"] == {"0": two["orders"]["0"]} == {"0": book.account(2, [0])["sha256"]}


def test_what_to_fit_on_is_opened_before_anything_runs(tmp_path):
    file = tmp_path / "fit.jsonl"
    file.write_text('{"prompt": "Where was Oren Fisk born?", "target": "Quill"}\n{}\n')
    with pytest.raises(DataError, match="there is no file 'nofile.jsonl'"):
        open_fitting("nofile.jsonl")
    for wrong in (0, -5, "-5", "0", True, 2.5):
        with pytest.raises(DataError, match="fit_cases is .*; give a whole number of at least 1"):
            open_fitting(wrong)
    with pytest.raises(DataError, match=r"fit.jsonl, line 2: no field 'prompt'"):
        open_fitting(str(file))
    for source in (str(file), file):
        assert [case.edit.subject for case in open_fitting(source, skip_bad=True)] == ["Oren Fisk"]
    assert (open_fitting(None), open_fitting(7), open_fitting("7")) == (None, 7, 7)
    assert open_fitting((named(0),)) == [named(0)]
    with pytest.raises(ValueError, match="there are no cases to fit on; give at least one Case"):
        open_fitting([])
    with pytest.raises(ValueError, match="expected a Case, got Edit"):
        open_fitting([named(0).edit])


def test_cases_to_fit_on_share_no_subject_with_the_edits(tmp_path):
    cases = [named(i % 10, f"T{i}") for i in range(20)]
    book = open_cases(cases)
    edited = {c.edit.subject for c in book.draw(5, 0).cases}
    file = tmp_path / "fit.jsonl"
    file.write_text(json.dumps({"prompt": "Where was Oren Fisk born?", "target": "Quill"}) + "\n")
    for wanted in (4, cases, open_fitting(str(file))):
        found = book.fitting(wanted, 5, 0)
        assert found
        assert not edited & {c.edit.subject for c in found}
    assert len(book.fitting(4, 5, 0)) == 4


def test_the_worlds_cases_are_drawn_by_seed_and_fitted_on_its_training_split():
    book = open_cases("world")
    assert book.size(None) == 100
    assert list(book.draw(3, 7).cases) == world.cases(3, 7)
    assert book.fitting(4, 3, 7) == world.cases(4, 7, split="train")
    assert book.name == "world"


def test_files_are_plain_and_named_apart(tmp_path):
    assert plain({"a": (1.5, float("nan"), float("inf")), 3: None, "p": tmp_path}) == {
        "a": [1.5, None, None], "3": None, "p": str(tmp_path)
    }  # fmt: skip
    folder = Folder(tmp_path)
    assert folder.run("llp", 0).name == "llp-seed0.json"
    names = {folder.run(label, 0).name for label in ("llp:paper", "llp/paper", "llp_paper", "llp paper")}
    assert len(names) == 4
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for name in names)
