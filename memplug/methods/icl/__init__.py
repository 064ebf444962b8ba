"""In-context editing: notes on the edits that a prompt asks for are read before it; nothing is trained.

One file, one word: `notes` their wording · `front` attention over them · `placing` where they stand ·
`fronted` what rows have read.
"""

from .config import ICLConfig
from .explain import Explanation
from .method import ICL

__all__ = ["ICL", "Explanation", "ICLConfig"]
