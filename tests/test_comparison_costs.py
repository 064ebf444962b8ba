"""What a run costs, and what is kept of a run when a part of its judging fails."""

from __future__ import annotations

import pytest
import torch
import toy
from comparing import CASES, NAMES, SETTINGS, figures

import memplug
from memplug.comparison import run, runner
from memplug.comparison.context import RunContext
from memplug.comparison.cost import neutral, overhead
from memplug.comparison.decisions import recalled
from memplug.comparison.model_state import hooks_of
from memplug.edits import Case, Edit, Probe
from memplug.methods.elder import explain as elder
from memplug.methods.icl import explain as icl
from memplug.methods.lora import seen as lora
from memplug.methods.prompt_end import Nearest
from memplug.retrieval import explanation as llp
from memplug.text.tokens import TokenizerError

pytestmark = pytest.mark.usefixtures("quick")


def test_forwards_are_timed_on_texts_that_name_no_edited_subject():
    named = Case(
        CASES[0].edit, locality=(Probe(f"Who taught {NAMES[1].upper()}?", "Ada"), Probe("Who?", "No"))
    )
    texts = neutral([named, *CASES[1:]])
    assert "Who? No." in texts
    assert len(texts) > 8
    assert not any(name.casefold() in text.casefold() for name in NAMES for text in texts)
    bare = neutral(
        [Case(Edit("Where was Tam Rain born?", "Zarnow"))]
    )  # no unrelated prompts, no subject told
    assert len(bare) == 8
    assert not any("Tam" in text for text in bare)
    # without the sentence that names an edit
    assert len(neutral([Case(Edit("What is the harbour?", "Zarnow", "harbour"))])) == 7


def near(prompt, deferred):
    edits = (CASES[0].edit,)
    return Nearest(prompt, () if deferred else edits, "", edits, 0.5, 1.0)


@pytest.mark.parametrize("word", ["afternoon", "nowhere to be found"])
def test_whether_something_was_recalled_in_the_timed_text_is_noted(loaded, monkeypatch, word):
    """By a method that answers where a text has this word."""
    monkeypatch.setattr(toy.Toy, "explain", lambda self, prompt: near(prompt, word not in prompt))
    cases = [Case(one.edit) for one in CASES]
    monkeypatch.setattr(
        run, "overhead", lambda *given: overhead(*given, turns=1, steps=2, seconds=0, tokens=200)
    )
    (made,) = memplug.compare(*loaded, cases, methods=["toy"], **SETTINGS).results["runs"]
    assert made["cost"]["forward"]["recalled"] is (word == "afternoon")
    told = [text for text in made["warnings"] if "was recalled in the text" in text]
    assert len(told) == (word == "afternoon")


def test_recalled_is_read_off_every_kind_of_explanation():
    edits = (CASES[0].edit,)
    subject = llp.Candidate("Ada Quill", edits, 2, 0.9, (), torch.zeros(0), 0.7)
    nothing, something = (llp.Explanation("p", (), 1, 0.8, found, None, "") for found in (None, subject))
    assert [recalled(nothing), recalled(something)] == [(), edits]
    answered = (elder.Answered(**vars(one), uses=()) for one in (nothing, something))
    assert [recalled(one) for one in answered] == [(), edits]
    assert [recalled(near("p", deferred)) for deferred in (True, False)] == [(), edits]
    assert [recalled(icl.Explanation(nothing, its, "")) for its in ((), edits)] == [(), edits]
    assert recalled(lora.Explanation("p", "", "", ())) is None


def test_memory_of_a_forward_is_measured_with_and_without_the_method(loaded):
    """A method that takes 64 MB while the model runs takes that much more than the bare model."""
    model, tokenizer = loaded
    before = hooks_of(model)

    def greedy(_module, _args, _output):
        torch.zeros(16 << 20).add_(1)

    hook = model.model.layers[0].register_forward_hook(greedy)
    try:
        found = overhead(model, tokenizer, ["Who taught?"], before, turns=1, steps=2, seconds=0)
    finally:
        hook.remove()
    assert found.edited.host - found.bare.host > 40e6
    made = found.to_dict()["forward"]
    assert made["peak_host_bytes"] == found.edited.host
    assert made["bare_peak_host_bytes"] == found.bare.host
    assert made["peak_device_bytes"] is None
    assert found.text.startswith("Who taught?")


@pytest.mark.parametrize("part", ["overhead", "preferences", "details", "general_scores"])
def test_a_part_of_the_judging_that_fails_is_left_out(loaded, monkeypatch, part, tmp_path):
    """The scores stay."""

    def failing(*_given, **_more):
        raise RuntimeError("out of\nmemory")

    asked = {"methods": ["toy"], **SETTINGS}
    expected = figures(memplug.compare(*loaded, CASES, **asked))["runs"][0]
    with monkeypatch.context() as patch:
        patch.setattr(run, part, failing)
        made = memplug.compare(*loaded, CASES, **asked)
    (one,) = made.results["runs"]
    assert one["status"] == "done"
    name = {"general_scores": "general abilities"}.get(part, part)
    assert f"{name} left out: RuntimeError: out of memory" in one["warnings"]
    assert one["final"] == expected["final"]
    assert one["answers"] == expected["answers"]
    assert (one["cost"]["forward"] is None) == (part == "overhead")
    assert (one["preference"] is None) == (part == "preferences")
    made.table()
    made.to_html(tmp_path / "report.html")
    made.to_markdown(tmp_path / "report.md")


def test_a_full_disk_is_no_part_to_be_left_out(loaded, monkeypatch):
    def failing(*_given, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "details", failing)
    with pytest.raises(OSError, match="No space left"):
        memplug.compare(*loaded, CASES, methods=["toy"], **SETTINGS)


def test_pairs_too_long_for_the_context_are_left_out_of_the_preferences_and_counted(loaded):
    """A rephrasing that has room for the new answer, but not for the old one."""
    model, tokenizer = loaded
    room, old = model.config.max_position_embeddings, "Orlo Bridge and then very much more of it"
    prompts = [f"Who taught{' Tam' * n}" for n in range(400)]
    long = [p for p in prompts if len(tokenizer(f"{p} {CASES[0].edit.target}").input_ids) <= room - 8][-1]
    first = Case(CASES[0].edit, rephrases=(long,), locality=CASES[0].locality)
    drawn = runner.open_cases([first, *CASES[1:]]).draw(6, seed=0)
    truths = tuple((old,) if case.edit == first.edit else () for case in drawn.cases)
    drawn = type(drawn)(drawn.cases, truths)
    made = memplug.evaluation.refer(model, tokenizer, drawn.cases, everything=True, max_new_tokens=6)
    settings = type("Settings", (), {"batch_size": 3, "level": 0.95})()
    found = run.preferences(RunContext(model, tokenizer, settings, None, None, drawn=drawn, reference=made))
    assert found["too_long"] == 1
    assert found["before"]["data"] == 1


def test_a_text_that_became_too_long_says_nothing_about_recall(loaded, monkeypatch):
    """Decoded text can take more tokens than it was decoded from."""

    def explain(self, text):
        if text not in {case.edit.prompt for case in CASES}:
            raise TokenizerError("too long")

    monkeypatch.setattr(toy.Toy, "explain", explain)
    (made,) = memplug.compare(*loaded, CASES, methods=["toy"], **SETTINGS).results["runs"]
    assert made["cost"]["forward"]["recalled"] is None
    assert made["cost"]["forward"]["ratio"] > 0
