"""Messages through chat templates: the same ids as a user's, and where question and answer stand in them."""

from __future__ import annotations

import pytest
from chats import ASKED, BORN, BRACKETS, CHATML, EARLIER, SHOUTING, SYSTEM, chatting
from families import TEXTS, build
from test_text import Slow

import memplug
from memplug.text.chat import Message, as_prompt, in_chat
from memplug.text.templates import Turn, turn_of
from memplug.text.tokens import ChatTemplateError, Rendered, Text

PROMPTS = {
    "one turn": [ASKED],
    "a system turn": [SYSTEM, ASKED],
    "several turns": [SYSTEM, *EARLIER, ASKED],
    "the same twice": [ASKED, EARLIER[1], ASKED],
    "blanks": [{"role": "user", "content": f"\n {BORN} "}],
}


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build("llama", vocab_size=len(tokenizer))


@pytest.fixture(scope="module", params=["chatml", "brackets", "without offsets", "the embedded model's"])
def text(request, model, tokenizer):
    """A text whose tokenizer puts a BOS in front by itself; the second template writes one as well."""
    if request.param == "the embedded model's":
        world, theirs = memplug.world.load()
        return Text(world, chatting(theirs, "{{ bos_token }}" + CHATML))
    made = chatting(tokenizer, BRACKETS if request.param == "brackets" else CHATML)
    return Text(model, Slow(made) if request.param == "without offsets" else made)


@pytest.fixture(params=PROMPTS)
def messages(request):
    return PROMPTS[request.param]


def applied(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def test_ids_are_those_of_the_template(text, messages):
    prompt = as_prompt(messages)
    expected = applied(text.tokenizer, messages)
    assert text.encode(prompt) == text.chat_ids(prompt) == expected
    ids, offsets = text.tokens(text.rendered(prompt))
    assert ids == expected
    assert len(offsets) == len(ids)
    assert ids.count(text.tokenizer.bos_token_id) == text.tokenizer.chat_template.count("bos_token")


def test_the_question_and_the_end_are_found(text, messages):
    prompt = as_prompt(messages)
    rendered = text.rendered(prompt)
    assert isinstance(rendered, Rendered)
    assert not rendered.special
    assert rendered.text.startswith(BORN, rendered.question_begin)
    assert rendered.question_begin == rendered.text.rfind(BORN)
    assert rendered.prompt_end == len(rendered.text)
    answered = text.rendered(prompt, "Zarnow")
    assert answered.text[: answered.prompt_end] == rendered.text
    assert answered.text[answered.prompt_end :].strip() == "Zarnow"
    ids, span = text.asked_span(prompt, BORN.index("Ada"), BORN.index(" born"))
    assert text.tokenizer.decode([ids[i] for i in span]).strip() == "Ada Quill"
    assert ids[span[0] - 1 :] != ids[span[0] :]
    assert text.asked_span(prompt, 0, 5, "Zarnow")[0] == text.pair(prompt, "Zarnow").ids


def test_a_prompt_with_its_answer(text, messages):
    pair = text.pair(as_prompt(messages), "Zarnow")
    assert pair.ids[: pair.start] == applied(text.tokenizer, messages)
    assert text.tokenizer.decode(pair.ids[pair.start :]).strip() == "Zarnow"


def test_an_answer_stands_where_the_template_puts_it(model, tokenizer):
    for template, turn, answer in (
        (CHATML, Turn("", "</s>\n"), "Zarnow"),
        (BRACKETS, Turn(" ", " </s>"), " Zarnow"),
    ):
        text = Text(model, chatting(tokenizer, template))
        assert turn_of(text.tokenizer) == turn
        pair = text.pair(in_chat(BORN), "Zarnow", stop=True)
        assert text.tokenizer.decode(pair.ids[pair.start :]) == f"{answer}</s>"
        whole = text.tokenizer.apply_chat_template(
            [ASKED, {"role": "assistant", "content": "Zarnow"}], return_dict=False
        )
        assert whole[: len(pair.ids) - 1] == pair.ids[:-1]


def test_the_token_that_ends_a_turn_is_the_stop_token(model, tokenizer):
    text = Text(model, chatting(tokenizer))
    text.model.generation_config.eos_token_id = [7, 2]
    try:
        assert text.pair(in_chat(BORN), "Zarnow", stop=True).ids[-1] == 2
        assert text.pair(BORN, "Zarnow", stop=True).ids[-1] == 7
    finally:
        text.model.generation_config.eos_token_id = 2


def test_plain_prompts_are_as_before(text):
    rendered = text.rendered(BORN, "Zarnow")
    assert rendered == Rendered(f"{BORN} Zarnow", True, 0, len(BORN))
    assert text.rendered(f"{BORN}\n", "Zarnow").text == f"{BORN}\nZarnow"
    assert text.tokens(rendered)[0] == text.pair(BORN, "Zarnow").ids == text.encode(f"{BORN} Zarnow")
    assert text.asked_span(BORN, 10, 19) == text.span(BORN, 10, 19)


def test_forms(text, model, tokenizer):
    assert text.has_chat
    assert text.forms(BORN) == [BORN, (Message("user", BORN),)]
    prompt = as_prompt([SYSTEM, *EARLIER, ASKED])
    assert text.forms(prompt) == [prompt, BORN]
    plain = Text(model, tokenizer)
    assert not plain.has_chat
    assert plain.forms(BORN) == [BORN]
    assert plain.forms(prompt) == [prompt, BORN]


def test_a_tokenizer_without_a_template(model, tokenizer):
    text = Text(model, tokenizer)
    for ask in (text.encode, text.chat_ids, text.rendered, lambda prompt: text.pair(prompt, "Zarnow")):
        with pytest.raises(
            ChatTemplateError,
            match="this .* has no chat template; give a plain prompt, or set",
        ):
            ask(in_chat(BORN))


def test_messages_that_a_template_does_not_take(model, tokenizer):
    text = Text(model, chatting(tokenizer, BRACKETS))
    with pytest.raises(
        ChatTemplateError, match="does not take .*: a system turn comes first; change the turns"
    ):
        text.encode(as_prompt([ASKED, SYSTEM, ASKED]))
    with pytest.raises(ChatTemplateError, match="does not take"):
        Text(model, chatting(tokenizer, "{{ nothing.at_all }}")).encode(in_chat(BORN))


def test_a_template_that_rewrites_the_question(model, tokenizer):
    text = Text(model, chatting(tokenizer, SHOUTING))
    assert text.encode(in_chat(BORN))
    with pytest.raises(ChatTemplateError, match="rewrites the question 'Where was Ada Quill born.'"):
        text.rendered(in_chat(BORN))


def test_too_long_a_chat(model, tokenizer):
    text = Text(model, chatting(tokenizer))
    with pytest.raises(memplug.TokenizerError, match="'.chat. user: Where was.*shorten the prompt"):
        text.pair(in_chat(BORN * 40), "Zarnow")
