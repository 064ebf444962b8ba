"""Embeddings: what texts are compared by, read from the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...calls import Call
from ...chat import Prompt
from ...contexts import sample_prefixes
from ...hooks import capture_input
from ...layers import evaluating, taken
from ..base import Host
from .config import ICLConfig

__all__ = ["Embedder"]


class Embedder:
    """Embeds texts by one layer's output of the base model.

    Args:
        host: the model.
        config: layer, pooling, and whether embeddings are centered; the layer is filled in.

    Attributes:
        center: float32 [D] (CPU), what is taken off; None before the first text is embedded, or if nothing.
    """

    def __init__(self, host: Host, config: ICLConfig) -> None:
        self._host, self._config = host, config
        self._signature = inspect.signature(type(host.anatomy.decoder).forward)
        self.center: Tensor | None = None

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments by name."""
        return {**dict(zip(list(self._signature.parameters)[1:], args, strict=False)), **kwargs}

    @torch.no_grad()
    def prompts(self, call: Call, given: Mapping[str, Any]) -> Tensor:
        """Float32 [B,D] of the rows' prompts, from the arguments that the decoder was given."""
        tokens = {name: given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None}
        count = call.real.long().cumsum(1)
        asked = call.valid
        if call.prompt is not None:
            asked = asked & (count <= call.prompt.to(count.device)[:, None])
        states = self._states({**tokens, "attention_mask": call.real.long()}, (count - 1).clamp(min=0))
        return self._centered(self._pooled(states, asked))

    def texts(self, texts: Sequence[Prompt]) -> Tensor:
        """Float32 [n,D] (CPU) of texts, and of messages."""
        if self.center is None and self._config.center:
            c, text = self._config, self._host.text
            with self._host.tracker.off():
                samples = sample_prefixes(text, c.heldout, c.heldout_tokens, c.sample_top_k, c.seed)
            self.center = (
                self._read(samples).mean(0)
                if samples
                else torch.zeros(self._host.anatomy.width, dtype=torch.float32)
            )
        return self._centered(self._read(texts))

    @torch.no_grad()
    def _read(self, texts: Sequence[Prompt]) -> Tensor:
        text, found = self._host.text, []
        for at in range(0, len(texts), 64):
            batch = text.batch([text.encode(piece) for piece in texts[at : at + 64]])
            given = {"input_ids": batch.ids, "attention_mask": batch.mask}
            begins = (batch.positions == 0) & (batch.ids == text.bos_id) & batch.mask.bool()
            states = self._states(given, batch.positions)
            found.append(self._pooled(states, batch.mask.bool() & ~begins).cpu())
        return torch.cat(found)

    def _states(self, given: dict[str, Any], positions: Tensor) -> Tensor:
        """Float32 [B,T,D]: the layer's output."""
        anatomy, layer = self._host.anatomy, self._config.layer or 0
        given = taken(anatomy.decoder, given | {"position_ids": positions, "use_cache": False})

        def run() -> Any:
            return anatomy.decoder(**given)

        with self._host.tracker.off(), evaluating(self._host.model):
            if layer + 1 < len(anatomy.layers):
                return capture_input(anatomy, layer + 1, run).float()
            final: Tensor = run().last_hidden_state
        return final.float()

    def _pooled(self, states: Tensor, asked: Tensor) -> Tensor:
        """[B,D] from states [B,T,D] and the tokens that count [B,T]."""
        asked = asked.to(states.device)
        if self._config.pooling == "last":
            at = (asked * torch.arange(1, asked.shape[1] + 1, device=asked.device)).argmax(1)
            return states[torch.arange(len(at), device=at.device), at]
        return (states * asked[..., None]).sum(1) / asked.sum(1, keepdim=True).clamp(min=1)

    def _centered(self, pooled: Tensor) -> Tensor:
        return pooled if self.center is None else pooled - self.center.to(pooled.device)
