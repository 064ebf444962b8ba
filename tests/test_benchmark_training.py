"""Training small models: what the trainer feeds, and that it resumes."""

from __future__ import annotations

import importlib
from itertools import islice
from pathlib import Path

import pytest
import torch

from memplug import world
from memplug.world.corpus import ANSWER, IGNORED, Corpus, Piece, text_of

OPTIONS = ["--steps=6", "--batch-tokens=128", "--hidden=16", "--layers=2", "--checkpoint-every=3", "--out=x"]


def world_lines(seed: str, step: int) -> Corpus:
    return Corpus(f"{seed} {step}")


@pytest.fixture(scope="module")
def tokenizer():
    return world.load()[1]


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("training")


def test_training_goes_on_where_it_was_broken_off(training, tokenizer, tmp_path, monkeypatch):
    parse = importlib.import_module("train_world").parse

    def start(run: str) -> tuple[torch.nn.Module, dict[str, float]]:
        torch.manual_seed(0)
        args = parse([*OPTIONS, f"--run={tmp_path / run}"])
        model = training.make_model(args, tokenizer)
        return model, training.train(model, training.Encoder(tokenizer), world_lines, args)

    with monkeypatch.context() as broken:
        schedule = training.schedule
        broken.setattr(training, "schedule", lambda step, args: schedule(step, args) if step < 5 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start("broken")
    (resumed, after), (straight, whole) = start("broken"), start("straight")
    assert after["tokens"] == whole["tokens"]
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_batches_can_be_entered_at_any_step(training, tokenizer):
    encoder = training.Encoder(tokenizer)
    whole = list(islice(training.batches(world_lines, 0, 0, encoder, 128), training.CHUNK + 3))
    for start in (2, training.CHUNK, training.CHUNK + 2):
        ids, weights = next(training.batches(world_lines, 0, start, encoder, 128))
        assert torch.equal(ids, whole[start][0])
        assert torch.equal(weights, whole[start][1])


def test_weights_of_tokens_are_those_of_their_pieces(training, tokenizer):
    encoder = training.Encoder(tokenizer)
    line = [Piece("Note: Aa Bb is in", 0.2), Piece(" Cc", IGNORED), Piece(".", 0.2), Piece(" Where?", 0.2)]
    line.append(Piece(" Amber Dd", ANSWER))
    ((ids, weights),) = encoder([line])
    shown = [tokenizer.decode([i]) for i in ids]
    assert "".join(shown).replace("<bos>", "").replace("<eos>", "").strip() == text_of(line)
    assert (weights[0], weights[-1]) == (0.0, 1.0)
    by_weight = {
        w: "".join(s for s, v in zip(shown[1:-1], weights[1:-1], strict=True) if v == w) for w in weights
    }
    assert by_weight[ANSWER].strip() == "Amber Dd"
    assert by_weight[IGNORED].strip() == "Cc"
