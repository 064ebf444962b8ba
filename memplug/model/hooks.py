"""Registers hooks on a model: all or none, and always removed.

`HookSet` is a plug's own, from attach to detach. `OwnHooks` are one thread's, for a moment, while a method
reads or learns; `probes` looks at a model before it has a plug.

Knows nothing about editing. Hooks are given as (module, kind, function); everything is resolved
before the first is registered, so a mistake leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .architecture import Architecture, UnsupportedModelError, uncast

__all__ = [
    "Hook",
    "HookSet",
    "OwnHooks",
    "StopForward",
    "capture_input",
    "resume",
    "run_through",
    "skipping_below",
]


class Hook(NamedTuple):
    """``kind`` "before": ``fn(module, args, kwargs) -> (args, kwargs) | None``;
    "after": ``fn(module, args, kwargs, output) -> output | None``;
    "finally": like "after", and also called when the forward raises."""

    module: nn.Module
    kind: Literal["before", "after", "finally"]
    fn: Callable[..., Any]


class HookSet:
    """Registered hooks, removed together by ``remove()`` or at the end of a ``with``.

    They take effect when all are registered, and none does any more when the first is removed, so that a
    forward of another thread meets all of them or none that does anything.
    """

    _thread: int | None = None

    def __init__(self, hooks: Iterable[Hook]) -> None:
        live = self._live = _Live(self._thread)
        self._handles: list[Any] = []
        try:
            for module, kind, given in list(hooks):
                fn = _Uncompiled(given, live)
                if kind == "before":
                    handle = module.register_forward_pre_hook(fn, with_kwargs=True)
                else:
                    always = kind == "finally"
                    handle = module.register_forward_hook(fn, with_kwargs=True, always_call=always)
                self._handles.append(handle)
        except BaseException:
            self.remove()
            raise
        live.on = True

        # Code that was compiled without them would go on without them.
        if "torch._dynamo" in sys.modules and self._thread is None:
            torch.compiler.reset()

    def remove(self) -> None:
        """Take every hook off; a second call does nothing, or goes on with one that was broken off."""
        self._live.on = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> HookSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class OwnHooks(HookSet):
    """Hooks that see the forwards of the thread that registers them, and no other thread's."""

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._thread = threading.get_ident()
        super().__init__(hooks)


class _Live:
    """Whether the hooks of a set take effect: on one thread, or on all (None)."""

    def __init__(self, thread: int | None) -> None:
        self.on, self._thread = False, thread

    @property
    def here(self) -> bool:
        return self.on and (self._thread is None or self._thread == threading.get_ident())


class _Uncompiled:
    """A hook that torch.compile does not trace: it decides by values, and keeps them for other forwards.

    Nor is it under the caller's autocast, which would choose other dtypes for what it compares and keeps.
    """

    def __init__(self, fn: Callable[..., Any], live: _Live) -> None:
        self._fn, self._plain, self._live = fn, torch.compiler.disable(fn), live

    def __call__(self, *args: Any) -> Any:
        # While it is registered or removed another thread's forward may call it with fewer arguments.
        if not self._live.here:
            return None
        if torch.compiler.is_compiling():
            return self._plain(*args)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            with uncast():
                return self._fn(*args)
        return self._fn(*args)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        # In a copy of the model it would go on to speak for the one it was made for.
        raise ValueError(
            "a model with a plug cannot be copied or pickled; call plug.detach() first (plug.save(folder) "
            "keeps its edits, and memplug.load takes them up on a copy)"
        )


class StopForward(Exception):
    """Raised by a hook that has what it wanted; the layers above are not computed."""


@contextmanager
def skipping_below(architecture: Architecture, index: int) -> Iterator[None]:
    """Layers 0..index-1 hand their input on unchanged, at no cost, on this thread inside the ``with``; the
    first of them is run where it computes something for all others.

    The layers stay in place (models index them and read their attributes); only their ``forward`` is
    shadowed on the instance, and put back exactly as it was, also over wrappers such as accelerate's.
    """

    rest: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        return architecture.returned(architecture.entering(args, kwargs), rest)

    def keep(_m: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        rest[:] = output[1:]

    with ExitStack() as stack:
        if architecture.shares:
            stack.enter_context(OwnHooks([Hook(architecture.layers[0], "after", keep)]))
        for layer in architecture.layers[int(architecture.shares) : index]:
            stack.enter_context(architecture.shadows.shadowing(layer, forward))
        yield


@torch.no_grad()
def capture_input(architecture: Architecture, index: int, run: Callable[[], Any]) -> Tensor:
    """The hidden states [B,T,D] that ``run()`` hands to layer ``index``; the layers above are not run."""
    found: list[Tensor] = []

    def before(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(architecture.entering(args, kwargs))
        raise StopForward

    with OwnHooks([Hook(architecture.layers[index], "before", before)]), contextlib.suppress(StopForward):
        run()
    if not found:
        raise UnsupportedModelError(
            f"{architecture.names[index]} is not run on text alone; choose another layer"
        )
    return found[0]


@torch.no_grad()
def run_through(architecture: Architecture, index: int, run: Callable[[], Any]) -> None:
    """``run()``, up to and with layer ``index``; what lies above is not run."""

    def after(_m: nn.Module, _args: Any, _kwargs: Any, _output: Any) -> None:
        raise StopForward

    with OwnHooks([Hook(architecture.layers[index], "after", after)]), contextlib.suppress(StopForward):
        run()


def resume(
    model: Any, architecture: Architecture, index: int, hidden: Tensor, run: Callable[[], Any], flat: Tensor
) -> Tensor:
    """Logits [P,V] of a forward that starts at layer ``index``; what lies below is not computed again.

    Args:
        model: the model with its head.
        architecture: its layers.
        index: the layer to start at.
        hidden: [B,T,D] inputs of that layer, known from an earlier forward of the same tokens.
        run: calls the model on these tokens, right-padded and without a cache.
        flat: [P] positions whose logits are wanted, as row * T + position; the head sees no others.
    """

    def enter(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = architecture.bind(args, kwargs)
        del bound[next(iter(bound))]
        return (hidden,), bound

    def narrow(_m: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
        return (args[0].flatten(0, 1)[flat.to(args[0].device)][None],), {}

    hooks = [
        Hook(architecture.layers[index], "before", enter),
        Hook(model.get_output_embeddings(), "before", narrow),
    ]
    with skipping_below(architecture, index), OwnHooks(hooks):
        logits: Tensor = run().logits
    return logits[0]
