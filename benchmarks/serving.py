"""Requests a second and latency of `memplug serve`, by edits in force, against `transformers serve`.

    python -m benchmarks.serving --edits 0,10,1000 --clients 8

SmolLM2, bare for `transformers serve`, with llp for `memplug serve`. Every server is a process of its own
with one thread for products, and is asked by the same client: completions of 16 tokens (no token ends them
before), half of them prompts of the first ten edits. Servers take turns in one run: so many requests at once,
then some one after the other. Ten edits are learned. The others have the values and questions of these ten,
and keys in random directions: nothing recalls them, and all of them are searched.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx2
import torch

import memplug
from benchmarks.common import RESULTS, table, write
from benchmarks.overhead import filled
from memplug import world
from memplug.commands.shared import load_model
from memplug.edits import Edit, EditTable

__all__ = ["main"]

TOKENS, LEARNED, KEYS = 16, 10, 3


def multiplied(plug: memplug.Plug, cases: list[Any]) -> None:
    """Give a plug that has learned the first of these cases the others as well: with values and questions of
    those, and random keys."""
    tensors, meta = plug.method.state()
    entries, held = meta["entries"], len(plug.method.memory)
    total = held + KEYS * (len(cases) - len(entries))
    keys = filled(plug.method.memory, total, torch.Generator().manual_seed(0))
    made = {**tensors, **{f"key.{name}": tensor for name, tensor in keys.items()}}
    ids = iter(keys["id"].tolist()[held:])
    edits, learned = dict(plug.edits), list(plug.edits)
    for number, case in enumerate(cases[len(learned) :], start=len(learned)):
        id, like = f"e{number + 1}", learned[number % len(learned)]
        edits[id] = replace(case.edit, id=id)
        value = next(entry["values"][0]["tensor"] for entry in entries if entry["edits"] == [like])
        made[f"value.{number}.x"] = tensors[value].clone()
        for name in ("vectors", "chat", "asks"):
            made[f"question.{id}.{name}"] = tensors[f"question.{like}.{name}"].clone()
        entries = [*entries, {
            "subject": case.edit.subject, "edits": [id], "off": [], "keys": list(islice(ids, KEYS)),
            "values": [{"edits": [id], "tensor": f"value.{number}.x"}],
        }]  # fmt: skip
    meta = {**meta, "entries": entries, "next": int(keys["id"][-1]) + 1}
    plug.method.restore(made, meta, EditTable(edits))
    plug.take_over(edits, (), len(edits))


@contextmanager
def running(*command: object) -> Iterator[httpx2.Client]:
    """A client of the server that this command starts, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line, nowhere = [*map(str, command), "--port", str(port)], subprocess.DEVNULL
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (
        subprocess.Popen(line, env=environment, stdout=nowhere, stderr=nowhere) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client,
    ):
        try:
            while process.poll() is None:
                with suppress(httpx2.TransportError):
                    client.get("/v1/models").raise_for_status()
                    break
                time.sleep(0.2)
            yield client
        finally:
            process.terminate()


def ask(client: httpx2.Client, model: str, prompt: str) -> float:
    """Seconds of one request."""
    begun = time.perf_counter()
    given = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    answer = client.post("/v1/completions", json=given).raise_for_status().json()
    if answer["usage"]["completion_tokens"] != TOKENS:
        raise RuntimeError(f"an answer of other work: {answer}")
    return time.perf_counter() - begun


class Figures:
    """Requests of one server, ``clients`` at once."""

    def __init__(self, model: str, clients: int) -> None:
        self.seconds, self.took, self._model, self._clients = 0.0, list[float](), model, clients

    def measure(self, client: httpx2.Client, prompts: list[str]) -> None:
        """Ask these prompts."""
        begun = time.perf_counter()
        with ThreadPoolExecutor(self._clients) as pool:
            self.took += pool.map(lambda prompt: ask(client, self._model, prompt), prompts)
        self.seconds += time.perf_counter() - begun

    def row(self) -> dict[str, float]:
        """Requests a second; seconds of a request, half and 95 of 100 of which took no longer."""
        parts = statistics.quantiles(self.took, n=20, method="inclusive")
        found = {"requests/s": len(self.took) / self.seconds, "p50": parts[9], "p95": parts[18]}
        return {name: round(x, 3) for name, x in found.items()}


