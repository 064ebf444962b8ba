"""``/edits``, ``/jobs`` and ``/explain``: what is edited, and why an edit is recalled."""

from __future__ import annotations

import asyncio
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response

from ..edits import Edit, as_edits
from ..interface import Explanation
from ..retrieval.explanation import Explanation as Votes
from ..text.chat import as_prompt, show, to_json
from ..text.printable import printable
from .answers import encoded
from .errors import ApiError
from .jobs import Change
from .schemas import (
    EditOut,
    EditPage,
    EditsRequest,
    ErrorOut,
    ExplainRequest,
    ExplanationOut,
    Heat,
    HeatRow,
    Job,
    PreviewRequest,
    RevisionOut,
    RevisionPage,
    Rollback,
    Switch,
)
from .service import Service

__all__ = ["changes"]

_PATIENCE = 10.0  # seconds for which a deletion or a switch is waited for before it is answered with its job
_STATUS = {"edit_failed": 422, "edit_not_found": 404}  # of a job's error; else it is the server's
_PREVIEWED = 24  # tokens of an answer in a preview
_EXPLAINED = 2  # prompts explained at once; each waits for an edit that is being learned


def changes(service: Service) -> APIRouter:
    """The routes that look at edits and change them."""
    api = APIRouter(tags=["edits"], responses={422: {"model": ErrorOut}})
    plug, jobs, limiter = service.plug, service.jobs, CapacityLimiter(_EXPLAINED)

    @api.get("/edits")
    async def list_edits(
        after: Annotated[str | None, Query(description="Begin behind the edit with this id.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="Edits of a page.")] = 100,
        search: Annotated[str, Query(description="In an edit's id, prompt, answer or subject.")] = "",
    ) -> EditPage:
        """The edits, in the order in which they were made."""
        table = plug.edits
        ids = list(table)
        begin = 0 if after is None else ids.index(str(table[after].id)) + 1
        found = [id for id in ids if _has(table[id], search)] if search else ids
        left = [id for id in ids[begin:] if not search or _has(table[id], search)]
        page = [_shown(table[id], table.enabled(id)) for id in left[:limit]]
        return EditPage(data=page, total=len(found), has_more=limit < len(left))

    @api.post("/edits", status_code=202)
    async def make_edits(asked: EditsRequest, request: Request, response: Response) -> Job:
        """Learn edits together, beside the requests that are served; they are in force when the job has
        succeeded. A second edit of a prompt replaces the first."""
        edits = await to_thread.run_sync(_checked, service, asked)
        job = jobs.edit(edits, request.state.role, asked.why).job
        response.headers["Location"] = f"/jobs/{job.id}"
        return job

    @api.post("/preview", status_code=202)
    async def preview(asked: PreviewRequest, request: Request, response: Response) -> Job:
        """What edits would change: they are learned, asked and taken back, and no revision of a store holds
        them. Other requests are answered after that, so that none sees them."""

        def read() -> tuple[list[Edit], list[list[int]]]:
            edits = _checked(service, asked)
            prompts = [edit.prompt for edit in edits] + [as_prompt(one) for one in asked.prompts]
            return edits, [encoded(service, prompt, _PREVIEWED, _PREVIEWED)[0] for prompt in prompts]

        edits, ids = await to_thread.run_sync(read)

        def ask() -> list[str]:
            return [service.text.decode(said) for said in service.text.generate(ids, _PREVIEWED)]

        job = jobs.preview(edits, ask, request.state.role).job
        response.headers["Location"] = f"/jobs/{job.id}"
        return job

    @api.delete("/edits/{id}", responses={202: {"model": Job}})
    async def delete_edit(id: str, request: Request, response: Response) -> Job:
        """Delete an edit for good; 202 where other changes come first."""
        plug.edits[id]
        return await _soon(jobs.delete(id, request.state.role), response)

    @api.patch("/edits/{id}", responses={202: {"model": Job}})
    async def switch_edit(id: str, asked: Switch, request: Request, response: Response) -> Job:
        """Switch an edit off, or on again; 202 where other changes come first."""
        plug.edits[id]
        return await _soon(jobs.switch(id, asked.enabled, request.state.role), response)

    @api.get("/jobs/{id}")
    async def get_job(id: str) -> Job:
        """How far a change is, and what went wrong."""
        job = jobs.get(id)
        if job is None:
            raise ApiError(
                404, f"there is no job {id!r}; jobs that have long ended are forgotten", "not_found"
            )
        return job

    @api.get("/history")
    async def history(
        after: Annotated[int, Query(ge=0, description="Begin behind this revision.")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000, description="Revisions of a page.")] = 100,
    ) -> RevisionPage:
        """What was done to the edits, by whom and why, where they are kept in a store."""
        _check_store(service)
        left = [one for one in await to_thread.run_sync(plug.history) if one.number > after]
        page = [RevisionOut(**one._asdict()) for one in left[:limit]]
        return RevisionPage(data=page, has_more=limit < len(left))

    @api.post("/rollback", responses={202: {"model": Job}})
    async def rollback(asked: Rollback, request: Request, response: Response) -> Job:
        """Go back to the edits of an earlier revision, which is a new revision."""
        _check_store(service)
        kept = [one.number for one in await to_thread.run_sync(plug.history) if one.kept]
        if asked.revision not in kept:
            message = f"there is no revision {asked.revision} to go back to; see /history"
            raise ApiError(404, message, "revision_not_found", "revision")
        return await _soon(jobs.rollback(asked.revision, request.state.role), response)

    @api.post("/explain")
    async def explain(asked: ExplainRequest) -> ExplanationOut:
        """Which edits take effect in a prompt, and what the method saw. Waits for an edit that is being
        learned."""

        def explained() -> ExplanationOut:
            found, table = plug.explain(asked.prompt), plug.edits
            lines = [printable(line) for line in str(found).splitlines()]
            if not isinstance(found, Explanation):
                return ExplanationOut(edits=None, lines=lines)
            shown = [_shown(e, str(e.id) in table and table.enabled(str(e.id))) for e in found.edits]
            return ExplanationOut(edits=shown, lines=lines, heat=_heat(getattr(found, "found", found)))

        return await to_thread.run_sync(explained, limiter=limiter)

    return api


def _check_store(service: Service) -> None:
    """Raises ApiError where the edits are not kept in a store."""
    if service.plug.store is None:
        raise ApiError(404, "the edits are not kept in a store; start with --plug FILE.db", "no_store")


def _has(edit: Edit, search: str) -> bool:
    text = f"{edit.id}\n{show(edit.prompt)}\n{edit.target}\n{edit.subject or ''}"
    return search.casefold() in text.casefold()


def _heat(found: object) -> Heat | None:
    """The votes by layer, where the method has any."""
    best = (found.recalled or found.runner_up) if isinstance(found, Votes) else None
    if not isinstance(found, Votes) or best is None:
        return None
    layers = [
        HeatRow(
            layer=vote.layer,
            token=printable(vote.token),
            voted=vote.voted,
            similarity=vote.similarity,
            heat=[None if value != value else round(value, 3) for value in heat],
        )
        for vote, heat in zip(best.layers, best.heat.tolist(), strict=True)
    ]
    tokens = [printable(token) for token in found.tokens]
    return Heat(subject=best.subject, votes=best.votes, quorum=found.quorum, tokens=tokens, layers=layers)


def _shown(edit: Edit, enabled: bool) -> EditOut:
    return EditOut(
        id=str(edit.id),
        prompt=to_json(edit.prompt),
        target=edit.target,
        subject=edit.subject,
        enabled=enabled,
    )


def _checked(service: Service, asked: EditsRequest) -> list[Edit]:
    """The edits, with all that can be told before they are learned.

    Raises:
        EditError, TokenizerError, ChatTemplateError: one cannot be made.
    """
    edits = as_edits([Edit(as_prompt(one.prompt), one.target, one.subject) for one in asked.edits])
    for edit in edits:
        service.text.pair(edit.prompt, edit.target)
    return edits


async def _soon(change: Change, response: Response) -> Job:
    """The job once it has ended, or as it is after a while.

    Raises:
        ApiError: it failed.
    """
    await asyncio.wait({asyncio.wrap_future(change.ended)}, timeout=_PATIENCE)
    job, error = change.job, change.job.error
    if error is not None:
        raise ApiError(_STATUS.get(error.code or "", 500), error.message, error.code or "server_error")
    if not change.ended.done():
        response.status_code = 202
        response.headers["Location"] = f"/jobs/{job.id}"
    return job
