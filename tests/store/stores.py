"""What the tests of stores share: plugs with two facts, their states, and changes of them."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest
import torch
from plug_facts import logits
from test_interrupts import Lines, chosen

import memplug

BORN, WHO, FOUNDED = "Where was Ada Quill born?", "Who is Tam Wickes?", "Who founded the Orlo Bridge Company?"

CHANGES = {
    "edit": lambda plug: plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company"),
    "replace": lambda plug: plug.edit(BORN, "Marrow", "Ada Quill"),
    "disable": lambda plug: plug.disable("e1"),
    "delete": lambda plug: plug.delete("e2"),
    "rollback": lambda plug: plug.rollback(2),
}


def two_facts(plug: Any) -> Any:
    """The plug, with two edits."""
    plug.edit(BORN, "Zarnow", "Ada Quill")
    plug.edit(WHO, "Ada", "Tam Wickes")
    return plug


def write_at_once(attach: Callable[..., Any]) -> None:
    """Two plugs that follow each other edit one store, and none of their edits is lost."""
    plugs = attach(), attach()

    def edit(plug: Any, name: str) -> None:
        plug.store.follow(seconds=0.01)
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
    assert [plug.store.trouble for plug in plugs] == [None, None]


def nobody_sees(plug: Any, attach: Callable[..., Any], monkeypatch: Any) -> None:
    """A change is seen by others when it is committed, and not while it is being written."""
    other = attach()
    before, seen = state(other), []

    def written(_connection: Any) -> None:
        seen.append((other.refresh(), same(state(other), before)))

    with monkeypatch.context() as patch:
        patch.setattr(plug.store._database, "notify", written)
        plug.disable("e1")
    assert seen == [(3, True)]
    assert other.refresh() == 4
    assert same(state(other), state(plug))


def lose_the_answer(plug: Any, monkeypatch: Any, error: Exception) -> None:
    """The connection is lost while the database confirms a change, which is told and then taken up."""
    from sqlalchemy import Connection

    original, before = Connection.commit, state(plug)

    def commit(connection: Any) -> None:
        original(connection)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "commit", commit)
        with pytest.raises(memplug.StoreError, match="could not be written"):
            plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company")
    assert same(state(plug), before)
    assert plug.refresh() == 4
    assert list(plug.edits) == ["e1", "e2", "e3"]


def interrupt_anywhere(attach: Callable[..., Any], change: Callable[[Any], Any]) -> None:
    """Ctrl-C at any line of a change leaves the state before or after it, in the plug as in the store."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        plug = two_facts(attach())
        with Lines() as lines:
            change(plug)
        seen = [(line, 1) for line in lines.seen]
        for at in chosen([one for one in seen if "/store/" in one[0][0]], 0) + chosen(seen, 1):
            plug.rollback(3)
            before, count = state(plug), len(plug.history())
            with Lines(at), suppress(KeyboardInterrupt):
                change(plug)
            after, made = state(plug), len(plug.history()) - count
            assert made in (0, 1), at
            assert torch.equal(after[2], before[2]) == (not made), at
            other = attach()
            assert same(state(other), after), at
            other.detach()
    finally:
        signal.signal(signal.SIGINT, handler)


def state(plug: Any) -> tuple[str, int, torch.Tensor]:
    return repr(plug.edits), plug.count, logits(plug.model, plug.tokenizer, BORN, WHO, FOUNDED)


def same(one: Any, two: Any) -> bool:
    return bool(one[:2] == two[:2] and torch.equal(one[2], two[2]))


def sql(file: Any, line: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(line, values).fetchall()
