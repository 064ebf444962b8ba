"""A GPU that is none: tensors that say they lie on a device of their own, and refuse what a GPU's refuse.

Their data is in main memory and every operation runs there, but one that mixes them with the CPU's tensors
fails, as it does on a GPU, and so does NumPy. What a real one alone can show stays untested: its kernels'
rounding, its streams and its memory.

Run as ``python pretended.py JOB ...``, in a process of its own, since torch takes up such a device for good.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import memplug
from memplug import world

NAME = "pretend"
_aten = torch.ops.aten
_ACROSS = (_aten.copy_.default, _aten._to_copy.default)
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)
_DATA = (torch.Tensor.tolist, torch.Tensor.data_ptr, torch.Tensor.untyped_storage)


class _Backend:
    """What torch asks a device's module for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_args, **_kwargs: 0

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


class Pretended(torch.Tensor):
    """Says that it lies on the device; ``inner`` holds the data."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretended({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _inner(value: Any) -> Any:
    if isinstance(value, Pretended):
        return value.inner
    return type(value)(map(_inner, value)) if type(value) in (list, tuple) else value


def _check_places(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raises RuntimeError for what a GPU does not take: only numbers, and indices, may come from the CPU."""
    if func in _ACROSS:
        return
    if func in _INDEXING and isinstance(args[0], Pretended):
        tensors = [x for x in args[2:3] if isinstance(x, Tensor)]
    elsewhere = [x for x in tensors if not isinstance(x, Pretended) and (x.dim() or func in _INDEXING[:1])]
    if elsewhere:
        shapes = [tuple(x.shape) for x in elsewhere]
        raise RuntimeError(f"tensors on two devices: {func} was given {shapes} on the CPU")


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = list(_tensors([*args, *kwargs.values()]))
    ours = [x for x in tensors if isinstance(x, Pretended)]
    if ours:
        _check_places(func, args, tensors)
    device = kwargs.get("device")
    there = _there(device) or (device is None and bool(ours))
    if func is _aten.copy_.default:
        there = isinstance(args[0], Pretended)
    if ours:
        args, kwargs = _inner(tuple(args)), {name: _inner(value) for name, value in kwargs.items()}
    if _there(device):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    made = func(*args, **kwargs)
    if not there:
        return made
    known = {id(x.inner): x for x in ours}  # what was changed in place
    return tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else Pretended(x), made)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What does not come by the dispatcher."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Pretended):
            if func is torch.Tensor.numpy:
                raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy")
            if func in _DATA:
                return func(args[0].inner)
        name = getattr(func, "__name__", "")
        if name in ("tensor", "as_tensor") and _there(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def _empty_strided(size: Any, stride: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Pretended(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    inner = [x.inner if isinstance(x, Pretended) else x for x in (source, target)]
    inner[1].copy_(inner[0])
    return target


def move(model: nn.Module) -> None:
    """Put a model's parameters and buffers there."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                there = nn.Parameter(Pretended(parameter.detach()), requires_grad=parameter.requires_grad)
                module._parameters[name] = found.setdefault(id(parameter), there)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Pretended(buffer)


@contextlib.contextmanager
def device() -> Iterator[None]:
    """The device is there inside the ``with``."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    own = library.Library("aten", "IMPL")  # what indexing calls beneath the dispatcher's modes
    own.impl("empty_strided", _empty_strided, "PrivateUse1")
    own.impl("_copy_from", _copy_from, "PrivateUse1")
    with _Operations(), _Functions():
        yield


QUICK: dict[str, dict[str, Any]] = {
    "llp": {},
    "elder": {},
    "grace": {},
    "icl": {},
    "ultraedit": {},
    "hiedit": {},
    "finetune": {"lr": 0.05, "bound": 0.3},  # the embedded model needs larger steps than a pretrained one
    "lora": {"keep": 0},
    "memit": {"covariance_texts": 16, "covariance_length": 24, "n_prefixes": 1},
}
"""Methods, one of each kind, with constants that make them quick on the embedded model."""


def _loaded(dtype: torch.dtype) -> tuple[Any, Any]:
    model, tokenizer = world.load()
    model.config._attn_implementation = "eager"  # torch's own attention has kernels by device
    model.to(dtype)
    move(model)
    return model, tokenizer


def edit(method: str, dtype: torch.dtype) -> None:
    """All that a plug can do, on a model that lies there."""
    model, tokenizer = _loaded(dtype)
    cases = world.cases(3, seed=3)
    want = [case.edit.target for case in cases]

    def ask(**how: Any) -> list[str]:
        prompts = [case.edit.prompt for case in cases]
        rows = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        there = {name: rows[name].to(model.device) for name in ("input_ids", "attention_mask")}
        made = model.generate(**there, max_new_tokens=6, do_sample=False, **how)
        answers = made[:, there["input_ids"].shape[1] :].tolist()
        return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]

    base = ask()
    with tempfile.TemporaryDirectory() as folder:
        with memplug.attach(model, tokenizer, method, **QUICK[method]) as plug:
            plug.edit([case.edit for case in cases[:2]], progress=False)
            plug.edit(cases[2], progress=False)
            assert ask() == want, (ask(), want)
            assert ask(num_beams=2)[0] == want[0]
            assert str(plug.explain(cases[0].edit.prompt))
            first, second, _ = plug.edits
            plug.disable(first)
            plug.enable(first)
            plug.delete(second)
            with plug.paused():
                assert ask() == base
            left = ask()
            assert left[0] == want[0]
            plug.save(folder)
        assert ask() == base
        with memplug.load(folder, model, tokenizer) as plug:
            assert ask() == left
            plug.edit(cases[1], progress=False)
            assert ask()[1] == want[1]


def compare(methods: str, dtype: torch.dtype) -> None:
    """The comparison, from fitting to report."""
    model, tokenizer = _loaded(dtype)
    with tempfile.TemporaryDirectory() as folder:
        result = memplug.compare(
            model,
            tokenizer,
            world.cases(2, seed=3),
            methods=methods.split(","),
            batch=1,
            points=[1],
            fit_cases=world.cases(12, seed=4),
            fit_steps=2,
            general=["skills:1"],
            probes=1,
            out=folder,
            progress=False,
        )
        assert not result.failed, [(run["method"], run["error"]) for run in result.failed]


def refusals() -> None:
    """The device tells tensors of the CPU from its own; else what ends on it would say nothing."""
    ours, theirs = torch.ones(2, 2, device=NAME), torch.ones(2, 2)
    assert ours.device.type == (ours @ ours).device.type == NAME
    for mixed in (lambda: ours + theirs, lambda: theirs @ ours, lambda: theirs[ours.long()[0]]):
        with pytest.raises(RuntimeError, match="two devices"):
            mixed()
    with pytest.raises(TypeError, match="to numpy"):
        ours.numpy()
    assert torch.equal((ours + 1).cpu(), theirs + 1)
    assert torch.equal(ours[torch.tensor([True, False])].cpu(), theirs[:1])


def _say(job: str) -> None:
    sys.stdout.write(f"\nended {job}\n")
    sys.stdout.flush()


def main(jobs: Sequence[str]) -> None:
    """Run jobs, ``METHOD:DTYPE`` or ``METHOD,...:DTYPE`` to compare, and say in a line that each ended."""
    torch.set_num_threads(1)
    with device():
        refusals()
        _say("refusals")
        for job in jobs:
            methods, _, dtype = job.partition(":")
            do = compare if "," in methods else edit
            try:
                do(methods, getattr(torch, dtype))
                _say(job)
            except Exception:
                traceback.print_exc()


if __name__ == "__main__":
    main(sys.argv[1:])
