"""An editor for a method that learns to edit first: the shipped one, the folder's, or one fitted now."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..edits import Case
from ..methods.base import Fits
from ..plugin import Plug
from .contenders import Contender
from .cost import Meter
from .folder import Folder

__all__ = ["ready"]


def ready(
    contender: Contender,
    model: Any,
    tokenizer: Any,
    folder: Folder,
    seed: int,
    cases: Callable[[], Sequence[Case]] | None,
    *,
    steps: int | None,
    progress: bool,
) -> tuple[Plug, dict[str, Any] | None]:
    """A plug that can edit, and what fitting it cost (None for methods that need none).

    Args:
        contender: the method.
        model, tokenizer: the model.
        folder: keeps fitted editors; one that is there already is used.
        seed: of the run, and of the fitting.
        cases: gives the cases to fit on; None where there are none.
        steps: of the fitting; None leaves the method's own.
        progress: show a bar.

    Raises:
        ValueError: the method has to be fitted, and there are no cases for that.
    """
    plug = contender.attach(model, tokenizer)
    try:
        if not isinstance(plug.method, Fits):
            plug.detach()
            return contender.with_constants(seed=seed).attach(model, tokenizer), None
        if _is_fitted(plug.method):
            return plug, {"shipped": True, **_nothing, "parameters": _numbers(plug.method)}
        own = contender.with_constants(seed=seed, **({} if steps is None else {"fit_steps": steps}))
        path = folder.editor(contender.label, seed)
        if not (path.is_file() and path.with_suffix(".json").is_file()):
            plug.detach()
            if cases is None:
                raise ValueError(
                    f"{contender.name!r} has to be fitted to this model first; say on what: fit_cases=200 "
                    "(so many other cases of the same source), or a file of cases (--fit-cases)"
                )
            plug = own.attach(model, tokenizer)
            _fit(plug, cases(), folder, path, progress)
        plug.detach()
        plug = own.attach(model, tokenizer, editor=path)
        return plug, folder.read(path.with_suffix(".json"))
    except BaseException:
        plug.detach()
        raise


_nothing = {
    "seconds": 0.0,
    "steps": 0,
    "seconds_per_step": None,
    "peak_host_bytes": 0,
    "peak_device_bytes": None,
    "cases": 0,
}


def _fit(plug: Plug, cases: Sequence[Case], folder: Folder, path: Path, progress: bool) -> None:
    method: Any = plug.method
    offered = {"progress": progress, "checkpoint": path.with_suffix(".checkpoint")}
    known = inspect.signature(method.fit).parameters
    with Meter() as meter:
        report = plug.fit(list(cases), **{name: v for name, v in offered.items() if name in known})
    steps = getattr(report, "steps", None)
    seconds = float(getattr(report, "seconds", meter.seconds))  # over checkpoints, if it was taken up
    plug.save_editor(path)
    cost = {
        "seconds": seconds,
        "steps": steps,
        "seconds_per_step": seconds / steps if steps else None,
        "peak_host_bytes": meter.host,
        "peak_device_bytes": meter.device,
        "parameters": _numbers(method),
        "shipped": False,
        "cases": len(cases),
    }
    folder.write(path.with_suffix(".json"), cost)
    path.with_suffix(".checkpoint").unlink(missing_ok=True)


def _is_fitted(method: Fits) -> bool:
    try:
        return bool(method.editor_state())
    except ValueError:
        return False


def _numbers(method: Fits) -> int:
    return sum(tensor.numel() for tensor in method.editor_state().values())
