"""What is raised where a store fails."""

from __future__ import annotations

__all__ = ["NoStoreError", "StoreError"]


class StoreError(ValueError):
    """A store that cannot be opened, read or written; plug and model are as they were before the call.

    Where the connection was lost while the database confirmed a change, it may be stored all the same: then
    the plug takes it up with the next call.
    """


class NoStoreError(StoreError):
    """There is none under this name, and none was to be made."""
