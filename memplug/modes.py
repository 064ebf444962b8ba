"""How a model is run for a while: evaluating, frozen, with gradients, without autocast. All is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "frozen", "learning", "uncast"]

_DEVICES = ("cpu", "cuda", "xpu")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode (no dropout), and afterwards each in the mode it had."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model takes gradients inside the ``with``; afterwards each is as it was."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


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
