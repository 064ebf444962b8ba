"""How alike two questions are: by hand, and what is saved of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from memplug.questions import Lexicon, Question, likeness, packed, rarity, unpacked

TABLE = F.normalize(torch.randn(20, 6, generator=torch.Generator().manual_seed(3)), dim=-1)
LEXICON = Lexicon(torch.zeros(6), torch.eye(6), torch.tensor([1, 2]), torch.tensor([0.5, 3.0]), 2.0)


def embed(ids):
    return TABLE[list(ids)]


def asked(*ids, seed=0, chat=False):
    states = torch.randn(len(ids), 5, generator=torch.Generator().manual_seed(seed))
    return Question(ids, F.normalize(states, dim=-1).half(), chat)


def literal(one, other):
    """Each word's best match in the other question, both ways, by states and by embeddings."""
    weights = {1: 0.5, 2: 3.0}
    total = 0.0
    for a, b in ((one, other), (other, one)):
        for left, right in (
            (a.states.double(), b.states.double()),
            (embed(a.ids).double(), embed(b.ids).double()),
        ):
            best = [max(float(x @ y) for y in right) for x in left]
            each = [weights.get(token, 2.0) for token in a.ids]
            total += sum(w * m for w, m in zip(each, best, strict=True)) / sum(each)
    return total / 4


@pytest.mark.parametrize(("first", "second"), [((1, 2, 3), (2, 7)), ((4,), (5, 6, 1)), ((2, 2), (2,))])
def test_it_is_the_formula(first, second):
    one, other = asked(*first, seed=1), asked(*second, seed=2)
    assert likeness(LEXICON, embed, one, other) == pytest.approx(literal(one, other), abs=1e-5)
    assert likeness(LEXICON, embed, other, one) == pytest.approx(literal(one, other), abs=1e-5)


def test_the_same_words_and_none():
    one, none = asked(1, 2, 3), asked()
    assert likeness(LEXICON, embed, one, one) == pytest.approx(1.0, abs=1e-3)
    assert likeness(LEXICON, embed, none, none) == 1.0
    assert likeness(LEXICON, embed, one, none) == likeness(LEXICON, embed, none, one) == 0.0


def test_rare_words_count_more():
    """Word 2 weighs six times as much as word 1."""
    far = Question((9, 10), torch.zeros(2, 5).half(), False)
    common, rare = (Question((t, *far.ids), torch.zeros(3, 5).half(), False) for t in (1, 2))
    both = Question((1, 2), torch.zeros(2, 5).half(), False)
    assert likeness(LEXICON, embed, both, rare) > likeness(LEXICON, embed, both, common)


def test_unknown_tokens_are_compared_by_their_states_alone():
    one = asked(-1, -1, seed=4)
    assert likeness(LEXICON, None, one, one) == pytest.approx(1.0, abs=1e-3)


def test_rarity_is_that_of_the_corpus_in_which_a_token_is_most_frequent():
    ids, weights, unseen = rarity([[1, 2, 2], [1, 3]], [[3], [3], [4]])
    found = dict(zip(ids.tolist(), weights.tolist(), strict=True))
    assert found == pytest.approx(
        {1: 0.01, 2: -math.log(2 / 3), 3: -math.log(3 / 4), 4: -math.log(2 / 4)}, abs=1e-6
    )
    assert unseen == pytest.approx(math.log(4))


def test_what_is_saved_comes_back_and_damage_is_named():
    told = [asked(1, 2, seed=1), asked(chat=True), asked(7, seed=2, chat=True)]
    tensors = packed(told, "q.")
    again = unpacked(tensors, "q.", 5)
    assert [(q.ids, q.chat) for q in again] == [(q.ids, q.chat) for q in told]
    assert all(torch.equal(a.states, b.states) for a, b in zip(again, told, strict=True))
    assert unpacked(packed([], "q."), "q.", 5) == []
    for name in tensors:
        with pytest.raises(ValueError, match=f"'{name}' is missing"):
            unpacked({n: t for n, t in tensors.items() if n != name}, "q.", 5)
    for sizes in ([-1, 0, 4], [2, 0, 1 << 41]):
        with pytest.raises(ValueError, match=r"q\.sizes has sizes that cannot be"):
            unpacked(tensors | {"q.sizes": torch.tensor(sizes)}, "q.", 5)
