"""A deployment for Ray Serve: replicas on any machines, each with the model, that share a store's edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
except ImportError as error:
    raise ImportError(
        f"memplug.serving.ray needs {error.name}; install its extra with pip install 'memplug[ray]'"
    ) from error

from ..attaching import attach
from .run import application
from .settings import Keys, Settings

__all__ = ["deployment"]

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def deployment(
    load: Callable[[], tuple[Any, Any]],
    store: str,
    settings: Settings | None = None,
    keys: Keys | None = None,
    **given: Any,
) -> serve.Deployment:
    """The application of ``memplug serve`` in replicas: ``serve.run(deployment(...).options(...).bind())``.

    An edit that one replica has acknowledged is in the store, and the others take it up, as one does that
    is started later or again. Jobs, rates and figures are each replica's own: requests with the same header
    ``x-session-id`` reach the same replica, as long as it is there, and find its jobs.

    Args:
        load: gives the model and its tokenizer; called in each replica.
        store: the URL of a database that all replicas reach; see `memplug.attach`.
        settings: limits and names.
        keys: who may do what; without any, everybody everything, at localhost alone.
        **given: further arguments of `memplug.attach`, such as ``method`` and its constants.
    """
    settings, keys = settings or Settings(), keys or Keys()

    def app() -> FastAPI:
        return application(attach(*load(), store=store, **given), settings, keys)

    made = serve.deployment(
        name="memplug",
        max_ongoing_requests=4 * settings.queue,  # the application itself refuses those that are too many
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
    )
    return made(serve.ingress(app)())
