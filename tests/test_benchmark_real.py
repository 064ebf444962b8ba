"""The benchmark on a real model: its facts are well formed, and texts are judged as it says."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.real import judging, measure
from benchmarks.real.asking import chat, plain
from benchmarks.real.facts import in_conversation, own
from benchmarks.real.probes import Probe

# ---------------------------------------------------------------- the facts


def prompts_about(fact):
    return [fact.prompt, *fact.rephrases, *(known.prompt for known in fact.others), *fact.mentions]


def test_there_are_enough_facts_each_with_everything_that_is_asked():
    facts = own()
    assert len({fact.id for fact in facts}) == len(facts) == 36
    assert Counter(fact.kind for fact in facts)["capital"] == 8
    for fact in facts:
        counts = len(fact.rephrases), len(fact.others), len(fact.neighbours), len(fact.mentions)
        assert counts == (3, 3, 2, 6), fact.id
        assert len(in_conversation(fact)) == 3
        assert fact.question.endswith("?")
        assert fact.edit.subject == fact.subject
    assert sum(len(fact.mentions) for fact in facts) >= 200
    assert sum(fact.prompt.startswith(fact.subject) for fact in facts) >= 5
    assert sum(fact.prompt.endswith("?") for fact in facts) >= 5


def test_constants_are_chosen_on_other_facts():
    mine, theirs = own("tuning"), own()
    assert len({fact.id for fact in mine}) == len(mine) == 16
    assert not {fact.subject for fact in mine} & {fact.subject for fact in theirs}
    assert not {fact.prompt for fact in mine} & {p for fact in theirs for p in prompts_about(fact)}


def test_every_prompt_names_its_subject_and_no_other_edited_one():
    facts = own()
    for fact in facts:
        for prompt in prompts_about(fact):
            assert judging.first(prompt, fact.subject), prompt
        for prompt in (*prompts_about(fact), *(known.prompt for known in fact.neighbours)):
            for other in facts:
                assert other is fact or not judging.first(prompt, other.subject), (prompt, other.id)
        assert not any(judging.first(known.prompt, fact.subject) for known in fact.neighbours)


def test_targets_are_false_and_no_prompt_gives_an_answer_away():
    for fact in own():
        assert not judging.contains(fact.target, fact.truth), fact.id
        assert not any(judging.first(answer, fact.target) for answer in fact.truth), fact.id
        assert not any(judging.contains(p, (fact.target, *fact.truth)) for p in prompts_about(fact)), fact.id
        for known in (*fact.others, *fact.neighbours):
            assert known.answers
            assert not judging.contains(known.prompt, known.answers), known.prompt


def test_no_prompt_is_there_twice():
    texts = [p for f in own() for p in (*prompts_about(f), *(known.prompt for known in f.neighbours))]
    assert not [text for text, n in Counter(text.casefold() for text in texts).items() if n > 1]


def test_mentions_are_statements_to_continue_and_requests():
    for fact in own():
        assert 2 <= sum(text[-1] in ".?!" for text in fact.mentions) <= 4, fact.id


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("text", "target", "old", "expected"),
    [
        ("Lyon.", "Lyon", ["Paris"], True),
        ("the city of lyon, not Paris", "Lyon", ["Paris"], True),
        ("Paris, though some say Lyon", "Lyon", ["Paris"], False),
        ("Lyonnais cuisine", "Lyon", ["Paris"], False),
        ("New York", "New York", ["York"], True),
        ("York or New York", "New York", ["York"], False),
        ("Larry\n Page", "Larry Page", ["Gates"], True),
        ("U.S. of course", "U.S.", [], True),
        ("", "Lyon", ["Paris"], False),
    ],
)
def test_right_is_the_target_as_whole_words_before_any_old_answer(text, target, old, expected):
    assert judging.right(text, target, old) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris.", True),
        (" the Paris of", True),
        ("\n\nParis", True),
        ("located in Paris", False),
        ("Parisian", False),
        ("", False),
        ("Theparis", False),
    ],
)
def test_an_answer_at_once_may_have_an_article_or_marks_before_it(text, expected):
    assert judging.answers_at_once(text, ["Rome", "Paris"]) is expected


def test_distinct_counts_words_digits_and_marks():
    assert judging.distinct("a b c d e f g h") == 1
    assert judging.distinct("is is is is is is is is") == 1 / 8
    assert judging.distinct("10000000000000") == 2 / 14
    assert judging.distinct("Osaka, Osaka, Osaka, Osaka,") == 2 / 8
    assert judging.distinct("is is is") == 1, "too short to say"


def test_limits_follow_from_the_base_models_texts():
    fluent = ["one two three four five six seven eight"] * 99
    limit = judging.limits([*fluent, "no " * 9], [2.0] * 99 + [9.0])
    assert limit == judging.Limits(judging.REPETITIVE, 2.0 * judging.FAR)
    assert judging.is_broken("so " * 20, 2.0, limit)
    assert judging.is_broken(fluent[0], 2.0 * judging.FAR + 0.1, limit)
    assert not judging.is_broken(fluent[0], 2.0 * judging.FAR, limit)
    loops = judging.limits(["so " * 20] * 100, [1.0] * 100)
    assert not judging.is_broken("so " * 20, 1.0, loops), "no worse than the base model's own"


def test_verdicts_look_at_what_the_base_model_said():
    def said(text):
        return measure.Said(tuple(text.encode()), text, text[:24], 2.0)

    limit = judging.Limits(0.3, 10.0)
    good, bad = "He wore the hat at all times and smiled", "is " * 20
    passing = Probe("passing mentions", "chat", "f 0", chat("x"), "Lyon")
    found = dict(measure.verdicts(passing, said(f"Lyon {bad}"), said(good), limit))
    assert found == {"same": False, "broken": True, "blurts": True}
    found = dict(measure.verdicts(passing, said(good), said(f"Lyon {bad}"), limit))
    assert found == {"same": False}, "what the base model breaks or says itself does not count"
    kept = Probe("other facts", "plain", "f 0", plain("x"), "Lyon", ("euro",))
    assert dict(measure.verdicts(kept, said("gold"), said("the euro"), limit)) == {"kept": False}
    assert dict(measure.verdicts(kept, said("gold"), said("the franc"), limit)) == {}
    asked = Probe("rephrased", "plain", "f 0", plain("x"), "Lyon", ("Paris",))
    assert dict(measure.verdicts(asked, said("Paris"), said(""), limit)) == {"right": False, "old": True}
