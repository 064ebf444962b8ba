"""memplug: give a loaded Hugging Face language model an editable memory."""

from .edits import Case, Edit, EditError, Probe, UnknownEditError
from .layers import UnsupportedModelError
from .plugin import Plug, attach, load

__version__ = "0.1.0"

__all__ = [
    "Case",
    "Edit",
    "EditError",
    "Plug",
    "Probe",
    "UnknownEditError",
    "UnsupportedModelError",
    "attach",
    "load",
]
