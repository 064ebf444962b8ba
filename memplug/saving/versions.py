"""Which saves a plug knows, so that it does not replace one that somebody else made meanwhile."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

__all__ = ["Saves"]


class Saves:
    """The saves that a plug was loaded from or made.

    Attributes:
        tried: versions that it may have made, though that was broken off.
    """

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}
        self.tried: set[str] = set()

    def add(self, folder: Path, version: str) -> None:
        """The plug was loaded from this save in ``folder``, or made it."""
        self._known.setdefault(os.path.realpath(folder), set()).add(version)

    def replaceable(self, folder: Path, overwrite: bool | None) -> Set[str] | None:
        """The versions in ``folder`` that may be replaced; None is any. See `Plug.save`."""
        known = self._known.get(os.path.realpath(folder))
        if overwrite or (overwrite is None and known is None):
            return None
        return (known or set()) | self.tried
