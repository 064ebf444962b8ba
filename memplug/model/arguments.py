"""What a forward was called with, and from where: positions, masks, caches, the call stack."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture
from .row_state import tokens_of

__all__ = ["begins_anew", "filled", "forward_frame", "generating", "open_columns", "ordinary"]


def forward_frame() -> FrameType | None:
    """The frame of the innermost module call that runs a hook; it lasts as long as the module's forward."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") != nn.Module.__module__:
        frame = frame.f_back
    return frame


def generating() -> str:
    """ "prompt" where ``generate`` reads one, in pieces perhaps, of which the last may be a single token;
    "drafts" where an assistant of first layers reads what it is to go on with; else empty."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "transformers.generation.utils":
        frame = frame.f_back
    settings = None if frame is None else frame.f_locals.get("generation_config")
    if getattr(settings, "is_assistant", False):
        return "drafts"
    return "prompt" if frame is not None and frame.f_code.co_name == "_prefill" else ""


def begins_anew(positions: Tensor, real: Tensor) -> bool:
    """Whether, in some row, positions [B,T] of tokens that follow each other go back."""
    back = (positions[:, 1:] <= positions[:, :-1]) & real[:, 1:] & real[:, :-1]
    return bool(back.any())


def filled(cache: Any, mask: Any, length: int) -> int:
    """Columns in the cache; of one that counts none (state-space layers), as many as are known to be in it,
    or as the mask says, or 1."""
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):
        begun = getattr(cache, "has_previous_state", lambda: True)()
        known = tokens_of(cache)
        if known is not None:
            return known.ids.shape[1] if begun else 0
        columns = mask.shape[1] - length if isinstance(mask, Tensor) and mask.ndim == 2 else 0
        return max(1, columns) if begun else 0


def open_columns(
    mask: Any, batch: int, total: int, device: torch.device, architecture: Architecture
) -> Tensor:
    """BoolTensor [B,total] of the columns that hold a real token, from any form of attention mask."""
    if isinstance(mask, dict):  # one mask per kind of layer; full attention sees every real token
        mask = mask.get("full_attention", next(iter(mask.values())))
    if not isinstance(mask, Tensor):  # None, or a block mask: nothing is padded
        return torch.ones(batch, total, dtype=torch.bool, device=device)
    if mask.ndim == 4:  # prebuilt [B,H,T,columns]: what any query sees, since one may see a window only
        seen = mask[:, 0, :, :total]
        mask = ((seen ^ architecture.masked_is_true) if seen.dtype == torch.bool else seen > -1).any(1)
    mask = mask[:, :total].to(device=device, dtype=torch.bool).expand(batch, -1)
    if mask.shape[1] < total:  # a caller may leave out the columns of a cache without padding
        seen = torch.ones(batch, total - mask.shape[1], dtype=torch.bool, device=device)
        mask = torch.cat([seen, mask], dim=1)
    return mask


def ordinary(mask: Any, real: Tensor, columns: Tensor, architecture: Architecture) -> bool:
    """Whether new tokens see the real tokens before them, all or the last ones, and no others.

    Args:
        mask: as the decoder was given it.
        real: BoolTensor [B,T], the new tokens that are real.
        columns: BoolTensor [B,total], all columns that are.
        architecture: the model's.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    total = columns.shape[1]
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-1] < total:  # a window alone is kept
        return mask is None or isinstance(mask, Tensor)
    seen = mask[:, 0, :, :total]
    seen = (seen ^ architecture.masked_is_true) if seen.dtype == torch.bool else seen > -1
    usual = columns[:, None] & torch.ones_like(seen).tril(total - real.shape[1])
    odd = (seen & ~usual) | (usual & ~seen & (seen.cumsum(-1) > 0))
    return not bool(odd[real.to(odd.device)].any())
