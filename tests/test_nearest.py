"""Nearest vectors: against brute force, each row alone, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memplug.nearest import Nearest, measure


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    # Far from the origin, where |x|^2 - 2xy + |y|^2 loses most digits in float32.
    return {7 * i: torch.randn(24, generator=generator) + 300 for i in range(60)}


@pytest.fixture
def queries(vectors):
    return torch.stack(list(vectors.values()))[:40] + 0.01 * torch.randn(
        40, 24, generator=torch.Generator().manual_seed(1)
    )


def brute(vectors, query, metric):
    many = torch.stack(list(vectors.values())).double()
    one = query.double()
    values = (
        (many - one).norm(dim=-1)
        if metric == "euclidean"
        else torch.nn.functional.cosine_similarity(many, one[None])
    )
    order = values.argsort(descending=metric == "cosine", stable=True)
    return [list(vectors)[i] for i in order], values[order]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_equals_brute_force_in_any_company(vectors, queries, metric):
    index = Nearest(24, metric)
    index.hold(vectors)
    near = index.search(queries, 3)
    for row, query in enumerate(queries):
        numbers, values = brute(vectors, query, metric)
        assert near.number[row].tolist() == numbers[:3]
        np.testing.assert_allclose(near.measure[row], values[:3].numpy(), rtol=1e-9)
        alone = index.search(query[None], 3)
        assert np.array_equal(alone.number[0], near.number[row])
        assert np.array_equal(alone.measure[0], near.measure[row])  # to the bit


def test_holds_what_it_was_given_last(vectors, queries):
    index = Nearest(24, "euclidean")
    assert index.search(queries).number.tolist() == [[-1]] * 40
    some = dict(list(vectors.items())[:30])
    index.hold(some)
    index.hold(vectors)  # continued
    assert len(index) == 60
    assert index.search(queries[35:36]).number.tolist() == [[35 * 7]]
    del vectors[0]
    index.hold(vectors)
    assert 0 not in index.search(queries, 5).number
    assert index.search(queries[:1]).number[0, 0] == brute(vectors, queries[0], "euclidean")[0][0]


def test_fewer_than_asked_for_and_rows_that_are_not_finite(vectors, queries):
    index = Nearest(24, "euclidean")
    index.hold(dict(list(vectors.items())[:2]))
    queries[1, 3] = torch.nan
    near = index.search(queries[:2].to(torch.float64), 3)
    assert near.number.tolist() == [[0, 7, -1], [-1, -1, -1]]
    assert np.isnan(near.measure[0, 2])


def test_vectors_that_cannot_be_held(vectors):
    index = Nearest(24, "cosine")
    index.hold(vectors)
    for wrong in (torch.zeros(23), torch.full((24,), torch.inf)):
        with pytest.raises(ValueError, match="give finite vectors of the shape .24,."):
            index.hold({**vectors, 999: wrong})
    assert len(index) == 60


def test_a_cosine_with_zero_is_zero():
    assert measure(np.zeros(3, np.float32), np.ones((2, 3), np.float32), "cosine").tolist() == [0, 0]
