"""Edits over HTTP: jobs beside the requests that are served, what they refuse, and the end of a server."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from chats import BORN, EARLIER, chatting
from families import attach_llp, lexical
from serving import serving, until
from test_serving_answers import complete

import memplug
from memplug.saving.files import SaveError
from memplug.serving import changes
from memplug.store.errors import StoreError

FOUNDED = "Who founded the Orlo Bridge Company?"
BY_TAM = {"prompt": FOUNDED, "target": "Tam", "subject": "Orlo Bridge Company"}


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """A saved plug with one edit."""
    path = tmp_path_factory.mktemp("plug") / "facts"
    with attach_llp(lexical("llama", len(tokenizer), max_position_embeddings=512), tokenizer) as plug:
        plug.edit(BORN, "Zarnow", "Ada Quill")
        plug.save(path)
    return path


@pytest.fixture
def plug(trained, tokenizer):
    model = lexical("llama", len(tokenizer), max_position_embeddings=512)
    with memplug.load(trained, model, chatting(tokenizer)) as plug:
        yield plug


@pytest.fixture
def held(plug, monkeypatch):
    """Learning waits until it is told to go on."""
    going_on, learn = threading.Event(), plug.method.learn

    def waiting(*args, **given):
        assert going_on.wait(20)
        return learn(*args, **given)

    monkeypatch.setattr(plug.method, "learn", waiting)
    yield going_on
    going_on.set()


def test_edits_are_made_listed_switched_explained_and_deleted(plug):
    saves = []
    with serving(plug, save=lambda: saves.append(list(plug.edits))) as server:
        base = complete(server, FOUNDED).choices[0].text
        answer = server.http.post("/edits", json=BY_TAM)
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
        job = server.job(answer)
        assert (job["status"], job["edits"], job["done"], job["unlearned"]) == ("succeeded", ["e2"], 1, [])
        assert saves == [["e1", "e2"]]
        assert complete(server, FOUNDED).choices[0].text.strip() == "Tam"
        assert complete(server, FOUNDED, "tiny:base").choices[0].text == base

        first = server.http.get("/edits", params={"limit": 1}).json()
        assert (first["total"], first["has_more"], first["data"][0]["subject"]) == (2, True, "Ada Quill")
        second = server.http.get("/edits", params={"after": "e1"}).json()
        assert not second["has_more"]
        assert second["data"] == [{"id": "e2", **BY_TAM, "enabled": True}]

        found = server.http.post("/explain", json={"prompt": FOUNDED}).json()
        assert [edit["id"] for edit in found["edits"]] == ["e2"]
        assert any("votes" in line for line in found["lines"])
        chat = server.http.post("/explain", json={"prompt": [{"role": "user", "content": "Who?"}]}).json()
        assert chat["edits"] == []

        for on, said in ((False, base.strip()), (True, "Tam")):
            answer = server.http.patch("/edits/e2", json={"enabled": on})
            assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
            assert server.http.get("/edits").json()["data"][1]["enabled"] is on
            assert complete(server, FOUNDED).choices[0].text.strip() == said
        assert server.http.delete("/edits/e2").json()["status"] == "succeeded"
        assert complete(server, FOUNDED).choices[0].text == base
        assert saves[-1] == ["e1"]
        for made in (server.http.delete("/edits/e2"), server.http.get("/edits?after=e2")):
            assert made.status_code == 404
            assert made.json()["error"]["code"] == "edit_not_found"
            assert "no edit has the id 'e2'" in made.json()["error"]["message"]


def test_requests_are_served_while_an_edit_is_learned(plug, held, monkeypatch):
    monkeypatch.setattr(changes, "_PATIENCE", 0.05)
    with serving(plug) as server:
        before = complete(server, FOUNDED).choices[0].text
        learning = server.http.post("/edits", json=BY_TAM)
        again = server.http.post(
            "/edits", json={"edits": [{**BY_TAM, "prompt": [{"role": "user", "content": FOUNDED}]}]}
        )
        assert again.status_code == 409
        assert again.json()["error"]["code"] == "edit_in_progress"
        assert learning.json()["id"] in again.json()["error"]["message"]
        waits = server.http.delete("/edits/e1")
        assert (waits.status_code, waits.json()["status"]) == (202, "queued")
        assert complete(server, FOUNDED).choices[0].text == before
        assert complete(server, BORN).choices[0].text.strip() == "Zarnow"
        assert server.http.get(learning.headers["location"]).json()["status"] == "running"
        assert server.http.get("/jobs/job-9").status_code == 404
        held.set()
        assert server.job(learning)["status"] == server.job(waits)["status"] == "succeeded"
        assert complete(server, FOUNDED).choices[0].text.strip() == "Tam"
        assert [edit["id"] for edit in server.http.get("/edits").json()["data"]] == ["e2"]
        with pytest.warns(UserWarning, match="replaced e2"):
            job = server.job(server.http.post("/edits", json=BY_TAM))
        assert (job["edits"], job["replaced"]) == (["e3"], ["e2"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "", "target": "x"}, "prompt is empty"),
        ({"prompt": FOUNDED, "target": " "}, "target is empty"),
        ({"prompt": FOUNDED, "target": "\ud800"}, "half a character"),
        ({"prompt": FOUNDED}, "edits.0.target: Field required"),
        ({"prompt": FOUNDED, "target": "x", "subject": "\x1b[2J"}, "subject '\\x1b[2J' is not in"),
        ({"prompt": "what is it", "target": "x"}, "subject"),
        ({"prompt": EARLIER, "target": "x"}, "ends with an assistant turn"),
        ({"prompt": f"{'Who ' * 600}Ada Quill?", "target": "x", "subject": "Ada Quill"}, "tokens long"),
        ({"edits": []}, "edits: List should have at least 1 item"),
        ({"edits": [BY_TAM, {**BY_TAM, "subject": "Tam"}]}, "subject 'Tam' is not in"),
        ({**BY_TAM, "strength": 3}, "edits.0.strength is not supported here"),
        ([BY_TAM], "the body: Input should be a valid dictionary"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(plug, given, message):
    with serving(plug) as server:
        body, kind = json.dumps(given), {"content-type": "application/json"}
        answer = server.http.post("/edits", content=body, headers=kind)
        assert answer.status_code == 422, answer.text
        assert message in answer.json()["error"]["message"]
        assert server.http.patch("/edits/e1", json={"enabled": "maybe"}).status_code == 422
        for prompt in (" ", "\ud800"):
            answer = server.http.post("/explain", content=json.dumps({"prompt": prompt}), headers=kind)
            assert answer.status_code == 422, answer.text
        assert list(plug.edits) == ["e1"]


def test_what_fails_while_it_is_made_is_told_by_its_job(plug, monkeypatch):
    def full():
        raise SaveError("the disk is \x1b full")

    with serving(plug, save=full) as server:
        job = server.job(server.http.post("/edits", json=BY_TAM))
        assert (job["status"], job["edits"], job["error"]["code"]) == ("failed", ["e2"], "not_saved")
        assert "in force, but could not be saved: the disk is \\x1b full" in job["error"]["message"]
        deleted = server.http.delete("/edits/e2")
        assert (deleted.status_code, deleted.json()["error"]["code"]) == (500, "not_saved")
    for error, message in ((memplug.EditError("not so"), "not so"), (RuntimeError("x"), "RuntimeError on")):

        def failing(*args, error=error, **given):
            raise error

        monkeypatch.setattr(plug.method, "learn", failing)
        with serving(plug) as server:
            job = server.job(server.http.post("/edits", json=BY_TAM))
            assert (job["status"], job["edits"]) == ("failed", [])
            assert message in job["error"]["message"]
            assert complete(server, BORN).choices[0].text.strip() == "Zarnow"


def test_an_edit_that_did_not_take_is_named(plug, monkeypatch):
    monkeypatch.setattr(plug, "unlearned", lambda edits: list(edits))
    with serving(plug) as server, pytest.warns(UserWarning, match="not learned well"):
        job = server.job(server.http.post("/edits", json=BY_TAM))
    assert (job["status"], job["unlearned"]) == ("succeeded", ["e2"])


def test_the_end_waits_for_what_is_under_way(plug, held):
    """A request is answered, the running job is made and saved, the next one is told of and not begun."""
    saves = []
    with ThreadPoolExecutor(2) as pool, serving(plug, save=lambda: saves.append(1), window=1) as server:
        other = {**BY_TAM, "prompt": "Who runs the Orlo Bridge Company?"}
        jobs = [server.http.post("/edits", json=edit).json()["id"] for edit in (BY_TAM, other)]
        until(lambda: server.jobs.get(jobs[0]).status == "running")
        asked = pool.submit(complete, server, BORN)
        time.sleep(0.2)
        server.process.should_exit = True
        assert asked.result().choices[0].text.strip() == "Zarnow"
        until(lambda: not server.jobs.ready)
        held.set()
        server.thread.join()
        assert [server.jobs.get(id).status for id in jobs] == ["succeeded", "cancelled"]
        assert (list(plug.edits), saves) == (["e1", "e2"], [1])
        with pytest.raises(httpx2.ConnectError):
            server.http.get("/healthz")


def test_the_base_model_is_asked_beside_edits_in_the_weights(tokenizer):
    given = {"lr": 0.05, "bound": None, "stop_loss": 0.01, "keep": 0}
    with (
        memplug.attach(lexical("llama", len(tokenizer)), tokenizer, "finetune", **given) as plug,
        serving(plug) as server,
    ):
        base = complete(server, BORN).choices[0].text
        job = server.http.post("/edits", json={"prompt": BORN, "target": "Zarnow", "subject": "Ada Quill"})
        while server.http.get(job.headers["location"]).json()["status"] != "succeeded":
            assert complete(server, BORN, "tiny:base").choices[0].text == base
        with ThreadPoolExecutor(8) as pool:
            both = [pool.submit(complete, server, BORN, m) for m in ("tiny", "tiny:base") * 4]
            texts = [one.result().choices[0].text for one in both]
        assert texts[::2] != texts[1::2]
        assert texts[0].strip().startswith("Zarnow")
        assert texts[1::2] == [base] * 4
        found = server.http.post("/explain", json={"prompt": BORN}).json()
        assert found["edits"] is None
        assert any("base model" in line for line in found["lines"])


def test_a_store_tells_who_and_why_and_goes_back(tokenizer, tmp_path):
    model = lexical("llama", len(tokenizer), max_position_embeddings=512)
    with (
        memplug.attach(model, tokenizer, "icl", store=tmp_path / "facts.db") as plug,
        serving(plug) as server,
    ):
        with pytest.warns(UserWarning, match="not learned well"):
            job = server.job(server.http.post("/edits", json={**BY_TAM, "why": "ticket 12"}))
        assert (job["status"], job["why"]) == ("succeeded", "ticket 12")
        assert server.http.delete("/edits/e1").json()["status"] == "succeeded"
        first = server.http.get("/history", params={"limit": 2}).json()
        assert [one["action"] for one in first["data"]] == ["attach", "edit"]
        assert (first["has_more"], first["data"][1]["edits"]) == (True, ["e1"])
        assert (first["data"][1]["who"], first["data"][1]["why"]) == ("edit", "ticket 12")
        assert server.http.post("/rollback", json={"revision": 2}).json()["status"] == "succeeded"
        assert list(plug.edits) == ["e1"]
        refused = server.http.post("/rollback", json={"revision": 99})
        assert refused.status_code == 404
        assert "no revision 99" in refused.json()["error"]["message"]
        last = server.http.get("/history", params={"after": 3}).json()
        assert [one["action"] for one in last["data"]] == ["rollback to 2"]
        plug.store.close()


def test_a_store_that_cannot_be_read_is_the_servers_fault(plug, monkeypatch):
    def broken():
        raise StoreError("it is gone")

    monkeypatch.setattr(plug, "store", object())
    monkeypatch.setattr(plug, "history", broken)
    with serving(plug) as server:
        for answer in (server.http.get("/history"), server.http.post("/rollback", json={"revision": 1})):
            error = answer.json()["error"]
            assert (answer.status_code, error["type"], error["code"]) == (503, "server_error", "store_failed")
            assert "it is gone" in error["message"]


@pytest.mark.filterwarnings("ignore:replaced e1")
def test_edits_that_are_only_tried_are_in_no_list(plug, monkeypatch):
    """Not while a preview is made, and after it neither; nor can they be deleted or counted."""
    tried, going_on, unlearned = threading.Event(), threading.Event(), plug.unlearned

    def waiting(edits):
        tried.set()
        assert going_on.wait(20)
        return unlearned(edits)

    monkeypatch.setattr(plug, "unlearned", waiting)
    with serving(plug) as server:
        asked = server.http.post(
            "/preview", json={"edits": [BY_TAM, {**BY_TAM, "prompt": BORN, "subject": "Ada Quill"}]}
        )
        assert tried.wait(20)
        before = [{"id": "e1", "prompt": BORN, "target": "Zarnow", "subject": "Ada Quill", "enabled": True}]
        try:
            assert server.http.get("/edits").json()["data"] == before
            assert server.http.delete("/edits/e2").status_code == 404
            assert "memplug_edits 1.0" in server.http.get("/metrics").text
        finally:
            going_on.set()
        assert server.job(asked)["status"] == "succeeded"
        assert server.http.get("/edits").json()["data"] == before


def test_without_a_store_there_is_no_history(plug):
    with serving(plug) as server:
        for answer in (server.http.get("/history"), server.http.post("/rollback", json={"revision": 1})):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_store")
