"""The server's speed: requests a second and latency, by edits in force, and while one is learned.

    python -m benchmarks.serving --edits 0,10,100 --clients 8 --requests 48

Clients ask the same completions of 16 tokens (no token ends them before), half of them prompts of the first
ten edits. All settings take turns in one run: the bare model through the same server, and the plug with so
many edits in force. They are learned in ``--steps`` steps, since it does not matter for speed what they say;
the one that is learned beside requests has the method's own number.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import torch
import uvicorn

import memplug
from benchmarks.common import RESULTS, table, write
from memplug import world
from memplug.commands.shared import load_model
from memplug.serving.app import create_app
from memplug.serving.settings import Settings

__all__ = ["main"]

TOKENS = 16


@contextmanager
def served(plug: memplug.Plug) -> Iterator[httpx2.Client]:
    """A client of a server in this process."""
    app = create_app(plug, Settings("model", rate=0))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
        yield client
    server.should_exit = True
    thread.join()


def ask(client: httpx2.Client, prompt: str) -> tuple[float, int]:
    """Seconds and new tokens of one request."""
    begun = time.perf_counter()
    given = {"model": "model", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    answer = client.post("/v1/completions", json=given).raise_for_status().json()
    return time.perf_counter() - begun, answer["usage"]["completion_tokens"]


class Figures:
    """Requests of one setting."""

    def __init__(self) -> None:
        self.seconds, self.took, self.tokens = 0.0, list[float](), 0

    def measure(self, client: httpx2.Client, prompts: list[str], clients: int) -> None:
        """Ask these prompts, so many at once."""
        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            found = list(pool.map(lambda prompt: ask(client, prompt), prompts))
        self.seconds += time.perf_counter() - begun
        self.took += [seconds for seconds, _ in found]
        self.tokens += sum(tokens for _, tokens in found)

    def row(self) -> dict[str, float]:
        """Requests and tokens a second; seconds of a request, half and 95 of 100 of which took no longer."""
        parts = statistics.quantiles(self.took, n=20, method="inclusive")
        rates = {"requests/s": len(self.took) / self.seconds, "tokens/s": self.tokens / self.seconds}
        return {name: round(x, 3) for name, x in {**rates, "p50": parts[9], "p95": parts[18]}.items()}


def while_learning(
    client: httpx2.Client, case: Any, prompts: list[str], clients: int
) -> tuple[Figures, float]:
    """Requests while an edit is learned, and the seconds that it took."""
    figures, edit = Figures(), case.edit
    given = {"prompt": edit.prompt, "target": edit.target, "subject": edit.subject}
    job = client.post("/edits", json=given).raise_for_status().headers["location"]
    while (state := client.get(job).json())["status"] in ("queued", "running"):
        figures.measure(client, list(itertools.islice(itertools.cycle(prompts), clients)), clients)
    return figures, state["finished"] - state["started"]


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="as for `memplug serve`")
    parser.add_argument("--method", default="llp")
    parser.add_argument("--edits", default="0,10,100")
    parser.add_argument("--steps", type=int, default=2, help="of the edits that are only counted (llp)")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=48, help="of a setting in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json", help="the file of results")
    args = parser.parse_args(argv)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    counts = sorted(map(int, args.edits.split(",")))
    cases = world.cases(counts[-1] + 11, seed=0)
    edits = [case.edit for case in cases[: counts[-1]]]
    asked = [case.edit.prompt for pair in zip(cases[:10], cases[-11:-1], strict=True) for case in pair]
    prompts = list(itertools.islice(itertools.cycle(asked), args.requests))
    bare = memplug.attach(*load_model(args.model, "cpu", "auto"), args.method)
    bare.detach()
    given = {"value_steps": args.steps} if args.method == "llp" else {}
    plug = memplug.attach(*load_model(args.model, "cpu", "auto"), args.method, **given)
    made = plug.edit(edits) if edits else []
    for model in (bare.model, plug.model):  # an answer that ends early would be less work
        model.generation_config.eos_token_id = len(plug.tokenizer) - 1
    figures = {"bare": Figures(), **{f"{count} edits": Figures() for count in counts}}
    with served(bare) as bare_client, served(plug) as client:
        for client_ in (bare_client, client):
            Figures().measure(client_, prompts[: args.clients], args.clients)
        for _ in range(args.rounds):
            figures["bare"].measure(bare_client, prompts, args.clients)
            for count in counts:
                for change, some in ((plug.enable, made[:count]), (plug.disable, made[count:])):
                    if some:
                        change(some)
                figures[f"{count} edits"].measure(client, prompts, args.clients)
    plug.detach()
    with memplug.attach(bare.model, bare.tokenizer, args.method) as whole, served(whole) as client:
        name = "while one is learned"
        figures[name], seconds = while_learning(client, cases[-1], prompts, args.clients)
    rows = {name: one.row() for name, one in figures.items()}
    results = {"rows": rows, "seconds to learn beside requests": round(seconds, 1)}
    write(args.out, results, **vars(args))
    head = ["", *rows["bare"]]
    cells = [[name, *(f"{value:.2f}" for value in row.values())] for name, row in rows.items()]
    print(table(head, cells), f"\nlearned beside requests in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
