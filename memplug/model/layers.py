"""Where the decoder layers of a model are, by rule."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["UnsupportedModelError", "context_length", "find_layers", "text_config"]


class UnsupportedModelError(ValueError):
    """The model lacks something that the method needs; the message names it."""


def text_config(model: nn.Module) -> Any:
    """The config of the text decoder (nested in models that also see or hear)."""
    config: Any = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def context_length(model: nn.Module) -> int:
    """Tokens that fit into the model's context."""
    config = text_config(model)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return 1 << 20


def find_layers(model: nn.Module, path: str | None = None) -> tuple[str, nn.ModuleList]:
    """The decoder layers and their name: the one ModuleList as long as ``num_hidden_layers``.

    In a model that also sees or hears, that of the text decoder.

    Args:
        model: the model to search.
        path: the list's dotted name, where the rule should not decide.

    Raises:
        UnsupportedModelError: none, or several of the same size, or ``path`` names no such list.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    if path is not None:
        if path not in lists:
            raise UnsupportedModelError(f"no list of layers at {path!r}; the model has {sorted(lists)}")
        return path, lists[path]
    depth = getattr(text_config(model), "num_hidden_layers", None)
    # The depth of an encoder-decoder's config may be that of its encoder.
    both = getattr(model.config, "is_encoder_decoder", False)
    fitting = {name: m for name, m in lists.items() if both or len(m) == depth}
    ask: Any = getattr(model, "get_decoder", None)
    decoder = None if ask is None else ask()
    inside = {id(m) for m in decoder.modules()} if isinstance(decoder, nn.Module) else set()
    fitting = {name: m for name, m in fitting.items() if id(m) in inside} or fitting
    if not fitting:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no ModuleList of num_hidden_layers={depth} layers; "
            f"name the list with layers=... (the model has {sorted(lists)})"
        )
    # A model may keep other per-layer lists (projections, adapters) beside its layers.
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in fitting.items()}
    name = max(sizes, key=lambda key: sizes[key])
    if list(sizes.values()).count(sizes[name]) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__}: {sorted(fitting)} could all be the decoder layers; "
            "name the list with layers=..."
        )
    return name, fitting[name]
