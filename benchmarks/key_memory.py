"""The key memory alone, against a plain product and against the published way of searching.

    python -m benchmarks.key_memory [--quick]

Searches of R layers of E keys for B rows of T tokens (`key_memory_search.py`), of spans, and changes of
single entries, all on one thread. Times are CPU time of the thread, the fastest of several runs taken in
turns. A row passes if the ratio reaches its target and all winners are those of the plain product.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from memplug.memory import KeyMemory

from .common import RESULTS, write
from .key_memory_search import FULL, QUICK, cpu_times, searches


def spans(entries: int, seconds: float) -> Iterable[dict[str, Any]]:
    """Subjects of three tokens whose last words are shared among hundred subjects each."""
    generator = torch.Generator().manual_seed(0)
    n_words = max(2, entries // 100)
    words = torch.randn(3, 4 * n_words, 192, generator=generator)
    pick = torch.randint(4 * n_words, (entries, 3), generator=generator)
    pick[:, 2] %= n_words
    memory = KeyMemory(3, 192)
    keys = words[:, pick] + 0.3 * torch.randn(3, entries, 3, 192, generator=generator)
    for id in range(entries):
        memory.add(id, keys[:, id])
    noise = torch.randn(3, 1, 64, 192, generator=generator)
    texts = {"nothing known": noise, "a last word alone": noise.clone(), "a subject": noise.clone()}
    texts["a last word alone"][:, 0, 40] = words[:, 0]
    texts["a subject"][:, 0, 38:41] = keys[:, 7]
    unit = F.normalize(keys, dim=-1)

    def plain_spans(text: Tensor) -> int:
        votes = torch.zeros(entries)
        for k, q in zip(unit, F.normalize(text[:, 0], dim=-1), strict=True):
            cosine = (q @ k.flatten(0, 1).T).view(64, entries, 3)
            window = torch.stack([cosine[i : 62 + i, :, i] for i in range(3)]).amin(dim=0)
            top, at = window.amax(dim=0).topk(3)
            votes[at] += (top > 0.7).float()
        return int(votes.argmax()) if votes.max() >= 2 else -1

    for name, text in texts.items():
        winner, _ = memory.search(text)
        times = cpu_times(
            {"memory": lambda t=text: memory.search(t), "plain": lambda t=text: plain_spans(t)}, seconds
        )
        yield {
            "text": name,
            "entries": entries,
            "times_ms": times,
            "ratio": times["plain"] / times["memory"],
            "same_winner": winner.item() == plain_spans(text) == (7 if name == "a subject" else -1),
        }


def changes(width: int, layers: int, entries: int) -> dict[str, Any]:
    """Microseconds to add (doublings included), switch and remove one entry; seconds to save and load."""
    keys = torch.randn(64, layers, 1, width)
    memory = KeyMemory(layers, width)

    def each(run: Callable[[int], Any], count: int) -> float:
        start = time.thread_time()
        for id in range(count):
            run(id)
        return 1e6 * (time.thread_time() - start) / count

    found: dict[str, Any] = {"width": width, "layers": layers, "entries": entries}
    found["add_us"] = each(lambda id: memory.add(id, keys[id % 64]), entries)
    found["switch_us"] = each(lambda id: memory.set_enabled(id, False), min(1000, entries))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "keys.safetensors"
        start = time.perf_counter()
        save_file(memory.state_dict(), path)
        found["save_s"] = time.perf_counter() - start
        start = time.perf_counter()
        other = KeyMemory(layers, width)
        other.load_state_dict(load_file(path))
        found["load_s"] = time.perf_counter() - start
        found["file_mb"] = path.stat().st_size / 1e6
    found["remove_us"] = each(memory.remove, entries)
    targets = {"add_us": 60, "remove_us": 50, "switch_us": 20}
    found["targets"] = targets
    found["passed"] = all(found[name] <= target for name, target in targets.items())
    return found


def number(value: float | None) -> str:
    """Three digits, or an en dash."""
    return "–" if value is None else f"{value:.3g}"


def main() -> None:
    """Measure, print the tables, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute")
    parser.add_argument("--seconds", type=float, default=6.0, help="CPU time for each row of the table")
    parser.add_argument("--out", type=Path, default=RESULTS / "key_memory.json", help="the file of results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=150)
    seconds = 1.0 if args.quick else args.seconds

    table = Table("search", "R", "D", "E", "B x T", "scan", title="Milliseconds (CPU time, one thread)")
    for column in (
        "memory",
        "plain",
        "ratio",
        "target",
        "literal",
        "ratio",
        "target",
        "same",
        "",
    ):
        table.add_column(column, justify="right")
    found = []
    for row in searches(QUICK if args.quick else FULL, seconds):
        found.append(row)
        times, ratios = row["times_ms"], row["ratios"]
        goal = f"{row['milliseconds']} ms" if row["milliseconds"] else number(row["plain"])
        table.add_row(
            row["name"],
            str(row["layers"]),
            str(row["width"]),
            str(row["entries"]),
            f"{row['rows']} x {row['tokens']}",
            f"{row['code_bits']} bits" if row["code_bits"] else "product",
            *(number(times[name]) for name in ("memory", "plain")),
            *(number(ratios["plain"]), goal),
            "> 6 GB" if row["literal_skipped"] else number(times.get("literal")),
            *(number(ratios.get("literal")), number(row["literal"])),
            "yes" if row["same_winners"] else "NO",
            "pass" if row["passed"] else "FAIL",
        )
        console.print(f"{row['name']} {row['width']} x {row['entries']}: {number(times['memory'])} ms")
    console.print(table)

    table = Table("spans of 3 tokens, last words shared", "E", "memory", "plain", "ratio", "same")
    with_spans = list(spans(1_000 if args.quick else 10_000, seconds / 2))
    for row in with_spans:
        times = row["times_ms"]
        table.add_row(
            row["text"],
            str(row["entries"]),
            *(number(times["memory"]), number(times["plain"]), number(row["ratio"])),
            "yes" if row["same_winner"] else "NO",
        )
    console.print(table)

    sizes = [(192, 3, 1_000)] if args.quick else [(192, 3, 10_000), (1024, 8, 20_000), (4096, 8, 4_000)]
    changed = [changes(*size) for size in sizes]
    table = Table("D", "R", "E", "add us", "switch us", "remove us", "save s", "load s", "MB", "")
    for row in changed:
        values = (row[name] for name in ("add_us", "switch_us", "remove_us", "save_s", "load_s", "file_mb"))
        table.add_row(
            *(str(row[name]) for name in ("width", "layers", "entries")),
            *map(number, values),
            "pass" if row["passed"] else "FAIL",
        )
    console.print(table)
    write(
        args.out,
        {"searches": found, "spans": with_spans, "changes": changed},
        quick=args.quick,
        seconds=seconds,
        load=os.getloadavg(),
    )
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    main()
