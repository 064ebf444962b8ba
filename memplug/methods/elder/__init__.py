"""ELDER: a mixture of LoRAs per edited linear, routed by what is asked, that defers to the base model.

One file, one word: `places` the edited linears · `experts` LoRAs and routers · `allocation` which experts an
edit is given · `answer`, `row` where edits are used · `deferral` how near codes are · `routed` what tokens
use · `whole` rows to train on · `training` · `learning` · `knowledge` all of it, saved · `explain`.
"""

from .config import ELDERConfig
from .explain import Answered, Explanation
from .method import ELDER, Removed

__all__ = ["ELDER", "Answered", "ELDERConfig", "Explanation", "Removed"]
