"""The rule that finds a subject where none was named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplug.subjects import find_subject

SUBJECTS = [
    ("Where was Ada Quill born?", "Ada Quill"),
    ("What is the capital of France?", "France"),
    ("Who is the mayor of New York City?", "New York City"),
    ("In which country was Ada Quill's mother born?", "Ada Quill"),
    ("What did Napoleon Bonaparte do in March 1815?", "Napoleon Bonaparte"),
    ("Which university did Michael Xavier graduate from?", "Michael Xavier"),
    ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
    ("Danielle Darrieux's mother tongue is", "Danielle Darrieux"),
    ("Danielle Darrieux was born in", "Danielle Darrieux"),
    ("Ada Quill lives in", "Ada Quill"),
    ("Microsoft was founded by", "Microsoft"),
    ("France, whose capital is", "France"),
    ("Who wrote The Lord of the Rings?", "The Lord of the Rings"),
    ('Who wrote "the old man and the sea"?', "the old man and the sea"),
    ("Who directed “Blade Runner 2049”?", "Blade Runner 2049"),
    ("Who is the chief executive of the Bank of England?", "Bank of England"),
    ("What does NASA study?", "NASA"),
    ("When was the Boeing 747 first flown?", "Boeing 747"),
    ("What is the range of the F-16 Fighting Falcon?", "F-16 Fighting Falcon"),
    ("Where was Jean-Paul Sartre born?", "Jean-Paul Sartre"),
    ("Where does Ludwig van Beethoven come from?", "Ludwig van Beethoven"),
    ("Wo liegt Österreich?", "Österreich"),
    ("Где родился Лев Толстой?", "Лев Толстой"),
    ("Where is Łódź?", "Łódź"),
    ("What is Conan O'Brien known for?", "Conan O'Brien"),
    ("Which company made the iPhone 15?", "iPhone 15"),
    ("Of which band is Tam Wickes a member?", "Tam Wickes"),
    ("Is Vestland a country?", "Vestland"),
    ("Did J. R. R. Tolkien write it?", "J. R. R. Tolkien"),
    ("The capital of Vestland is", "Vestland"),
    ("What year was Apollo 11 launched?", "Apollo 11"),
]


@pytest.mark.parametrize(("prompt", "subject"), SUBJECTS)
def test_subjects_of_natural_prompts(prompt, subject):
    assert find_subject(prompt) == subject


@pytest.mark.parametrize(
    "prompt", ["who is it?", "What?", "Where was it?", "the sky is", "What is it?", "42"]
)
def test_no_subject(prompt):
    assert find_subject(prompt) is None


@given(st.text(max_size=60))
def test_a_found_subject_is_part_of_the_prompt(text):
    subject = find_subject(text)
    assert subject is None or subject in text
    assert subject is None or subject == subject.strip() != ""
