"""The console at / in a real browser: what it offers, by keyboard alone, in both themes and widths."""

from __future__ import annotations

import copy
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from chats import BORN, chatting
from families import attach_llp, lexical
from serving import serving
from test_serving_answers import complete

import memplug

FOUNDED = "Who founded the Orlo Bridge Company?"
BY_TAM = {"prompt": FOUNDED, "target": "Tam", "subject": "Orlo Bridge Company"}
MARKUP = '<img src=x onerror="document.title=1"> Who founded the Orlo Bridge Company?'
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium on the PATH")
    with api.sync_playwright() as play:
        profile = tmp_path_factory.mktemp("profile")
        browser = play.chromium.launch_persistent_context(profile, executable_path=path, args=FLAGS)
        browser.set_default_timeout(15_000)
        api.expect.set_options(timeout=15_000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def plug(tokenizer, tmp_path_factory):
    model = lexical("llama", len(tokenizer), max_position_embeddings=512)
    store = tmp_path_factory.mktemp("store") / "facts.db"
    with memplug.attach(model, chatting(tokenizer), "icl", store=store) as plug:
        yield plug


@pytest.fixture(scope="module")
def server(plug):
    with serving(plug) as server:
        yield server


@pytest.fixture
def page(chromium, server):
    """The console, opened; errors of its script and refusals of its policy fail the test."""
    page, wrong = chromium.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda one: "Security Policy" in one.text and wrong.append(one.text))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(str(server.http.base_url))
    page.wait_for_function("document.getElementById('name').textContent === 'tiny'")
    yield page
    page.close()
    assert not wrong


def told(page, text):
    page.locator("#changed", has_text=text).wait_for()


def shot(page, name):
    """A picture of the page for people, where a folder is named for it."""
    if folder := os.environ.get("MEMPLUG_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def fill(page, form, **given):
    for name, value in given.items():
        page.locator(f"#{form} [name={name}]").fill(value)


def ask(page, text, form="chat"):
    """The edited and the base model's answers to a question."""
    page.locator("#ask [name=form]").select_option(form)
    fill(page, "ask", text=text)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#asked", has_text="answered").wait_for()
    return page.locator("#chat .pair").last.locator("p").all_text_contents()


@pytest.mark.filterwarnings("ignore:.*not learned well")
def test_everything_in_turn(page, server, plug):
    fill(page, "edit", **BY_TAM, prompts="Who taught Ada Quill?")
    page.get_by_role("button", name="Preview").click()
    told(page, "preview ready, nothing is kept")
    assert "These prompts will change" in page.locator("#previewed").inner_text()
    assert "These will not" in page.locator("#previewed").inner_text()
    assert list(plug.edits) == []
    assert [one.action for one in plug.history()] == ["attach"]
    shot(page, "preview")
    page.get_by_role("button", name="Add", exact=True).click()
    told(page, "edit e1: succeeded")
    assert page.locator("#edits tr").count() == 1

    ask(page, FOUNDED)
    assert "recalled e1 (Tam)" in page.locator("#chat summary").inner_text()
    assert page.locator(".heat tr").count() > 1
    assert "Orlo Bridge Company" in page.locator("#chat details p").inner_text()
    edited, _ = ask(page, "Go on", "text")
    assert edited == complete(server, "Go on", max_tokens=128).choices[0].text

    page.get_by_label("e1 in force").uncheck()
    told(page, "disable e1: succeeded")
    assert ask(page, FOUNDED, "text")[0] == ask(page, FOUNDED, "text")[1]
    page.get_by_role("button", name="Delete e1").click()
    told(page, "delete e1: succeeded")
    assert page.locator("#edits tr").count() == 0

    rows = f'prompt,target,subject\r\n"{FOUNDED}","Tam, ""T""",Orlo Bridge Company\n{BORN},Zarnow,Ada Quill\n'
    file = {"name": "facts.csv", "mimeType": "text/csv", "buffer": f"\ufeff{rows}".encode()}
    page.locator("#csv [name=file]").set_input_files(file)
    page.get_by_role("button", name="Import", exact=True).click()
    told(page, "edit e2, e3: succeeded")
    assert [edit.target for edit in plug.edits.values()] == ['Tam, "T"', "Zarnow"]
    fill(page, "search", search="ada QUILL")
    page.get_by_role("button", name="Search").click()
    page.locator("#total", has_text="(1)").wait_for()
    assert "Zarnow" in page.locator("#edits").inner_text()

    page.get_by_role("button", name="Go back to revision 2").click()
    told(page, "rollback : succeeded")
    assert list(plug.edits) == ["e1"]
    assert "rollback to 2" in page.locator("#history tr").first.inner_text()


@pytest.mark.filterwarnings("ignore:.*not learned well")
def test_markup_is_text_and_errors_are_shown(page, plug):
    fill(page, "edit", prompt=MARKUP, target="<b>Tam</b>", subject="<script>")
    page.get_by_role("button", name="Add", exact=True).click()
    told(page, "subject '<script>' is not in")
    assert page.locator("#changed.wrong").count() == 1
    fill(page, "edit", subject="Orlo Bridge Company")
    page.get_by_role("button", name="Preview").click()
    told(page, "preview ready")
    page.get_by_role("button", name="Add", exact=True).click()
    told(page, ": succeeded")
    ask(page, MARKUP)
    assert "<b>Tam</b>" in page.locator("#edits").inner_text()
    assert page.locator("img, b").count() == 0
    assert page.title() == "memplug"


@pytest.mark.filterwarnings("ignore:.*replaced", "ignore:.*not learned well")
def test_by_keyboard_alone(page, plug):
    def go(name):
        """Tab until what has this label has the focus; it has to be seen."""
        for _ in range(80):
            page.keyboard.press("Tab")
            found = page.evaluate(
                "(e => [e.ariaLabel ?? e.labels?.[0]?.textContent.trim() ?? e.textContent,"
                " getComputedStyle(e).outlineStyle])(document.activeElement)"
            )
            if found[0] and found[0].startswith(name):
                assert found[1] == "solid"
                return
        raise AssertionError(name)

    before = set(plug.edits)
    go("Prompt")
    page.keyboard.type(BORN)
    go("Answer")
    page.keyboard.type("Tam")
    go("Subject")
    page.keyboard.type("Ada Quill")
    page.keyboard.press("Enter")
    told(page, ": succeeded")
    (made,) = set(plug.edits) - before
    go("Question")
    page.keyboard.type(BORN)
    go("Asked as")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#asked", has_text="answered").wait_for()
    go(f"{made} in force")
    page.keyboard.press("Space")
    told(page, f"disable {made}: succeeded")
    assert page.evaluate("document.activeElement.ariaLabel") == f"{made} in force"
    go(f"Delete {made}")
    page.keyboard.press("Enter")
    told(page, f"delete {made}: succeeded")
    assert page.evaluate("document.activeElement.name") == "search"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_widths_and_themes(page, theme, width):
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 800})
    ask(page, FOUNDED)
    shot(page, f"{theme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour, ground = page.evaluate(
        "[getComputedStyle(document.body).color, matchMedia('(prefers-color-scheme: dark)').matches]"
    )
    assert ground is (theme == "dark")
    assert (colour == "rgb(255, 255, 255)") is ground
    unnamed = (
        "[...document.querySelectorAll('input,textarea,select')].filter(e => !e.labels[0] && !e.ariaLabel)"
    )
    assert page.evaluate(f"{unnamed}.length") == 0


