"""A process that edits into a store until it is killed, or serves clients who do, and what was acknowledged.

It is forked, so that it begins at once.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import httpx2

from memplug.edits import EditTable

NAMES = ("Ada Quill", "Tam Wickes", "Orlo Bridge")


def kill_a_writer(attach: Callable[[], Any], seconds: float, held: Mapping[str, bool]) -> Acknowledged:
    """Edit, switch and delete in a process of its own, and kill it.

    Args:
        attach: gives the plug, in that process.
        seconds: from its first change to its death.
        held: by id, whether an edit is in force, before.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        say = lambda text: os.write(writing, text.encode() + b"\n")  # noqa: E731
        try:
            _edit_forever(_Plug(attach()), say)
        except BaseException as error:
            say(f"failed {error!r}")
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        said = pipe.read(1)  # its first change has begun
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := pipe.read(1 << 16):
            said += more
    return Acknowledged.of(said.decode().splitlines(), held)


def kill_a_server(attach: Callable[[], Any], seconds: float, held: Mapping[str, bool]) -> Acknowledged:
    """The same over HTTP, of a `memplug serve` that is killed; a change is acknowledged by its job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = os.fork()
    if not child:
        _serve(attach, port)
    lines: list[str] = []
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        plug = _OverHTTP(http)
        while not plug.ready():
            if os.waitpid(child, os.WNOHANG)[0]:
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        killing = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
        killing.start()
        with suppress(httpx2.TransportError):
            _edit_forever(plug, lines.append)
        killing.join()
    os.waitpid(child, 0)
    return Acknowledged.of(lines, held)


def _serve(attach: Callable[[], Any], port: int) -> None:
    """Never returns."""
    try:
        from memplug.serving.run import run
        from memplug.serving.settings import Keys, Settings

        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        run(attach(), lambda: None, Settings(rate=0), Keys(), "127.0.0.1", port)
    finally:
        os._exit(1)


class Acknowledged(NamedTuple):
    """What a process had been told when it was killed.

    Attributes:
        held: by id, whether an edit is in force.
        doing: what had begun, and was perhaps done: "edit", the id of what is switched or deleted, or None.
        count: acknowledgements.
    """

    held: dict[str, bool]
    doing: str | None
    count: int

    @classmethod
    def of(cls, lines: list[str], held: Mapping[str, bool]) -> Acknowledged:
        """What its lines say."""
        now, doing, count = dict(held), None, 0
        for line in lines:
            what, _, id = line.partition(" ")
            if what == "failed":
                raise RuntimeError(line)
            count += what != "begin"
            doing = id if what == "begin" else None
            if what in ("on", "off"):
                now[id] = what == "on"
            elif what == "gone":
                del now[id]
        return cls(now, doing, count)

    def lost(self, edits: EditTable) -> list[str]:
        """Ids of edits that are not in a store as they were acknowledged."""
        found = {id: edits.enabled(id) for id in edits}
        wrong = [
            id for id in {**self.held, **found} if found.get(id) != self.held.get(id) and id != self.doing
        ]
        made = [id for id in wrong if id not in self.held] if self.doing == "edit" else []
        return [id for id in wrong if id not in made[:1]]


class _Editor(Protocol):
    """Makes changes; each has been acknowledged when the call returns."""

    def held(self) -> dict[str, bool]: ...
    def edit(self, prompt: str, target: str, subject: str) -> str: ...
    def delete(self, id: str) -> None: ...
    def switch(self, id: str, on: bool) -> None: ...


class _Plug:
    """Of a plug."""

    def __init__(self, plug: Any) -> None:
        self._plug = plug

    def held(self) -> dict[str, bool]:
        return {id: self._plug.edits.enabled(id) for id in self._plug.edits}

    def edit(self, prompt: str, target: str, subject: str) -> str:
        return str(self._plug.edit(prompt, target, subject).id)

    def delete(self, id: str) -> None:
        self._plug.delete(id)

    def switch(self, id: str, on: bool) -> None:
        (self._plug.enable if on else self._plug.disable)(id)


class _OverHTTP:
    """Of a server's plug."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def ready(self) -> bool:
        with suppress(httpx2.TransportError):
            return self._http.get("/readyz").status_code == 200
        return False

    def held(self) -> dict[str, bool]:
        page = self._http.get("/edits", params={"limit": 1000}).raise_for_status().json()
        return {edit["id"]: edit["enabled"] for edit in page["data"]}

    def edit(self, prompt: str, target: str, subject: str) -> str:
        given = {"prompt": prompt, "target": target, "subject": subject}
        return str(self._done(self._http.post("/edits", json=given))["edits"][0])

    def delete(self, id: str) -> None:
        self._done(self._http.delete(f"/edits/{id}"))

    def switch(self, id: str, on: bool) -> None:
        self._done(self._http.patch(f"/edits/{id}", json={"enabled": on}))

    def _done(self, answer: Any) -> dict[str, Any]:
        job = answer.raise_for_status().json()
        while job["status"] in ("queued", "running"):
            time.sleep(0.01)
            job = self._http.get(f"/jobs/{job['id']}").raise_for_status().json()
        if job["status"] != "succeeded":
            raise RuntimeError(f"failed {job['error']}")
        return dict(job)


def _edit_forever(plug: _Editor, say: Callable[[str], Any]) -> None:
    warnings.simplefilter("ignore")
    draw, held = random.Random(), plug.held()
    for number in itertools.count():
        some = draw.choice(list(held) or ["edit"])
        if number % 5 == 2 or some == "edit":
            say("begin edit")
            name = draw.choice(NAMES)
            some = plug.edit(f"Where was {name} in year {draw.getrandbits(32)}?", "Zarnow", name)
            held[some] = True
            say(f"on {some}")
            continue
        say(f"begin {some}")
        if number % 5 == 4:
            plug.delete(some)
            del held[some]
            say(f"gone {some}")
        else:
            held[some] = not held[some]
            plug.switch(some, held[some])
            say(f"{'on' if held[some] else 'off'} {some}")
