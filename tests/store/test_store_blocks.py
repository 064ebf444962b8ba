"""Tensors and texts as blocks: they come back to the bit, and what grows keeps most of its blocks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memplug.store.blocks import checked, cut, cut_text, digest, joined

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]
SHAPES = st.one_of(
    st.lists(st.integers(0, 40), max_size=4),
    st.tuples(st.integers(0, 3000), st.sampled_from([1, 7, 600])),
    st.tuples(st.integers(1, 3), st.integers(0, 900), st.sampled_from([33, 600])),
)


def made(shape, dtype):
    return torch.randint(0, 255, (math.prod(shape),)).to(dtype).reshape(tuple(shape))


@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, dtype=st.sampled_from(DTYPES), turned=st.booleans())
def test_tensors_come_back(shape, dtype, turned):
    tensor = made(shape, dtype)
    tensor = tensor.transpose(0, -1) if turned and tensor.ndim else tensor
    blocks = [bytes(block) for block in cut(tensor)]
    back = joined(str(dtype).removeprefix("torch."), list(tensor.shape), blocks)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)
    assert all(0 < len(block) <= 1 << 20 for block in blocks)


def fresh(before, after):
    """Bytes of the blocks that were not there before."""
    there = {digest(block) for block in before}
    return sum(len(block) for block in after if digest(block) not in there)


@pytest.mark.parametrize("shape", [(5000, 256), (5000, 3), (20000,), (3, 5000, 64)])
def test_what_grows_by_a_row_writes_little(shape):
    where = max(0, len(shape) - 2)
    whole = torch.randn(shape)
    rows, matrices = shape[where], math.prod(shape[:where])
    row = whole.nbytes // rows
    step = 1 if row < 256 else 20
    parts = [list(cut(whole.narrow(where, 0, size))) for size in range(rows - 1000, rows + 1, step)]
    written = [fresh(*pair) for pair in pairwise(parts)]
    assert sum(written) / len(written) < matrices * ((2 << 14) + 8 * step * row)
    assert max(written) <= matrices * ((1 << 20) + (1 << 14) + step * row)


def test_lines_that_change_leave_the_other_blocks():
    lines = [f"line {n} of the text, which says {n * n}\n".encode() for n in range(20000)]
    before = list(cut_text(b"".join(lines)))
    assert b"".join(before) == b"".join(lines)
    assert 4000 < sum(map(len, before)) / len(before) < 16000
    for at in (0, 777, 10000, 19999):
        after = list(cut_text(b"".join([*lines[:at], b"another\n", b"and one more\n", *lines[at + 1 :]])))
        assert fresh(before, after) < 1 << 17
    assert list(cut_text(b"")) == []


def test_what_does_not_fit_is_refused():
    assert checked(b"abc", digest(b"abc")) == b"abc"
    for call, told in (
        (lambda: checked(b"abd", digest(b"abc")), "is not what was stored: wrong SHA-256"),
        (lambda: joined("float32", [2, 2], [b"1234"]), r"shape \(2, 2\) has 4 bytes, not 16"),
        (lambda: joined("manual_seed", [], [b""]), "'manual_seed' is no dtype"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
