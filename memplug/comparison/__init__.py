"""Methods side by side: the same edits on the same model, judged alike, with what they cost."""

from .model_state import NotRestoredError
from .result import Comparison
from .runner import compare
from .settings import SettingsError

__all__ = ["Comparison", "NotRestoredError", "SettingsError", "compare"]
