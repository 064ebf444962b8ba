"""What every request passes first: where it comes from, its key, its rate; and what is written down of it."""

from __future__ import annotations

import secrets
import time
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, response
from .service import Service
from .settings import Keys, Role, is_loopback

__all__ = ["Bucket", "Guard"]

_OPEN = {"/", "/page.css", "/page.js", "/docs", "/openapi.json", "/healthz", "/readyz"}
"""Nothing of the model or its edits is in them."""


class Bucket:
    """A token bucket: ``rate`` requests a minute, and as many at once; 0 for any number."""

    def __init__(self, rate: int) -> None:
        self._rate, self._left, self._at = rate, float(rate), time.monotonic()

    def take(self) -> float:
        """Take a token; gives the seconds until there is one, 0 where there was."""
        if not self._rate:
            return 0
        now = time.monotonic()
        self._left = min(float(self._rate), self._left + (now - self._at) * self._rate / 60)
        self._at = now
        if self._left < 1:
            return (1 - self._left) * 60 / self._rate
        self._left -= 1
        return 0


class Guard:
    """ASGI middleware around the whole application.

    Without keys only this machine's own names are answered to, and pages of other sites are turned away in
    any case: else a web page could reach a server on the loopback address through its visitor's browser.
    """

    def __init__(self, app: ASGIApp, service: Service, keys: Keys) -> None:
        self._app, self._service, self._keys = app, service, keys
        self._buckets: dict[str, Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, id, status, size = time.perf_counter(), secrets.token_hex(8), 0, 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            self._check_size(size)
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        state = scope.setdefault("state", {})
        state["role"] = None
        try:
            state["role"] = self._role(scope)
            self._check_size(int(Headers(scope=scope).get("content-length", 0)))
            await self._app(scope, counted, watched)
        except ApiError as error:
            await response(error)(scope, receive, watched)
        except Exception as error:
            self._service.log.error(error, request=id)
            if status:  # the answer has begun: only its end can tell
                raise
            await response(error)(scope, receive, watched)
        finally:
            self._written(scope, id, status, time.perf_counter() - begun)

    def _check_size(self, size: int) -> None:
        if size > (most := self._service.settings.max_body):
            raise ApiError(413, f"a request may have {most} bytes", "request_too_large")

    def _role(self, scope: Scope) -> Role | None:
        """The role of whoever asks.

        Raises:
            ApiError: 401, 403 or 429.
        """
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if not self._keys and not is_loopback(_address(f"//{host}").hostname or ""):
            raise ApiError(403, "a server without keys answers to localhost alone", "wrong_host")
        if "origin" in headers and _address(headers["origin"]).netloc != host:
            raise ApiError(403, "pages of other sites are not answered", "wrong_origin")
        if path in _OPEN:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ") if self._keys else ("", "", "")
        given = given.strip() if scheme.lower() == "bearer" else ""
        role = self._keys.role(given) if self._keys else "edit"
        if role is None:
            message = "give a key of this server: Authorization: Bearer KEY"
            raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if role == "ask" and not (path.startswith("/v1/") or path == "/metrics"):
            raise ApiError(403, "this key may ask the model, and not see or change its edits", "ask_only")
        seconds = self._buckets.setdefault(given, Bucket(self._service.settings.rate)).take()
        if seconds:
            message = f"too many requests with this key; come again in {seconds:.1f} s"
            after = {"Retry-After": str(int(seconds) + 1)}
            raise ApiError(429, message, "rate_limit_exceeded", headers=after)
        return role

    def _written(self, scope: Scope, id: str, status: int, seconds: float) -> None:
        # Methods of a client's own making would be figures of their own, as its paths would.
        route: Any = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if route != "unmatched" and status != 405 else "other"
        metrics = self._service.metrics
        metrics.requests.labels(route, method, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if route not in ("/healthz", "/readyz", "/metrics"):
            told = {"route": route, "method": method, "status": status, "seconds": round(seconds, 4)}
            self._service.log("request", request=id, **told, role=scope["state"]["role"])


def _address(given: str) -> SplitResult:
    """A URL's parts, all empty where it is none."""
    try:
        return urlsplit(given)
    except ValueError:  # half an IPv6 address
        return urlsplit("")
