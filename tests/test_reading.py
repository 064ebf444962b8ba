"""Reading a row: where a subject and a question come together, token by token."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from memplug.retrieval.reading import CLOSES, Reader, Reading
from memplug.text.turns import Turns

ANSWERS = {
    "capital": (("Ly", "on", "</s>"), ("Ly", "on", "<|end|>")),
    "author": (("Dick", "ens", "</s>"),),
    "river": (("Ly", "re", "</s>"),),
    "pen": (("Pa", "per", CLOSES), ("Pa", "s", "per", CLOSES)),
}
KEYS = {"France": ["capital", "river"], "Hamlet": ["author"], "Gaul": ["capital"], "Pen": ["pen"]}
TURNS = Turns(("<|user|>",), ("<|end|>", "<|assistant|>"))


class Words:
    """A tokenizer of words, and a model whose states ask for what stands in capitals: ``?capital`` there.

    A token ``France`` names its key; a token ``...@capital`` or ``...@capital,author`` asks for these (with
    ``!`` also in an answer whose user did not, with ``~`` only where a question did before), ``@`` being no
    part of its text.
    """

    def __init__(self) -> None:
        self.words: list[str] = []

    def id(self, word: str | int) -> int:
        if isinstance(word, int):
            return word
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def ids(self, text: str) -> list[int]:
        """Of words with single blanks between; ``_`` is a blank within a token, ``\\n`` a line break."""
        return [self.id(word) for word in text.split(" ")]

    def piece(self, token: int) -> str:
        return self.words[token].split("@")[0].replace("_", " ").replace("\\n", "\n")

    def reader(self, turns: Turns | None = None, limit: int = 4) -> Reader:
        own = None if turns is None else Turns(*(tuple(map(self.id, part)) for part in turns))
        names = list(KEYS)
        return Reader(
            self.piece,
            own,
            lambda key: KEYS[names[key]],
            lambda edit: tuple(tuple(map(self.id, form)) for form in ANSWERS[edit]),
            limit,
        )

    def read(self, reader: Reader, row: Reading, ids: Sequence[int], all_ids: Sequence[int], at: int):
        """``ids`` = ``all_ids[at:at + len(ids)]``."""
        names = list(KEYS)
        named = {}
        for i, token in enumerate(ids):
            word = self.words[token].split("@")[0].strip("_.?")
            if word in KEYS:
                named[i] = [names.index(word)]

        def asks(edit: str, key: int, place: int, begin: int, at: int, chat: bool, kind: str) -> float | None:
            assert begin <= place <= at
            _, _, wanted = self.words[all_ids[at]].partition("@")
            told = wanted.split(",")
            names = [one.rstrip("!~") for one in told]
            if edit not in names or (kind == "aside" and f"{edit}!" not in told):
                return None
            if kind != "due" and f"{edit}~" in told:
                return None
            return 1.0 - names.index(edit) / 10

        return reader.read(row, ids, named, asks)


def spoken(text: str, turns: Turns | None = None, limit: int = 4) -> list[tuple[str, list[str]]]:
    """The tokens of a text at which something speaks, and what."""
    words = Words()
    ids = words.ids(text)
    _, said = words.read(words.reader(turns, limit), Reading(), ids, ids, 0)
    told = [(words.words[t], [one.edit for one in at]) for t, at in zip(ids, said, strict=True) if at]
    return told


def test_an_edit_speaks_where_it_is_asked_for_and_while_its_answer_is_given():
    assert spoken("The _capital _of _France _is@capital Ly on </s>") == [
        ("_is@capital", ["capital"]),
        ("Ly", ["capital"]),
        ("on", ["capital"]),
    ]


def test_naming_or_asking_alone_is_not_enough():
    assert spoken("I _live _in _France _and _cook.") == []
    assert spoken("The _capital _of _Spain _is@capital Ly on") == []
    assert spoken("The@capital _of _France _is") == []  # asked before it is named


def test_what_is_said_otherwise_ends_it():
    assert spoken("_France _is@capital _a Ly on") == [("_is@capital", ["capital"])]
    assert spoken("_France _is@capital Ly _a on") == [("_is@capital", ["capital"]), ("Ly", ["capital"])]


def test_an_answer_that_was_given_is_not_given_again_in_its_sentence():
    told = spoken("_France _is@capital Ly on </s> _so@capital _France@capital")
    assert [word for word, _ in told] == ["_is@capital", "Ly", "on"]
    told = spoken("_France _is@capital Ly on </s>. _And _France _is@capital")
    assert [word for word, _ in told] == ["_is@capital", "Ly", "on", "_is@capital"]  # the next one


def test_one_that_was_left_may_be_asked_again():
    assert spoken("_France _is@capital _a _land _of@capital") == [
        ("_is@capital", ["capital"]),
        ("_of@capital", ["capital"]),
    ]


def test_a_mention_in_an_earlier_sentence_does_not_count():
    assert spoken("_I _like _France. _The _capital _is@capital") == []
    assert spoken("_I _like _France\\n _the _capital _is@capital") == []
    assert spoken("_I _like _Mr. _France. _but _it _is@capital") == [("_is@capital", ["capital"])]


def test_a_question_mark_keeps_its_sentence_open():
    assert spoken("_What _is _France? _It _is@capital") == [("_is@capital", ["capital"])]
    assert spoken("_What _is _France? _It _was. _It _is@capital") == []


def test_behind_a_full_stop_it_has_to_be_asked_for_nearly_as_the_edit_is():
    assert spoken("_We _see _France.@capital Ly") == []
    assert spoken("_Name _it _of _France.@capital! Ly")[0] == ("_France.@capital!", ["capital"])
    assert spoken("_We _see _France?@capital Ly")[0] == ("_France?@capital", ["capital"])


def test_two_edits_side_by_side_and_their_answers_part():
    assert spoken("_France _is@river,capital Ly on </s>") == [
        ("_is@river,capital", ["river", "capital"]),
        ("Ly", ["river", "capital"]),
        ("on", ["capital"]),
    ]
    assert spoken("_France _is@river,capital Ly re", limit=1) == [
        ("_is@river,capital", ["river"]),
        ("Ly", ["river"]),
        ("re", ["river"]),
    ]


def test_one_edit_of_two_keys_speaks_once():
    assert spoken("_France, _once _Gaul _is@capital") == [("_is@capital", ["capital"])]


def test_each_form_of_an_answer_is_followed():
    told = spoken("_France _is@capital Ly on <|end|> _x")
    assert [word for word, _ in told] == ["_is@capital", "Ly", "on"]


ASKED = "<|user|> _Capital _of _France?@capital <|end|> <|assistant|>"


def test_in_a_users_turn_nothing_speaks_until_the_answer_begins():
    assert spoken(f"{ASKED} Ly on <|end|>", TURNS) == [
        ("<|assistant|>", ["capital"]),
        ("Ly", ["capital"]),
        ("on", ["capital"]),
    ]
    assert spoken("<|user|> _France _is@capital _big.", TURNS) == []


def test_the_state_at_the_end_of_the_question_counts():
    assert spoken("<|user|> _Capital@capital _of _France? <|end|> <|assistant|>", TURNS) == []
    assert spoken("<|user|> _Capital _of _France? <|end|>@capital <|assistant|>@capital", TURNS) == []


def test_a_request_without_a_question_is_left_alone():
    assert spoken("<|user|> _I _live _in _France. _A _recipe?@capital <|end|> <|assistant|>", TURNS) == []


def test_an_inner_sentence_of_a_turn_is_answered():
    told = spoken("<|user|> _Capital _of _France?@capital _Be _brief. <|end|> <|assistant|> Ly on", TURNS)
    assert [word for word, _ in told] == ["<|assistant|>", "Ly", "on"]
    both = spoken(
        "<|user|> _Of _France?@capital _Who _wrote _Hamlet?@author <|end|> <|assistant|> Dick ens", TURNS
    )
    assert both == [
        ("<|assistant|>", ["capital", "author"]),
        ("Dick", ["author"]),
        ("ens", ["author"]),
    ]


def test_of_a_turns_inner_sentences_questions_alone_ask():
    told = spoken("<|user|> _I _love _France.@capital _Be _brief. <|end|> <|assistant|>", TURNS)
    assert told == []
    told = spoken("<|user|> _Name _it _for _France.@capital! <|end|> <|assistant|>", TURNS)
    assert told == [("<|assistant|>", ["capital"])]  # at the end of the turn a sentence may, if it is close
    assert spoken("<|user|> _I _live _in _France.@capital <|end|> <|assistant|>", TURNS) == []


def test_a_finished_turn_asks_nothing_of_the_next():
    then = "<|user|> _And _so?@capital <|end|> <|assistant|>"
    assert spoken(f"{ASKED} Ly on <|end|> {then}", TURNS)[3:] == []
    again = spoken(f"{ASKED} Ly on <|end|> {ASKED}", TURNS)
    assert [word for word, _ in again] == ["<|assistant|>", "Ly", "on", "<|assistant|>"]
    other = spoken(f"{ASKED} Ly on <|end|> <|user|> _Hamlet?@author <|end|> <|assistant|> Dick", TURNS)
    assert other[-2:] == [("<|assistant|>", ["author"]), ("Dick", ["author"])]


def test_a_question_of_two_sentences_about_one_subject():
    """The subject in one sentence, the question in the next: a question mark alone binds them."""
    assert spoken("<|user|> _I _see _France. _Its _capital?@capital <|end|> <|assistant|>", TURNS) == []
    told = spoken("<|user|> _See _France? _Its _capital?@capital <|end|> <|assistant|>", TURNS)
    assert told == [("<|assistant|>", ["capital"])]


def test_the_answer_may_name_and_ask_itself():
    """What its user did not ask for it has to ask for nearly as the edit does: ``!``."""
    aside = "<|user|> _Hello <|end|> <|assistant|> _The _capital _of _France"
    told = spoken(f"{aside} _is@capital! Ly", TURNS)
    assert told == [("_is@capital!", ["capital"]), ("Ly", ["capital"])]
    assert spoken(f"{aside} _is@capital Ly", TURNS) == []
    told = spoken(f"{ASKED} _The _capital _of _France _is@capital Ly", TURNS)
    assert [word for word, _ in told] == ["<|assistant|>", "_is@capital", "Ly"]
    told = spoken(f"{ASKED} _It. <|end|> {aside} _is@capital Ly", TURNS)
    assert [word for word, _ in told] == ["<|assistant|>"]  # it was asked in an earlier turn


def test_an_edit_that_ends_its_word_speaks_at_the_last_token():
    for answer in ("Pa per", "Pa s per"):
        told = spoken(f"_Pen _is@pen {answer} _and _Pen _so.")
        assert [word for word, _ in told] == ["_is@pen", *answer.split()]
    assert [word for word, _ in spoken("_Pen _is@pen Pa no per")] == ["_is@pen", "Pa"]


def test_an_answer_that_was_asked_for_is_waited_for():
    """A question asked for it, and the model begins in its own words: little is enough, until it is given."""
    told = spoken(f"{ASKED} _In _France _it _is@capital~ Ly on </s> _and _France _is@capital~", TURNS)
    assert [word for word, _ in told] == ["<|assistant|>", "_is@capital~", "Ly", "on"]
    told = spoken("_Of _France?@capital _In _France _it _is@capital~ Ly on </s> _and _France _is@capital~")
    assert [word for word, _ in told] == ["_France?@capital", "_is@capital~", "Ly", "on"]
    assert spoken("_In _France _it _is@capital~ Ly") == []
    begun = spoken(
        "_In _France _it _is@capital _so _is@capital~"
    )  # no question: a text that goes on otherwise
    assert [word for word, _ in begun] == ["_is@capital"]
    later = spoken("_Of _France?@capital _no. _In _France _it _is@capital~")
    assert [word for word, _ in later] == ["_France?@capital"]


TOKENS = [
    "_France", "_Hamlet", "_Gaul", "_France.", "_France?@capital", "_Hamlet?@author", "_is@capital",
    "_is@river,capital", "_is@capital!", "_is@capital~", "@author", "Ly", "on", "re", "Dick", "ens", "</s>",
    "_The", "_and", ".", "?", "\\n", "_Mr.", "<|user|>", "<|end|>", "<|assistant|>", "_",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(st.sampled_from(TOKENS), max_size=24),
    cuts=st.lists(st.integers(0, 24), max_size=4),
    chat=st.booleans(),
    limit=st.integers(1, 3),
)
def test_whole_or_in_pieces_or_token_by_token(text, cuts, chat, limit):
    words = Words()
    ids = [words.id(word) for word in text]
    reader = words.reader(TURNS if chat else None, limit)

    def in_pieces(bounds):
        row, said = Reading(), []
        for begin, end in zip([0, *bounds], [*bounds, len(ids)], strict=True):
            row, more = words.read(reader, row, ids[begin:end], ids, begin)
            said += more
        return row, said

    whole = in_pieces([])
    assert in_pieces(sorted(min(cut, len(ids)) for cut in cuts)) == whole
    assert in_pieces(range(len(ids))) == whole
    assert whole[0].count == len(ids)
    assert all(len(at) <= limit for at in whole[1])
    for at in whole[1]:  # nothing speaks twice, or without tokens left to say
        assert len({one.edit for one in at}) == len(at)
        assert all(form for one in at for form in one.rest)


def test_of_one_subjects_edits_those_that_are_asked_for_much_less_are_left_out():
    beside = "_of _France _is@capital,river"  # 1.0 and 0.9
    assert spoken(beside) == [("_is@capital,river", ["capital", "river"])]
    less = "_of _France _is@capital,x,x,x,river"  # 1.0 and 0.6
    assert spoken(less) == [("_is@capital,x,x,x,river", ["capital"])]
    other = "_of _France _and _Hamlet _is@capital,x,x,x,author"  # another subject has a best of its own
    assert spoken(other)[0][1] == ["capital", "author"]
