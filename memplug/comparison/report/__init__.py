"""A comparison's results as one web page, as a Markdown table, as a table for a terminal and as pictures.

All read the results as plain values (``Comparison.to_json`` writes the same), aggregate them once
(`aggregate`) and fill the same tables (`tables`), so that a report can be made anew from the file alone.
"""

from .page import write_html, write_markdown
from .pictures import write_figures
from .terminal import rich_table

__all__ = ["rich_table", "write_figures", "write_html", "write_markdown"]
