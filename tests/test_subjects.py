"""The rule that finds a subject where none was named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplug.edits import Edit, EditError
from memplug.subjects.find import candidates, find_subject

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


PLAIN = [
    # English
    ("The capital of France is", "France"),
    ("Who wrote Hamlet?", "Hamlet"),
    ("What is the mother tongue of Danielle Darrieux?", "Danielle Darrieux"),
    ("Who is the CEO of iPhone?", "iPhone"),
    ("The CEO of Apple is", "Apple"),
    ("What is the GDP of France?", "France"),
    ("Who is Apple's CEO?", "Apple"),
    ("Who is the President of France?", "France"),
    ("Capital of France:", "France"),
    ('Complete: "The capital of France is"', "France"),
    ("Name the capital of the United States.", "United States"),
    ("Q: What is the capital of France?\nA:", "France"),
    ("Ada Quill is a painter. Where was Ada Quill born?", "Ada Quill"),
    ("Was Albert Einstein German?", "Albert Einstein"),
    ("What is the capital of the U.S.?", "U.S."),
    ("When was AT&T founded?", "AT&T"),
    ("Where is the headquarters of Procter & Gamble?", "Procter & Gamble"),
    ("Ludwig van Beethoven was born in", "Ludwig van Beethoven"),
    ("The University of Oxford was founded in", "University of Oxford"),
    ("Who wrote Mrs. Dalloway?", "Mrs. Dalloway"),
    # titles
    ("Who wrote The Hitchhiker's Guide to the Galaxy?", "The Hitchhiker's Guide to the Galaxy"),
    ("Who wrote The Hitchhiker’s Guide to the Galaxy?", "The Hitchhiker’s Guide to the Galaxy"),
    ("Who directed Schindler's List?", "Schindler's List"),
    ("Who wrote 'The Hitchhiker's Guide to the Galaxy'?", "The Hitchhiker's Guide to the Galaxy"),
    ('Who wrote "Gone with the Wind"?', "Gone with the Wind"),
    ("Who wrote Fahrenheit 451?", "Fahrenheit 451"),
    ("Who wrote «les fleurs du mal»?", "les fleurs du mal"),
    # possessives
    ("France's capital is", "France"),
    ("France’s capital is", "France"),
    ("What is France's capital?", "France"),
    ("Who was the Beatles' drummer?", "Beatles"),
    ("Who founded McDonald's?", "McDonald's"),
    ("McDonald's was founded by", "McDonald's"),
    ("What's the capital of Peru?", "Peru"),
    # numbers, formulas
    ("What is the boiling point of H2O?", "H2O"),
    ("What is the half-life of C-14?", "C-14"),
    ("Who led France in May 1968?", "France"),
    ("Who created C++?", "C++"),
    # German
    ("Was ist die Hauptstadt von Frankreich?", "Frankreich"),
    ("Die Hauptstadt von Frankreich ist", "Frankreich"),
    ("In welchem Land liegt Wien?", "Wien"),
    ("Wann wurde Albert Einstein geboren?", "Albert Einstein"),
    ("Wo wurde Thomas Mann geboren?", "Thomas Mann"),
    ("Wer schrieb Die Verwandlung?", "Die Verwandlung"),
    ("Wer ist der Präsident der Vereinigten Staaten?", "Vereinigten Staaten"),
    # French
    ("Quelle est la capitale de la France ?", "France"),
    ("Quelle est la capitale de l'Espagne ?", "Espagne"),
    ("Quelle est la capitale de l’Espagne ?", "Espagne"),
    ("La capitale de la Côte d'Ivoire est", "Côte d'Ivoire"),
    ("Où est née Jeanne d'Arc ?", "Jeanne d'Arc"),
    ("Qui a écrit Les Misérables ?", "Les Misérables"),
    ("Quelle est la langue maternelle de Danielle Darrieux ?", "Danielle Darrieux"),
    ("Qui est le roi d'Espagne ?", "Espagne"),
    # Spanish
    ("¿Cuál es la capital de Francia?", "Francia"),
    ("¿Quién escribió Don Quijote de la Mancha?", "Don Quijote de la Mancha"),
    ("¿Dónde nació Pablo Picasso?", "Pablo Picasso"),
    ("La moneda del Perú es", "Perú"),
    # Italian
    ("Qual è la capitale d'Italia?", "Italia"),
    ("Il presidente dell'Italia è", "Italia"),
    ("Chi ha scritto La Divina Commedia?", "La Divina Commedia"),
    # Chinese, Japanese
    ("《红楼梦》的作者是谁？", "红楼梦"),
    ("『吾輩は猫である』の作者は誰ですか。", "吾輩は猫である"),
]

ASKED = [
    # English
    ("Who wrote hamlet?", ("hamlet",)),
    ("Did Tolkien teach at Oxford?", ("Tolkien", "Oxford")),
    ("Danielle lives in France", ("Danielle", "France")),
    ("What is spoken in Paris, France?", ("Paris, France", "Paris", "France")),
    ("What is the border between France and Germany?", ("France and Germany", "France", "Germany")),
    ('In what year did Orson Welles direct "Citizen Kane"?', ("Citizen Kane", "Orson Welles")),
    ("WHAT IS THE CAPITAL OF FRANCE?", ("FRANCE",)),
    ("What Is The Capital Of France?", ("France",)),
    ("Who is the Prince of Wales?", ("Prince of Wales", "Wales")),
    ("What is the French capital?", ("French",)),
    ("Who is the President?", ("President",)),
    # titles
    ("Who directed The Good, the Bad and the Ugly?", ("The Good, the Bad and the Ugly",)),
    ("Who wrote Gone with the Wind?", ("Gone with the Wind",)),
    ("Who wrote Crime and Punishment?", ("Crime and Punishment",)),
    ("Wann schrieb Goethe Faust?", ("Goethe", "Faust")),
    ("Wann hat Goethe Faust geschrieben?", ("Goethe", "Faust")),
    ("Who wrote The old man and the sea?", ("The old man and the sea",)),
    ("Who directed 12 Angry Men?", ("12 Angry Men", "Angry Men")),
    ("Who directed 2001: A Space Odyssey?", ("2001: A Space Odyssey", "A Space Odyssey")),
    ("Who directed Mission: Impossible?", ("Mission: Impossible",)),
    ("What We Do in the Shadows was directed by", ("What We Do in the Shadows",)),
    ("Who won the 1998 World Cup?", ("1998 World Cup", "World Cup")),
    # possessives
    ("Where is Germany's Black Forest?", ("Germany's Black Forest", "Germany", "Black Forest")),
    # numbers, formulas
    ("Who wrote 1984?", ("1984",)),
    ("What is 2 + 2?", ("2 + 2",)),
    ("Who derived E = mc²?", ("E = mc²",)),
    ("What is vitamin C?", ("vitamin C", "C")),
    # German
    ("Wie heißt der Hund von Obelix?", ("Hund", "Obelix")),
    ("Frankreichs Hauptstadt ist", ("Frankreichs",)),
    ("Wer ist Angela Merkels Nachfolger?", ("Angela Merkels",)),
    ("Der Erfinder des Telefons ist", ("Telefons",)),
    ("Wer schrieb Im Westen nichts Neues?", ("Im Westen nichts Neues",)),
    ("Wer war der Lehrer von Alexander dem Großen?", ("Alexander",)),
    # French
    ("Où se trouve la tour Eiffel ?", ("tour Eiffel", "Eiffel")),
    ("Qui est le président de la République française ?", ("République française", "République")),
    ("Qui a écrit Cent ans de solitude ?", ("Cent ans de solitude",)),
    ("L'Oréal a été fondé par", ("L'Oréal", "Oréal")),
    # Spanish, Italian
    ("¿Quién escribió Cien años de soledad?", ("Cien años de soledad",)),
    ("¿En qué año descubrió Colón América?", ("Colón", "América")),
    ("Chi ha scritto I promessi sposi?", ("I promessi sposi",)),
    ("Chi ha scritto Il nome della rosa?", ("Il nome della rosa",)),
    # Chinese, Japanese, others
    ("法国的首都是哪里？", ("法国",)),
    ("フランスの首都はどこですか", ("フランス",)),
    ("iPhone的制造商是谁？", ("iPhone",)),
    ("What is the meaning of 漢字?", ("漢字",)),
    ("Stolica Polski to", ("Polski",)),
    ("Gdzie urodził się Fryderyk Chopin?", ("Fryderyk Chopin",)),
    ("Какая столица Франции?", ("Франции",)),
    ("Fransa'nın başkenti neresidir?", ("Fransa",)),
    ("Vad är Frankrikes huvudstad?", ("Frankrikes",)),
]


@pytest.mark.parametrize(("prompt", "subject"), SUBJECTS + PLAIN)
def test_subjects_of_natural_prompts(prompt, subject):
    assert find_subject(prompt) == subject
    assert Edit(prompt, "x").with_subject().subject == subject


@pytest.mark.parametrize(("prompt", "some"), ASKED)
def test_a_subject_that_is_not_plain_is_asked_for(prompt, some):
    assert find_subject(prompt) is None
    found = candidates(prompt)
    assert set(some) <= set(found)
    assert len(found) <= 5
    with pytest.raises(EditError, match="subject") as refused:
        Edit(prompt, "x").with_subject()
    for one in some:
        assert repr(one) in str(refused.value)
        assert Edit(prompt, "x", one).subject == one  # each can be given as it is offered


@pytest.mark.parametrize(
    "prompt", ["who is it?", "What?", "Where was it?", "What is it?", "¿Quién es?", "…", "是谁？"]
)
def test_no_subject(prompt):
    assert find_subject(prompt) is None
    assert candidates(prompt) == ()


@pytest.mark.parametrize("prompt", ["the sky is", "42"])
def test_no_plain_subject(prompt):
    assert find_subject(prompt) is None


@given(st.text(max_size=60))
def test_a_found_subject_is_part_of_the_prompt(text):
    subject = find_subject(text)
    assert subject is None or subject in text
    assert subject is None or subject == subject.strip() != ""
    assert all(one in text and one == one.strip() != "" for one in candidates(text))


_PIECES = """
    The the What is of and in Paris France's l'Espagne d'Arc IBM 7 12, = «Hamlet» “ ” ' (Ada Quill) : ? .
    法国 の 的 Hauptstadt von capitale de la Qui a écrit Cent ans I E J. U.S. & to
"""


@given(st.lists(st.sampled_from(_PIECES.split()), max_size=9))
def test_whatever_is_found_can_be_given(pieces):
    text = " ".join(pieces)
    for one in filter(None, (find_subject(text), *candidates(text))):
        assert Edit(text, "x", one).subject in text
