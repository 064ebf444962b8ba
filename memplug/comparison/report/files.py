"""Writes a report in one step: readers see the earlier one or the new one, whole."""

from __future__ import annotations

from pathlib import Path

from ...files import write_atomically

__all__ = ["write_text"]


def write_text(path: str | Path, text: str) -> Path:
    """Write text as UTF-8; characters that UTF-8 does not have become HTML character references.

    Args:
        path: the file; its folder is made if it is not there. A report is for others, so they may read it.
        text: all of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode("utf-8", "xmlcharrefreplace"))
    path.chmod(0o644)
    return path
