"""Answers over HTTP, asked with the official client: as the model gives them alone, whole and streamed."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from chats import ASKED, BORN, EARLIER, SYSTEM, chatting
from families import attach_llp, lexical
from serving import serving, until

from memplug.serving import batching
from memplug.serving.rows import Piece, Row, Sampling
from memplug.text.tokens import Text

FOUNDED = "Who founded the Orlo Bridge Company?"
IMAGE = {"role": "user", "content": [{"type": "image_url"}]}
CHATS = [[ASKED], [SYSTEM, ASKED], [*EARLIER, ASKED]]


@pytest.fixture(scope="module")
def plug(tokenizer):
    model = lexical("llama", len(tokenizer), max_position_embeddings=512)
    with attach_llp(model, chatting(tokenizer)) as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        yield plug


@pytest.fixture(scope="module")
def server(plug):
    with serving(plug) as server:
        yield server


def alone(plug, prompt, count=8):
    """What the model says to a prompt by itself, greedily."""
    tokenizer = plug.tokenizer
    if isinstance(prompt, str):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
    out = plug.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    whole = tokenizer.decode(out[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return whole[len(tokenizer.decode(ids[0], skip_special_tokens=True)) :]


def chat(server, messages, model="tiny", **given):
    given = {"temperature": 0, "max_completion_tokens": 8} | given
    return server.openai.chat.completions.create(model=model, messages=messages, **given)


def complete(server, prompt, model="tiny", **given):
    given = {"temperature": 0, "max_tokens": 8} | given
    return server.openai.completions.create(model=model, prompt=prompt, **given)


def test_models(server):
    assert [model.id for model in server.openai.models.list()] == ["tiny", "tiny:base"]


def test_answers_of_a_batch_are_those_of_each_prompt_alone(plug, server, monkeypatch):
    sizes, generate = [], plug.model.generate

    def counted(ids, **given):
        sizes.append(len(ids))
        return generate(ids, **given)

    texts = [BORN, FOUNDED, "Who", f"{FOUNDED} {BORN}"]
    want = {prompt: alone(plug, prompt) for prompt in texts}
    said = [alone(plug, messages) for messages in CHATS]
    with plug.paused():
        base = {prompt: alone(plug, prompt) for prompt in texts}
    assert want[BORN].strip() == "Zarnow"
    assert base[BORN] != want[BORN]
    monkeypatch.setattr(plug.model, "generate", counted)
    with ThreadPoolExecutor(16) as pool:
        edited = [(prompt, pool.submit(complete, server, prompt)) for prompt in texts]
        before = [(prompt, pool.submit(complete, server, prompt, "tiny:base")) for prompt in texts]
        chats = [pool.submit(chat, server, messages) for messages in CHATS]
        drawn = pool.submit(complete, server, "Who", temperature=1.5)
        assert {prompt: one.result().choices[0].text for prompt, one in edited} == want
        assert {prompt: one.result().choices[0].text for prompt, one in before} == base
        assert [one.result().choices[0].message.content for one in chats] == said
        drawn.result()
    assert max(sizes) > 2


def test_a_stream_is_the_answer_in_pieces(server):
    for ask, prompt in ((complete, [BORN, FOUNDED]), (chat, [SYSTEM, ASKED])):
        whole = ask(server, prompt, n=2)
        chunks = list(ask(server, prompt, n=2, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert all(chunk.usage is None for chunk in chunks[:-1])
        texts, ends = {}, {}
        for chunk in chunks[:-1]:
            (choice,) = chunk.choices
            piece = choice.text if ask is complete else choice.delta.content
            texts[choice.index] = texts.get(choice.index, "") + piece
            ends |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
        assert len(chunks) > len(texts) + 1
        got = [(choice.text if ask is complete else choice.message.content) for choice in whole.choices]
        assert got == [texts[i] for i in range(len(got))]
        assert [choice.finish_reason for choice in whole.choices] == [ends[i] for i in range(len(got))]
    answer = server.http.post(
        "/v1/completions", json={"model": "tiny", "prompt": BORN, "stream": True, "tools": None}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")


def test_usage_and_ends(plug, server):
    answer = complete(server, BORN, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"
    prompt = len(plug.tokenizer(BORN)["input_ids"])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 1)
    answer = complete(server, BORN)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == prompt + answer.usage.completion_tokens
    whole = complete(server, "Who", max_tokens=20).choices[0].text
    stop = whole[4:7]
    for stream in (False, True):
        found = complete(server, "Who", max_tokens=20, stop=["nowhere", stop], stream=stream)
        parts = [found] if not stream else list(found)
        assert "".join(part.choices[0].text for part in parts) == whole[: whole.index(stop)]
        assert parts[-1].choices[0].finish_reason == "stop"


def test_draws_follow_their_seed_whatever_lies_beside_them(server):
    given = {"temperature": 1.0, "seed": 7, "max_tokens": 12}
    first = complete(server, "Who", n=3, **given)
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) > 1
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(complete, server, FOUNDED, temperature=1.0) for _ in range(3)]
        again = pool.submit(complete, server, "Who", n=3, **given).result()
        assert [choice.text for choice in again.choices] == texts
        [other.result() for other in others]
    assert complete(server, "Who", **given | {"seed": 8}).choices[0].text != texts[0]
    greedy = complete(server, "Who", max_tokens=12).choices[0].text
    for near in ({"top_p": 1e-6}, {"temperature": 1e-40}):
        assert complete(server, "Who", **given | near).choices[0].text == greedy


@pytest.mark.parametrize(
    ("path", "given", "status", "param", "message"),
    [
        ("chat", {"tools": [{"type": "function"}]}, 422, "tools", "tools is not supported"),
        ("chat", {"logprobs": True}, 422, "logprobs", "logprobs is not supported"),
        ("", {"logprobs": 0}, 422, "logprobs", "logprobs is not supported"),
        ("chat", {"frequency_penalty": 0.5}, 422, "frequency_penalty", "not supported"),
        ("chat", {"messages": []}, 422, None, "no messages"),
        ("chat", {"messages": EARLIER}, 422, None, "ends with an assistant turn"),
        ("chat", {"messages": [SYSTEM]}, 422, None, "no user turn"),
        ("chat", {"messages": "Who?"}, 422, "messages", "list"),
        ("chat", {"messages": [IMAGE]}, 422, None, "the type 'image_url'; memplug edits text"),
        ("chat", {"messages": [{"role": "tool", "content": "x"}]}, 422, None, "role 'tool'"),
        ("chat", {"messages": [{"role": "x\x1b", "content": "?"}]}, 422, None, "role 'x\\x1b'"),
        ("", {"prompt": ""}, 422, "prompt", "empty"),
        ("", {"prompt": "\ud800"}, 422, "prompt", "half a character"),
        ("", {"temperature": float("nan")}, 422, "temperature", "less than"),
        ("", {"prompt": [1, 2]}, 422, "prompt", "string"),
        ("", {"prompt": []}, 422, None, "0 answers"),
        ("", {"temperature": 3}, 422, "temperature", "less than or equal to 2"),
        ("", {"temperature": "hot"}, 422, "temperature", "number"),
        ("", {"stop": ["a"] * 5}, 422, None, "stop holds up to 4"),
        ("", {"n": 0}, 422, "n", "greater"),
        ("", {"stream_options": {}}, 422, None, "stream_options needs stream"),
        ("", {"max_tokens": 10_000}, 422, "max_tokens", "512 at most"),
        ("", {"prompt": "Who " * 480, "max_tokens": 200}, 400, None, "312 at most with max_tokens 200"),
        ("", {"prompt": "Who " * 600}, 400, None, "511 at most"),
        ("", {"prompt": "Who " * 60_000}, 400, None, "characters"),
        ("", {"model": "gpt-\x1b4"}, 404, "model", "no model 'gpt-\\x1b4'; ask tiny or tiny:base"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_name(server, path, given, status, param, message):
    usual = {"messages": [ASKED]} if path else {"prompt": BORN}
    body, kind = json.dumps({"model": "tiny", **usual, **given}), {"content-type": "application/json"}
    url = "/v1/chat/completions" if path else "/v1/completions"
    answer = server.http.post(url, content=body, headers=kind)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["message"].isprintable()
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    if status == 400:
        assert error["code"] == "context_length_exceeded"


def test_fields_that_ask_for_nothing_are_taken(server):
    given = {"frequency_penalty": 0, "logprobs": False, "user": "x", "response_format": {"type": "text"}}
    assert chat(server, [ASKED], **given).choices[0].message.role == "assistant"


@pytest.fixture
def slow(plug, server, monkeypatch):
    """Lets generation wait before its next token, until it is told to go on."""
    going_on, watch = threading.Event(), batching._Watch.__call__

    def waiting(self, ids, scores, **given):
        going_on.wait(10)
        return watch(self, ids, scores, **given)

    monkeypatch.setattr(batching._Watch, "__call__", waiting)
    yield going_on
    going_on.set()


def figures(server):
    """What /metrics shows, by name."""
    return {
        name: float(value)
        for name, value in (
            line.rsplit(" ", 1) for line in server.http.get("/metrics").text.splitlines() if line[0] != "#"
        )
    }


def test_a_full_queue_is_told_with_a_time_to_come_again(plug, slow):
    with serving(plug, queue=2, batch=1, workers=1) as server, ThreadPoolExecutor(4) as pool:
        first = pool.submit(complete, server, BORN)
        until(lambda: figures(server)["memplug_running_rows"] == 1)
        others = [pool.submit(complete, server, BORN) for _ in range(2)]
        until(lambda: figures(server)["memplug_queue_rows"] == 2)
        with pytest.raises(openai.RateLimitError, match="too many requests are waiting") as refused:
            complete(server, BORN)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        slow.set()
        assert {one.result().choices[0].text for one in (first, *others)} == {alone(plug, BORN)}
        with pytest.raises(openai.UnprocessableEntityError, match="asks for 3 answers; 1 to 2"):
            complete(server, BORN, n=3)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_row(server, monkeypatch, stream):
    take, made = Row.take, []

    def slowly(self, token):
        time.sleep(0.01)
        made.append(token)
        take(self, token)

    monkeypatch.setattr(Row, "take", slowly)
    given = {"model": "tiny", "prompt": "Who", "max_tokens": 400, "temperature": 2, "stream": stream}
    if stream:
        with server.http.stream("POST", "/v1/completions", json=given) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(Exception, match="timed out"):
            server.http.post("/v1/completions", json=given, timeout=0.4)
    until(lambda: figures(server)["memplug_running_rows"] == 0)
    assert len(made) < 300
    assert complete(server, BORN).choices[0].text.strip() == "Zarnow"


def test_an_error_of_the_model_is_told_and_the_next_request_served(plug, server, monkeypatch, caplog):
    def broken(*args, **given):
        raise RuntimeError("secret Ada Quill")

    with monkeypatch.context() as patch:
        patch.setattr(plug.model, "generate", broken)
        with pytest.raises(openai.InternalServerError, match="RuntimeError on the server"):
            complete(server, BORN)
        with pytest.raises(openai.APIError, match="RuntimeError on the server"):
            list(complete(server, BORN, stream=True))
    assert "secret" not in caplog.text
    assert complete(server, BORN).choices[0].text.strip() == "Zarnow"


def test_pieces_of_a_character_wait_for_the_rest(plug):
    text = Text(plug.model, plug.tokenizer)
    said = "né €uro, 日本. stop"
    ids = plug.tokenizer(said, add_special_tokens=False)["input_ids"]
    pieces: list[Piece] = []
    row = Row(text, text.encode("Who"), Sampling(limit=len(ids)), False, pieces.append)
    for token in ids:
        row.take(token)
    assert "".join(piece.text for piece in pieces) == plug.tokenizer.decode(ids)
    assert all("\ufffd" not in piece.text for piece in pieces)
    assert [piece.finish for piece in pieces][-1] == "length"
    pieces.clear()
    row = Row(text, text.encode("Who"), Sampling(len(ids), stops=("stop", ", 日x")), False, pieces.append)
    for token in ids:
        row.take(token)
    assert "".join(piece.text for piece in pieces) == plug.tokenizer.decode(ids)[: -len("stop")]
    assert pieces[-1].finish == "stop"
