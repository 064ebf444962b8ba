"""Sampled contexts and statements: which are kept, and that a text's draws are its own."""

from __future__ import annotations

import pytest
import torch
from families import TEXTS, build

from memplug import contexts
from memplug.contexts import Question, Sampled, _spread, sample_about, sample_prefixes
from memplug.text import Text

ADA = Question("Ada Quill", "Where was Ada Quill born?", "Zarnow")
ORLO = Question("Orlo", "Who founded Orlo?", "Tam")


@pytest.fixture(scope="module")
def text(make_tokenizer):
    """A random model that says whole words only."""
    tokenizer = make_tokenizer(TEXTS)
    model = build("llama", vocab_size=len(tokenizer))
    words = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    worded = torch.tensor([word[:1] == " " and word[1:].isalpha() and len(word) > 3 for word in words])
    bias = torch.zeros(len(tokenizer)).masked_fill(~worded, -1e4)
    model.lm_head.register_parameter("bias", torch.nn.Parameter(bias))
    return Text(model, tokenizer)


class Scripted:
    """Stands for a model whose continuations are known."""

    bos_id, eos_ids, pad_id = None, [7], 0

    def __init__(self, **continuations):
        self.continuations, self.batches = continuations, []

    def encode(self, text):
        return [text]

    def generate(self, starts, tokens, choose):
        self.batches.append([start[0] for start in starts])
        return [[self.continuations.get(start[0].split()[0], "")] for start in starts]

    def decode(self, ids):
        return " ".join(ids).strip()


def statements(continuation, count=9, **given):
    (found,) = sample_about(Scripted(Ada=continuation), [ADA], count, 0, 8, 5, 0, **given)
    return found.statements


def restatements(continuation, count=9):
    (found,) = sample_about(Scripted(Ada=continuation), [ADA], 9, count, 8, 5, 0)
    return found.restatements


def test_prefixes_are_different_and_drawn_from_the_start_of_a_text(text):
    found = sample_prefixes(text, 4, 6, 5, 0)
    assert 1 < len(found) == len(set(found)) <= 4
    assert found == sample_prefixes(text, 4, 6, 5, 0) != sample_prefixes(text, 4, 6, 5, 1)
    assert sample_prefixes(text, 2, 6, 5, 0) == found[:2]  # one more does not change the others
    assert sample_prefixes(text, 0, 6, 5, 0) == []


def test_a_model_without_a_bos_starts_from_its_stop_token():
    seen = []

    class Start(Scripted):
        model = torch.nn.Linear(2, 2)  # a small one: nothing is kept

        def generate(self, starts, tokens, choose):
            seen.extend(starts)
            assert tokens == 3
            return [["a\n\nb"]] * len(starts)

    assert sample_prefixes(Start(), 2, 3, 5, 0) == ["a b"]  # the same twice counts once
    assert seen == [[7], [7]]


def test_statements_are_the_sentences_that_name_the_subject_and_leave_the_answer_out():
    found = statements(
        "paints. She lives in Marrow. Ada Quill has a sister! Ada Quill comes from Zarnow. "
        "Where was Ada Quill born? Long ago. Who taught Ada Quill? Tam did.\nAda Quill sings."
    )
    assert sorted(found) == [
        "Ada Quill has a sister!",
        "Ada Quill paints.",
        "Ada Quill sings.",
        "Who taught Ada Quill? Tam did.",  # a question keeps what follows
    ]


def test_the_answer_is_looked_for_as_a_word():
    assert statements("loves Zarnowian tea.") == ["Ada Quill loves Zarnowian tea."]
    assert statements("loves zarnow.") == []


