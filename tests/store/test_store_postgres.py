"""A plug in PostgreSQL: many servers share one memory; connections and the server itself may go away."""

from __future__ import annotations

import random
import subprocess
import time

import pytest
from serving import until
from stores import (
    CHANGES,
    interrupt_anywhere,
    lose_the_answer,
    nobody_sees,
    same,
    state,
    write_at_once,
)

import memplug
from benchmarks.postgres import binaries, running
from benchmarks.store_writer import kill_a_writer
from memplug import StoreError
from memplug.store import opening
from memplug.store.database import Database

pytestmark = [
    pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed"),
    pytest.mark.filterwarnings("ignore:.* not learned well"),
]


@pytest.fixture(scope="module")
def server():
    try:
        with running("fsync=off") as server:
            yield server
    except subprocess.CalledProcessError as error:
        pytest.skip(f"PostgreSQL does not start here ({error})")


@pytest.fixture
def sql(server):
    """Runs a line on the server."""
    import psycopg

    def run(line):
        with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
            found = connection.execute(line)
            return found.fetchall() if found.description else None

    run("DROP TABLE IF EXISTS memplug_revisions, memplug_blobs, memplug_version")
    return run


@pytest.fixture
def where(server, sql):
    return server.url


def test_servers_share_one_memory(plug, attach, server):
    other = attach()
    assert same(state(other), state(plug))
    for name in ("edit", "disable", "delete", "rollback"):
        with plug.store.by("ann", "test"):
            CHANGES[name](plug)
        assert other.refresh() == plug.store.at
        assert same(state(other), state(plug))
    assert repr(opening.peek(server.url)[1]) == repr(plug.edits)
    assert [(one.number, one.action) for one in plug.history()][-2:] == [(6, "delete"), (7, "rollback to 2")]
    assert plug.history()[-1].who == "ann"
    assert plug.history()[-1].time.tzname() == "UTC"
    assert plug.store.prune(keep=1) == 6
    assert same(state(attach()), state(plug))


def test_no_edit_of_two_that_write_at_once_is_lost(attach):
    write_at_once(attach)


def test_what_is_being_written_is_seen_by_nobody(plug, attach, monkeypatch):
    nobody_sees(plug, attach, monkeypatch)


def test_a_replica_that_is_not_told_looks(plug, attach, monkeypatch):
    monkeypatch.setattr(Database, "notify", lambda self, connection: None)
    other = attach()
    other.store.follow(seconds=0.1)
    plug.disable("e1")
    until(lambda: other.store.at == plug.store.at)
    assert same(state(other), state(plug))


def test_a_replica_is_told(plug, attach):
    other = attach()
    other.store.follow(seconds=30)  # looking would take too long
    until(lambda: _listens(plug))
    for change in (lambda: plug.disable("e1"), lambda: plug.enable("e1")):
        change()
        begun = time.monotonic()
        until(lambda: other.store.at == plug.store.at)
        assert time.monotonic() - begun < 5
        assert same(state(other), state(plug))


def _listens(plug):
    with plug.store._database.reading() as connection:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN memplug'"
        return connection.exec_driver_sql(asked).scalar() > 0


def test_a_writer_waits_its_turn_and_no_longer_than_it_was_told(plug, attach):
    other, plug.store.patience = attach(), 0.1
    before = state(plug)
    with other.store._database.writing():
        with pytest.raises(StoreError, match="another process has been writing to postgresql.* for 0.1 sec"):
            plug.delete("e1")
        assert same(state(plug), before)
        assert plug.refresh() == 3
    plug.delete("e1")


@pytest.mark.parametrize("change", CHANGES)
def test_a_connection_that_is_lost_before_it_is_stored_changes_nothing(
    plug, attach, sql, change, monkeypatch
):
    before, original = state(plug), type(plug.store)._append

    def lost(*given):
        sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(type(plug.store), "_append", lost)
        with pytest.raises(StoreError, match="the store postgresql.* could not be written .*terminat"):
            CHANGES[change](plug)
    assert same(state(plug), before)
    CHANGES[change](plug)
    assert same(state(attach()), state(plug))


def test_a_server_that_goes_away_and_comes_back(plug, attach, server):
    other = attach()
    other.store.follow(seconds=0.2)
    before = state(plug)
    server.stop()
    try:
        for change in CHANGES.values():
            with pytest.raises(StoreError, match="could not be read"):
                change(plug)
            assert same(state(plug), before)
        until(lambda: isinstance(other.store.trouble, StoreError))
        assert same(state(other), before)
    finally:
        server.start()
    plug.delete("e1")
    until(lambda: other.store.at == 4 and other.store.trouble is None)
    assert same(state(other), state(plug))


def test_an_answer_that_is_lost_is_taken_up(plug, monkeypatch):
    import psycopg

    lose_the_answer(plug, monkeypatch, psycopg.OperationalError("the connection is lost"))


@pytest.mark.parametrize("change", ["edit", "disable", "rollback"])
def test_ctrl_c_at_any_line_leaves_the_state_before_or_after(attach, change):
    interrupt_anywhere(attach, CHANGES[change])


def test_a_revision_that_cannot_be_is_refused(plug):
    for absent in (9, 0, -1, 1 << 70, "2"):
        with pytest.raises(StoreError, match=f"revision {absent} of .* is not there; the newest is 3"):
            plug.rollback(absent)
    assert plug.store.prune(keep=1 << 70) == 0


def test_who_only_looks_makes_nothing(server, sql):
    assert opening.is_empty(server.url)
    for look in (opening.peek, opening.read_history):
        with pytest.raises(StoreError, match="there is no store postgresql"):
            look(server.url)
    assert sql("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'memplug%'") == [(0,)]


@pytest.mark.slow
def test_what_a_killed_process_was_told_is_there(plug, model, tokenizer, server):
    plug.detach()
    held, draw, count = {"e1": True, "e2": True}, random.Random(0), 0

    def attach():
        return memplug.attach(model, tokenizer, store=server.url)

    for _ in range(10):
        told = kill_a_writer(attach, draw.random(), held)
        edits = wait_for_the_lock(attach)
        assert told.lost(edits) == []
        held, count = {id: edits.enabled(id) for id in edits}, count + told.count
    assert count > 30


def wait_for_the_lock(attach):
    """The edits, once the server knows that the killed process is gone and what it had sent is done."""
    with attach() as plug:
        with plug.store._database.writing():
            pass
        plug.refresh()
        return plug.edits
