"""Tensors and texts as blocks, named by their SHA-256. Knows nothing about databases.

A tensor's rows are cut into blocks of about 1 MiB, and what is left of them into ever smaller ones, each half
as many rows as the one before, down to 16 KiB. So a tensor that grows at its end keeps all blocks but small
ones: new rows are written with what shares their smallest block, and again each time that two blocks become
one, six times at most. Rows taken out of the middle move those behind them, which are written anew.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..text.printable import brief

__all__ = ["checked", "cut", "cut_text", "digest", "joined"]

_LEAST, _MOST = 1 << 14, 1 << 20  # bytes of a block, but for the rest of a tensor and for wider rows

_TEXT = 1 << 13  # bytes of a block of lines, on average


def digest(data: bytes | memoryview) -> str:
    """SHA-256, as hex."""
    return hashlib.sha256(data).hexdigest()


def cut(tensor: Tensor) -> Iterator[memoryview]:
    """The blocks of a tensor's bytes, in order.

    Rows run along the first dimension. In a tensor of more than two, such as keys [R,E,D] by layer, they run
    along the last but one, in each of its matrices, unless these are small.
    """
    plain = tensor.detach().cpu().contiguous()
    if not plain.nbytes:
        return
    data = plain.reshape(-1).view(torch.uint8).numpy().data
    shape = plain.shape
    matrices, rows = math.prod(shape[:-2]), (1, 1, *shape)[-2]
    if len(shape) < 2 or plain.nbytes < _LEAST * matrices:
        matrices, rows = 1, (*shape, 1)[0]
    width = len(data) // (matrices * rows)
    least, most = (1 << max(0, (size // width).bit_length() - 1) for size in (_LEAST, _MOST))
    for start in range(0, len(data), rows * width):
        at, size = 0, most
        while at < rows:
            while size > least and size > rows - at:
                size //= 2
            end = min(at + size, rows)
            yield data[start + at * width : start + end * width]
            at = end


def cut_text(text: bytes) -> Iterator[bytes]:
    """The blocks of a text, in order: lines, some 8 KiB of them.

    Where a block ends is told by its last line, so that lines that come, go or change anywhere leave all
    other blocks as they are.
    """
    block: list[bytes] = []
    for line in text.splitlines(keepends=True):
        block.append(line)
        if zlib.crc32(line) % _TEXT < len(line):
            yield b"".join(block)
            block = []
    if block:
        yield b"".join(block)


def checked(data: bytes, sha256: str) -> bytes:
    """``data``, if this is its checksum.

    Raises:
        ValueError: it is not.
    """
    if digest(data) != sha256:
        raise ValueError(f"the blob {sha256[:16]} is not what was stored: wrong SHA-256")
    return data


def joined(kind: str, shape: Sequence[int], blocks: Sequence[bytes]) -> Tensor:
    """The tensor of this dtype and shape whose bytes `cut` gave, in memory of its own.

    Raises:
        ValueError: there is no such dtype, or it has another number of bytes.
    """
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{brief(kind)} is no dtype")
    size = dtype.itemsize * math.prod(shape)
    if size != sum(map(len, blocks)):
        raise ValueError(f"a tensor of shape {tuple(shape)} has {sum(map(len, blocks))} bytes, not {size}")
    data = torch.empty(size, dtype=torch.uint8)  # aligned, as products need it that are to be the same
    if size:
        data.copy_(torch.frombuffer(bytearray().join(blocks), dtype=torch.uint8))
    return data.view(dtype).reshape(tuple(shape))