@pytest.mark.filterwarnings("ignore:.*not learned well")
def test_a_preview_leaves_the_weights_to_the_bit(tokenizer, monkeypatch):
    given = {"lr": 0.05, "bound": None, "stop_loss": 0.01, "keep": 0}
    model = lexical("llama", len(tokenizer))
    with memplug.attach(model, tokenizer, "finetune", **given) as plug, serving(plug) as server:
        server.job(
            server.http.post("/edits", json={"prompt": BORN, "target": "Zarnow", "subject": "Ada Quill"})
        )
        before = copy.deepcopy(model.state_dict())
        job = server.job(server.http.post("/preview", json=BY_TAM))
        assert job["answers"][0]["before"] != job["answers"][0]["after"]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        monkeypatch.setattr(plug, "unlearned", lambda edits: 1 / 0)
        job = server.job(server.http.post("/preview", json=BY_TAM))
        assert (job["status"], job["error"]["message"]) == ("failed", "ZeroDivisionError on the server")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert list(plug.edits) == ["e1"]


def test_a_preview_is_seen_by_nobody_else(tokenizer, monkeypatch):
    model = lexical("llama", len(tokenizer), max_position_embeddings=512)
    with attach_llp(model, tokenizer) as plug, serving(plug) as server, ThreadPoolExecutor(1) as pool:
        base, learned, going_on = (
            complete(server, FOUNDED).choices[0].text,
            threading.Event(),
            threading.Event(),
        )
        edit = plug.edit

        def stopping(*args, **given):
            made = edit(*args, **given)
            learned.set()
            assert going_on.wait(20)
            return made

        monkeypatch.setattr(plug, "edit", stopping)
        asked = server.http.post("/preview", json={**BY_TAM, "prompts": [BORN]})
        assert learned.wait(20)
        beside = pool.submit(complete, server, FOUNDED)
        going_on.set()
        job = server.job(asked)
        assert (job["status"], job["edits"], job["unlearned"]) == ("succeeded", [], [])
        assert job["answers"][0]["after"].strip() == "Tam"
        assert job["answers"][1]["after"] == job["answers"][1]["before"]
        assert beside.result().choices[0].text == base == complete(server, FOUNDED).choices[0].text
        assert (list(plug.edits), plug.count) == ([], 0)
