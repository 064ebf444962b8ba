"""Sampled contexts: which are kept, and that a text's draws are its own."""

from __future__ import annotations

import pytest
import torch
from families import TEXTS, build

from memplug.retrieval import samples as contexts
from memplug.retrieval.samples import sample_texts
from memplug.text.tokens import Text


@pytest.fixture(scope="module")
def text(make_tokenizer):
    """A random model that says whole words only."""
    tokenizer = make_tokenizer(TEXTS)
    model = build("llama", vocab_size=len(tokenizer))
    words = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    worded = torch.tensor([word[:1] == " " and word[1:].isalpha() and len(word) > 3 for word in words])
    bias = torch.zeros(len(tokenizer)).masked_fill(~worded, -1e4)
    model.lm_head.register_parameter("bias", torch.nn.Parameter(bias))
    return Text(model, tokenizer)


def test_prefixes_are_different_and_drawn_from_the_start_of_a_text(text):
    found = sample_texts(text, 4, 6, 5, 0)
    assert 1 < len(found) == len(set(found)) <= 4
    assert found == sample_texts(text, 4, 6, 5, 0) != sample_texts(text, 4, 6, 5, 1)
    assert sample_texts(text, 2, 6, 5, 0) == found[:2]  # one more does not change the others
    assert sample_texts(text, 0, 6, 5, 0) == []


def test_a_model_without_a_bos_starts_from_its_stop_token():
    seen = []

    class Start:
        """Stands for a small model, of which nothing is kept, and whose continuations are known."""

        bos_id, eos_ids, pad_id, begins = None, [7], 0, ()
        model = torch.nn.Linear(2, 2)

        def decode(self, ids):
            return " ".join(ids)

        def generate(self, starts, tokens, choose):
            seen.extend(starts)
            assert tokens == 3
            return [["a\n\nb"]] * len(starts)

    assert sample_texts(Start(), 2, 3, 5, 0) == ["a b"]  # the same twice counts once
    assert seen == [[7], [7]]


def test_what_a_large_model_says_is_kept_for_it_alone(text, make_tokenizer, tmp_path, monkeypatch):
    """Sampling thousands of tokens takes a real model minutes; another model has another file."""
    plain = sample_texts(text, 3, 6, 5, 0)
    monkeypatch.setenv("MEMPLUG_CACHE", str(tmp_path))
    monkeypatch.setattr(contexts, "is_large", lambda model: True)
    assert sample_texts(text, 3, 6, 5, 0) == plain
    (file,) = (tmp_path / "samples").iterdir()
    other = Text(build("llama", seed=1, vocab_size=len(text.tokenizer)), text.tokenizer)
    sample_texts(other, 3, 6, 5, 0)
    assert len(list((tmp_path / "samples").iterdir())) == 2
    monkeypatch.setattr(Text, "generate", lambda *given, **more: pytest.fail("sampled again"))
    assert sample_texts(text, 3, 6, 5, 0) == plain
    monkeypatch.undo()
    monkeypatch.setenv("MEMPLUG_CACHE", str(tmp_path))
    monkeypatch.setattr(contexts, "is_large", lambda model: True)
    file.write_text("[1")
    assert sample_texts(text, 3, 6, 5, 0) == plain
