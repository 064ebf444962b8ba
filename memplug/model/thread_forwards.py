"""Another forward for a module, on one thread: the others go on with the module's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["Shadows"]

_UNSET = object()


class Shadows:
    """Forwards that shadow those of modules, for single threads.

    The module keeps its place and its hooks; a ``forward`` on the instance tells the threads apart. It is put
    there for the first thread that asks and taken away with the last, so that threads may come and go in any
    order, and what stood there before, a wrapper's ``forward`` say, stands there again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shadows: dict[nn.Module, _Shadow] = {}

    @contextmanager
    def shadowing(self, module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
        """This thread's calls of ``module`` inside the ``with`` run ``forward`` in place of its own."""
        self.put(module, forward)
        try:
            yield
        finally:
            self.take(module)

    def here(self, module: nn.Module) -> bool:
        """Whether this thread's calls of ``module`` run another forward."""
        shadow = self._shadows.get(module)
        return shadow is not None and threading.get_ident() in shadow.forwards

    def put(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """This thread's calls of ``module`` run ``forward`` until `take` is called."""
        with self._lock:
            shadow = self._shadows.get(module) or _Shadow(module)
            self._shadows[module] = shadow
            shadow.forwards.setdefault(threading.get_ident(), []).append(forward)
            shadow.cast()

    def take(self, module: nn.Module) -> None:
        """What this thread put last on ``module`` is taken away."""
        me = threading.get_ident()
        with self._lock:
            shadow = self._shadows[module]
            mine = shadow.forwards[me]
            mine.pop()
            if not mine:
                del shadow.forwards[me]
            if not shadow.forwards:
                shadow.lift()
                del self._shadows[module]


class _Shadow:
    """The forwards of one module, by thread."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = vars(module).get("forward", _UNSET)
        self._own = module.forward
        self.forwards: dict[int, list[Callable[..., Any]]] = {}

    def cast(self) -> None:
        self._module.forward = self._chosen

    def lift(self) -> None:
        if self._before is _UNSET:
            vars(self._module).pop("forward", None)
        else:
            self._module.forward = self._before

    def _chosen(self, *args: Any, **kwargs: Any) -> Any:
        mine = self.forwards.get(threading.get_ident())
        return (mine[-1] if mine else self._own)(*args, **kwargs)
