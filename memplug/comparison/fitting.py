"""An editor for a method that learns to edit first: the shipped one, the folder's, or one fitted now."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ..edits import Case
from ..interface import Fits
from ..plugin import Plug
from .context import RunContext
from .cost import Meter
from .specs import MethodSpec

__all__ = ["attach_fitted"]


def attach_fitted(spec: MethodSpec, context: RunContext) -> tuple[Plug, dict[str, Any] | None]:
    """A plug that can edit, and what fitting it cost (None for methods that need none).

    Raises:
        ValueError: the method has to be fitted, and there are no cases for that.
    """
    model, folder, steps = (context.model, context.tokenizer), context.folder, context.settings.fit_steps
    own = spec.with_constants(seed=context.seed, **({} if steps is None else {"fit_steps": steps}))
    plug = spec.attach(*model)
    try:
        if not isinstance(plug.method, Fits):
            plug.detach()
            return spec.with_constants(seed=context.seed).attach(*model), None
        if parameters := _parameters(plug.method):
            return plug, _cost(parameters, Meter(), shipped=True)
        plug.detach()
        path = folder.editor(spec.label, context.seed)
        if not (path.is_file() and path.with_suffix(".json").is_file()):
            cases = context.cases_to_fit()
            if cases is None:
                raise ValueError(
                    f"{spec.name!r} has to be fitted to this model first; say on what: fit_cases=200 "
                    "(so many other cases of the same source), or a file of cases (--fit-cases)"
                )
            plug = own.attach(*model)
            _fit(plug, cases, path, context)
            plug.detach()
        return own.attach(*model, editor=path), folder.read(path.with_suffix(".json"))
    except BaseException:
        plug.detach()
        raise


def _fit(plug: Plug, cases: list[Case], path: Path, context: RunContext) -> None:
    """Fit and save an editor, and what that cost."""
    method: Any = plug.method
    checkpoint = path.with_suffix(".checkpoint")
    offered = {"progress": context.progress, "checkpoint": checkpoint}
    known = inspect.signature(method.fit).parameters
    with Meter() as meter:
        report = plug.fit(cases, **{name: value for name, value in offered.items() if name in known})
    meter.seconds = float(getattr(report, "seconds", meter.seconds))  # over checkpoints, if it was taken up
    plug.save_editor(path)
    cost = _cost(_parameters(method), meter, getattr(report, "steps", None), len(cases))
    context.folder.write(path.with_suffix(".json"), cost)
    checkpoint.unlink(missing_ok=True)


def _cost(
    parameters: int, meter: Meter, steps: int | None = 0, cases: int = 0, shipped: bool = False
) -> dict[str, Any]:
    return {
        "seconds": meter.seconds,
        "steps": steps,
        "seconds_per_step": meter.seconds / steps if steps else None,
        "peak_host_bytes": meter.host,
        "peak_device_bytes": meter.device,
        "parameters": parameters,
        "shipped": shipped,
        "cases": cases,
    }


def _parameters(method: Fits) -> int:
    """How many numbers were learned; 0 where nothing was."""
    try:
        return sum(tensor.numel() for tensor in method.editor_state().values())
    except ValueError:
        return 0
