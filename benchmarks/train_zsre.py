"""Train a small model that knows ZsRE questions, so that editors can be compared on public data.

    python benchmarks/train_zsre.py --edit zsre_edit.jsonl --train zsre_train.jsonl --unseen zsre_val.jsonl \
        --out runs/zsre/model

The files hold one row a line with ``prompt``, ``subject``, ``target_true``, ``target_new``, ``rephrases`` and
``locality``, or are in any format that ``memplug.data`` reads. The model learns the *true* answers of all
edited cases, of their locality questions and of some other cases, and to believe a note against its memory.
A run leaves its log (JSON lines) and its last checkpoint in ``--run`` and resumes from there. The weights are
not part of this repository; the measurements are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import training
from measure_zsre import measure
from zsre import FACTS, READING, ZsreLines, questions

from memplug.data import load_cases
from memplug.world.corpus import text_of

TOKENIZER_LINES = 30_000


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edit", type=Path, required=True, help="cases to be edited")
    parser.add_argument(
        "--train", type=Path, required=True, help="other cases: some are known, the rest is read about"
    )
    parser.add_argument(
        "--unseen", type=Path, required=True, help="cases of which nothing is shown, to measure on"
    )
    parser.add_argument("--known", type=int, default=500, help="how many of --train the model is to know")
    parser.add_argument("--longest", type=int, default=40, help="of a locality answer, in characters")
    parser.add_argument(
        "--reading-from", type=float, default=0.55, help="share of the run after which notes prevail"
    )
    training.add_options(parser, "zsre_model", steps=3400, vocabulary=4096)
    parser.set_defaults(batch_tokens=2048, lr=2.5e-3, decay_from=0.4546)
    return parser.parse_args(given)


def main() -> None:
    args = parse()
    edit, train, unseen = (load_cases(str(spec)) for spec in (args.edit, args.train, args.unseen))
    given = questions(edit, train, args.known, args.longest)

    def texts() -> list[str]:
        lines = ZsreLines(given, "tokenizer")
        return [text_of(lines.line()) for _ in range(TOKENIZER_LINES)]

    def source(seed: str, step: int) -> ZsreLines:
        return ZsreLines(given, seed, FACTS if step < args.reading_from * args.steps else READING)

    trained = training.run(args, texts, source)
    training.report(args, trained, measure(args.out, given, edit, unseen))


if __name__ == "__main__":
    main()
