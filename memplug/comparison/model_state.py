"""A model as it is, its hooks and its bits, so that one can see whether a method left it as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

__all__ = ["NotRestoredError", "bare", "bits_of", "hooks_of"]

_TABLES = ("_forward_pre_hooks", "_forward_hooks")


class NotRestoredError(RuntimeError):
    """A method was detached and the model is not what it was."""


def hooks_of(model: nn.Module) -> frozenset[int]:
    """Ids of all forward hooks on the model; no two hooks of a process have the same."""
    return frozenset(id for module in model.modules() for table in _TABLES for id in getattr(module, table))


@contextmanager
def bare(model: nn.Module, before: frozenset[int]) -> Iterator[None]:
    """Inside the ``with`` no hooks run but those whose ids are in ``before``; weights stay as they are."""
    tables = [getattr(module, table) for module in model.modules() for table in _TABLES]
    whole = [(hooks, dict(hooks)) for hooks in tables if hooks.keys() - before]
    try:
        for hooks, _ in whole:
            for id in hooks.keys() - before:
                del hooks[id]
        yield
    finally:
        for hooks, all_of_them in whole:
            hooks.clear()
            hooks.update(all_of_them)


def bits_of(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers (names, shapes, types, values) and the ids of all hooks."""
    digest = hashlib.sha256(repr((model.training, sorted(hooks_of(model)))).encode())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{tensor.requires_grad}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()
