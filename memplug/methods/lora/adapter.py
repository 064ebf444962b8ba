"""peft's LoRA layers beside the model's linears.

peft puts its layers in the place of the linears. Here it does so in a holder of our own that merely refers
to them, so that the model's tree, names, state dict and ``save_pretrained`` stay as they are and nothing has
to be put back. What a linear says is handed to its LoRA layer, which adds to it: scaling, casts and kinds of
layers (quantised ones among them) are peft's.
"""

from __future__ import annotations

import copy
import importlib.metadata
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...model.architecture import UnsupportedModelError, frozen
from ...model.hooks import Hook
from ...weights.modules import LinearModule
from .config import LoRAConfig

__all__ = ["OLDEST", "Adapter", "peft_module"]

OLDEST = (0, 18)
"""The first version of peft that this was written for."""

_NAME = "default"


def peft_module() -> Any:
    """The peft package.

    Raises:
        ImportError: it is not installed, or too old.
    """
    try:
        version = importlib.metadata.version("peft")
        import peft
    except ImportError as error:
        raise ImportError('LoRA needs peft; run `pip install "memplug[lora]"`') from error
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if found < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f'LoRA needs peft {oldest} or newer, {version} is installed; run `pip install -U "memplug[lora]"`'
        )
    return peft


class _Given(nn.Module):
    """Stands in a LoRA layer where the linear would: it says what the linear has said already."""

    def forward(self, _x: Tensor, *, given: Tensor) -> Tensor:
        return given


class Adapter:
    """One pair of low-rank matrices for each of some linears.

    Args:
        model: the model; nothing about it is changed.
        sites: the linears.
        config: rank, scaling and seed.

    Raises:
        ImportError: peft is missing or too old.
        UnsupportedModelError: peft has no LoRA layer for a linear.
    """

    def __init__(self, model: nn.Module, sites: Sequence[LinearModule], config: LoRAConfig) -> None:
        peft = peft_module()
        self.sites = tuple(sites)
        holder = nn.Module()
        for i, site in enumerate(self.sites):
            # Of a linear that peft has adapted already, its own layer would be changed.
            linear = getattr(site.module, "get_base_layer", lambda module=site.module: module)()
            holder.add_module(f"linear{i}", linear)
        wanted = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            use_rslora=config.rslora,
            lora_dropout=0.0,
            bias="none",
            target_modules=[f"linear{i}" for i in range(len(self.sites))],
        )
        devices = [site.weight.device for site in self.sites]
        # peft freezes what it wraps, and says that it sees for itself which way round a weight is stored.
        with frozen(model), _seeded(config.seed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")
            try:
                peft.inject_adapter_in_model(wanted, holder, adapter_name=_NAME)
            except ValueError as error:
                raise UnsupportedModelError(f"peft cannot adapt {self.sites[0].name}: {error}") from error
        self.layers: list[Any] = [getattr(holder, f"linear{i}") for i in range(len(self.sites))]
        for layer, device in zip(self.layers, devices, strict=True):
            layer.base_layer = _Given()
            layer.eval().to(device)
            for parameter in layer.parameters():
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
                parameter.requires_grad_(False)
        self._start = self.snapshot()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All A [r,in] and B [out,r], linear by linear."""
        pairs = ((layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight) for layer in self.layers)
        return [parameter for pair in pairs for parameter in pair]

    def hook(self, index: int, wanted: Any) -> Hook:
        """A hook that adds linear ``index``'s part where ``wanted()``."""

        def after(_m: nn.Module, args: tuple[Any, ...], _kwargs: Any, output: Tensor) -> Tensor | None:
            return self.add(index, args[0], output) if wanted() else None

        return Hook(self.sites[index].module, "after", after)

    def add(self, index: int, x: Tensor, output: Tensor) -> Tensor:
        """The output of linear ``index`` for ``x``, with the adapter's part."""
        added: Tensor = self.layers[index](x, given=output)
        return added

    def copy(self) -> Adapter:
        """The same, to be trained on its own."""
        other = copy.copy(self)
        other.layers = copy.deepcopy(self.layers)
        return other

    def reset(self) -> None:
        """Start again as at first: B is zero."""
        self.load(self._start)

    def snapshot(self) -> list[Tensor]:
        """Copies of the parameters."""
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def load(self, tensors: Sequence[Tensor]) -> None:
        """Take over what `snapshot` gave.

        Raises:
            ValueError: another number of tensors or another shape; nothing is changed.
        """
        theirs, ours = ([tuple(t.shape) for t in some] for some in (tensors, self.parameters))
        if theirs != ours:
            raise ValueError(f"the adapter's tensors are {theirs[:4]}..., expected {ours[:4]}...")
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.copy_(tensor)

    @torch.no_grad()
    def changes(self) -> dict[str, Tensor]:
        """Float32 [d_k,d_v] by linear: what would be added to its weight."""
        found = {}
        for site, layer in zip(self.sites, self.layers, strict=True):
            stored = layer.get_delta_weight(_NAME).float()
            found[site.name] = stored.T if site.flipped else stored
        return found


class _seeded:
    """The global generator as if seeded, and afterwards as it was; peft draws from it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._before = torch.random.get_rng_state()
        torch.random.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        torch.random.set_rng_state(self._before)
