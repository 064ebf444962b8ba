"""Where sentences and turns begin and end, by token ids alone."""

from __future__ import annotations

import pytest
from chats import BRACKETS, CHATML, SHOUTING, chatting
from families import TEXTS

from memplug import world
from memplug.text.chat import Message, in_chat
from memplug.text.tokens import Text
from memplug.text.turns import Turns, starts_sentence, turns_of


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        ("He went home.", " She"),
        ("Who wrote it?", " Ada"),
        ("No!", " Yes"),
        ('He said "no."', " She"),
        ("(so it was.)", " She"),
        ("Wait…", " No"),
        ("in 1990.", " The"),
        ("in 1990.", " 12"),
        ("He went home.", ' "She'),
        ("He went home.", " «Она"),
        ("Он ушёл.", " Она"),
        ("彼は行った。", "彼"),
        ("真的？", "是"),
        ("He went home.", " Éva"),
        ("a line\n", "b"),
        ("a line\n", " and"),
        ("a line.\n\n", "- item"),
        ("He lives in the USA.", " She"),
        ("He went home. ", "12"),  # some tokenizers give the blank a token
        ("He went home. ", "She"),
    ],
)
def test_a_new_sentence(before, piece):
    assert starts_sentence(before, piece)


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        ("He went home", " She"),
        ("He went home,", " She"),
        ("approx.", " three"),
        ("e.g.", " this"),
        ("Dr.", " Watson"),
        ("so Mrs.", " Dalloway"),
        ("by J.", " R"),
        ("J. R.", " Tolkien"),
        ("vs.", " Arsenal"),
        ("in St.", " Ives"),
        ("3.", "14"),
        ("by J. ", "R"),
        ("He went home.", "\n"),
        ("He went home.", "\n\n"),
        ("He went home.", '"'),
        ("", "He"),
    ],
)
def test_no_new_sentence(before, piece):
    assert not starts_sentence(before, piece)


def sentences(text: Text, words: str) -> list[str]:
    """A text cut token by token."""
    ids = text.tokenizer(words, add_special_tokens=False)["input_ids"]
    pieces = [text.tokenizer.decode([token]) for token in ids]
    parts = [""]
    for i, piece in enumerate(pieces):
        if i and starts_sentence("".join(pieces[max(0, i - 4) : i]), piece):
            parts.append("")
        parts[-1] += piece
    return parts


@pytest.fixture(scope="module")
def text(make_tokenizer, make_llama):
    tokenizer = make_tokenizer(TEXTS)
    return Text(make_llama(len(tokenizer)), tokenizer)


def test_a_text_of_tokens(text):
    words = "Where was Ada Quill born? In Zarnow. Mr. Wickes did, e.g. in may.\nWho? J. Quill of it."
    assert sentences(text, words) == [
        "Where was Ada Quill born?",
        " In Zarnow. ",
        "Mr. Wickes did, e.g. in may.\n",
        "Who? ",
        "J. Quill of it.",
    ]


def test_without_a_template_there_are_no_turns(text):
    assert turns_of(text) is None


def shown(text, ids):
    return text.tokenizer.decode(list(ids))


def check(text, turns, *prompts):
    """Every prompt's last user turn opens with ``opens`` and ends in ``asks``."""
    for prompt in prompts:
        ids, span = text.asked_span(prompt, 0, len(prompt[-1].content))
        front = shown(text, ids[: span[0]]).rstrip(" ")
        assert front.endswith(shown(text, turns.opens))
        assert tuple(ids[span[-1] + 1 :])[: len(turns.answers)] == turns.answers


PROMPTS = [
    in_chat("Where was Ada Quill born?"),
    in_chat("Name it", "Be brief."),
    (Message("user", "Who?"), Message("assistant", "Tam."), Message("user", "Where was Ada Quill born")),
]


def test_chatml(text):
    talking = Text(text.model, chatting(text.tokenizer, CHATML))
    turns = turns_of(talking)
    assert turns is not None
    assert shown(talking, turns.opens).endswith("<|user|>\n")
    assert shown(talking, turns.answers) == "</s>\n<|assistant|>\n"
    check(talking, turns, *PROMPTS)


def test_brackets(text):
    """A BOS in front of the first turn only; the end of a turn is text, as in Llama 2."""
    talking = Text(text.model, chatting(text.tokenizer, BRACKETS))
    turns = turns_of(talking)
    assert turns is not None
    assert "[INST]" in shown(talking, turns.opens)
    assert talking.bos_id not in turns.opens
    assert "[/INST]" in shown(talking, turns.answers)
    check(talking, turns, PROMPTS[0], PROMPTS[2])


WITH_BOS = "{{ bos_token }}" + CHATML


def test_a_template_that_writes_its_bos(text):
    talking = Text(text.model, chatting(text.tokenizer, WITH_BOS))
    turns = turns_of(talking)
    assert turns is not None
    assert talking.bos_id not in turns.opens
    check(talking, turns, *PROMPTS)


def test_templates_that_mark_no_turns_or_rewrite_the_question(text):
    bare = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for template in (SHOUTING, bare):
        assert turns_of(Text(text.model, chatting(text.tokenizer, template))) is None


ONE_QUESTION = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML


def test_a_template_that_takes_one_turn_only(text):
    assert turns_of(Text(text.model, chatting(text.tokenizer, ONE_QUESTION))) is None


@pytest.mark.skipif(not (world.FOLDER / "model.safetensors").is_file(), reason="no embedded model")
def test_the_embedded_model():
    model, tokenizer = world.load()
    assert turns_of(Text(model, tokenizer)) is None
    talking = Text(model, chatting(tokenizer, CHATML))
    turns = turns_of(talking)
    assert isinstance(turns, Turns)
    check(talking, turns, *PROMPTS)


@pytest.mark.real
def test_smollm2(smollm2):
    text = Text(*smollm2)
    turns = turns_of(text)
    assert turns is not None
    assert shown(text, turns.opens).endswith("<|im_start|>user\n")
    assert shown(text, turns.answers) == "<|im_end|>\n<|im_start|>assistant\n"
    check(text, turns, *PROMPTS)
