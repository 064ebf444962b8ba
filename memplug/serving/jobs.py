"""Changes of the edits, one after the other on a thread of their own, while the model goes on answering.

A change has succeeded when it is in force and saved.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..edits import Edit, UnknownEditError
from ..plugin import Plug
from ..saving.files import SaveError
from ..store.errors import StoreError
from ..text.chat import Prompt, canonical
from ..text.printable import printable
from .batching import QueueFull, Stopped
from .logs import Log
from .schemas import Answers, ErrorBody, Job, Status

__all__ = ["Change", "Jobs", "Taken"]

_WAITING = 100  # jobs
_KEPT = 1000  # jobs that have ended and can still be asked for


class Taken(Exception):
    """An edit of the same prompt is being made."""


class Change(NamedTuple):
    """What a job does, which prompts it edits, and who waits for it."""

    job: Job
    work: Callable[[Job], Any]
    prompts: frozenset[Prompt]
    ended: Future[Job]


@dataclass
class Jobs:
    """The queue of changes and the thread that makes them.

    Attributes:
        plug: whose edits are changed.
        save: writes the plug; called after each change, before it counts as done.
        log: told of each that ends.
    """

    plug: Plug
    save: Callable[[], Any]
    log: Log
    _all: dict[str, Change] = field(default_factory=dict)
    _queue: queue.SimpleQueue[Change | None] = field(default_factory=queue.SimpleQueue)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: bool = False

    def __post_init__(self) -> None:
        self._worker = threading.Thread(target=self._work, name="memplug-jobs", daemon=True)
        self._worker.start()

    @property
    def ready(self) -> bool:
        """Whether jobs are taken and made."""
        return not self._stopping and self._worker.is_alive()

    @property
    def open(self) -> int:
        """Jobs that wait or run."""
        return sum(not change.ended.done() for change in list(self._all.values()))

    def get(self, id: str) -> Job | None:
        """The job with this id, unless it is none or long over."""
        change = self._all.get(id)
        return change and change.job

    def edit(self, edits: Sequence[Edit], who: str, why: str | None = None) -> Change:
        """Make these edits together.

        Raises:
            Taken, QueueFull, Stopped: see the classes.
        """

        def work(job: Job) -> None:
            before = list(self.plug.edits)
            made = self.plug.edit(list(edits), progress=False)
            job.edits = [str(edit.id) for edit in made]
            job.replaced = [id for id in before if id not in self.plug.edits]
            job.unlearned = [str(edit.id) for edit in self.plug.unlearned(made)]

        job = Job(id="", kind="edit", who=who, why=why, total=len(edits))
        return self._add(job, work, frozenset(canonical(edit.prompt) for edit in edits))

    def preview(self, edits: Sequence[Edit], ask: Callable[[], list[str]], who: str) -> Change:
        """Tell what ``ask`` gives before these edits and with them, and take them back; raises as `edit`.

        The requests that come meanwhile are answered afterwards, see `Attached.trying`.
        """

        def work(job: Job) -> None:
            with self.plug.trying():
                before = ask()
                job.unlearned = [
                    str(e.id) for e in self.plug.unlearned(self.plug.edit(edits, progress=False))
                ]
                job.answers = [Answers(before=b, after=a) for b, a in zip(before, ask(), strict=True)]

        return self._add(Job(id="", kind="preview", who=who, total=len(edits)), work)

    def delete(self, id: str, who: str) -> Change:
        """Delete an edit; raises as `edit`."""

        def work(job: Job) -> None:
            left = self.plug.delete(id)
            job.note = None if left is None else printable(left)

        return self._add(Job(id="", kind="delete", who=who, total=1, edits=[id]), work)

    def switch(self, id: str, on: bool, who: str) -> Change:
        """Switch an edit on or off; raises as `edit`."""
        change = self.plug.enable if on else self.plug.disable
        job = Job(id="", kind="enable" if on else "disable", who=who, total=1, edits=[id])
        return self._add(job, lambda _job: change(id))

    def rollback(self, revision: int, who: str) -> Change:
        """Go back to a revision of the store; raises as `edit`."""
        job = Job(id="", kind="rollback", who=who, total=0)
        return self._add(job, lambda _job: self.plug.rollback(revision))

    def stop(self) -> None:
        """Take no more, and come back when the running one has ended; those that wait are cancelled."""
        with self._lock:
            self._stopping = True
            self._queue.put(None)
        self._worker.join()

    def _add(self, job: Job, work: Callable[[Job], Any], prompts: frozenset[Prompt] = frozenset()) -> Change:
        with self._lock:
            if self._stopping:
                raise Stopped("the server is shutting down")
            going_on = [change for change in self._all.values() if not change.ended.done()]
            if len(going_on) >= _WAITING:
                raise QueueFull(10)
            same = next((change for change in going_on if prompts & change.prompts), None)
            if same is not None:
                raise Taken(f"an edit of the same prompt is being made by {same.job.id}; wait for its end")
            job.id = f"job-{secrets.token_hex(8)}"  # no other server's, nor one's before a restart
            change = self._all[job.id] = Change(job, work, prompts, Future())
            change.ended.set_running_or_notify_cancel()  # nobody who waits for it can cancel it
            over = [id for id, one in self._all.items() if one.ended.done()]
            for id in over[: max(0, len(self._all) - _KEPT)]:
                del self._all[id]
            self._queue.put(change)
        return change

    def _work(self) -> None:
        while (change := self._queue.get()) is not None:
            job = change.job
            if self._stopping:
                status: Status = "cancelled"
            else:
                job.status, job.started = "running", time.time()
                job.error = self._error(change)
                status = "failed" if job.error else "succeeded"
            job.finished = time.time()
            job.status = status
            told = {"job": job.id, "kind": job.kind, "who": job.who, "status": status, "edits": job.edits}
            seconds = round(job.finished - (job.started or job.finished), 3)
            self.log("job", **told, seconds=seconds, text={"error": job.error and job.error.message})
            change.ended.set_result(job)

    def _error(self, change: Change) -> ErrorBody | None:
        """Makes a change; gives what went wrong."""
        try:
            store = self.plug.store
            with store.by(change.job.who, change.job.why) if store is not None else nullcontext():
                change.work(change.job)
            change.job.done = change.job.total
            if change.job.kind != "preview":
                self.save()
        except SaveError as error:
            message = f"the change is in force, but could not be saved: {error}"
            return ErrorBody(message=printable(message), type="server_error", code="not_saved")
        except StoreError as error:  # nothing has changed
            return ErrorBody(message=printable(error), type="server_error", code="not_saved")
        except UnknownEditError as error:  # another change has deleted it meanwhile
            return ErrorBody(message=printable(error), code="edit_not_found")
        except ValueError as error:
            return ErrorBody(message=printable(error), code="edit_failed")
        except Exception as error:  # nothing has changed, and the next one is made
            self.log.error(error, job=change.job.id)
            return ErrorBody(message=f"{type(error).__name__} on the server", type="server_error")
        return None
