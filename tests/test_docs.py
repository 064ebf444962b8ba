"""The pages under docs/: what they show works as it stands there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_contract import answers, encode

import memplug
from memplug.memory import KeyMemory, votes
from memplug.methods import METHODS

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def module_of(code: str, name: str, folder: Path) -> Any:
    """A module with this text."""
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lookup(monkeypatch, tmp_path):
    """The method of the page on adding one, put where the page says."""
    code, line = blocks("adding_a_method.md")
    name = "memplug.methods.lookup"
    monkeypatch.setitem(sys.modules, name, None)  # so that it is taken out again
    module_of(code, name, tmp_path)
    added = re.fullmatch(r'METHODS\["(\w+)"\] = "(\S+)"\n', line)
    assert added is not None
    monkeypatch.setitem(METHODS, *added.groups())
    return code


def test_an_added_method_keeps_what_is_promised(lookup, model, tokenizer, tmp_path):
    assert sum(bool(line.strip()) for line in lookup.splitlines()) < 60
    asked, other = "Where was Ada Quill born?", "Where was Tam Wickes born?"
    before = [model(**encode(tokenizer, text)).logits for text in (asked, other)]
    with memplug.attach(model, tokenizer, "lookup") as plug:
        edit = plug.edit(asked, "Zarnow", "Ada Quill")
        assert tokenizer.decode(answers(model, tokenizer, asked)[0]).strip().startswith("Zarnow")
        assert torch.equal(model(**encode(tokenizer, other)).logits, before[1])
        assert plug.explain(asked).edits == (edit,)
        assert not plug.explain(other).applies
        plug.disable(edit)
        assert torch.equal(model(**encode(tokenizer, asked)).logits, before[0])
        plug.enable(edit)
        plug.save(tmp_path / "plug")
    with memplug.load(tmp_path / "plug", model, tokenizer) as plug:
        assert tokenizer.decode(answers(model, tokenizer, asked)[0]).strip().startswith("Zarnow")
        plug.delete("e1")
        assert torch.equal(model(**encode(tokenizer, asked)).logits, before[0])
    assert torch.equal(model(**encode(tokenizer, asked)).logits, before[0])


def test_the_vote_rule_is_one_function(monkeypatch, tmp_path):
    (code,) = blocks("changing_the_vote.md")
    monkeypatch.setitem(sys.modules, "changed_vote", None)
    made = module_of(code, "changed_vote", tmp_path)
    keys = torch.eye(8)[:3, None]
    memory = KeyMemory(3, 8, quorum=2)
    memory.add(5, keys)
    text = torch.zeros(3, 1, 1, 8)
    text[2, 0, 0] = keys[2, 0]  # the last layer alone
    assert memory.search(text)[0].tolist() == [-1]
    monkeypatch.setattr(votes.count_votes, "__code__", made.count_votes.__code__)
    assert memory.search(text)[0].tolist() == [5]
    assert votes.enough_layers(3, 2) == 3  # whatever the others say, the last one may decide


RUN = {"index.md": 1, "recipes.md": 10, "vllm.md": 1}
"""Page -> how many of its Python blocks are run, one after the other."""
NOT_RUN = {
    "recipes.md": [
        "needs a large model",
        "needs a chat model",
        "needs bitsandbytes and a GPU",
        "needs a saved adapter (tests/test_ways_peft.py makes its own)",
        "needs several GPUs",
        "needs that server",
        "needs a Ray cluster and PostgreSQL (tests/test_serving_ray.py starts its own)",
    ]
}
"""Page -> why its other blocks are not, as their first lines say."""


def test_every_page_is_run_or_shows_no_python():
    shown = {path.name for path in DOCS.glob("*.md") if blocks(path.name)}
    assert shown == RUN.keys() | {"adding_a_method.md", "changing_the_vote.md"}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # editors that were hardly fitted say so
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs(page, smollm2, tmp_path, monkeypatch):
    needs = re.compile(r"# not run by the tests: (.*)\n")
    run = [block for block in blocks(page) if not needs.match(block)]
    assert len(run) == RUN[page]
    assert [found[1] for block in blocks(page) if (found := needs.match(block))] == NOT_RUN.get(page, [])
    for block in blocks(page):
        compile(block, page, "exec")
    if page == "recipes.md":
        pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    module_of("\n".join(run), page.removesuffix(".md"), tmp_path)


def test_the_first_edit_is_readmes():
    (block,) = blocks("index.md")
    assert block in (DOCS.parent / "README.md").read_text()


def test_the_site_is_built_without_a_warning(tmp_path):
    """Links and anchors among them; `make docs` does the same."""
    for name in ("material", "mkdocstrings_handlers.python", "latex2mathml"):
        pytest.importorskip(name, reason="the site needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "api.html", "benchmarks/index.html", "CONTRIBUTING.html"} <= pages.keys()
    for name in ("attach", "Plug.edit", "Plug.rollback", "Plug.paused"):
        assert f'id="memplug.{name}"' in pages["api.html"]
    assert "<math" in pages["methods.html"]
    for text in pages.values():
        assert not re.search(r"\\\(|\\\[|\$\$|^:::", text, re.MULTILINE), "a formula or reference was left"
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?:', text), "something is fetched"
    assert not any(
        "\\" in formula for formula in re.findall("<math.*?</math>", pages["methods.html"], re.DOTALL)
    )
