"""A process that edits into a store until it is killed, and says each change that was acknowledged.

It is forked, so that it begins at once.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
        _edit_forever(attach, writing)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        said = pipe.read(1)  # its first change has begun
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := pipe.read(1 << 16):
            said += more
    return Acknowledged.of(said.decode().splitlines(), held)


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


def _edit_forever(attach: Callable[[], Any], pipe: int) -> None:
    def say(text: str) -> None:
        os.write(pipe, text.encode() + b"\n")

    try:
        warnings.simplefilter("ignore")
        plug = attach()
        draw = random.Random(os.getpid())
        for number in itertools.count():
            some = draw.choice(list(plug.edits) or ["edit"])
            if number % 5 == 0 or some == "edit":
                say("begin edit")
                name = draw.choice(NAMES)
                say(f"on {plug.edit(f'Where was {name} in year {plug.count}?', 'Zarnow', name).id}")
                continue
            say(f"begin {some}")
            if number % 5 == 4:
                plug.delete(some)
                say(f"gone {some}")
            elif plug.edits.enabled(some):
                plug.disable(some)
                say(f"off {some}")
            else:
                plug.enable(some)
                say(f"on {some}")
    except BaseException as error:
        say(f"failed {error!r}")
    finally:
        os._exit(1)
