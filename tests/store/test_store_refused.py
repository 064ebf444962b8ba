"""What is refused as a store, and what a store that was damaged says."""

from __future__ import annotations

import sys
import traceback

import pytest
from families import lexical
from stores import same, sql, state

from memplug import LoadError, StoreError
from memplug.store import opening

pytestmark = pytest.mark.filterwarnings("ignore:.* not learned well")


def test_other_methods_and_constants_than_the_stores_are_refused_by_name(plug, attach):
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
        ("nonsense://", "edits are not kept in nonsense://; name"),
        (":memory:", "edits are not kept in :memory:; name an SQLite file"),
        ("sqlite:///:memory:", "edits are not kept in sqlite:///:memory:; name"),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", "edits are not kept in sqlite://...; name"),
        ("sqlite://host/facts.db", "edits are not kept in sqlite://host/facts.db; name"),
        ("postgresql://host:port/name", "postgresql://host:port/name is no URL of a database; name"),
        ("/nowhere/at/all/facts.db", "could not be read .*unable to open"),
        ("/", "could not be read .*unable to open"),
    ],
)
def test_what_is_no_place_for_a_store(attach, where, told):
    with pytest.raises(StoreError, match=told):
        attach(where=where)


@pytest.mark.parametrize(
    "where",
    [
        "postgresql://ann:secret@127.0.0.1:1/name",
        "postgresql://ann@127.0.0.1:1/name?password=secret",
        "postgresql://ann@127.0.0.1:1/name?sslpassword=secret",
        "postgresql://ann:s@secret@127.0.0.1:1/name",
        "postgresql://ann:s@a:secret@127.0.0.1:1/name",
        "mysql://ann:secret@127.0.0.1/name",
        "mysql://ann@127.0.0.1/name?password=secret",
        "mysql://ann:s@secret@127.0.0.1/name",
    ],
)
def test_a_password_is_not_shown(where):
    with pytest.raises(StoreError) as told:
        opening.open_database(where)
    assert "secret" not in "".join(traceback.format_exception(told.value))  # with what caused it


def test_a_file_of_something_else_is_refused(attach, tmp_path):
    (tmp_path / "other.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="other.db could not be read .*not a database"):
        attach(where=tmp_path / "other.db")


@pytest.mark.parametrize("look", [opening.peek, opening.read_history, opening.is_empty])
def test_another_applications_file_is_left_alone_by_who_only_looks(tmp_path, look):
    file = tmp_path / "other.db"
    sql(file, "CREATE TABLE theirs (x)")
    before = file.read_bytes()
    if look is opening.is_empty:
        assert look(file)
    else:
        with pytest.raises(StoreError, match="there is no store .*other.db"):
            look(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("UPDATE memplug_version SET version_num='7'", "the schema '7', this memplug knows them up to 1; up"),
        ("INSERT INTO memplug_version VALUES ('7')", "the schema '1, 7', this memplug knows"),
        ("DROP TABLE memplug_revisions", "could not be read .*no such table"),
        ("DELETE FROM memplug_version", "could not be written .*already exists"),
    ],
)
def test_other_tables_are_refused(plug, attach, file, line, told):
    sql(file, line)
    with pytest.raises(StoreError, match=f"facts.db .*{told}"):
        attach()


@pytest.mark.parametrize(
    ("column", "value"), [("time", "never"), ("edits", "nonsense"), ("edits", "[7]"), ("edits", "{}")]
)
def test_a_damaged_history_says_so(plug, file, column, value):
    sql(file, f"UPDATE memplug_revisions SET {column} = ? WHERE number = 2", value)
    for call in (plug.history, lambda: opening.read_history(file)):
        with pytest.raises(LoadError, match="the store is damaged"):
            call()


@pytest.mark.parametrize("kept", [100, 5000, 3 / 4])
def test_a_file_that_is_cut_off_is_refused(plug, attach, file, kept):
    plug.detach()
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if kept > 1 else int(len(whole) * kept)])
    with pytest.raises(StoreError, match="facts.db could not be (read|written)"):
        attach()


def test_a_page_that_is_overwritten_is_refused_or_not_needed(plug, attach, file):
    before = state(plug)
    plug.detach()
    whole, refused = file.read_bytes(), 0
    for at in range(0, len(whole), 4096):
        file.write_bytes(whole[:at] + bytes(4096) + whole[at + 4096 :])
        try:
            other = attach()
        except (StoreError, LoadError):
            refused += 1
        else:
            assert same(state(other), before), at
            other.detach()
    assert refused > 5


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
