"""What the routes share: the plug, what runs requests and jobs, limits, logs and figures."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..plugin import Plug
from ..text.tokens import Text
from .batching import Batcher
from .jobs import Jobs
from .logs import Log
from .settings import Settings

__all__ = ["Metrics", "Service"]


class Metrics:
    """What ``/metrics`` shows, in a registry of its own."""

    def __init__(self, plug: Plug, batcher: Batcher, jobs: Jobs) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "memplug_requests", "Requests.", ["route", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "memplug_request_seconds", "Seconds to the end of the answer.", ["route"], registry=registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
        )  # fmt: skip
        self.tokens = Counter("memplug_tokens", "Tokens read and made.", ["kind"], registry=registry)
        for name, what, read in (
            ("queue_rows", "Answers that wait.", lambda: batcher.waiting),
            ("running_rows", "Answers that are being made.", lambda: batcher.running),
            ("open_jobs", "Changes that wait or are being made.", lambda: jobs.open),
            ("edits", "Edits there are.", lambda: len(plug.edits)),
        ):
            Gauge(f"memplug_{name}", what, registry=registry).set_function(read)


@dataclass(frozen=True)
class Service:
    """One server's parts.

    Attributes:
        plug: the model and its edits.
        text: a tokenizer of its own.
        settings: limits and names.
        batcher: answers requests.
        jobs: changes edits.
        log: structured events.
        metrics: figures.
    """

    plug: Plug
    text: Text
    settings: Settings
    batcher: Batcher
    jobs: Jobs
    log: Log
    metrics: Metrics

    @property
    def ready(self) -> bool:
        """Whether requests and changes are taken."""
        return self.batcher.ready and self.jobs.ready

    @property
    def models(self) -> tuple[str, str]:
        """The ids of the edited and the base model."""
        return self.settings.name, f"{self.settings.name}:base"
