"""ELDER: a mixture of LoRAs per edited linear, routed by the prompt, that defers to the base model.

One file, one word: `places` the edited linears · `experts` LoRAs and routers · `allocation` which experts an
edit is given · `subjects` whom a prompt names · `deferral` which rows are in scope · `calibration` how that
is set · `rows` what is trained on · `training` · `explain`.
"""

from .config import ELDERConfig
from .explain import Explanation
from .method import ELDER, Removed

__all__ = ["ELDER", "ELDERConfig", "Explanation", "Removed"]
