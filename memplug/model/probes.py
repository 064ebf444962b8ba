"""Short forwards that show how a model's layers are called. Knows nothing about editing."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Seen", "owner", "probe", "read_source", "sees_ahead", "taken"]

_STATES = ("last_hidden_state", "hidden_states", "attentions", "logits", "loss")


@dataclass(frozen=True)
class Seen:
    """What a forward over three tokens showed.

    Attributes:
        given: what the first layer that is run was called with, by name.
        hidden: the hidden states that it returned; None where no layer was run, or it returned no tensor.
        returns: how many things it returned in a tuple; 0 where it returned the hidden states alone.
        fields: the names of these, where they have any.
        runs: which layers were run.
        keeps: what the decoder keeps for a next forward is an object that its layers are handed, or nothing.
    """

    given: Mapping[str, Any]
    hidden: Any
    returns: int
    fields: tuple[str, ...]
    runs: tuple[bool, ...]
    keeps: bool


def taken(module: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments ``given`` that the module's forward names.

    Where it takes any, ``use_cache`` and ``encoder_outputs`` as well, which some leave to their parts; and
    all of them by one that names none, since it wraps another (peft's).
    """
    parameters = inspect.signature(type(module).forward).parameters
    names = set(parameters)
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        names |= {"use_cache", "encoder_outputs"} if "input_ids" in names else set(given)
    return {name: value for name, value in given.items() if name in names}


def read_source(encoder: nn.Module | None, device: torch.device) -> dict[str, Tensor]:
    """What a decoder is handed of a source of three tokens; nothing where there is no encoder."""
    if encoder is None:
        return {}
    ids = torch.zeros(1, 3, dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    states = encoder(input_ids=ids, attention_mask=mask)[0]
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def owner(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """The module around the layers at ``name`` that takes token ids, and its name."""
    while name:
        name = name.rpartition(".")[0]
        module = model.get_submodule(name)
        if "input_ids" in inspect.signature(type(module).forward).parameters:
            return name, module
    return name, model


def probe(
    decoder: nn.Module,
    layers: nn.ModuleList,
    signature: inspect.Signature,
    device: torch.device,
    source: Mapping[str, Any],
) -> Seen:
    """Run the decoder on one row of three tokens, the first of which is padding, and what an encoder read."""
    given: dict[str, Any] = {}
    outputs: list[Any] = []
    ran = [False] * len(layers)

    def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not given:
            given.update(dict(zip(signature.parameters, args, strict=False)) | kwargs)

    def after(index: int) -> Any:
        def hook(_args: Any, output: Any) -> None:
            ran[index] = True
            if not outputs:
                outputs.append(output)

        return hook

    ids = torch.zeros(1, 3, dtype=torch.long, device=device)
    mask = torch.tensor([[0, 1, 1]], device=device)
    handles = [layer.register_forward_hook(_own(after(i))) for i, layer in enumerate(layers)]
    handles += [layer.register_forward_pre_hook(_own(before), with_kwargs=True) for layer in layers]
    try:
        made = decoder(
            **taken(decoder, {"input_ids": ids, "attention_mask": mask, "use_cache": True, **source})
        )
    finally:
        for handle in handles:
            handle.remove()
    output = outputs[0] if outputs else None
    many = isinstance(output, tuple | list)
    hidden = output[0] if many and output else output
    returns = len(output) if isinstance(output, tuple | list) else 0
    fields = getattr(output, "_fields", ())
    hidden = hidden if isinstance(hidden, Tensor) else None
    return Seen(given, hidden, returns, fields, tuple(ran), _keeps(made, given))


def _own(watch: Callable[..., None]) -> Any:
    """A hook that watches this thread's forwards; another thread's may meet it, half registered even."""
    me = threading.get_ident()

    def hook(_m: nn.Module, *given: Any) -> None:
        if threading.get_ident() == me:
            watch(*given)

    return hook


def _keeps(made: Any, given: Mapping[str, Any]) -> bool:
    items = made.items() if isinstance(made, Mapping) else ()
    kept = [value for name, value in items if name not in _STATES and value is not None]
    handed = [id(value) for value in given.values() if not isinstance(value, tuple | list | dict)]
    return all(isinstance(value, Tensor) or id(value) in handed for value in kept)


class _Stop(Exception):
    """Ends a forward whose first layer has answered."""


def sees_ahead(
    decoder: nn.Module, layer: nn.Module, device: torch.device, known: int, source: Mapping[str, Any]
) -> bool:
    """Whether a token's state after ``layer`` depends on the token that comes after it.

    Args:
        decoder: the model without its head, in evaluation mode.
        layer: its first layer.
        device: where token ids belong.
        known: how many tokens there are.
        source: what an encoder read.
    """

    def states(last: int) -> Tensor:
        found: list[Tensor] = []

        def after(_args: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple | list) else output)
            raise _Stop

        ids = torch.tensor([[5 % known, 6 % known, last % known]], device=device)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False, **source}
        handle = layer.register_forward_hook(_own(after))
        try:
            decoder(**taken(decoder, given))
        except _Stop:
            pass
        finally:
            handle.remove()
        return found[0].float() if found else torch.zeros(1, 3, 1, dtype=torch.float32)

    apart = (states(7) - states(8)).abs().amax(-1)[0]
    # A model that draws or rounds differs a little; attention that sees ahead differs by much more.
    return bool(apart[:2].max() > 1e-3 * apart[2])
