"""Replicas under Ray Serve share the edits of one PostgreSQL store, also those that come up again."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from functools import partial

import httpx2
import psutil
import pytest
from chats import BORN, chatting
from families import METHODS, lexical
from serving import until

from benchmarks.postgres import binaries, running
from memplug.commands.shared import load_model
from memplug.serving.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")


def test_the_missing_extra_is_named():
    code = "import sys; sys.modules['ray'] = None\nimport memplug.serving.ray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "memplug.serving.ray needs ray; install its extra with pip install 'memplug[ray]'" in done.stderr


@pytest.fixture
def http(tokenizer, tmp_path, monkeypatch):
    """A client of two replicas on an empty store."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    from ray import serve

    from memplug.serving.ray import deployment

    lexical("llama", len(tokenizer), max_position_embeddings=512).save_pretrained(tmp_path)
    chatting(tokenizer).save_pretrained(tmp_path)
    load = partial(load_model, str(tmp_path), "cpu", "auto")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else one is written into the user's folder
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # of the replicas
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = dict(zip(("host", "port"), free.getsockname(), strict=True))
    with running("fsync=off") as server:
        before = set(psutil.Process().children(recursive=True))
        small = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}, "health_check_period_s": 0.5}
        made = deployment(load, server.url, Settings("tiny", rate=0), method="llp", **METHODS["llp"])
        ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
        try:
            serve.start(http_options=address)
            serve.run(made.options(**small).bind())
            with httpx2.Client(base_url="http://{host}:{port}".format(**address), timeout=60) as client:
                yield client
        finally:
            serve.shutdown()
            ray.shutdown()
        until(lambda: set(psutil.Process().children(recursive=True)) <= before)


def test_replicas_share_a_memory_and_come_back_with_it(http):
    edit = {"prompt": BORN, "target": "Zarnow", "subject": "Ada Quill"}
    job = http.post("/edits", json=edit, headers=session(0)).json()["id"]
    sees = lambda number: http.get(f"/jobs/{job}", headers=session(number))  # noqa: E731
    until(lambda: sees(0).json()["status"] == "succeeded")
    other = next(number for number in range(1, 100) if sees(number).status_code == 404)
    until(lambda: answer(http, other, BORN) == "Zarnow", seconds=2)
    assert answer(http, 0, BORN) == "Zarnow"

    killed = replicas()
    assert len(killed) == 2
    for replica in killed:
        replica.kill()
    until(lambda: not set(killed) & set(replicas()))
    until(lambda: answer(http, 0, BORN) == "Zarnow", seconds=60)


def session(number):
    return {"x-session-id": str(number)}


def answer(http, number, prompt):
    asked = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0}
    found = http.post("/v1/completions", json=asked, headers=session(number))
    return found.json()["choices"][0]["text"].strip() if found.status_code == 200 else found.status_code


def replicas():
    """Their processes."""
    children = psutil.Process().children(recursive=True)
    return [one for one in children if one.name().startswith("ray::ServeRepl")]
