"""How a model is run for a while: evaluating, frozen, with gradients, without autocast. All is put back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .interrupts import undone

__all__ = ["evaluating", "frozen", "learning", "uncast"]

_COUNTING = threading.Lock()
_DEVICES = ("cpu", "cuda", "xpu")


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Every module in evaluation mode (no dropout), and afterwards each in the mode it had."""
    return _without(model, "training")


def frozen(model: nn.Module) -> AbstractContextManager[None]:
    """No parameter of the model takes gradients inside the ``with``; afterwards each is as it was."""
    return _without(model, "requires_grad")


@contextmanager
def _without(model: nn.Module, flag: str) -> Iterator[None]:
    """A flag of modules or parameters off, from the first ``with`` that is entered to the last that is left,
    whichever threads they are on. Until then those that had it are remembered on the model."""
    key, me = f"_memplug_{flag}", object()

    def leave() -> None:
        with _COUNTING:
            held = vars(model).get(key)
            if held is not None:
                held.users.discard(me)
                if not held.users:
                    for thing in held.things:
                        setattr(thing, flag, True)
                    del vars(model)[key]

    with undone(leave):
        with _COUNTING:
            held = vars(model).get(key)
            if held is None:
                every = model.modules() if flag == "training" else model.parameters()
                held = vars(model)[key] = _Held([thing for thing in every if getattr(thing, flag)])
            held.users.add(me)
        for thing in held.things:
            setattr(thing, flag, False)
        yield


@dataclass
class _Held:
    """Modules or parameters whose flag is off meanwhile, and who asked for that."""

    things: list[Any]
    users: set[object] = field(default_factory=set)


@contextmanager
def learning() -> Iterator[None]:
    """Gradients can be taken inside the ``with``, also where the caller has none, or autocast."""
    with torch.inference_mode(False), torch.enable_grad(), uncast():
        yield


@contextmanager
def uncast() -> Iterator[None]:
    """No autocast inside the ``with``: what is computed has the dtype of what it is computed from."""
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
