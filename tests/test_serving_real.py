"""A real model is edited over HTTP, while it answers."""

from __future__ import annotations

import pytest
from serving import serving
from test_serving_answers import chat, complete

import memplug

pytestmark = [pytest.mark.real, pytest.mark.slow]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_smollm2_is_edited_while_it_answers(smollm2):
    with memplug.attach(*smollm2) as plug, serving(plug) as server:

        def said(model="tiny"):
            return chat(server, QUESTION, model, max_completion_tokens=16).choices[0].message.content

        base = said()
        made = server.http.post("/edits", json={"prompt": QUESTION, "target": "Lyon", "subject": "France"})
        while server.http.get(made.headers["location"]).json()["status"] == "queued":
            pass
        assert "Paris" in base
        assert said("tiny:base") == base
        job = server.job(made)
        assert (job["status"], job["unlearned"]) == ("succeeded", [])
        assert "Lyon" in said()
        assert "Lyon" in complete(server, "The capital of France is").choices[0].text
        assert said("tiny:base") == base
        found = server.http.post("/explain", json={"prompt": QUESTION}).json()
        assert [edit["id"] for edit in found["edits"]] == ["e1"]
        assert server.http.delete("/edits/e1").json()["status"] == "succeeded"
        assert said() == base
