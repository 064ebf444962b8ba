"""The command; see the package.

Every kind of model is tried in a process of its own, so that one that hangs or crashes stops nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.every_model import tiny
from benchmarks.every_model.promises import CONSTANTS, TEXTS, Verdict, attempt
from benchmarks.every_model.table import markdown

__all__ = ["Row", "main", "sweep"]

Row = tuple[str, dict[str, Verdict]]
"""A kind of model, and by method what came out."""


def _one(name: str, methods: Sequence[str], pipe: Any) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    tokenizer = tiny.tokenizer(TEXTS)
    try:
        found = attempt(tiny.build(name, len(tokenizer) + 8), tokenizer, methods)
    except tiny.BuildError as error:
        found = iter([Verdict("not built", str(error))] * len(methods))
    for method, verdict in zip(methods, found, strict=True):
        pipe.send((method, verdict))
    pipe.close()


class _Worker:
    """The process of one kind of model."""

    def __init__(self, name: str, methods: Sequence[str], seconds: float) -> None:
        context = multiprocessing.get_context("fork")
        self.name, self._methods = name, methods
        self._pipe, end = context.Pipe(duplex=False)
        self._process = context.Process(target=_one, args=(name, methods, end), daemon=True)
        self._process.start()
        end.close()
        self._until, self._found = time.monotonic() + seconds, dict[str, Verdict]()

    def finished(self) -> Row | None:
        """What came out, once it is over or its time is."""
        try:
            while self._pipe.poll():
                method, verdict = self._pipe.recv()
                self._found[method] = verdict
        except EOFError:
            pass
        late = time.monotonic() > self._until
        if self._process.is_alive() and not late:
            return None
        self._process.kill()
        self._process.join()
        lost = Verdict("crash", "took too long" if late else f"the process ended ({self._process.exitcode})")
        return self.name, {method: self._found.get(method, lost) for method in self._methods}


def sweep(
    names: Sequence[str], methods: Sequence[str], *, workers: int = 2, seconds: float = 150.0
) -> Iterator[Row]:
    """Try ``methods`` on the kinds ``names``, ``workers`` at a time, each for at most so many seconds."""
    waiting, running = list(names), list[_Worker]()
    while waiting or running:
        while waiting and len(running) < workers:
            running.append(_Worker(waiting.pop(0), methods, seconds))
        for worker in list(running):
            row = worker.finished()
            if row is not None:
                running.remove(worker)
                yield row
        time.sleep(0.02)


def _kept(file: Path | None) -> dict[str, dict[str, Verdict]]:
    if file is None or not file.exists():
        return {}
    found = json.loads(file.read_text())
    return {kind: {m: Verdict(*v) for m, v in verdicts.items()} for kind, verdicts in found.items()}


def main(given: Sequence[str] | None = None) -> None:
    """Run the sweep and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="llp,llp-row,elder,grace,icl,ultraedit,finetune")
    parser.add_argument("--kinds", help="some kinds of model, by name; all by default")
    parser.add_argument("--seeing", action="store_true", help="also kinds that see images")
    parser.add_argument("--encoding", action="store_true", help="encoder-decoders alone")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=150.0, help="for one kind of model")
    parser.add_argument("--out", type=Path, help="where the table goes; printed if left out")
    parser.add_argument("--keep", type=Path, help="a JSON file of results, to which these are added")
    options = parser.parse_args(given)
    methods = options.methods.split(",")
    unknown = [method for method in methods if method not in CONSTANTS]
    if unknown:
        parser.error(f"no constants for {unknown[0]!r}; choose of {', '.join(CONSTANTS)}")
    names = options.kinds.split(",") if options.kinds else tiny.names(options.seeing, options.encoding)
    rows = _kept(options.keep)
    for name, verdicts in sweep(names, methods, workers=options.workers, seconds=options.seconds):
        rows[name] = rows.get(name, {}) | verdicts
        print(
            name, {method: verdict.kind for method, verdict in verdicts.items()}, file=sys.stderr, flush=True
        )
        if options.keep:
            plain = {kind: {m: [v.kind, v.reason] for m, v in found.items()} for kind, found in rows.items()}
            options.keep.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
    text = markdown(sorted(rows.items()), methods)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
