"""Lessons that follow from how like an edit's question is to the neutral ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from families import lexical

from memplug.edits import Edit, EditError
from memplug.methods.llp import LLPConfig
from memplug.retrieval.calibration import Calibration
from memplug.retrieval.lessons import further_lessons
from memplug.retrieval.questions import Metric, Question
from memplug.retrieval.relations import wordings
from memplug.text.tokens import Text

CONFIG = LLPConfig(think_layers=(0, 1), recall_layer=2, n_fronts=1).resolve(4)


def asked_like(likeness):
    """A question in plain text, and a calibration in which it is so like the question for a capital."""
    known = wordings()
    labels = [*dict.fromkeys((one.kind, one.relation) for one in known)]
    numbers = torch.tensor([labels.index((one.kind, one.relation)) for one in known])
    neutral = F.one_hot(numbers, len(labels)).float()[None]
    vector = likeness * neutral[0, next(i for i, one in enumerate(known) if one.relation == "capital")]
    none = torch.zeros(0)
    blank = Metric(none, none, none, none)
    made = Calibration((1,), none, none, none, none, 0.5, 0.5, blank, (0.3, 0.3), 0.5, neutral, numbers)
    return (Question(vector, False),), made


@pytest.mark.parametrize(
    ("prompt", "subject", "cut"),
    [
        ("The capital of France is", "France", ["The capital of France"]),
        ("Who wrote Hamlet?", "Hamlet", ["Who wrote Hamlet"]),
        ("He comes from France", "France", []),
        ("The largest city of New York is ", "New York", ["The largest city of New York"]),
    ],
)
def test_a_question_that_is_not_finished_is_among_what_stays(tokenizer, prompt, subject, cut):
    text = Text(lexical("llama", len(tokenizer)), tokenizer)
    edit = Edit(prompt, "Lyon", subject)
    none = replace(CONFIG, n_others=0, n_mentions=0)
    lines = [one.line.ids for one in further_lessons(text, none, edit, *asked_like(0.0)) if not one.asks]
    assert lines == [tuple(text.encode(one)) for one in cut]


def test_a_neutral_question_that_asks_the_same_is_taught_in_its_other_words(tokenizer):
    """In plain text; as many statements as questions, and none of those may be among what stays."""
    text = Text(lexical("llama", len(tokenizer)), tokenizer)
    edit = Edit("The capital of France is", "Lyon", "France")
    config = replace(CONFIG, n_rewordings=4, n_others=200, n_mentions=0)
    known = wordings()
    lessons = further_lessons(text, config, edit, *asked_like(0.9))
    said = [text.tokenizer.decode(one.line.ids, skip_special_tokens=True) for one in lessons if one.asks]
    own = [one.about("France") for one in known if one.relation == "capital"]
    assert len(said) == 3  # of four, one is the edit's own
    assert sum("?" in one for one in said) == 2
    assert all(one.answer == lessons[0].answer != () for one in lessons if one.asks)
    stay = [tuple(one.line.ids) for one in lessons if not one.asks]
    assert len(stay) == len({(one.kind, one.relation) for one in known}) - 1 + 1  # and what is not finished
    assert not {tuple(text.encode(one)) for one in own} & set(stay)
    unlike = further_lessons(text, config, edit, *asked_like(0.2))
    assert [one.line.ids for one in unlike if one.asks] == [
        tuple(text.pair("The capital of France is what?", "Lyon").ids)
    ]


def test_a_calibration_by_other_neutral_questions_takes_no_further_edits(tokenizer):
    text = Text(lexical("llama", len(tokenizer)), tokenizer)
    asked, made = asked_like(0.9)
    fewer = replace(made, neutral=made.neutral[:, :-1], labels=made.labels[:-1])
    with pytest.raises(EditError, match=r"calibrated with \d+ neutral questions, and this memplug has \d+"):
        further_lessons(text, CONFIG, Edit("The capital of France is", "Lyon", "France"), asked, fewer)
