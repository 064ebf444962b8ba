"""Train the embedded model on the made-up world, measure it, and write it down.

    python benchmarks/train_world.py --out memplug/world/model --seed 0 --threads 2

Trains a byte-level BPE tokenizer and a small Llama-architecture model from nothing but
``memplug.world``. A run leaves its log (JSON lines) and its last checkpoint in ``--run`` and resumes from
there. The finished model is stored in half precision; its measurements go to ``--results``.
"""

from __future__ import annotations

import argparse

import training
from measure_world import measure

from memplug.world.corpus import Corpus, train_texts


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    training.add_options(parser, "world", steps=6600, vocabulary=2048)
    return parser.parse_args(given)


def main() -> None:
    args = parse()
    trained = training.run(args, lambda: train_texts(60_000, seed=1), lambda seed, _step: Corpus(seed))
    training.report(args, trained, measure(args.out))


if __name__ == "__main__":
    main()
