"""Where a text names a subject: word boundaries, Unicode, apostrophes, letter case, articles."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplug.text.names import inside, names, place_of, writings

NFD = unicodedata.normalize("NFD", "São Tomé")

NAMED = [
    ("The capital of Niger is", "Niger", "Niger"),
    ("Is Nigeria larger than Niger?", "Niger", "Niger"),
    ("France's capital is", "France", "France"),
    ("France’s capital is", "France", "France"),
    ("Quelle est la capitale de l'Espagne ?", "Espagne", "Espagne"),
    ("Quelle est la capitale de l’Espagne ?", "l'Espagne", "l’Espagne"),
    ("Who directed Schindler’s List?", "Schindler's List", "Schindler’s List"),
    ("Who wrote The Hitchhiker's Guide?", "The Hitchhiker’s Guide", "The Hitchhiker's Guide"),
    (f"What is the capital of {NFD}?", "São Tomé", NFD),
    ("What is the capital of São Tomé?", NFD, "São Tomé"),
    ("Tell us who leads the US.", "US", "US"),
    ("who wrote hamlet?", "Hamlet", "hamlet"),
    ("WHO LEADS THE BANK OF ENGLAND?", "the Bank of England", "THE BANK OF ENGLAND"),
    ("Which Beatles album came first?", "The Beatles", "Beatles"),
    ("Who founded McDonald's?", "McDonald's", "McDonald's"),
    ("The capital of France is", "France's", "France"),
    ("What is the boiling point of H₂O?", "H2O", "H₂O"),
    ("Where was Jean–Paul Sartre born?", "Jean-Paul Sartre", "Jean–Paul Sartre"),
    ("Who runs New\u00a0York?", "New York", "New\u00a0York"),
    ("Who runs New\n York?", "New York", "New\n York"),
    ("Where is Straße?", "STRASSE", "Straße"),
    ("**France**", "France", "France"),
    ("(France)", "France", "France"),
    ("_France_", "France", "France"),
    ("法国的首都是哪里？", "法国", "法国"),
    ("フランスの首都は", "フランス", "フランス"),
    ("프랑스의 수도는", "프랑스", "프랑스"),
    ("Who made the iPhoneは?", "iPhone", "iPhone"),
]


@pytest.mark.parametrize(("text", "name", "found"), NAMED)
def test_names_that_stand_in_a_text(text, name, found):
    place = place_of(text, name)
    assert text[place.begin : place.end] == found
    assert names(text, found)


@pytest.mark.parametrize(
    ("text", "name", "word"),
    [
        ("What is the capital of Nigeria?", "Niger", "Nigeria"),
        ("What is the capital of nigeria?", "Niger", "nigeria"),
        ("Who flew on Apollo 11?", "Apollo 1", "11"),
        ("Was ist die Hauptstadt von Österreichs Nachbar?", "Österreich", "Österreichs"),
        ("インドの首都は", "イン", "インド"),
        ("Where is Paris?", "London", None),
        ("Where is Paris?", "", None),
    ],
)
def test_a_name_inside_of_a_word_does_not_stand_there(text, name, word):
    assert place_of(text, name) is None
    if name != "Apollo 1":
        assert inside(text, name) == word


def test_a_mark_belongs_to_its_letter():
    assert place_of(unicodedata.normalize("NFD", "The Café is"), "Cafe") is None
    assert place_of(unicodedata.normalize("NFD", "各가나다"), "가나다") is not None


def test_the_first_place_from_a_start_on():
    text = "Niger. Nigeria. Niger."
    assert place_of(text, "Niger") == (0, 5)
    assert place_of(text, "Niger", 1) == (16, 21)
    assert place_of(text, "niger", 1) == (16, 21)


def test_ways_to_write_a_name():
    found = writings("Renée's iPad")
    assert all(text[begin:end] in text and end == len(text) for text, begin, end in found)
    written = {text[begin:] for text, begin, _ in found}
    assert {"Renée's iPad", "Renée’s iPad", unicodedata.normalize("NFD", "Renée's iPad")} == written
    assert {text[:begin][-1:] for text, begin, _ in found} >= {"", *' "(\n\t*-\u00a0'}
    assert {text[begin:] for text, begin, _ in writings("iPad")} == {"iPad", "IPad"}
    assert len({one.text for one in found}) == len(found)


@given(st.text(max_size=30), st.text(max_size=5))
def test_any_text_is_looked_at(text, name):
    place = place_of(text, name)
    assert place is None or 0 <= place.begin < place.end <= len(text)
    inside(text, name)
