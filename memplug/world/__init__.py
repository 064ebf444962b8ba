"""A made-up world of facts and a small language model that knows it, for tests, demos and measurements.

The world follows from code (``relations.py``, ``facts.py``); the model in ``model/`` was trained on its text
by a program that this project's history keeps, see ``benchmarks/EMBEDDED.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .cases import cases, namesakes, subjects
from .facts import Fact, facts
from .skills import skills

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["FOLDER", "Fact", "cases", "facts", "load", "namesakes", "skills", "subjects"]

FOLDER = Path(__file__).parent / "model"


def load(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The embedded model, in evaluation mode, and its tokenizer.

    The weights are stored in half precision and converted to ``dtype``. The tokenizer puts ``<bos>`` in
    front by itself; the model ends its answers with ``<eos>``.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype, local_files_only=True)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
