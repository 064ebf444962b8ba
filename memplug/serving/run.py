"""From a model to a server that listens: the plug, the logs of the process, and its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from ..attaching import attach, load
from ..plugin import Plug
from ..saving.plugs import peek
from .app import create_app
from .logs import JSONLines
from .settings import Keys, Settings

__all__ = ["open_plug", "run"]

_GRACE = 60  # seconds that requests under way have at the end


def open_plug(
    load_model: Callable[[], tuple[Any, Any]], folder: Path | None, method: str | None
) -> tuple[Plug, Callable[[], None]]:
    """The plug of a folder, or a new one, and what saves it.

    Args:
        load_model: gives the base model and its tokenizer.
        folder: of the saved plug; may be new or empty. None: nothing is saved.
        method: of a new plug, llp if None.

    Raises:
        ValueError: the folder was made with another method; otherwise as `attach` and `load`.
    """
    is_new = folder is None or not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if folder is None or is_new:
        plug = attach(*load_model(), method or "llp")
    else:
        made = peek(folder)[0]
        if method not in (None, made):
            raise ValueError(f"{folder} was made with {made}, not {method}; leave the method out")
        plug = load(folder, *load_model())

    def save() -> None:
        if folder is not None:
            plug.save(folder, overwrite=False)

    return plug, save


def run(
    load_model: Callable[[], tuple[Any, Any]],
    folder: Path | None,
    method: str | None,
    settings: Settings,
    keys: Keys,
    host: str,
    port: int,
) -> None:
    """Serve until the process is told to end; see `open_plug`."""
    plug, save = open_plug(load_model, folder, method)
    lines = logging.StreamHandler()
    lines.setFormatter(JSONLines())
    logging.basicConfig(handlers=[lines], level=logging.INFO, force=True)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").disabled = not settings.log_text  # they quote the edits
    app = create_app(plug, settings, keys, save)
    uvicorn.run(
        app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE,
        server_header=False,
    )  # fmt: skip
    plug.detach()
