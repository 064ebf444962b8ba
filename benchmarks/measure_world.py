"""Measure the embedded model: what it knows, and whether it behaves like a large one.

    python benchmarks/measure_world.py memplug/world/model --limit 1000

Answers are whole: generated greedily until the model stops by itself, then compared exactly.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from memplug.edits import Probe
from memplug.world.corpus import train_texts
from memplug.world.facts import Fact, facts, facts_of, hop_answer, names, pool, trained_hops
from memplug.world.relations import HOPS, KINDS, RELATIONS
from memplug.world.skills import skills


class Measure:
    """A loaded model with what the measurements share."""

    def __init__(self, folder: Path, limit: int, seed: int = 0) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.limit, self.rng = limit, random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def continue_(self, prompts: Sequence[str], sample: bool = False, tokens: int = 16) -> list[str]:
        """What the model writes after each prompt until it stops, greedily or sampled at temperature 1."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), 256):
            rows = order[start : start + 256]
            batch = self.tokenizer([prompts[i] for i in rows], return_tensors="pt", padding=True)
            made = self.model.generate(**batch, max_new_tokens=tokens, do_sample=sample, top_k=0)
            new = made[:, batch["input_ids"].shape[1] :]
            for i, text in zip(rows, self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                texts[i] = text.strip()
        return texts

    def share_right(self, probes: Iterable[Probe]) -> dict[str, float]:
        """Share of whole answers that are right, and how many were asked."""
        chosen = list(probes)
        if len(chosen) > self.limit:
            chosen = self.rng.sample(chosen, self.limit)
        answers = self.continue_([probe.prompt for probe in chosen])
        right = sum(a == probe.target for a, probe in zip(answers, chosen, strict=True))
        return {"right": round(right / len(chosen), 4), "n": len(chosen)}

    # -- what it knows -------------------------------------------------------------------------------

    def knowledge(self) -> dict[str, Any]:
        hops = [
            (s, Probe(text.format(s=s), hop_answer(hop, facts_of(s)[hop.first].target)))
            for hop in HOPS
            for s in names(hop.first.partition(".")[0])
            for text in hop.phrasings
        ]
        return {
            "seen phrasings": self.share_right(Probe(f.prompt(i), f.target) for f in facts() for i in f.seen),
            "unseen phrasings": self.share_right(
                Probe(f.prompt(i), f.target) for f in facts() for i in f.unseen
            ),
            "two-hop, trained subjects": self.share_right(p for s, p in hops if trained_hops(s)),
            "two-hop, other subjects": self.share_right(p for s, p in hops if not trained_hops(s)),
            "skills": {name: self.share_right(made) for name, made in skills(120, seed=1).items()},
        }

    # -- what it reads ---------------------------------------------------------------------------------

    def _note(self, fact: Fact, value: str) -> str:
        ids = fact.statements() or fact.questions()
        return f"{self.rng.choice(['Note: ', ''])}{fact.prompt(self.rng.choice(ids))} {value}."

    def context(self) -> dict[str, Any]:
        """Answers from a note against memory, and answers that text in front must not change."""
        sample = self.rng.sample(facts(), min(len(facts()), self.limit))
        override, override_unseen, aside, follows = [], [], [], []
        for fact in sample:
            false = self.rng.choice([v for v in pool(fact.relation) if v != fact.target])
            note = self._note(fact, false)
            override.append(Probe(f"{note} {fact.prompt(self.rng.choice(fact.questions()))}", false))
            override_unseen.append(Probe(f"{note} {fact.prompt(self.rng.choice(fact.unseen))}", false))
            other = self.rng.choice(facts())
            if other.subject != fact.subject:
                other_note = self._note(other, self.rng.choice(pool(other.relation)))
                aside.append(Probe(f"{other_note} {fact.prompt(self.rng.choice(fact.seen))}", fact.target))
            for hop in (hop for hop in HOPS if hop.first == fact.relation):
                text = self.rng.choice(hop.phrasings).format(s=fact.subject)
                follows.append(Probe(f"{note} {text}", hop_answer(hop, false)))
        torch.manual_seed(0)
        junk = self.continue_([""] * 200, sample=True, tokens=15)
        behind = [
            Probe(f"{self.rng.choice(junk)} {fact.prompt(self.rng.choice(fact.seen))}", fact.target)
            for fact in sample
        ]
        return {
            "note overrides memory, seen phrasings": self.share_right(override),
            "note overrides memory, unseen phrasings": self.share_right(override_unseen),
            "two-hop from a note": self.share_right(follows),
            "right behind a false note about somebody else": self.share_right(aside),
            "right behind sampled text": self.share_right(behind),
        }

    # -- how it looks inside -----------------------------------------------------------------------

    @torch.no_grad()
    def text(self) -> dict[str, Any]:
        """Loss on lines of another seed, and the root mean square of the hidden states after each layer."""
        lines = train_texts(400, seed=2)
        batch = self.tokenizer(
            [line + self.tokenizer.eos_token for line in lines], return_tensors="pt", padding=True
        )
        out = self.model(**batch, output_hidden_states=True)
        real = batch["attention_mask"].bool()
        labels = batch["input_ids"].masked_fill(~real, -100)
        loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        rms = [round(h[real].pow(2).mean().sqrt().item(), 3) for h in out.hidden_states]
        per_name = [len(self.tokenizer.encode(s, add_special_tokens=False)) for k in KINDS for s in names(k)]
        return {
            "loss per token": round(loss.item(), 4),
            "hidden-state rms, embeddings then layers": rms,
            "tokens per name": round(sum(per_name) / len(per_name), 3),
        }

    @torch.no_grad()
    def subject_states(self, prompts: Sequence[str], subjects: Sequence[str]) -> torch.Tensor:
        """[prompts, layers + 1, D]: the state of each subject's last token after every layer, unit length."""
        batch = self.tokenizer(list(prompts), return_tensors="pt", padding=True, return_offsets_mapping=True)
        ends = [prompt.index(s) + len(s) for prompt, s in zip(prompts, subjects, strict=True)]
        offsets = batch.pop("offset_mapping")
        where = [
            next(t for t in range(offsets.shape[1]) if offsets[i, t, 0] < end <= offsets[i, t, 1])
            for i, end in enumerate(ends)
        ]
        states = self.model(**batch, output_hidden_states=True).hidden_states
        picked = torch.stack([h[torch.arange(len(where)), torch.tensor(where)] for h in states], dim=1)
        return F.normalize(picked, dim=-1)

    def lexicality(self) -> dict[str, Any]:
        """Cosine of a subject's last-token state to itself in another phrasing, and to other subjects."""
        people = [s for k in KINDS for s in names(k)]
        chosen = self.rng.sample(people, min(400, self.limit))
        pairs = []
        for s in chosen:
            prompts = [f.prompt(i) for f in facts_of(s).values() for i in range(7)]
            pairs.append(self.rng.sample(prompts, 2))
        one = self.subject_states([a for a, _ in pairs], chosen)
        two = self.subject_states([b for _, b in pairs], chosen)
        return cosines(one, two, [s.split()[-1] for s in chosen])

    def samples(self) -> dict[str, Any]:
        """What is sampled behind a fact about a subject, or behind the subject alone."""
        torch.manual_seed(1)
        chosen = self.rng.sample(facts(), min(400, self.limit))
        told = [f"{f.prompt((f.statements() or f.questions())[0])} {f.target}." for f in chosen]
        behind = self.continue_(told, sample=True, tokens=20)
        alone = self.continue_([f.subject for f in chosen], sample=True, tokens=20)
        about = [f.subject in text for f, text in zip(chosen, behind, strict=True)]
        new = [
            any(
                RELATIONS[name].phrasings[i].format(s=f.subject) in text
                for name in facts_of(f.subject)
                if name != f.relation
                for i in range(7)
            )
            for f, text in zip(chosen, behind, strict=True)
        ]
        return {
            "behind a fact, text about the same subject": round(sum(about) / len(about), 4),
            "behind a fact, another relation of it": round(sum(new) / len(new), 4),
            "examples": [f"{a} | {b}" for a, b in zip(told[:8], behind[:8], strict=True)]
            + [f"{f.subject} | {text}" for f, text in zip(chosen[:8], alone[:8], strict=True)],
        }


def cosines(one: torch.Tensor, two: torch.Tensor, last: Sequence[str]) -> dict[str, Any]:
    """How alike two sets of subject states are, listed for the embeddings and then each layer.

    Args:
        one, two: [subjects, layers + 1, D], unit length: each subject in two prompts.
        last: the last word of each subject.
    """
    same = (one * two).sum(-1)  # [n, layers + 1]
    cross = torch.einsum("ild,jld->lij", one, two)
    other = cross[:, ~torch.eye(len(last), dtype=torch.bool)]
    alike = torch.tensor([[a == b and i != j for j, b in enumerate(last)] for i, a in enumerate(last)])
    nearest = (cross.argmax(-1) == torch.arange(len(last))).float().mean(-1)

    def listed(values: torch.Tensor) -> list[float]:
        return [round(v, 3) for v in values.tolist()]

    found = {
        "same subject, mean": listed(same.mean(0)),
        "same subject, 5th percentile": listed(same.quantile(0.05, dim=0)),
        "other subjects, mean": listed(other.mean(1)),
        "other subjects, 95th percentile": listed(other.quantile(0.95, dim=1)),
        "same last word, mean": listed(cross[:, alike].mean(1)) if alike.any() else None,
        "own state is nearest": listed(nearest),
    }
    return {name: values for name, values in found.items() if values is not None}


def measure(folder: Path, limit: int = 4000) -> dict[str, Any]:
    """Every measurement of the model in ``folder``; at most ``limit`` prompts for each share."""
    with torch.random.fork_rng():
        taken = Measure(folder, limit)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        return {
            "megabytes": round(size / 1e6, 2),
            "parameters": sum(p.numel() for p in taken.model.parameters()),
            "knowledge": taken.knowledge(),
            "context": taken.context(),
            "text": taken.text(),
            "cosine of the last subject token, embeddings then layers": taken.lexicality(),
            "samples": taken.samples(),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(measure(given.folder, given.limit), indent=1))
