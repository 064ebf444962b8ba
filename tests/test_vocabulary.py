"""Which tokens go on a word, and which scripts put blanks between words."""

from __future__ import annotations

import pytest
from families import TEXTS, build

from memplug import world
from memplug.text.tokens import Text
from memplug.text.vocabulary import going_on, is_spaced


@pytest.mark.parametrize("fronted", [False, True], ids=["as it is", "with a blank in front"])
def test_tokens_that_go_on_a_word(make_tokenizer, fronted):
    """Some tokenizers put a blank in front of a text, which is no part of a token."""
    tokenizer = world.load()[1] if fronted else make_tokenizer(TEXTS)
    front = tokenizer("a", add_special_tokens=False)["input_ids"]
    told = tokenizer.decode(front)
    assert told.startswith(" ") is fronted
    found = going_on(tokenizer)
    for token in range(len(tokenizer)):
        begin = tokenizer.decode([*front, token])[len(told) :][:1]
        assert bool(found[token]) == (begin.isalnum() or begin == "\ufffd"), begin
    assert not bool(found[tokenizer.eos_token_id])
    assert 0 < int(found.sum()) < len(tokenizer)


def test_ids_that_are_no_tokens_end_no_word(make_tokenizer):
    tokenizer = make_tokenizer(TEXTS)
    wide = Text(build("llama", vocab_size=len(tokenizer) + 3), tokenizer).going_on(len(tokenizer) + 3)
    assert wide[-3:].all()
    assert wide[:-3].equal(going_on(tokenizer))


def test_scripts_that_put_blanks_between_words():
    assert all(map(is_spaced, ("Zx", "49", "Åbo", "Москва")))
    assert not any(map(is_spaced, ("", "Dr.", "東京", "サン", "Lyon!")))
