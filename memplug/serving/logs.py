"""Structured logs: one JSON object a line, and no prompt, answer or fact in it unless that was asked for."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Mapping
from typing import Any

__all__ = ["JSONLines", "Log"]


class Log:
    """Writes events to the logger ``memplug.serving``.

    Args:
        with_text: whether what is given as ``text`` is written.
    """

    def __init__(self, with_text: bool) -> None:
        self._logger, self._with_text = logging.getLogger("memplug.serving"), with_text

    def __call__(self, event: str, *, text: Mapping[str, Any] | None = None, **fields: Any) -> None:
        said = {**fields, **(text or {})} if self._with_text else fields
        level = logging.ERROR if event == "error" else logging.INFO
        self._logger.log(level, event, extra={"fields": said})

    def error(self, error: BaseException, **fields: Any) -> None:
        """Write where an error came from."""
        fields |= {"error": type(error).__name__, "frames": _frames(error)}
        self("error", text={"message": str(error)}, **fields)


class JSONLines(logging.Formatter):
    """A record as a JSON object: time (UTC), level, logger, event and what belongs to it."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"], line["frames"] = record.exc_info[1].__class__.__name__, _frames(record.exc_info[1])
        return json.dumps(line)


def _frames(error: BaseException) -> list[str]:
    """Where an error came from, innermost last: files and lines alone, since messages may quote a text."""
    return [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
