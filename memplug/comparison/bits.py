"""A name for a model as it is, to the bit, so that one can see whether a method left it as it was."""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .cost import hooks_of

__all__ = ["NotRestoredError", "bits_of"]


class NotRestoredError(RuntimeError):
    """A method was detached and the model is not what it was."""


def bits_of(model: Any) -> str:
    """SHA-256 over all parameters and buffers (names, shapes, types, values) and the ids of all hooks."""
    digest = hashlib.sha256(repr((model.training, sorted(hooks_of(model)))).encode())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{tensor.requires_grad}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""  # type: ignore[return-value]
