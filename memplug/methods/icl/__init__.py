"""In-context editing: the edits nearest to a prompt are read before it, as notes; nothing is trained.

One file, one word: `notes` what a note says · `front` attention over notes · `fronted` what rows have read.
"""

from .config import ICLConfig
from .method import ICL, Explanation

__all__ = ["ICL", "Explanation", "ICLConfig"]
