"""Weight editors on a tiny random model: edits, makers of models, editors and plugs, and what is compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import memplug
from memplug.edits import Case, Edit, Probe

NAMES = ["Ankaria", "Borland", "Curia", "Dagmar", "Elba", "Fanoria"]
TOWNS = ["Bel", "Castle", "Dor", "Efra", "Gor", "Hol"]
EDITS = [Edit(f"The capital of {n} is", t, n) for n, t in zip(NAMES, TOWNS, strict=True)]
CASES = [Case(e, (f"What town rules {e.subject}?",), (Probe("The river is", "long"),)) for e in EDITS]
METHODS = ["ultraedit", "mend", "malmen", "rledit", "hiedit", "smedit"]
QUICK: dict[str, Any] = {"batch_size": 2, "steps": 2, "extra_steps": 1}
TINY = QUICK | {"rank": 4, "fit_steps": 2, "fit_batch": 2, "trajectory": (1, 2)}


def model_maker(make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a model and its tokenizer."""

    def make(seed: int = 0, **config: Any) -> tuple[Any, Any]:
        tokenizer = make_tokenizer([edit.prompt for edit in EDITS], 300)
        config = {"hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.3} | config
        return make_llama(len(tokenizer), seed=seed, **config), tokenizer

    return make


def editor_maker(make_model: Callable[..., Any], folder: Path) -> Callable[[str], Path]:
    """Gives a fitted editor's file for each method, fitted once."""
    files: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in files:
            files[method] = folder / f"{method}.safetensors"
            with memplug.attach(*make_model(), method, **TINY) as plug:
                plug.fit(CASES, progress=False)
                plug.save_editor(files[method])
        return files[method]

    return get


def plug_maker(
    make_model: Callable[..., Any], editor_file: Callable[[str], Path]
) -> Callable[..., memplug.Plug]:
    """Attaches a method, with its fitted editor where it needs one."""

    def make(method: str, **config: Any) -> memplug.Plug:
        if method == "ultraedit":
            return memplug.attach(*make_model(), method, **(QUICK | {"inner_lr": 0.02} | config))
        return memplug.attach(*make_model(), method, editor=editor_file(method), **config)

    return make


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def logits(plug: memplug.Plug) -> torch.Tensor:
    with torch.no_grad():
        return plug.model(**plug.tokenizer(EDITS[0].prompt, return_tensors="pt")).logits


def clean(model: Any) -> bool:
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return not hooked and not hasattr(model, "_memplug_plug")


class Opaque(torch.nn.Module):
    """Computes as the module given, whose parts are not found."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self._inner = [inner]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._inner[0](*args, **kwargs)
