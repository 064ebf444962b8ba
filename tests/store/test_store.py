"""A plug in SQLite: what is acknowledged is there, to the bit; who did what, and why; plugs on one store."""

from __future__ import annotations

import copy
import json
import threading
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from serving import until
from stores import BORN, WHO, nobody_sees, same, sql, state, write_at_once

import memplug
from memplug import StoreError
from memplug.store import opening
from memplug.store import store as stores

pytestmark = pytest.mark.filterwarnings("ignore:.* not learned well")


def test_each_change_is_there_when_its_call_returns(attach, file):
    plug = attach()
    for change in (
        lambda: plug.edit(BORN, "Zarnow", "Ada Quill"),
        lambda: plug.edit(WHO, "Ada", "Tam Wickes"),
        lambda: plug.disable("e1"),
        lambda: plug.enable("e1"),
        lambda: plug.delete("e2"),
    ):
        change()
        _, edits = opening.peek(file)
        assert repr(edits) == repr(plug.edits)
        other = attach(None)
        assert same(state(other), state(plug))
        other.detach()
    assert [(one.number, one.action, one.edits) for one in plug.history()] == [
        (1, "attach", ()),
        (2, "edit", ("e1",)),
        (3, "edit", ("e2",)),
        (4, "disable", ("e1",)),
        (5, "enable", ("e1",)),
        (6, "delete", ("e2",)),
    ]


def test_who_and_why_are_the_threads_own(plug):
    def delete():
        with plug.store.by(who="tim", why="ticket 13"):
            plug.delete("e2")

    with plug.store.by(who="ann", why="ticket 12"):
        plug.disable("e1")
        thread = threading.Thread(target=delete)
        thread.start()
        thread.join()
        plug.enable("e1")
    plug.disable("e1")
    last = plug.history()[-4:]
    assert [(one.who, one.why) for one in last] == [("ann", "ticket 12"), ("tim", "ticket 13"),
        ("ann", "ticket 12"), (None, None)]  # fmt: skip
    assert all(timedelta() <= datetime.now(UTC) - one.time < timedelta(minutes=5) for one in last)
    for who in (7, "a\0", "\ud800"):
        with pytest.raises(ValueError, match="who and why are texts without NUL"), plug.store.by(who=who):
            pass


def test_it_goes_back_and_what_was_pruned_stays_in_the_history(plug, attach, file):
    before = state(plug)
    plug.delete("e1")
    plug.rollback(3)
    assert same(state(plug), before)
    assert plug.history()[-1][4:6] == ("rollback to 3", ("e1",))
    assert plug.store.prune(keep=2) == 3
    assert stored(file) == needed(file)
    assert plug.store.prune(keep=1 << 70) == plug.store.prune(keep=2) == 0
    assert [one.kept for one in plug.history()] == [False] * 3 + [True] * 2
    absent = "is not there; the newest is 5"
    for number, told in (
        (3, "was pruned"),
        (9, absent),
        (0, absent),
        (-1, absent),
        (1 << 70, absent),
        ("3", absent),
    ):
        with pytest.raises(StoreError, match=f"revision {number} of .*facts.db {told}"):
            plug.rollback(number)
    assert same(state(plug), before)
    plug.rollback(4)
    plug.rollback(5)
    assert same(state(attach()), before)
    with pytest.raises(ValueError, match="keep is 0; give a whole number"):
        plug.store.prune(keep=0)
    plug.store.prune(keep=1)
    assert stored(file) == needed(file)


def stored(file):
    """The blobs that there are."""
    return {sha for (sha,) in sql(file, "SELECT sha256 FROM memplug_blobs")}


def needed(file):
    """Those that revisions need, read off the tables alone."""
    found = set()
    for lists in sql(file, "SELECT manifest, tensors FROM memplug_revisions WHERE manifest IS NOT NULL"):
        manifest, index = map(json.loads, lists)
        blobs = dict(sql(file, "SELECT sha256, data FROM memplug_blobs"))
        tensors = json.loads(b"".join(blobs[sha] for sha in index))
        found |= {*manifest, *index, *(sha for *_, blocks in tensors for sha in blocks)}
    return found


def test_a_plug_without_a_store_says_so(model, tokenizer):
    with memplug.attach(copy.deepcopy(model), tokenizer, "icl") as plug:
        assert plug.store is None
        for call in (plug.history, plug.refresh, lambda: plug.rollback(1)):
            with pytest.raises(ValueError, match="this plug has no store; memplug.attach"):
                call()


def test_no_edit_of_two_that_write_at_once_is_lost(attach):
    write_at_once(attach)


def test_what_is_being_written_is_seen_by_nobody(plug, attach, monkeypatch):
    nobody_sees(plug, attach, monkeypatch)


def test_of_two_that_make_a_store_at_once_the_second_takes_up_the_firsts(attach, monkeypatch):
    newest, others = stores.newest, []

    def overtaken(*given):
        found = newest(*given)
        monkeypatch.undo()
        others.append(attach(k=3))
        others[0].edit(BORN, "Zarnow", "Ada Quill")
        return found

    monkeypatch.setattr(stores, "newest", overtaken)
    assert same(state(attach(None)), state(others[0]))
    assert [one.action for one in others[0].history()] == ["attach", "edit"]


def test_a_plug_follows_until_it_is_detached(plug, attach, file):
    other = attach()
    other.store.follow(seconds=0.05)
    plug.disable("e1")
    until(lambda: other.store.at == 4)
    assert same(state(other), state(plug))
    other.detach()
    until(lambda: f"memplug follows {file}" not in [thread.name for thread in threading.enumerate()])
    with pytest.raises(ValueError, match="this plug was detached"):
        other.store.follow()
    for seconds in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"seconds is {seconds}; give a number above 0"):
            plug.store.follow(seconds)


def test_the_command_line_takes_a_store(tmp_path):
    from typer.testing import CliRunner

    from memplug.cli import app

    def run(*line, fails=False):
        found = CliRunner().invoke(app, [str(part) for part in line])
        assert (found.exit_code != 0) == fails, found.output
        return found.output

    store = f"sqlite:///{tmp_path}/facts.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run("edit", store, "The capital of France is", "Lyon", "--subject", "France", "--method", "icl")
        run("edit", store, "The capital of Spain is", "Lyon", "--subject", "Spain")
    assert "method icl: 2 edits, 2 in force" in run("list", tmp_path / "facts.db")
    run("delete", store, "e1")
    run("rollback", store, 3)
    assert "2 edits, 2 in force" in run("list", store)
    shown = run("history", store).splitlines()
    assert [line.split("UTC")[1].split() for line in shown] == [
        ["attach"], ["edit", "e1"], ["edit", "e2"], ["delete", "e1"], ["rollback", "to", "3", "e1"]
    ]  # fmt: skip
    for command in ("list", "history"):
        assert "there is no store" in run(command, tmp_path / "none.db", fails=True)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("name", ["a b.db", "a?b.db", "a#b.db", "a%20b.db", "ä.db"])
def test_a_file_is_called_as_it_is_given(attach, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    plug = attach(where=name)
    monkeypatch.chdir("/")  # a relative path stays that of the folder it was given in
    plug.edit(BORN, "Zarnow", "Ada Quill")
    plug.rollback(1)  # reads on a second connection
    assert opening.peek(tmp_path / name)[1].keys() == plug.edits.keys() == set()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".db"] == [name]
