"""The application: all routes around one plug."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ..plugin import Plug
from ..text.tokens import Text, apart
from .answers import answers
from .batching import Batcher
from .changes import changes
from .errors import handle_errors
from .guard import Guard
from .jobs import Jobs
from .logs import Log
from .service import Metrics, Service
from .settings import Keys, Settings

__all__ = ["create_app"]

_ABOUT = (
    "An edited model. `/v1` answers as the OpenAI API does; `/edits` changes what it answers. Every error is "
    '`{"error": {message, type, param, code}}`.'
)


def create_app(
    plug: Plug,
    settings: Settings | None = None,
    keys: Keys | None = None,
    save: Callable[[], Any] = lambda: None,
) -> FastAPI:
    """An ASGI application that serves a plug's model and its edits.

    Its threads begin at once, and end with the application's shutdown, after what they are doing.

    Args:
        plug: attached; nothing else changes its edits meanwhile.
        settings: limits and names.
        keys: who may do what; without any, everybody everything.
        save: writes the plug after each change, before that counts as done.
    """
    settings, log = settings or Settings(), Log(bool(settings and settings.log_text))
    text = Text(plug.model, apart(plug.tokenizer))
    text.encode("a")  # puts padding and truncation off, which no thread may do while another one encodes
    batcher, jobs = Batcher(plug, text, settings), Jobs(plug, save, log)
    service = Service(plug, text, settings, batcher, jobs, log, Metrics(plug, batcher, jobs))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.stop)
        await run_in_threadpool(jobs.stop)

    app = FastAPI(
        title="memplug",
        description=_ABOUT,
        lifespan=lifespan,
        redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False))],  # for the page at /docs; `Guard` checks
    )
    app.add_middleware(Guard, service=service, keys=keys or Keys())
    app.state.service = service
    handle_errors(app)
    app.include_router(answers(service))
    app.include_router(changes(service))
    _add_console(app)
    _add_state(app, service)
    return app


def _add_console(app: FastAPI) -> None:
    """The page at /, which may run its own script and ask this server, and nothing else."""
    policy = (
        "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    for path, kind in (("/", "html"), ("/page.js", "javascript"), ("/page.css", "css")):
        file = Path(__file__).parent / (path[1:] or "page.html")
        page = Response(file.read_bytes(), media_type=f"text/{kind}", headers=headers)
        app.add_api_route(path, lambda page=page: page, include_in_schema=False, response_model=None)


def _add_state(app: FastAPI, service: Service) -> None:
    """What those who run the server ask."""

    @app.get("/healthz", tags=["state"])
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["state"])
    async def readyz() -> JSONResponse:
        """Whether requests and changes are taken; 503 where not."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
