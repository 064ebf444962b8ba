"""A store that fails changes nothing: locks, full disks, interrupts, kills, files that go away."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing

import pytest
from families import METHODS
from stores import BORN, CHANGES, interrupt_anywhere, lose_the_answer, same, state
from test_contract import CASES
from test_storage_processes import files_of_at_most

import memplug
from benchmarks.store_writer import kill_a_server, kill_a_writer
from memplug import StoreError
from memplug.store import opening
from memplug.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:.* not learned well")


@pytest.mark.parametrize("change", CHANGES)
def test_a_database_that_is_locked_changes_nothing(plug, file, change):
    before, plug.store.patience = state(plug), 0.1
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            StoreError, match="another process has been writing to .*facts.db for 0.1 seconds"
        ):
            CHANGES[change](plug)
        assert same(state(plug), before)
        assert plug.refresh() == 3  # reading waits for nobody
    CHANGES[change](plug)
    assert not same(state(plug), before)


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_disk_changes_nothing(plug, attach, file, change):
    before = state(plug)
    with files_of_at_most(100), pytest.raises(StoreError, match="facts.db could not be written .*; nothing"):
        CHANGES[change](plug)
    assert same(state(plug), before)
    assert len(plug.history()) == 3
    CHANGES[change](plug)
    assert same(state(attach()), state(plug))


def test_a_fit_that_is_not_stored_is_taken_back(attach, monkeypatch):
    def fail(*_):
        raise sqlite3.OperationalError("disk I/O error")

    plug = attach("mend", **METHODS["mend"])
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_append", fail)
        with pytest.raises(StoreError, match="could not be written .*disk I/O"):
            plug.fit(CASES, progress=False)
    with pytest.raises(ValueError, match="is not fitted"):
        plug.edit(BORN, "Zarnow", "Ada Quill")
    plug.fit(CASES, progress=False)
    plug.edit(BORN, "Zarnow", "Ada Quill")
    assert [one.action for one in plug.history()] == ["attach", "fit", "edit"]
    assert same(state(attach(None)), state(plug))


@pytest.mark.parametrize("change", ["edit", "disable", "rollback"])
def test_ctrl_c_at_any_line_leaves_the_state_before_or_after(attach, change):
    interrupt_anywhere(attach, CHANGES[change])


def test_an_answer_that_is_lost_is_taken_up(plug, monkeypatch):
    lose_the_answer(plug, monkeypatch, sqlite3.OperationalError("disk I/O error"))


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_is_no_longer_there_is_not_written_to(plug, file, tmp_path, how):
    before = state(plug)
    if how == "deleted":
        file.unlink()
    else:
        (tmp_path / "backup").write_bytes(file.read_bytes())
        (tmp_path / "backup").replace(file)
    for change in (*CHANGES.values(), lambda plug: plug.refresh()):
        with pytest.raises(StoreError, match="facts.db was moved, deleted or replaced since it was opened"):
            change(plug)
    assert same(state(plug), before)
    assert file.exists() == (how == "replaced")


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "times", "least"), [(kill_a_writer, 15, 30), (kill_a_server, 5, 5)])
def test_what_was_acknowledged_before_a_kill_is_there(plug, model, tokenizer, file, kill, times, least):
    plug.detach()
    held, draw, count = {"e1": True, "e2": True}, random.Random(0), 0

    def attach():
        return memplug.attach(model, tokenizer, store=file)

    for _ in range(times):
        told = kill(attach, draw.random(), held)
        _, edits = opening.peek(file)
        assert told.lost(edits) == []
        held, count = {id: edits.enabled(id) for id in edits}, count + told.count
        attach().detach()  # its tensors are there, too
    assert count > least
