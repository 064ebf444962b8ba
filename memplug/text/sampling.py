"""Sampling in which each row has its own draws, and the settings of plain decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

__all__ = ["PLAIN", "TopKSampler"]

PLAIN = {
    "min_length": 0,
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "return_dict_in_generate": False,
}
"""Settings of ``generate`` that change no score and draw nothing."""


class TopKSampler(LogitsProcessor):
    """Top-k sampling in which a row's draws come from its own seed, whatever rows lie beside it.

    Works by leaving the drawn token alone, so that greedy search picks it; no global generator is
    touched. ``seeds`` holds one integer a row.
    """

    def __init__(self, seeds: Sequence[int], steps: int, top_k: int) -> None:
        draws = [
            torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
            for seed in seeds
        ]
        self._draws, self._top_k, self._step = torch.stack(draws), top_k, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        top = scores.float().topk(min(self._top_k, scores.shape[-1]), dim=-1)
        draw = self._draws[:, self._step, None].to(scores.device)
        self._step += 1
        # Inverse transform: the first of the k whose cumulated probability exceeds the draw.
        cumulated = top.values.softmax(-1).cumsum(-1)
        place = (cumulated <= draw).sum(-1, keepdim=True).clamp(max=top.indices.shape[-1] - 1)
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter(-1, top.indices.gather(-1, place), 0.0)
