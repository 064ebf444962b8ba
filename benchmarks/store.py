"""Edits in a store: changes a second, how far replicas lag behind, and what is lost when writers are killed.

    python -m benchmarks.store --kills 200

On the embedded model with in-context editing, which learns at once, so that what is seen is the store. SQLite
syncs each change to the disk, and so does PostgreSQL with its defaults (on loopback).
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

import memplug
from benchmarks.common import RESULTS, table, write
from benchmarks.postgres import binaries, running
from benchmarks.store_writer import Acknowledged, kill_a_writer
from memplug.world import load

Attach = Callable[[], memplug.Plug]


def fact(number: int) -> tuple[str, str, str]:
    """A prompt, its answer, its subject."""
    return f"Where was Ada{number} Quill born?", "Zarnow", f"Ada{number} Quill"


def seconds(call: Callable[[int], Any], count: int) -> float:
    """Seconds that one of so many calls takes, in the mean."""
    begun = time.perf_counter()
    for number in range(count):
        call(number)
    return (time.perf_counter() - begun) / count


def rates(attach: Attach, count: int) -> dict[str, float]:
    """Edits and switches a second, one by one, after a first edit."""
    with attach() as plug:
        plug.edit("Where was Tam Wickes born?", "Zarnow", "Tam Wickes")
        edits = seconds(lambda n: plug.edit(*fact(n)), count)
        return {"edits": 1 / edits, "switches": 1 / seconds(lambda n: plug.disable(f"e{n + 2}"), count)}


def lag(attach: Attach, count: int) -> dict[str, float]:
    """Milliseconds from a change's acknowledgement until a replica in another process holds it."""
    reading, writing = os.pipe()
    with attach() as plug:
        plug.edit(*fact(0))
        last = plug.store.at + count
        child = os.fork()
        if not child:
            _replica(attach, plug.model, last, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            pipe.readline()
            done = {}
            for number in range(count):
                (plug.enable if number % 2 else plug.disable)("e1")
                done[plug.store.at] = time.monotonic()
                time.sleep(0.02 + 0.08 * random.random())
            seen = {int(one): float(at) for one, at in map(str.split, pipe)}
        os.waitpid(child, 0)
    # It may be there before the writer knows that it is.
    lags = [max(0.0, min(at for n, at in seen.items() if n >= one) - at) * 1e3 for one, at in done.items()]
    return {"median": statistics.median(lags), "worst": max(lags)}


def _replica(attach: Attach, model: Any, last: int, pipe: int) -> None:
    """Follow until the last revision is there, and say when each came; never returns."""
    try:
        delattr(model, "_memplug_plug")
        plug = attach()
        plug.store.follow(seconds=0.05)
        at = plug.store.at
        os.write(pipe, b"\n")
        while at < last:
            if plug.store.at != at:
                at = plug.store.at
                os.write(pipe, f"{at} {time.monotonic()}\n".encode())
            time.sleep(0.0005)
    finally:
        os._exit(0)


def kills(
    attach: Attach,
    count: int,
    kill: Callable[..., Acknowledged] = kill_a_writer,
    longest: float = 1.0,
    seconds: float = math.inf,
) -> dict[str, int]:
    """Acknowledged changes of writers that are killed, and those that are not in the store afterwards.

    Args:
        attach: gives a plug in the store.
        count: of writers.
        kill: edits and is killed.
        longest: seconds from its first change to its death.
        seconds: after which no more are begun.
    """
    draw, held, acknowledged, lost = random.Random(0), {"e1": True}, 0, 0
    with attach() as plug:  # the first edit calibrates, which takes a while
        plug.edit(*fact(0))
    killed, until = 0, time.monotonic() + seconds
    while killed < count and time.monotonic() < until:
        told = kill(attach, longest * draw.random(), held)
        with attach() as plug:
            with plug.store._database.writing():  # where it had sent a commit, that is done
                pass
            plug.refresh()
            edits = plug.edits
        acknowledged, lost = acknowledged + told.count, lost + len(told.lost(edits))
        held = {id: edits.enabled(id) for id in edits}
        killed += 1
        print(f"{killed} killed, {acknowledged} changes acknowledged, {lost} lost", end="\r", flush=True)
    print()
    return {"killed": killed, "acknowledged": acknowledged, "lost": lost}


@contextmanager
def places() -> Iterator[dict[str, Callable[[], str | None]]]:
    """Where edits are kept: by name, what gives the address of an empty one."""
    server = running() if binaries() else nullcontext()
    with tempfile.TemporaryDirectory() as folder, server as postgres:
        found: dict[str, Callable[[], str | None]] = {"none": lambda: None}
        found["sqlite"] = lambda: str(Path(folder, f"{time.monotonic_ns()}.db"))
        if postgres is not None:
            found["postgresql"] = postgres.database
        yield found


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "store.json", help="the file of results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, tokenizer = load()
    results: dict[str, Any] = {}
    with places() as addresses:
        for name, address in addresses.items():

            def attach(where: str | None) -> memplug.Plug:
                return memplug.attach(model, tokenizer, "icl", store=where, k=2)

            where = address()
            results[name] = {"a second": rates(lambda where=where: attach(where), given.edits)}
            if name == "none":
                continue
            one, two = address(), address()
            results[name]["lag in ms"] = lag(lambda where=one: attach(where), given.edits)
            results[name]["kills"] = kills(lambda where=two: attach(where), given.kills)
    rows = [
        [
            name,
            *(f"{found['a second'][what]:.1f}" for what in ("edits", "switches")),
            *(f"{found['lag in ms'][what]:.1f}" if name != "none" else "" for what in ("median", "worst")),
            *(str(found["kills"][what]) if name != "none" else "" for what in ("acknowledged", "lost")),
        ]
        for name, found in results.items()
    ]
    head = [
        "store",
        "edits/s",
        "switches/s",
        "lag, median ms",
        "worst",
        f"told before {given.kills} kills",
        "lost",
    ]
    print(table(head, rows))
    write(given.out, results, **vars(given))


if __name__ == "__main__":
    main()
