"""From a plug to a server that listens: the logs of the process, and its end."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from ..plugin import Plug
from .app import create_app
from .logs import JSONLines
from .settings import Keys, Settings

__all__ = ["application", "run"]

_GRACE = 60  # seconds that requests under way have at the end


def application(
    plug: Plug, settings: Settings, keys: Keys, save: Callable[[], Any] = lambda: None
) -> FastAPI:
    """The application of a process that serves this plug alone: its logs are JSON lines on stderr, and what
    other processes put into the plug's store is taken up; see `create_app`."""
    lines = logging.StreamHandler()
    lines.setFormatter(JSONLines())
    logging.basicConfig(handlers=[lines], level=logging.INFO, force=True)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").disabled = not settings.log_text  # they quote the edits
    app = create_app(plug, settings, keys, save)
    if plug.store is not None:
        plug.store.follow()
    return app


def run(plug: Plug, save: Callable[[], Any], settings: Settings, keys: Keys, host: str, port: int) -> None:
    """Serve until the process is told to end, and detach."""
    app = application(plug, settings, keys, save)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # uvicorn raises it once more when it has ended
    try:
        uvicorn.run(
            app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE,
            server_header=False,
        )  # fmt: skip
    finally:
        plug.detach()
