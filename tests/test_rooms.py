"""Imports point downwards: a room imports from lower rooms alone (README lists them)."""

from __future__ import annotations

import ast
from pathlib import Path

import memplug

HOME = Path(memplug.__file__).parent
ROOMS = [
    *("__main__", "cli", "commands", "serving", "demo", "comparison", "evaluation", "attaching", "plugin"),
    *("attached", "store", "methods", "retrieval", "memory", "weights", "interface", "configs", "saving"),
    *("data", "world", "ids", "edits", "subjects", "text", "model", "pretrained"),
]
"""The highest first."""


def _imports(file: Path) -> set[str]:
    """The rooms that a file imports from while it is read; what is imported in a function may be any."""
    package = [memplug.__name__, *file.relative_to(HOME).parts[:-1]]
    found = set()
    for node in ast.parse(file.read_text()).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        names = [*base, *(node.module or "").split(".")]
        if names[0] == memplug.__name__:
            found |= {names[1]} if len(names) > 1 and names[1] else {one.name for one in node.names}
    return found


def test_rooms_import_from_lower_rooms_alone():
    rank = {room: i for i, room in enumerate(ROOMS)}
    files = [file for file in HOME.rglob("*.py") if file != HOME / "__init__.py"]
    assert {file.relative_to(HOME).parts[0].removesuffix(".py") for file in files} == set(rank)
    wrong = []
    for file in files:
        room = file.relative_to(HOME).parts[0].removesuffix(".py")
        for other in _imports(file):
            if other != room and rank[other] <= rank[room]:
                wrong.append(f"{file.relative_to(HOME)} imports from {other}")
    assert not wrong
