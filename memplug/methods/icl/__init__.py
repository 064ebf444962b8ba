"""In-context editing: the edits nearest to a prompt are read before it, as notes; nothing is trained.

One file, one word: `embedding` what texts are compared by · `notes` · `front` attention over notes ·
`fronted` what rows have read.
"""

from .config import ICLConfig
from .explain import Explanation
from .method import ICL

__all__ = ["ICL", "Explanation", "ICLConfig"]
