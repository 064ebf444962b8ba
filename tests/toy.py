"""Methods that edit in no time, to test what is built around methods; they know nothing of the prompt.

Every edit pushes all answers towards its target's tokens, the more the fewer edits came before it, so that a
run that is taken up wrongly gives other figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from memplug.interface import State
from memplug.methods import METHODS
from memplug.model.hooks import Hook


@dataclass(frozen=True)
class ToyConfig:
    """`fail_at`: the edit that raises; `leak`: a weight stays changed; `fit_steps`: of a fitting."""

    strength: float = 3.0
    seed: int = 0
    fail_at: int | None = None
    leak: bool = False
    fit_steps: int = 4

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ToyConfig:
        if name not in ("default", "strong"):
            raise ValueError(f"no preset {name!r}; there are default, strong")
        return cls(**({"strength": 30.0} if name == "strong" else {}) | overrides)


class Toy:
    """Keeps one vector that is added to what leaves the last decoder layer."""

    def __init__(self, host: Any, config: ToyConfig) -> None:
        self.config, self.host = config, host
        self.bias = torch.zeros(host.architecture.width)
        self.ids: list[str] = []

    @property
    def active(self) -> bool:
        return bool(self.ids)

    def hooks(self) -> list[Hook]:
        architecture, tracker = self.host.architecture, self.host.tracker

        def push(_m: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
            if tracker.current is None:
                return None
            states = architecture.hidden(output) + self.bias
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return [Hook(architecture.layers[-1], "after", push)]

    def check(self, edits: Sequence[Any]) -> None:
        pass

    def learn(self, edits: Sequence[Any], replaced: Sequence[Any], *, progress: bool) -> None:
        for edit in edits:
            if self.config.fail_at == len(self.ids) + 1:
                raise RuntimeError(f"edit {edit.id} cannot be made")
            pair = self.host.text.pair(edit.prompt, edit.target)
            rows = self.host.model.get_output_embeddings().weight.detach()[pair.ids[pair.start :]]
            self.bias = 0.9 * self.bias + rows.mean(0) * self.config.strength / (1 + len(self.ids))
            self.ids.append(str(edit.id))

    def forget(self, edits: Sequence[Any], *, progress: bool) -> None:
        raise NotImplementedError

    def switch(self, edits: Sequence[Any], on: bool, *, progress: bool) -> None:
        raise NotImplementedError

    def explain(self, prompt: str) -> str:
        return prompt

    def state(self) -> State:
        return State({"bias": self.bias}, {"ids": self.ids})

    def restore(self, tensors: Mapping[str, Any], meta: Mapping[str, Any], edits: Mapping[str, Any]) -> None:
        self.bias, self.ids = tensors["bias"], list(meta["ids"])

    # What it changes in the weights: nothing, unless it is to leave something behind.

    @contextmanager
    def paused(self) -> Iterator[None]:
        yield

    def base(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release(self) -> None:
        if self.config.leak:
            with torch.no_grad():
                next(self.host.model.parameters()).view(-1)[0] += 1

    def merge(self) -> None:
        raise NotImplementedError


class Fitted(NamedTuple):
    """What a fitting did."""

    steps: int
    seconds: float


class ToyFit(Toy):
    """Has to be fitted: its strength is the number of cases times the steps."""

    scale: float = 0.0

    def learn(self, edits: Sequence[Any], replaced: Sequence[Any], *, progress: bool) -> None:
        if not self.scale:
            raise ValueError("not fitted")
        super().learn(edits, replaced, progress=progress)
        self.bias = self.bias * self.scale

    def fit(self, cases: Sequence[Any], *, progress: bool = True) -> Fitted:
        self.scale = 1.0 + 0.01 * len(cases) * self.config.fit_steps
        return Fitted(self.config.fit_steps, 0.5)

    def editor_state(self) -> dict[str, torch.Tensor]:
        if not self.scale:
            raise ValueError("there is no fitted editor")
        return {"scale": torch.tensor([self.scale])}

    def load_editor(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.scale = float(tensors["scale"])


class Toy2Config(ToyConfig):
    """A class of its own, so that a config object names its method."""


def register() -> None:
    """Put ``toy`` and ``toyfit`` into the table of methods."""
    sys.modules["memplug.methods.toy"] = sys.modules[__name__]
    METHODS["toy"] = "toy:Toy:ToyConfig"
    METHODS["toyfit"] = "toy:ToyFit:Toy2Config"