def test_sentences_that_give_the_answer_restate_the_question_up_to_it():
    found = restatements(
        "comes from Zarnow. Zarnow is where Ada Quill grew up. Who is Ada Quill? A child of Zarnow. "
        "Ada Quill paints. Where was Ada Quill born? Zarnow."
    )
    assert sorted(found) == ["Ada Quill comes from", "Who is Ada Quill? A child of"]
    assert restatements("Zarnow.") == []  # the bare subject asks nothing
    assert len(restatements("comes from Zarnow. Ada Quill left Zarnow.", 1)) == 1
    assert restatements("comes from Zarnow.", 0) == []


def test_names_alone_say_nothing():
    assert statements("Tam Wickes, Orlo Bridge.") == []
    assert statements("met Tam Wickes, Orlo Bridge.") == ["Ada Quill met Tam Wickes, Orlo Bridge."]


def test_of_many_those_that_share_the_fewest_words_are_taken():
    pieces = ["Ada sings old songs.", "Ada sings new songs.", "Ada lives in Marrow.", "Ada sings songs."]
    assert _spread(pieces, 2, "Ada") == ["Ada sings old songs.", "Ada lives in Marrow."]
    assert _spread(pieces, 9, "Ada")[:2] == _spread(pieces, 2, "Ada")
    assert sorted(_spread(pieces, 9, "Ada")) == sorted(pieces)


def test_as_many_statements_as_asked_for():
    many = " ".join(f"Ada Quill likes {word}." for word in "tea jam fog rye ink oak".split())  # noqa: SIM905
    assert len(statements(many, 3)) == 3
    assert len(statements(many, 6)) == 6


def test_openings_are_the_subject_and_the_answered_question_sorted_by_length():
    scripted = Scripted(Ada="paints.", Orlo="is old.", Where="")
    found = sample_about(scripted, [ADA, ORLO], 2, 0, 8, 5, 0, batch_size=3)
    assert found == [Sampled(["Ada Quill paints."], []), Sampled(["Orlo is old."], [])]
    assert [len(batch) for batch in scripted.batches] == [3, 3, 2]
    openings = [opening for batch in scripted.batches for opening in batch]
    assert openings == sorted(openings, key=len)
    assert set(openings) == {
        "Ada Quill",
        "Orlo",
        "Where was Ada Quill born? Zarnow.",
        "Who founded Orlo? Tam.",
    }


def test_what_is_sampled_for_one_question_does_not_depend_on_the_others(text):
    ada = ADA._replace(answer="Oslo")
    together = sample_about(text, [ada, ORLO], 3, 2, 12, 20, 0)
    assert sample_about(text, [ORLO], 3, 2, 12, 20, 0) == together[1:]
    assert sample_about(text, [ada, ORLO], 3, 2, 12, 20, 0, batch_size=5) == together
    assert len(together[0].statements) > 1
    assert sample_about(text, [ada], 3, 2, 12, 20, 1) != together[:1]


def test_what_a_large_model_says_is_kept_for_it_alone(text, make_tokenizer, tmp_path, monkeypatch):
    """Sampling thousands of tokens takes a real model minutes; another model has another file."""
    plain = sample_prefixes(text, 3, 6, 5, 0)
    monkeypatch.setenv("MEMPLUG_CACHE", str(tmp_path))
    monkeypatch.setattr(contexts, "is_large", lambda model: True)
    assert sample_prefixes(text, 3, 6, 5, 0) == plain
    (file,) = (tmp_path / "samples").iterdir()
    other = Text(build("llama", seed=1, vocab_size=len(text.tokenizer)), text.tokenizer)
    sample_prefixes(other, 3, 6, 5, 0)
    assert len(list((tmp_path / "samples").iterdir())) == 2
    monkeypatch.setattr(Text, "generate", lambda *given, **more: pytest.fail("sampled again"))
    assert sample_prefixes(text, 3, 6, 5, 0) == plain
    monkeypatch.undo()
    monkeypatch.setenv("MEMPLUG_CACHE", str(tmp_path))
    monkeypatch.setattr(contexts, "is_large", lambda model: True)
    file.write_text("[1")
    assert sample_prefixes(text, 3, 6, 5, 0) == plain
