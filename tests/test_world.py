"""The made-up world, its cases and its skills."""

from __future__ import annotations

import re
import zlib
from collections import Counter

import pytest

from memplug import world
from memplug.world.facts import Fact, facts_of, hop_answer, names, pool
from memplug.world.relations import HOPS, KINDS, RELATIONS

CHECKSUM = 732946441
SEEN, UNSEEN = 0.99, 0.95


# -- facts ---------------------------------------------------------------------------------------------


def test_the_world_is_the_one_the_model_was_trained_on():
    """The shipped model knows exactly these facts: a change of the generator makes it worthless."""
    text = "\n".join("|".join(map(str, fact)) for fact in world.facts())
    assert zlib.crc32(text.encode()) == CHECKSUM


def test_counts():
    facts = world.facts()
    per_subject = Counter(fact.subject for fact in facts)
    assert len(per_subject) >= 1500
    assert len(RELATIONS) >= 10
    assert min(per_subject.values()) >= 4
    assert all(len(relation.phrasings) >= 6 for relation in RELATIONS.values())
    assert len({(fact.subject, fact.relation) for fact in facts}) == len(facts)
    assert {len(name.split()) for name in per_subject} == {1, 2, 3, 4}
    surnames = Counter(name.split()[-1] for name in names("person"))
    assert sum(10 <= count <= 20 for count in surnames.values()) >= 20
    city_fronts = Counter(name.split()[0] for name in names("city") if " " in name)
    assert min(city_fronts.values()) >= 2


def test_every_value_belongs_to_its_relation_and_every_phrasing_names_the_subject_once():
    for fact in world.facts():
        assert fact.target in pool(fact.relation)
    for relation in RELATIONS.values():
        assert all(text.count("{s}") == 1 and text == text.strip() for text in relation.phrasings)
        assert any(text.startswith("{s} ") for text in relation.phrasings)


def test_each_phrasing_is_held_out_for_some_subjects_and_trained_on_others():
    seen, unseen = Counter(), Counter()
    for fact in world.facts():
        assert len(fact.unseen) == 2
        assert sorted((*fact.seen, *fact.unseen)) == list(range(len(RELATIONS[fact.relation].phrasings)))
        assert fact.questions()
        seen.update((fact.relation, i) for i in fact.seen)
        unseen.update((fact.relation, i) for i in fact.unseen)
    phrasings = [(r.name, i) for r in RELATIONS.values() for i in range(len(r.phrasings))]
    assert all(seen[one] > unseen[one] > 0 for one in phrasings)


# -- cases ---------------------------------------------------------------------------------------------


def _asked() -> dict[str, tuple[Fact, int]]:
    return {fact.prompt(i): (fact, i) for fact in world.facts() for i in (*fact.seen, *fact.unseen)}


@pytest.mark.parametrize("split", ["test", "train"])
def test_cases_keep_their_promises(split):
    asked = _asked()
    bystanders = (
        {s for k in KINDS for s in names(k)} - set(world.subjects("test")) - set(world.subjects("train"))
    )
    for case in world.cases(300, seed=1, split=split):
        fact, phrasing = asked[case.edit.prompt]
        assert case.edit.subject == fact.subject
        assert fact.subject in world.subjects(split)
        assert phrasing in fact.seen
        assert case.edit.prompt.endswith("?")
        assert case.edit.target != fact.target
        assert case.edit.target in pool(fact.relation)
        assert case.rephrases[:2] == tuple(fact.prompt(i) for i in fact.unseen)
        assert {asked[text][0] for text in case.rephrases} == {fact}
        assert case.edit.prompt not in case.rephrases
        assert len(case.locality) >= 4
        for probe in case.locality:
            other, seen = asked[probe.prompt]
            assert probe.target == other.target
            assert seen in other.seen
            assert other.subject in bystanders
            assert not set(other.subject.split()) & set(fact.subject.split()) - {
                "The",
                "of",
                "River",
                "Water",
            }
        others = [asked[probe.prompt] for probe in case.same_subject]
        assert {o.relation for o, _ in others} | {fact.relation} == set(facts_of(fact.subject))
        assert len(others) == len(facts_of(fact.subject)) - 1
        assert all(i in o.unseen for o, i in others)
        assert all(p.target == o.target for p, (o, _) in zip(case.same_subject, others, strict=True))
        hops = [hop for hop in HOPS if hop.first == fact.relation]
        assert [p.target for p in case.portability] == [hop_answer(hop, case.edit.target) for hop in hops]
        assert all(
            p.target != hop_answer(h, fact.target) for p, h in zip(case.portability, hops, strict=True)
        )


def test_cases_are_many_distinct_and_repeatable():
    thousand = world.cases(1000)
    assert len({case.edit.subject for case in thousand}) == 1000
    assert len({case.edit.subject for case in world.cases(500, split="train")}) == 500
    assert world.cases(20) == thousand[:20]
    assert world.cases(20, seed=1) != thousand[:20]
    assert not set(world.subjects("test")) & set(world.subjects("train"))
    more = world.cases(2000)
    assert len({(case.edit.subject, *case.rephrases) for case in more}) == 2000


@pytest.mark.parametrize("n", [0, -3, 10**6, 2.5, True])
def test_cases_refuse_a_bad_number(n):
    with pytest.raises(ValueError, match="from 1 to"):
        world.cases(n)


def test_cases_refuse_an_unknown_split():
    with pytest.raises(ValueError, match="'test' or 'train'"):
        world.cases(1, split="dev")


def test_namesakes_share_a_word_and_keep_their_own_answers():
    asked = _asked()
    for subject in world.subjects("test")[:200]:
        found = world.namesakes(subject, relation=next(iter(facts_of(subject))))
        lasts = []
        for probe in found:
            fact, _ = asked[probe.prompt]
            assert fact.subject != subject
            assert fact.target == probe.target
            assert fact.relation == next(iter(facts_of(subject)))
            assert set(fact.subject.split()) & set(subject.split())
            lasts.append(fact.subject.split()[-1] == subject.split()[-1])
        assert lasts == sorted(lasts, reverse=True)
    shared = Counter(name.split()[-1] for name in names("person")).most_common(1)[0][0]
    somebody = next(name for name in names("person") if name.endswith(" " + shared))
    assert len(world.namesakes(somebody)) >= 9


def test_namesakes_refuse_what_is_not_in_the_world():
    with pytest.raises(ValueError, match="not in this world"):
        world.namesakes("Nobody At All")
    with pytest.raises(ValueError, match=r"person\.pet"):
        world.namesakes(names("person")[0], relation="person.shoe")


# -- skills --------------------------------------------------------------------------------------------


def test_skills_have_one_right_answer_each():
    made = world.skills(100, seed=1)
    assert made == world.skills(100, seed=1) != world.skills(100, seed=2)
    assert len(made) >= 5
    for probe in made["addition"]:
        a, b = map(int, re.findall(r"\d+", probe.prompt))
        assert int(probe.target) == a + b
    for probe in made["ordering"]:
        given = re.findall(r"\d+", probe.prompt)
        assert probe.target.split() == sorted(given, key=int)
    for probe in made["agreement"]:
        assert probe.target == ("are" if probe.prompt.split()[4].endswith("s") else "is")
    assert all(len(set(probes)) == 100 for probes in made.values())
    with pytest.raises(ValueError, match="between 1 and 120"):
        world.skills(0)
