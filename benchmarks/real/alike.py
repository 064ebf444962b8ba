"""How well the states of a question's words tell what is asked about a subject.

    python -m benchmarks.real.alike --out FILE.json

``relations.json`` has wordings that ask the same in several ways, for several kinds of subjects. Two wordings
of each relation play the part of an edit's prompt. Written is which share of the questions that ask something
else about the subject, and of passing mentions, is as much like it as 80 % and 90 % of its rephrasings are.
Many of these questions are among the neutral ones that the metric is learned from
(`memplug.retrieval.relations`), in these or in other words; so it is also learned from those alone that ask
nothing of this.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import memplug
from memplug import pretrained
from memplug.retrieval.calibrate import _DIRECTIONS, states_of
from memplug.retrieval.calibration import Calibration
from memplug.retrieval.lessons import other_lines
from memplug.retrieval.questions import Question, likeness, metric
from memplug.retrieval.relations import Wording, wordings
from memplug.text.chat import in_chat

from ..common import machine, table

RELATIONS = Path(__file__).parent / "relations.json"
EDITS = 2
_PASSING = "passing mentions"

Score = Callable[[Question], Callable[[Question], float]]

SHARED = (
    *("birthplace", "place of death", "mother tongue", "occupation", "instrument", "nationality", "religion"),
    *(
        "spouse",
        "sport",
        "birth year",
        "school",
        "residence",
        "language of work",
        "field",
        "team",
        "employer",
    ),
    *("capital", "currency", "official language", "continent", "head", "mountain", "river", "food"),
    *("population", "twin city", "religion of place", "sport of place", "largest city", "country", "author"),
    *(
        "director",
        "composer",
        "painter",
        "performer",
        "genre",
        "music genre",
        "language of the work",
        "release",
    ),
    *(
        "country of origin",
        "actor",
        "network",
        "publisher",
        "founder",
        "headquarters",
        "product",
        "founding year",
    ),
    *("chief", "owner", "founded", "maker", "inventor", "discoverer", "date", "developer", "location"),
)
"""Neutral questions (`Wording.relation`) that ask what is asked here."""


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
                against = score(edit)
                for other, questions in relations.items():
                    kind = "rephrasings" if other == name else _PASSING if other == _PASSING else "others"
                    found[kind] += [against(one) for one in questions if one is not edit]
    scores = {kind: torch.tensor(values) for kind, values in found.items()}
    limits = {share: scores["rephrasings"].quantile(1 - share) for share in (0.8, 0.9)}
    return {
        f"{share:.0%}": {
            kind: round(float((scores[kind] > limit).float().mean()), 3) for kind in ("others", _PASSING)
        }
        for share, limit in limits.items()
    }


def _alone(edit: Question) -> Callable[[Question], float]:
    return lambda one: likeness(edit, one)


def _beside(made: Calibration) -> Score:
    """With the neutral questions: those that ask the same, and those that a question resembles more."""

    def score(edit: Question) -> Callable[[Question], float]:
        matched = made.matched((edit,))
        return lambda one: made.likeness((edit,), matched, one)

    return score


def _without(known: Sequence[Wording], states: Sequence[Tensor], made: Calibration) -> Calibration:
    """A calibration of those neutral questions that ask nothing which is asked here."""
    kept = [i for i, one in enumerate(known) if one.relation not in SHARED]
    labels = [(known[i].kind, known[i].relation) for i in kept]
    learned = metric([[states[i] for i in kept]] * 2, labels, _DIRECTIONS)
    neutral = torch.stack([learned.question(states[i], False).vector for i in kept])
    numbers = torch.tensor([[*dict.fromkeys(labels)].index(one) for one in labels])
    return replace(made, metric=learned, neutral=neutral[None], labels=numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    known = wordings()
    with memplug.attach(*pretrained.load(args.model), "llp") as plug:
        room, host = plug.method._room, plug.method._host
        made = room.calibrate()

        def read(texts: Sequence[tuple[str, str]], chat: bool) -> list[Tensor]:
            lines = [other_lines(host.text, s, [in_chat(t) if chat else t])[0] for s, t in texts]
            return states_of(host, lines, room.relation)

        for form in ("plain", "chat"):
            chat = form == "chat"
            neutral = read([(one.name, one.about(one.name)) for one in known], chat)
            fewer = _without(known, neutral, made)
            mean = made.metric.mean[int(chat)]

            def last(states: Tensor, chat: bool, mean: Tensor = mean) -> Question:
                return Question(F.normalize(states[-1] - mean, dim=0), chat)

            def words(states: Tensor, chat: bool, mean: Tensor = mean) -> Question:
                return Question(F.normalize((states - mean).mean(0), dim=0), chat)

            ways: dict[str, tuple[Callable[[Tensor, bool], Question], Score]] = {
                "the last word": (last, _alone),
                "the mean of words": (words, _alone),
                "the metric, learned without these questions": (fewer.metric.question, _alone),
                "the metric and neutral questions, without these": (fewer.metric.question, _beside(fewer)),
                "the metric": (made.metric.question, _alone),
                "the metric and neutral questions": (made.metric.question, _beside(made)),
            }
            found = []
            for subject, texts in groups():
                given = iter(read([(subject, text) for some in texts.values() for text in some], chat))
                found.append({name: [next(given) for _ in some] for name, some in texts.items()})
            results[form] = {
                name: shares(
                    [{r: [ask(one, chat) for one in some] for r, some in by.items()} for by in found], score
                )
                for name, (ask, score) in ways.items()
            }
    written = {"machine": machine(), "settings": {"model": args.model}, "results": results}
    args.out.write_text(json.dumps(written, indent=1) + "\n")
    rows = [
        [form, name, share, f"{one['others']:.0%}", f"{one[_PASSING]:.0%}"]
        for form, by in results.items()
        for name, of in by.items()
        for share, one in of.items()
    ]
    print(table(["form", "told by", "rephrasings that pass", "other questions", _PASSING], rows))


if __name__ == "__main__":
    main()
