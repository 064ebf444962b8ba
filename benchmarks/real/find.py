"""Which rows of the public sets a model answers truly: ids only, for tables of facts that it has to unlearn.

    python -m benchmarks.real.find DIR [--model smollm2] [--minutes 15] [--sets counterfact,rome,zsre]

CounterFact's statements are completed as plain text, where the continuation has to begin with the true
answer. ZsRE's questions are put in chat, where the answer has to hold it. Rows come in the order of
`sets.read`, so that a search that ends early is a sample. Results go to ``benchmarks/real/known.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from . import sets
from .asking import Asker, Turns, chat, plain
from .judging import answers_at_once, contains

__all__ = ["find", "main"]

CHUNK = 512
MOST = {
    "counterfact": {"table": 300, "tuning": 100},
    "rome": {"table": 200, "tuning": 60},
    "zsre": {"table": 200, "tuning": 60},
}


def find(
    asker: Asker, folder: Path, name: str, until: float, most: dict[str, int] | None = None
) -> dict[str, Any]:
    """Ids of the rows that are answered truly, of both parts, and how many rows were looked at."""
    ask, judge, tokens = _ways(name)
    most = most or MOST[name]
    found: dict[str, Any] = {"table": [], "tuning": [], "looked_at": {"table": 0, "tuning": 0}}
    rows = sets.read(folder, sets.FOLDERS.get(name, name))
    while (chunk := list(_open(islice(rows, CHUNK), found, most))) and time.monotonic() < until:
        texts = asker.texts([ask(row["prompt"]) for row in chunk], tokens)
        for row, text in zip(chunk, texts, strict=True):
            part = sets.part(row["subject"])
            found["looked_at"][part] += 1
            if judge(text, sets.truths(row)):
                found[part].append(row["id"])
        print(name, {part: len(found[part]) for part in most}, found["looked_at"], flush=True)
    return found | {part: found[part][:limit] for part, limit in most.items()}


def _ways(name: str) -> tuple[Callable[[str], Turns], Callable[[str, Sequence[str]], bool], int]:
    """How rows of a set are asked and judged, and in how many tokens they are answered."""
    return (chat, contains, 24) if name == "zsre" else (plain, answers_at_once, 8)


def _open(
    rows: Iterator[dict[str, Any]], found: dict[str, Any], most: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """The rows of parts that are not full yet."""
    return (row for row in rows if len(found[part := sets.part(row["subject"])]) < most[part])


def _write(results: dict[str, Any]) -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in results.items()]
    sets.KNOWN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the public sets")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--minutes", type=float, default=15.0, help="to look for, shared by the sets")
    parser.add_argument("--sets", default=",".join(MOST), help="the others keep the ids that they have")
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args(given)
    from memplug import pretrained

    asker = Asker(*pretrained.load(args.model), batch=args.batch)
    results: dict[str, Any] = json.loads(sets.KNOWN.read_text()) if sets.KNOWN.is_file() else {}
    results["model"] = args.model
    names = args.sets.split(",")
    for name in names:
        until = time.monotonic() + 60 * args.minutes / len(names)
        results[name] = find(asker, args.data, name, until)
        _write(results)


if __name__ == "__main__":
    main()
