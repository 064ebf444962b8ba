"""LoRA through peft: one low-rank adapter, trained on all edits.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
One file, one word: `adapter` peft's layers beside the model's · `training` · `method`.
"""

from .config import LoRAConfig
from .method import LoRA, Removed
from .seen import Explanation

__all__ = ["Explanation", "LoRA", "LoRAConfig", "Removed"]
