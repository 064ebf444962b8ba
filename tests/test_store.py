"""A plug in SQLite: what is acknowledged is there, what fails has not happened; who did what, and why."""

from __future__ import annotations

import copy
import random
import signal
import sqlite3
import sys
import threading
import time
import warnings
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta

import pytest
import torch
from families import METHODS, lexical
from plug_facts import logits
from test_contract import CASES
from test_interrupts import Lines, chosen
from test_storage_processes import files_of_at_most

import memplug
from benchmarks.store_writer import kill_a_writer
from memplug import LoadError, StoreError
from memplug.store import opening
from memplug.store import store as stores
from memplug.store.store import Store

BORN, WHO, FOUNDED = "Where was Ada Quill born?", "Who is Tam Wickes?", "Who founded the Orlo Bridge Company?"
pytestmark = pytest.mark.filterwarnings("ignore:.* not learned well")


@pytest.fixture
def attach(model, tokenizer, tmp_path):
    """Attaches in-context editing, which takes no training, to a copy of the model, in the test's store."""
    made = []

    def attach(method="icl", where=tmp_path / "facts.db", on=model, **given):
        given = {"k": 2} if method == "icl" and not given else given
        made.append(memplug.attach(copy.deepcopy(on), tokenizer, method, store=where, **given))
        return made[-1]

    yield attach
    for plug in made:
        plug.detach()


@pytest.fixture
def plug(attach):
    """A plug in the test's store, with two edits."""
    plug = attach()
    plug.edit(BORN, "Zarnow", "Ada Quill")
    plug.edit(WHO, "Ada", "Tam Wickes")
    return plug


@pytest.fixture
def file(tmp_path):
    return tmp_path / "facts.db"


def state(plug):
    return repr(plug.edits), plug.count, logits(plug.model, plug.tokenizer, BORN, WHO, FOUNDED)


def same(one, two):
    return one[:2] == two[:2] and torch.equal(one[2], two[2])


def sql(file, line, *values):
    with closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(line, values).fetchall()


# ---------------------------------------------------------------------- what is there


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
    with pytest.raises(ValueError, match="texts without NUL, got 7"), plug.store.by(who=7):
        pass


def test_it_goes_back_and_what_was_pruned_stays_in_the_history(plug, attach, file):
    before = state(plug)
    plug.delete("e1")
    plug.rollback(3)
    assert same(state(plug), before)
    assert plug.history()[-1][4:6] == ("rollback to 3", ("e1",))
    blobs = sql(file, "SELECT count(*) FROM memplug_blobs")[0][0]
    assert plug.store.prune(keep=2) == 3
    assert sql(file, "SELECT count(*) FROM memplug_blobs")[0][0] < blobs
    assert [one.kept for one in plug.history()] == [False] * 3 + [True] * 2
    for number, told in ((3, "was pruned"), (9, "is not there; the newest is 5")):
        with pytest.raises(StoreError, match=f"revision {number} of .*facts.db {told}"):
            plug.rollback(number)
    assert same(state(plug), before)
    plug.rollback(4)
    plug.rollback(5)
    assert same(state(attach()), before)
    with pytest.raises(ValueError, match="keep is 0; give a whole number"):
        plug.store.prune(keep=0)


def test_a_plug_without_a_store_says_so(model, tokenizer):
    with memplug.attach(copy.deepcopy(model), tokenizer, "icl") as plug:
        assert plug.store is None
        for call in (plug.history, plug.refresh, lambda: plug.rollback(1)):
            with pytest.raises(ValueError, match="this plug has no store; memplug.attach"):
                call()


# ---------------------------------------------------------------------- several plugs


