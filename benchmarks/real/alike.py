"""How well the states of a question's words tell what is asked about a subject.

    python -m benchmarks.real.alike --out FILE.json

``relations.json`` has wordings that ask the same in several ways, for several kinds of subjects. Two wordings
of each relation play the part of an edit's prompt. Written is which share of the questions that ask something
else about the subject, and of passing mentions, is as much like it as 80 % and 90 % of its rephrasings are.
Many of these questions are among the neutral ones that the metric is learned from (`memplug.relations`), in
these or in other words; so it is also learned from those alone that ask nothing of this.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import memplug
from memplug import pretrained
from memplug.chat import in_chat
from memplug.methods.llp.calibrating import _DIRECTIONS, states_of
from memplug.methods.llp.lessons import other_lines
from memplug.questions import Metric, metric
from memplug.relations import Wording, wordings

from ..common import machine, table

RELATIONS = Path(__file__).parent / "relations.json"
EDITS = 2
_PASSING = "passing mentions"

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
    *("chief", "owner", "founded", "maker", "inventor", "discoverer", "date"),
)
"""Neutral questions (`Wording.relation`) that ask what is asked here."""


def groups() -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Subjects, each with its texts by what they ask; passing mentions are one more group."""
    found = json.loads(RELATIONS.read_text())
    for kind in found["kinds"].values():
        for subject in kind["subjects"]:
            wordings = kind["relations"] | {_PASSING: found["mentions"]}
            yield subject, {name: [w.format(s=subject) for w in some] for name, some in wordings.items()}


def shares(asked: Sequence[dict[str, list[Tensor]]]) -> dict[str, dict[str, float]]:
    """By the share of rephrasings that pass: those of other questions and of passing mentions that do.

    Args:
        asked: by subject, a unit vector for each text, by what it asks.
    """
    found = defaultdict[str, list[float]](list)
    for relations in asked:
        for name, own in relations.items():
            if name == _PASSING:
                continue
            for edit in own[:EDITS]:
                for other, vectors in relations.items():
                    kind = "rephrasings" if other == name else _PASSING if other == _PASSING else "others"
                    found[kind] += [float(edit @ one) for one in vectors if one is not edit]
    scores = {kind: torch.tensor(values) for kind, values in found.items()}
    limits = {share: scores["rephrasings"].quantile(1 - share) for share in (0.8, 0.9)}
    return {
        f"{share:.0%}": {
            kind: round(float((scores[kind] > limit).float().mean()), 3) for kind in ("others", _PASSING)
        }
        for share, limit in limits.items()
    }


def left_out(known: Sequence[Wording], states: Sequence[Tensor], chat: bool) -> Metric:
    """The metric that those neutral questions teach that ask nothing which is asked here."""
    kept = [i for i, one in enumerate(known) if one.relation not in SHARED]
    some = [states[i] for i in kept]
    return metric([some, some], [(known[i].kind, known[i].relation) for i in kept], _DIRECTIONS)


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
            apart = left_out(known, read([(one.name, one.about(one.name)) for one in known], chat), chat)
            ways: dict[str, Callable[[Tensor], Tensor]] = {
                "last word": lambda states, m=made.metric, i=int(chat): F.normalize(
                    states[-1] - m.mean[i], dim=0
                ),
                "mean of words": lambda states, m=made.metric, i=int(chat): F.normalize(
                    (states - m.mean[i]).mean(0), dim=0
                ),
                "metric, without these questions": lambda states, m=apart, c=chat: (
                    m.question(states, c).vector
                ),
                "metric": lambda states, m=made.metric, c=chat: m.question(states, c).vector,
            }
            found = []
            for subject, texts in groups():
                given = iter(read([(subject, text) for some in texts.values() for text in some], chat))
                found.append({name: [next(given) for _ in some] for name, some in texts.items()})
            results[form] = {
                name: shares([{r: [way(one) for one in some] for r, some in by.items()} for by in found])
                for name, way in ways.items()
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
