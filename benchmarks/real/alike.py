"""How well words, and the state at a question's end, tell what is asked about a subject.

    python -m benchmarks.real.alike --out FILE.json

``relations.json`` has wordings that ask the same in several ways, for several kinds of subjects. Two wordings
of each relation play the part of an edit's prompt. Written is which share of the questions that ask something
else about the subject, and of passing mentions, is as much like it as 80 % and 90 % of its rephrasings are.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import memplug
from memplug import pretrained
from memplug.chat import in_chat
from memplug.methods.llp.calibrating import calibrated, questions_of
from memplug.methods.llp.lessons import other_lines
from memplug.questions import Question, likeness

from ..common import machine, table

RELATIONS = Path(__file__).parent / "relations.json"
EDITS = 2
_PASSING = "passing mentions"

Score = Callable[[Question, Question], float]


def groups() -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Subjects, each with its texts by what they ask; passing mentions are one more group."""
    found = json.loads(RELATIONS.read_text())
    for kind in found["kinds"].values():
        for subject in kind["subjects"]:
            wordings = kind["relations"] | {_PASSING: found["mentions"]}
            yield subject, {name: [w.format(s=subject) for w in some] for name, some in wordings.items()}


def shares(asked: Sequence[dict[str, list[Question]]], score: Score) -> dict[str, dict[str, float]]:
    """By the share of rephrasings that pass: those of other questions and of passing mentions that do."""
    found = defaultdict[str, list[float]](list)
    for relations in asked:
        for name, own in relations.items():
            if name == _PASSING:
                continue
            for edit in own[:EDITS]:
                for other, questions in relations.items():
                    kind = "rephrasings" if other == name else _PASSING if other == _PASSING else "others"
                    found[kind] += [score(edit, one) for one in questions if one is not edit]
    scores = {kind: torch.tensor(values) for kind, values in found.items()}
    limits = {share: scores["rephrasings"].quantile(1 - share) for share in (0.8, 0.9)}
    return {
        f"{share:.0%}": {
            kind: round(float((scores[kind] > limit).float().mean()), 3) for kind in ("others", _PASSING)
        }
        for share, limit in limits.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    with memplug.attach(*pretrained.load(args.model), "llp") as plug:
        method = plug.method
        host, relation = method._host, method._room.relation
        made = calibrated(host, method.config, method._layers, relation)
        embed = host.text.embed
        scores: dict[str, Score] = {
            "words": lambda one, other: likeness(made.lexicon, embed, one, other),
            "state at the end": lambda one, other: float(one.states[-1].float() @ other.states[-1].float()),
        }
        for form in ("plain", "chat"):
            asked = []
            for subject, texts in groups():
                prompts = [text for some in texts.values() for text in some]
                lines = other_lines(
                    host.text, subject, [*map(in_chat, prompts)] if form == "chat" else prompts
                )
                given = iter(questions_of(host, made, lines, relation))
                asked.append({name: [next(given) for _ in some] for name, some in texts.items()})
            results[form] = {name: shares(asked, score) for name, score in scores.items()}
    found = {"machine": machine(), "settings": {"model": args.model}, "results": results}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    rows = [
        [form, name, share, f"{one['others']:.0%}", f"{one[_PASSING]:.0%}"]
        for form, by in results.items()
        for name, of in by.items()
        for share, one in of.items()
    ]
    print(table(["form", "told by", "rephrasings that pass", "other questions", _PASSING], rows))


if __name__ == "__main__":
    main()
