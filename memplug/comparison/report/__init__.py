"""A comparison's results as one web page, as a Markdown table and as pictures.

All three read the results as plain values (``Comparison.to_json`` writes the same) and compute nothing but
means over seeds, so that a report can be made anew from the file alone.
"""

from .html import write_html
from .markdown import write_markdown
from .pictures import write_figures

__all__ = ["write_figures", "write_html", "write_markdown"]
