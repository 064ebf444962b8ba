"""An editor for a method that learns to edit first: the shipped one, the folder's, or one fitted now."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..edits import Case
from ..methods.base import Fits
from ..plugin import Plug
from .cost import Meter
from .folder import Folder
from .specs import MethodSpec

__all__ = ["attach_fitted"]

_SHIPPED = {
    "shipped": True,
    "seconds": 0.0,
    "steps": 0,
    "seconds_per_step": None,
    "peak_host_bytes": 0,
    "peak_device_bytes": None,
    "cases": 0,
}


def attach_fitted(
    spec: MethodSpec,
    model: Any,
    tokenizer: Any,
    folder: Folder,
    seed: int,
    cases: Callable[[], Sequence[Case]] | None,
    *,
    steps: int | None,
    **options: Any,
) -> tuple[Plug, dict[str, Any] | None]:
    """A plug that can edit, and what fitting it cost (None for methods that need none).

    Args:
        spec: the method.
        model, tokenizer: the model.
        folder: keeps fitted editors; one that is there already is used.
        seed: of the run, and of the fitting.
        cases: gives the cases to fit on; None where there are none.
        steps: of the fitting; None leaves the method's own.
        options: for a ``fit`` that takes them: ``alone``, not to share the fitting with other processes that
            were launched; ``progress``, to show a bar.

    Raises:
        ValueError: the method has to be fitted, and there are no cases for that.
    """
    plug = spec.attach(model, tokenizer)
    try:
        if not isinstance(plug.method, Fits):
            plug.detach()
            return spec.with_constants(seed=seed).attach(model, tokenizer), None
        if parameters := _parameters(plug.method):
            return plug, {**_SHIPPED, "parameters": parameters}
        own = spec.with_constants(seed=seed, **({} if steps is None else {"fit_steps": steps}))
        path = folder.editor(spec.label, seed)
        if not (path.is_file() and path.with_suffix(".json").is_file()):
            plug.detach()
            if cases is None:
                raise ValueError(
                    f"{spec.name!r} has to be fitted to this model first; say on what: fit_cases=200 "
                    "(so many other cases of the same source), or a file of cases (--fit-cases)"
                )
            plug = own.attach(model, tokenizer)
            _fit(plug, cases(), folder, path, options)
        plug.detach()
        plug = own.attach(model, tokenizer, editor=path)
        return plug, folder.read(path.with_suffix(".json"))
    except BaseException:
        plug.detach()
        raise


def _fit(plug: Plug, cases: Sequence[Case], folder: Folder, path: Path, options: dict[str, Any]) -> None:
    method: Any = plug.method
    checkpoint = path.with_suffix(".checkpoint")
    known = inspect.signature(method.fit).parameters
    given = {name: v for name, v in {**options, "checkpoint": checkpoint}.items() if name in known}
    with Meter() as meter:
        report = plug.fit(list(cases), **given)
    steps = getattr(report, "steps", None)
    seconds = float(getattr(report, "seconds", meter.seconds))  # over checkpoints, if it was taken up
    plug.save_editor(path)
    cost = {
        "seconds": seconds,
        "steps": steps,
        "seconds_per_step": seconds / steps if steps else None,
        "peak_host_bytes": meter.host,
        "peak_device_bytes": meter.device,
        "parameters": _parameters(method),
        "shipped": False,
        "cases": len(cases),
    }
    folder.write(path.with_suffix(".json"), cost)
    checkpoint.unlink(missing_ok=True)


def _parameters(method: Fits) -> int:
    """How many numbers were learned; 0 where nothing was."""
    try:
        return sum(tensor.numel() for tensor in method.editor_state().values())
    except ValueError:
        return 0
