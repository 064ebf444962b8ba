"""Finds what editing needs in any model that generates text, by rule: layers, widths, arguments, masks.

There is no table of architectures. The decoder layers are the one ``ModuleList`` of the text decoder as long
as the config says; what a layer takes and returns is read from its signature and from one short forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .layers import UnsupportedModelError, find_layers, text_config
from .modes import evaluating, frozen, learning, uncast
from .probes import Seen, owner, probe, read_source, sees_ahead, taken
from .thread_forwards import Shadows

__all__ = [
    "Architecture",
    "UnsupportedModelError",
    "check_layer",
    "evaluating",
    "find_layers",
    "fraction",
    "frozen",
    "input_device",
    "inspect_model",
    "learning",
    "module_device",
    "read_source",
    "taken",
    "text_config",
    "uncast",
]

_CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")
_STATE_NAMES = ("cache_params",)  # of state-space layers, without attention
_MASK_NAMES = ("attention_mask", "causal_mask")


@dataclass(frozen=True)
class Architecture:
    """Where things are in one model.

    Attributes:
        decoder: the module that owns the layers; its forward is one pass over the tokens.
        layers: the L decoder layers, in order.
        names: the layers' names in the model.
        width: D, the size of the hidden states.
        n_heads: query heads, for attention biases that differ by head.
        signature: what a layer takes.
        cache_arg, mask_arg: the names of a layer's cache and mask arguments; empty where it has none.
        attends: of each layer, whether it takes a cache of keys and values and a mask.
        runs: of each layer, whether it is run on text alone.
        returns: how many things a layer returns in a tuple, the hidden states first; 0 for these alone.
        keeps: what is kept between forwards is an object that `row_state.hold` can keep more with, or not.
        rotary: layers are handed rotary tables, so that any position can be computed, also below 0.
        masked_is_true: in a boolean mask, ``True`` closes (the usual meaning is that it opens).
        alibi_arg: a bias per key position is handed to the layers under this name.
        bias_by_column: the layers add a bias that depends on the key's column (position_bias).
        head: the module around the decoder that can be asked for the last logits only, or else is called with
            token ids; None if there is none.
        shadows: other forwards that single threads use for some of its modules.
        encoder: what reads the prompt in an encoder-decoder; None in a decoder-only model.
    """

    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    names: tuple[str, ...]
    width: int
    n_heads: int
    signature: inspect.Signature
    cache_arg: str
    mask_arg: str
    attends: tuple[bool, ...]
    runs: tuple[bool, ...]
    returns: int
    keeps: bool
    rotary: bool
    masked_is_true: bool
    alibi_arg: str | None
    bias_by_column: bool
    head: nn.Module | None = None
    shadows: Shadows = field(default_factory=Shadows)
    encoder: nn.Module | None = None

    @property
    def shares(self) -> bool:
        """Whether the first layer hands on what the others go on with beside the states (T5's biases by
        position)."""
        return self.encoder is not None and self.returns > 1

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer call's arguments by name; extra keywords stay as they are."""
        return {**dict(zip(self.signature.parameters, args, strict=False)), **kwargs}

    def entering(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The hidden states [B,T,D] in what a layer is called with."""
        return args[0] if args else kwargs[next(iter(self.signature.parameters))]

    def returned(self, hidden: Tensor, rest: Sequence[Any] = ()) -> Any:
        """What a layer that hands ``hidden`` on returns, with the rest of what the first one did."""
        return (hidden, *(rest or [None] * (self.returns - 1))) if self.returns else hidden

    def hidden(self, output: Any) -> Tensor:
        """The hidden states [B,T,D] in what a layer returned."""
        return output[0] if isinstance(output, tuple | list) else output


def inspect_model(model: nn.Module, path: str | None = None) -> Architecture:
    """Find the decoder layers of ``model`` and learn how they are called, by short forwards.

    The model and its mode are left as they were.

    Raises:
        UnsupportedModelError: no model that generates text, or layers that hand on no state for each token.
    """
    _check_kind(model)
    encoder = _encoder(model)
    name, layers = find_layers(model, path)
    within, decoder = owner(model, name)
    taking = [inspect.signature(type(layer).forward).parameters for layer in layers]
    signature = inspect.signature(type(layers[0]).forward)
    signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    device = input_device(model)
    with evaluating(model), torch.no_grad():
        try:
            source = read_source(encoder, device)
            seen = probe(decoder, layers, signature, device, source)
            if "pixel_values" in inspect.signature(type(model).forward).parameters:  # it may need some
                ids = torch.zeros(1, 3, dtype=torch.long, device=device)
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
        except torch.OutOfMemoryError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not run on text alone ({type(error).__name__}: {error}); "
                "choose a model that does"
            ) from error
        _check_states(model, name, seen)
        if sees_ahead(decoder, layers[0], device, _tokens(model), source):
            raise UnsupportedModelError(
                f"{type(model).__name__}: tokens see those that come after them, so it is an encoder, or "
                "reads prompts both ways; memplug edits decoders (some models are one with is_decoder=True "
                "in their config)"
            )
    mask_arg = _first(_MASK_NAMES, *taking)
    mask, hidden = seen.given.get(mask_arg), seen.hidden
    return Architecture(
        decoder=decoder,
        layers=tuple(layers),
        names=tuple(f"{name}.{i}" for i in range(len(layers))),
        width=int(hidden.shape[-1]),
        n_heads=_heads(text_config(model)),
        signature=signature,
        cache_arg=_first((*_CACHE_NAMES, *_STATE_NAMES), *taking),
        mask_arg=mask_arg,
        attends=tuple(bool(_first(_CACHE_NAMES, one) and _first(_MASK_NAMES, one)) for one in taking),
        runs=seen.runs,
        returns=seen.returns,
        keeps=seen.keeps,
        rotary=seen.given.get("position_embeddings") is not None,
        # Query 1 must not see key 2, which comes after it: what stands there means "closed".
        masked_is_true=isinstance(mask, Tensor)
        and mask.dtype == torch.bool
        and mask.ndim == 4
        and bool(mask[0, 0, 1, 2]),
        alibi_arg="alibi" if seen.given.get("alibi") is not None else None,
        bias_by_column=seen.given.get("position_bias") is not None,
        head=None if encoder is not None else _head(model, within),
        encoder=encoder,
    )


def _encoder(model: Any) -> nn.Module | None:
    """What reads the prompt in an encoder-decoder.

    Raises:
        UnsupportedModelError: it reads no text.
    """
    if not getattr(model.config, "is_encoder_decoder", False):
        return None
    encoder: nn.Module = model.get_encoder()
    if "input_ids" not in inspect.signature(type(encoder).forward).parameters:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its encoder ({type(encoder).__name__}) reads no text; choose an "
            "encoder-decoder that does, or a decoder-only model"
        )
    return encoder


def _tokens(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _first(names: tuple[str, ...], *taking: Any) -> str:
    """The first of the names that one of the layers takes; empty if none does."""
    return next((name for one in taking for name in names if name in one), "")


def _check_states(model: nn.Module, name: str, seen: Seen) -> None:
    """The layers were run, and hand on a state for each of three tokens."""
    who = type(model).__name__
    if seen.hidden is None:
        raise UnsupportedModelError(f"{who}: its layers at {name!r} were not called on text alone")
    if seen.fields:
        raise UnsupportedModelError(
            f"{who}: its layers hand on {', '.join(seen.fields)} by name, not one state for each token; "
            "choose another model"
        )
    shape = tuple(seen.hidden.shape)
    if len(shape) != 3 or shape[:2] != (1, 3):
        raise UnsupportedModelError(
            f"{who}: its layers hand on states of shape {shape} for a row of 3 tokens, not one for each token"
        )


def _head(model: nn.Module, decoder: str) -> nn.Module | None:
    found = None
    while decoder:
        decoder = decoder.rpartition(".")[0]
        around = model.get_submodule(decoder)
        takes = inspect.signature(type(around).forward).parameters
        if "logits_to_keep" in takes:
            return around
        found = around if "input_ids" in takes else found
    return found


def input_device(model: Any) -> torch.device:
    """Where the model takes its token ids."""
    return module_device(model.get_input_embeddings())


def module_device(module: nn.Module) -> torch.device:
    """Where a module computes, also where accelerate keeps its weights elsewhere meanwhile."""
    owned = ((part, own) for part in module.modules() for own in part.parameters(recurse=False))
    part, first = next(owned, (module, torch.empty(0, dtype=torch.float32)))
    device: torch.device = first.device
    hook = getattr(part, "_hf_hook", None)
    for h in (hook, *getattr(hook, "hooks", ())) if device.type == "meta" else ():
        if getattr(h, "execution_device", None) is not None:
            return torch.device(h.execution_device)
    return device


def _heads(config: Any) -> int:
    try:
        found = [getattr(config, name, None) for name in ("num_attention_heads", "n_head", "n_heads")]
    except RuntimeError:  # a number for each layer, and none for all
        return 1
    return next((number for number in found if isinstance(number, int)), 1)


def _check_kind(model: nn.Module) -> None:
    name = type(model).__name__
    if not hasattr(model, "config"):
        raise UnsupportedModelError(f"{name} has no config; give a Hugging Face language model")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UnsupportedModelError(
            f"{name} puts virtual tokens of its own in front of each text (peft, prompt or prefix tuning); "
            "attach to the model inside it, model.base_model"
        )
    if not getattr(model, "can_generate", lambda: False)():
        raise UnsupportedModelError(
            f"{name} cannot generate text (an encoder, or a model without its language-model head); "
            "load it with AutoModelForCausalLM, or AutoModelForSeq2SeqLM"
        )


def fraction(share: float, depth: int, *, least: int = 0) -> int:
    """A layer count or index given as a share of the depth, rounded half up: 10/32 of 12 layers is 4."""
    return max(least, min(depth, int(share * depth + 0.5)))


def check_layer(index: int, depth: int, what: str) -> int:
    """``index`` as it is, if it names one of the layers.

    Raises:
        ValueError: it does not; negative indices are not taken.
    """
    if not isinstance(index, int) or not 0 <= index < depth:
        raise ValueError(
            f"{what} is {index!r}, but the model has layers 0 to {depth - 1}; choose one of these"
        )
    return index