def test_no_edit_of_two_that_write_at_once_is_lost(attach):
    plugs = attach(), attach()

    def edit(plug, name):
        for number in range(5):
            plug.edit(f"Where was {name} in year {number}?", "Zarnow", name)

    threads = [threading.Thread(target=edit, args=given) for given in zip(plugs, ("Ada", "Tam"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plugs[0].refresh() == plugs[1].refresh() == 11
    assert same(state(plugs[0]), state(plugs[1]))
    assert sorted(plugs[0].edits) == sorted(f"e{n + 1}" for n in range(10))
    assert sorted(edit.subject for edit in plugs[0].edits.values()) == ["Ada"] * 5 + ["Tam"] * 5


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
    wait(lambda: other.store.at == 4)
    assert same(state(other), state(plug))
    other.detach()
    wait(lambda: f"memplug follows {file}" not in [thread.name for thread in threading.enumerate()])
    with pytest.raises(ValueError, match="seconds is 0; give a number above 0"):
        plug.store.follow(0)


def wait(for_what, seconds=20):
    until = time.monotonic() + seconds
    while not for_what():
        assert time.monotonic() < until
        time.sleep(0.01)


# ---------------------------------------------------------------------- what is refused


def test_other_methods_and_constants_than_the_stores_are_refused_by_name(
    plug, attach, model, tokenizer, file
):
    for given, told in (
        ({"method": "llp"}, "made with method='icl', not 'llp'"),
        ({"k": 3}, "made with k=2, not 3"),
        ({"method": None, "k": 5}, "made with k=2, not 5"),
        ({"layers": "model.other"}, "made with layers='model.layers', not 'model.other'"),
        ({"editor": "file", "k": 2}, "holds its editor; leave file out"),
    ):
        with pytest.raises(ValueError, match=f"facts.db .*{told}"):
            attach(**({"method": "icl"} | given))
    assert attach(None).method.config == plug.method.config
    assert attach(k=2).edits.keys() == {"e1", "e2"}


def test_the_store_of_another_model_is_refused(plug, attach, tokenizer):
    with pytest.raises(LoadError, match="facts.db was saved on a .* with the fingerprint .*; this model"):
        attach(on=lexical("llama", len(tokenizer), seed=1))


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("mysql://root@localhost/db", "edits are not kept in mysql"),
        ("sqlite://", "edits are not kept in sqlite://; name an SQLite file"),
        ("nonsense://", "no URL of a database|edits are not kept in"),
        ("/nowhere/at/all/facts.db", "could not be read .*unable to open"),
    ],
)
def test_what_is_no_place_for_a_store(attach, where, told):
    with pytest.raises(StoreError, match=told):
        attach(where=where)


def test_a_file_of_something_else_is_refused(attach, tmp_path):
    (tmp_path / "other.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="other.db could not be read .*not a database"):
        attach(where=tmp_path / "other.db")


def test_a_newer_schema_is_refused(plug, attach, file):
    sql(file, "UPDATE memplug_version SET version_num='7'")
    with pytest.raises(StoreError, match="facts.db has the schema '7', this memplug knows them up to 1; up"):
        attach()


def test_migrations_make_the_tables(plug, file):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from memplug.store.tables import METADATA, VERSION

    with opening._reading(file) as (connection, _):
        context = MigrationContext.configure(connection, opts={"version_table": VERSION})
        assert compare_metadata(context, METADATA) == []


def test_the_missing_extra_is_named(attach, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("memplug.store.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ImportError, match="a store needs sqlalchemy; run `pip install .memplug.store..`"):
        attach()


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("UPDATE memplug_blobs SET data = zeroblob(length(data))", "the store is damaged .*wrong SHA-256"),
        ("DELETE FROM memplug_blobs", "the store is damaged .*the blob .* is missing"),
        ("UPDATE memplug_revisions SET manifest = tensors", "revision 4 of .*facts.db is damaged"),
        ("UPDATE memplug_revisions SET tensors = '[]'", "the store is damaged .*wrong SHA-256"),
        ("UPDATE memplug_revisions SET manifest = '[1]'", "the store is damaged .*1, not a text"),
    ],
)
def test_what_was_tampered_with_is_refused(plug, attach, file, line, told):
    other = attach()
    before = state(other)
    plug.disable("e1")
    sql(file, line)
    for call in (attach, other.refresh, lambda: other.disable("e2")):
        with pytest.raises(LoadError, match=told):
            call()
    assert same(state(other), before)


# ---------------------------------------------------------------------- failures

CHANGES = {
    "edit": lambda plug: plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company"),
    "replace": lambda plug: plug.edit(BORN, "Marrow", "Ada Quill"),
    "disable": lambda plug: plug.disable("e1"),
    "delete": lambda plug: plug.delete("e2"),
    "rollback": lambda plug: plug.rollback(2),
}


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


def test_ctrl_c_at_any_line_leaves_the_state_before_or_after(attach, file, tmp_path):
    before_signal = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for name in ("edit", "disable", "rollback"):
            plug = attach(where=tmp_path / f"{name}.db")
            plug.edit(BORN, "Zarnow", "Ada Quill")
            plug.edit(WHO, "Ada", "Tam Wickes")
            call = CHANGES[name]
            with Lines() as lines:
                call(plug)
            for at in chosen([(line, 1) for line in lines.seen if "/store/" in line[0]], 0) + chosen(
                [(line, 1) for line in lines.seen], 1
            ):
                plug.rollback(3)
                before, count = state(plug), len(plug.history())
                with Lines(at), suppress(KeyboardInterrupt):
                    call(plug)
                after, made = state(plug), len(plug.history()) - count
                assert made in (0, 1), at
                assert torch.equal(after[2], before[2]) == (not made), at
                other = attach(where=tmp_path / f"{name}.db")
                assert same(state(other), after), at
                other.detach()
    finally:
        signal.signal(signal.SIGINT, before_signal)


@pytest.mark.slow
def test_what_a_killed_process_was_told_is_there(plug, model, tokenizer, file):
    plug.detach()
    held, draw, count = {"e1": True, "e2": True}, random.Random(0), 0

    def attach():
        return memplug.attach(model, tokenizer, store=file)

    for _ in range(15):
        told = kill_a_writer(attach, draw.random(), held)
        _, edits = opening.peek(file)
        assert told.lost(edits) == []
        held, count = {id: edits.enabled(id) for id in edits}, count + told.count
        attach().detach()  # its tensors are there, too
    assert count > 100


def test_the_command_line_takes_a_store(tmp_path, monkeypatch):
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
