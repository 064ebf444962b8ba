"""A server on the loopback address for tests, with its clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import uvicorn

from memplug.serving.app import create_app
from memplug.serving.jobs import Jobs
from memplug.serving.settings import Keys, Settings


@dataclass
class Server:
    """One that runs, a plain client of it, and the official one."""

    http: httpx2.Client
    openai: openai.OpenAI
    process: uvicorn.Server
    thread: threading.Thread
    jobs: Jobs

    def job(self, answer: Any) -> dict[str, Any]:
        """The job of an answer, once it has ended."""
        assert answer.status_code in (200, 202), answer.text
        job = answer.json()
        while job["status"] in ("queued", "running"):
            time.sleep(0.01)
            job = self.http.get(f"/jobs/{job['id']}").json()
        return job


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def serving(
    plug: Any, keys: Keys | None = None, save: Any = lambda: None, **settings: Any
) -> Iterator[Server]:
    """A server on a free port, until the end of the ``with``."""
    key = keys.edit[0] if keys else "none"
    app = create_app(plug, Settings(**{"name": "tiny", "window": 0.05, "rate": 0, **settings}), keys, save)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=10))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    headers = {"Authorization": f"Bearer {key}"}
    try:
        with (
            httpx2.Client(base_url=url, headers=headers, timeout=60) as http,
            openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
        ):
            yield Server(http, client, server, thread, app.state.service.jobs)
    finally:
        server.should_exit = True
        thread.join()
