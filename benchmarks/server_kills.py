"""What is lost when a server is killed while it is asked to edit into a store.

    python -m benchmarks.server_kills --kills 100 --minutes 6

A `memplug serve` of the embedded model with in-context editing, which learns at once, is started on the
store, edited over HTTP, and ended by SIGKILL up to two seconds later, again and again. A change is
acknowledged when the client has seen that its job succeeded, and lost where the store does not hold it then.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

import memplug
from benchmarks.common import RESULTS, table, write
from benchmarks.store import kills, places
from benchmarks.store_writer import kill_a_server
from memplug.world import load

__all__ = ["main"]

_LONGEST = 2.0  # seconds from a server's first change to its death; an edit takes some 0.4


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each store's servers")
    parser.add_argument("--minutes", type=float, default=6, help="for each store, at most")
    parser.add_argument("--out", type=Path, default=RESULTS / "server_kills.json", help="the file of results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, tokenizer = load()
    results = {}
    with places() as addresses:
        for name, address in addresses.items():
            where = address()
            if where is None:
                continue

            def attach(where: str = where) -> memplug.Plug:
                return memplug.attach(model, tokenizer, "icl", store=where, k=2)

            results[name] = kills(attach, given.kills, kill_a_server, _LONGEST, given.minutes * 60)
    rows = [[name, *map(str, found.values())] for name, found in results.items()]
    print(table(["store", "servers killed", "changes acknowledged", "lost"], rows))
    write(given.out, results, **vars(given))


if __name__ == "__main__":
    main()
