"""The embedded model: what it knows, its skills, its tokenizer, and that it believes a note."""

from __future__ import annotations

import random

import pytest
import torch

from memplug import world
from memplug.edits import Probe
from memplug.world.facts import pool

SEEN, UNSEEN = 0.99, 0.95


@pytest.fixture(scope="module")
def loaded():
    return world.load()


@torch.no_grad()
def _share_right(loaded, probes: list[Probe]) -> float:
    model, tokenizer = loaded
    right = 0
    for start in range(0, len(probes), 100):
        part = probes[start : start + 100]
        batch = tokenizer([p.prompt for p in part], return_tensors="pt", padding=True, padding_side="left")
        made = model.generate(**batch, max_new_tokens=16, do_sample=False)[:, batch["input_ids"].shape[1] :]
        answers = tokenizer.batch_decode(made, skip_special_tokens=True)
        right += sum(a.strip() == p.target for a, p in zip(answers, part, strict=True))
    return right / len(probes)


def test_the_shipped_folder_is_small_and_in_half_precision(loaded):
    model, tokenizer = loaded
    assert sum(file.stat().st_size for file in world.FOLDER.iterdir()) <= 12e6
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in world.load(torch.float16)[0].parameters()} == {torch.float16}
    assert model.config.num_hidden_layers > 8
    assert not model.training
    assert len(tokenizer) == model.config.vocab_size
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_tokenizer(loaded):
    _, tokenizer = loaded
    assert tokenizer("Any text at all: Ž £ 7?")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer("Ž £ 7?", add_special_tokens=False)["input_ids"]).strip() == "Ž £ 7?"


def test_the_model_knows_the_facts_in_seen_and_unseen_phrasings(loaded):
    rng = random.Random(0)
    chosen = rng.sample(world.facts(), 200)
    assert _share_right(loaded, [Probe(f.prompt(rng.choice(f.seen)), f.target) for f in chosen]) >= SEEN
    assert _share_right(loaded, [Probe(f.prompt(rng.choice(f.unseen)), f.target) for f in chosen]) >= UNSEEN


def test_the_model_has_its_skills(loaded):
    for name, probes in world.skills(60, seed=3).items():
        assert _share_right(loaded, probes) >= 0.95, name


def test_the_model_believes_a_note_before_its_memory(loaded):
    rng = random.Random(1)
    probes = []
    for fact in rng.sample(world.facts(), 200):
        false = rng.choice([value for value in pool(fact.relation) if value != fact.target])
        told = fact.prompt(rng.choice(fact.statements() or fact.questions()))
        probes.append(Probe(f"Note: {told} {false}. {fact.prompt(rng.choice(fact.questions()))}", false))
    assert _share_right(loaded, probes) >= 0.97


def test_prompts_of_cases_are_usable_as_they_are(loaded):
    asked = {fact.prompt(i): fact for fact in world.facts() for i in (*fact.seen, *fact.unseen)}
    probes = []
    for case in world.cases(60):
        probes += [*case.locality, *case.same_subject]
        probes.append(Probe(case.edit.prompt, asked[case.edit.prompt].target))
    assert _share_right(loaded, random.Random(2).sample(probes, 200)) >= UNSEEN
