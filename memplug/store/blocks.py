"""Tensors as blocks of rows, named by their SHA-256. Knows nothing about databases.

A tensor's rows are cut into blocks of about 1 MiB, and what is left of them into ever smaller ones, each half
as many rows as the one before, down to 16 KiB. So a tensor that grows at its end keeps all blocks but small
ones: new rows are written with what shares their smallest block, and again each time that two blocks become
one, six times at most. Rows taken out of the middle move those behind them, which are written anew.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..text.printable import brief

__all__ = ["checked", "cut", "digest", "joined"]

_LEAST, _MOST = 1 << 14, 1 << 20  # bytes of a block, but for the rest of a tensor and for wider rows


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
    matrices = math.prod(shape[:-2]) if plain.nbytes >= _LEAST * math.prod(shape[:-2]) else 1
    rows = shape[-2] if matrices > 1 else shape[0] if shape else 1
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
