"""Who may do what on a server, how much, and what is written down of it."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from chats import ASKED, BORN, chatting
from families import lexical
from serving import serving, until
from test_cli import refused
from test_serving_answers import complete, figures

import memplug
from memplug.commands.shared import peek
from memplug.serving.guard import Bucket
from memplug.serving.logs import JSONLines
from memplug.serving.settings import Keys, Settings, is_loopback

ASK, EDIT = "a" * 20, "e" * 20
KEYS = Keys((ASK,), (EDIT, "f" * 20))
FACT = {"prompt": BORN, "target": "Zarnow", "subject": "Ada Quill"}


@pytest.fixture(scope="module")
def plug(tokenizer):
    """ICL learns in a moment."""
    model = lexical("llama", len(tokenizer), max_position_embeddings=512)
    with memplug.attach(model, chatting(tokenizer), "icl") as plug:
        yield plug


@pytest.fixture(scope="module")
def server(plug):
    with serving(plug, KEYS) as server:
        yield server


def bearer(key):
    return {"Authorization": f"Bearer {key}".encode("latin-1")}


def test_two_roles_by_their_keys(server):
    http = server.http
    for key, status in ((ASK, 403), (EDIT, 200), ("f" * 20, 200), ("x" * 20, 401), ("\xe4", 401)):
        answer = http.get("/edits", headers=bearer(key))
        assert answer.status_code == status
        if status != 200:
            assert answer.json()["error"]["type"] in ("permission_error", "authentication_error")
    for form, status in (
        ("bearer {}", 200),
        ("Bearer  {}", 200),
        ("{}", 401),
        ("Basic {}", 401),
        ("Bearer", 401),
    ):
        assert http.get("/edits", headers={"Authorization": form.format(EDIT)}).status_code == status, form
    assert http.get("/edits", headers=bearer("x")).headers["www-authenticate"] == "Bearer"
    asks = openai.OpenAI(base_url=str(server.openai.base_url), api_key=ASK, max_retries=0)
    assert asks.completions.create(model="tiny", prompt="Who", max_tokens=2).choices
    for method, path in (("POST", "/edits"), ("DELETE", "/edits/e1"), ("POST", "/explain"), ("GET", "/no")):
        assert http.request(method, path, headers=bearer(ASK)).status_code == 403
    with pytest.raises(openai.AuthenticationError, match="give a key of this server"):
        openai.OpenAI(base_url=str(server.openai.base_url), api_key="wrong", max_retries=0).models.list()
    for path in ("/", "/page.js", "/page.css", "/docs", "/openapi.json", "/healthz", "/readyz"):
        assert http.get(path, headers={"Authorization": ""}).status_code == 200, path
    assert http.get("/metrics", headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "given", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("PUT", "/edits", {}, 405),
        ("POST", "/edits", {"content": b"{", "headers": {"content-type": "application/json"}}, 422),
        ("POST", "/edits", {"content": json.dumps(FACT), "headers": {"content-type": "text/plain"}}, 422),
        ("POST", "/edits", {"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 422),
        ("POST", "/edits", {"json": {"prompt": "x" * 3000}}, 413),
        ("POST", "/edits", {"content": iter([b"x" * 1500] * 3)}, 413),
        ("GET", "/edits?limit=x", {}, 422),
        ("GET", "/healthz", {"headers": {"origin": "https://elsewhere.example"}}, 403),
        ("GET", "/healthz", {"headers": {"host": "rebound.example"}}, 403),
        ("GET", "/healthz", {"headers": {"host": "["}}, 403),
        ("GET", "/healthz", {"headers": {"origin": "http://["}}, 403),
    ],
)
def test_every_error_is_one_of_the_api(plug, method, path, given, status):
    with serving(plug, max_body=2000) as server:
        answer = server.http.request(method, path, **given)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
        assert answer.headers["x-request-id"]


def test_the_smallest_top_p_takes_the_likeliest_token(server):
    given = {"max_tokens": 4, "model": "tiny", "prompt": "Who"}
    said = [
        server.http.post("/v1/completions", json=given | one).json()["choices"][0]["text"]
        for one in ({"temperature": 0}, {"temperature": 1, "top_p": 5e-324})
    ]
    assert said[0] == said[1]


def test_an_edit_is_deleted_once(plug, monkeypatch):
    """Of two deletions that wait, the second one is told that there is no such edit any more."""
    going_on, forget = threading.Event(), plug.method.forget

    def waiting(*args, **given):
        assert going_on.wait(10)
        return forget(*args, **given)

    with serving(plug) as server, ThreadPoolExecutor(2) as pool:
        (id,) = server.job(server.http.post("/edits", json=FACT))["edits"]
        monkeypatch.setattr(plug.method, "forget", waiting)
        both = [pool.submit(server.http.delete, f"/edits/{id}") for _ in range(2)]
        until(lambda: server.jobs.open == 2)
        going_on.set()
        answers = sorted((one.result() for one in both), key=lambda one: one.status_code)
        assert [one.status_code for one in answers] == [200, 404]
        assert answers[1].json()["error"]["code"] == "edit_not_found"


def test_a_rate_is_kept_for_each_key(plug):
    bucket = Bucket(60)
    assert [bucket.take() for _ in range(60)] == [0] * 60
    assert 0 < bucket.take() <= 1
    assert not any(Bucket(0).take() for _ in range(1000))
    with serving(plug, KEYS, rate=2) as server:
        assert [server.http.get("/edits").status_code for _ in range(3)] == [200, 200, 429]
        answer = server.http.get("/edits")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert server.http.get("/v1/models", headers=bearer(ASK)).status_code == 200
        assert server.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("with_text", [False, True])
def test_logs_hold_text_only_where_that_was_asked_for(plug, caplog, with_text):
    caplog.set_level(logging.INFO)
    with serving(plug, log_text=with_text) as server:
        complete(server, "Who taught Tam Wickes?")
        server.openai.chat.completions.create(
            model="tiny", messages=[ASKED], max_tokens=4, stream=True
        ).close()
        server.job(server.http.post("/edits", json=FACT))
        server.http.post("/edits", json={**FACT, "subject": "Quilliam"})
        server.http.delete("/edits/e1")
    lines = [JSONLines().format(one) for one in caplog.records if one.name == "memplug.serving"]
    found = [json.loads(line) for line in lines]
    assert {"request", "answer", "job"} <= {line["event"] for line in found}
    asked = next(line for line in found if line.get("route") == "/v1/completions")
    assert (asked["status"], asked["method"], asked["role"]) == (200, "POST", "edit")
    for text in ("Wickes", "Ada", "Zarnow", "Quill"):
        assert (text in "".join(lines)) <= with_text
    assert ("Wickes" in "".join(lines)) is with_text


def test_figures_and_pages(server):
    before = figures(server)
    complete(server, "Who", max_tokens=3)
    server.http.get("/nowhere/else")
    after = figures(server)
    key = 'memplug_requests_total{method="POST",route="/v1/completions",status="200"}'
    assert after[key] == before.get(key, 0) + 1
    assert after['memplug_tokens_total{kind="completion"}'] > before.get(
        'memplug_tokens_total{kind="completion"}', 0
    )
    assert after['memplug_requests_total{method="other",route="unmatched",status="404"}'] >= 1
    assert 'memplug_request_seconds_bucket{le="+Inf",route="/v1/completions"}' in after
    schema = server.http.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/edits", "/edits/{id}", "/jobs/{id}", "/explain"} <= schema[
        "paths"
    ].keys()
    described = schema["components"]["schemas"]["ChatRequest"]["properties"]
    assert all("description" in value for value in described.values())
    assert "swagger" in server.http.get("/docs").text


def test_keys_and_settings(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the house\nask {ASK}\n\nedit {EDIT}\n")
    file.chmod(0o644)
    with pytest.raises(ValueError, match="read by others than its owner; chmod 600"):
        Keys.read(file, {})
    file.chmod(0o600)
    read = Keys.read(file, {"MEMPLUG_ASK_KEY": "b" * 16})
    assert (read.ask, read.edit) == (("b" * 16, ASK), (EDIT,))
    assert [read.role(key) for key in (ASK, EDIT, "x", "ä")] == ["ask", "edit", None, None]
    assert ASK not in repr(read)
    file.write_text("admin x\n")
    with pytest.raises(ValueError, match="line 1: write `ask KEY` or `edit KEY`"):
        Keys.read(file, {})
    for given, message in (
        ({"ask": ("short",)}, "a key for ask is not 16 or more"),
        ({"ask": (ASK,), "edit": (ASK,)}, "one key is given for both"),
    ):
        with pytest.raises(ValueError, match=message):
            Keys(**given)
    for host in ("0.0.0.0", "::", "192.168.0.3", "example.org"):
        with pytest.raises(ValueError, match="can be reached from elsewhere, and there is no API key"):
            Keys().check_host(host)
        KEYS.check_host(host)
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"))
    for given in ({"batch": 0}, {"max_tokens": 0}, {"rate": -1}, {"window": 99}, {"max_prompt_tokens": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(given))} is"):
            Settings(**given)


def test_the_command_refuses_an_open_address_before_it_loads_a_model(monkeypatch, tmp_path):
    monkeypatch.delenv("MEMPLUG_ASK_KEY", raising=False)
    monkeypatch.delenv("MEMPLUG_EDIT_KEY", raising=False)
    assert "there is no API key" in refused("serve", "--host", "0.0.0.0", "--model", "no/such")
    (tmp_path / "plug.json").write_text("{}")
    assert "damaged" in refused("serve", "--plug", tmp_path, "--model", "world", "--port", 0)


def test_a_missing_package_is_told_with_the_extra():
    code = "import sys; sys.modules['uvicorn'] = None\nimport memplug.serving.run"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "memplug serve needs uvicorn; install its extra with pip install 'memplug[serve]'" in done.stderr


@pytest.mark.parametrize(("where", "end"), [("facts", signal.SIGINT), ("facts.db", signal.SIGTERM)])
def test_the_command_serves_saves_and_ends(plug, tmp_path, where, end):
    lexical("llama", len(plug.tokenizer), max_position_embeddings=512).save_pretrained(tmp_path / "tiny")
    plug.tokenizer.save_pretrained(tmp_path / "tiny")
    given = ["--model", tmp_path / "tiny", "--plug", tmp_path / where, "--method", "icl", "--port", 0]
    command = [sys.executable, "-m", "memplug", "serve", *map(str, given)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        while "running on" not in (lines or [""])[-1]:
            lines.append(process.stderr.readline())
        url = re.search(r"http://[\d.:]+", lines[-1])[0]
        asked = {"model": "tiny", "prompt": "Who", "max_tokens": 2}
        assert httpx2.post(f"{url}/v1/completions", json=asked).json()["choices"]
        job = httpx2.post(f"{url}/edits", json=FACT).headers["location"]
        until(lambda: httpx2.get(f"{url}{job}").json()["status"] == "succeeded")
        process.send_signal(end)
        lines += process.stderr.readlines()
    assert process.returncode == 0
    assert [edit.target for edit in peek(str(tmp_path / where))[1].values()] == ["Zarnow"]
    assert "job" in [json.loads(line)["event"] for line in lines]
    assert "Zarnow" not in "".join(lines)
    assert "made with icl, not llp" in refused("serve", *given[:4], "--method", "llp")
