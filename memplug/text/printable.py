"""Text from edits, models and files as a person may see it: every non-printable character escaped.

A terminal acts on some characters (escapes, carriage returns), and others change the order or hide a part of
what is shown (direction marks, blanks without width). All that is shown goes through here.
"""

from __future__ import annotations

__all__ = ["brief", "printable"]


def printable(text: object) -> str:
    """The text with non-printable characters escaped as `repr` escapes them, line breaks among them.

    Args:
        text: anything; what is no string is turned into one.
    """
    found = str(text)
    if found.isprintable():
        return found
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in found)


def brief(value: object, most: int = 80) -> str:
    """A value as in `repr`, escaped and cut to ``most`` characters."""
    shown = printable(repr(value[: most + 1] if isinstance(value, str | bytes) else value))
    return shown if len(shown) <= most else shown[: most - 3] + "..."