def while_learning(client: httpx2.Client, edit: Edit, asking: Figures, prompts: list[str]) -> float:
    """Ask while an edit is learned; gives the seconds that it took."""
    given = {"prompt": edit.prompt, "target": edit.target, "subject": edit.subject}
    job = client.post("/edits", json=given).raise_for_status().headers["location"]
    while (state := client.get(job).json())["status"] in ("queued", "running"):
        asking.measure(client, prompts)
    if state["status"] != "succeeded":
        raise RuntimeError(state["error"])
    return state["finished"] - state["started"]


def prepared(folder: Path, counts: list[int], cases: list[Any]) -> None:
    """Write the model, with an end token that nothing says (an answer that ends early is less work).

    Beside it, plugs that hold so many edits.
    """
    model, tokenizer = load_model("smollm2", "cpu", "auto")
    model.generation_config.eos_token_id = len(tokenizer) - 1
    for one in (model, tokenizer):
        one.save_pretrained(folder / "model")
    with memplug.attach(model, tokenizer) as plug:
        for count in counts:
            if count and not plug.edits:
                plug.edit(cases[:LEARNED], progress=False)
            if count > LEARNED:
                multiplied(plug, cases[:count])
            plug.save(folder / str(count))


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--edits", default="0,10,1000", help="0, 10 and more")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=8, help="of a server in a round, at once")
    parser.add_argument("--single", type=int, default=3, help="of a server in a round, one after the other")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json", help="the file of results")
    args = parser.parse_args(argv)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts = sorted(map(int, args.edits.split(",")))
    cases = world.cases(max(*counts, LEARNED) + LEARNED + 2, seed=0)
    asked = [case.edit.prompt for pair in zip(cases, cases[-LEARNED - 2 : -2]) for case in pair]  # noqa: B905
    several, single = (list(islice(cycle(asked), count)) for count in (args.requests, args.single))
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        folder = Path(home)
        prepared(folder, counts, cases)
        model = str(folder / "model")
        bare = [Path(sys.executable).with_name("transformers"), "serve", model]
        edited = [sys.executable, "-m", "memplug", "serve", "--model", model, "--name", model, "--rate", 0]
        commands = {
            "transformers serve": bare,
            "with --continuous-batching": [*bare, "--continuous-batching"],
        }
        commands |= {
            f"memplug serve, {count} edits": [*edited, "--plug", folder / str(count)] for count in counts
        }
        servers = {name: stack.enter_context(running(*command)) for name, command in commands.items()}
        figures = {name: (Figures(model, args.clients), Figures(model, 1)) for name in servers}
        for client in servers.values():
            Figures(model, args.clients).measure(client, several)
        for _ in range(args.rounds):
            for name, client in servers.items():
                for asking, prompts in zip(figures[name], (several, single), strict=True):
                    asking.measure(client, prompts)
        client, learning = servers[list(commands)[2]], "while it learns an edit"
        figures[learning] = Figures(model, args.clients), Figures(model, 1)
        given = zip(cases[-2:], figures[learning], (several[: args.clients], single[:1]), strict=True)
        seconds = [while_learning(client, case.edit, asking, prompts) for case, asking, prompts in given]
    rows = {name: [asking.row() for asking in both] for name, both in figures.items()}
    results = {"rows": rows, "seconds to learn beside requests": [round(each, 1) for each in seconds]}
    write(args.out, results, **vars(args))
    base = rows["transformers serve"][0]["requests/s"]
    head = [
        "",
        f"requests/s, {args.clients} clients",
        "times",
        "p50, s",
        "p95, s",
        "p50, s, one client",
        "p95, s",
    ]
    cells = [
        [name, f"{at_once['requests/s']:.2f}", f"{at_once['requests/s'] / base:.2f}"]
        + [f"{row[part]:.2f}" for row in (at_once, alone) for part in ("p50", "p95")]
        for name, (at_once, alone) in rows.items()
    ]
    print(table(head, cells), f"\nlearned beside requests in {seconds[0]:.0f} and {seconds[1]:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
