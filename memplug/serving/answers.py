"""``/v1``: chat and text completions of the edited model and the base model, as the OpenAI API has them."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ..text.chat import Prompt, as_prompt, question, to_json
from ..text.templates import ChatTemplateError
from ..text.tokens import TokenizerError
from .errors import ApiError, body_of
from .rows import Piece, Row, Sampling
from .schemas import Asked, ChatRequest, CompletionRequest, ErrorOut
from .service import Service

__all__ = ["answers", "encoded"]

_COMPLETION = 16  # new tokens of a text completion that does not say how many, as in the OpenAI API
_TOO_LONG = "context_length_exceeded"


def answers(service: Service) -> APIRouter:
    """The routes that ask."""
    api = APIRouter(prefix="/v1", tags=["answers"])

    @api.get("/models")
    async def models() -> dict[str, Any]:
        """The edited model, and the base model beside it."""
        made = [{"id": id, "object": "model", "created": 0, "owned_by": "memplug"} for id in service.models]
        return {"object": "list", "data": made}

    @api.post("/chat/completions", responses={422: {"model": ErrorOut}})
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """An answer to the last of the messages, which is the user's."""
        prompt = as_prompt(asked.messages)
        limit = asked.max_completion_tokens or asked.max_tokens
        return await _answered(service, request, asked, [prompt], limit, service.settings.max_tokens)

    @api.post("/completions", responses={422: {"model": ErrorOut}})
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """What the model goes on with after a text, without a chat template."""
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        return await _answered(service, request, asked, prompts, asked.max_tokens, _COMPLETION)

    return api


class _Answer:
    """The rows of one request, and what the API makes of them."""

    def __init__(self, service: Service, asked: Asked, prompts: Sequence[Prompt]) -> None:
        self._service, self._asked, self._prompts = service, asked, prompts
        self._chat = isinstance(asked, ChatRequest)
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.rows: list[Row] = []
        self.prompt_tokens = 0
        id = f"{'chatcmpl' if self._chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._head = {"id": id, "created": int(time.time()), "model": asked.model}

    def queue(self, encoded: Sequence[tuple[list[int], int]]) -> None:
        """Queue ``n`` rows for each prompt's ids and limit."""
        loop, asked = asyncio.get_running_loop(), self._asked
        base = asked.model == self._service.models[1]

        def emit(index: int, piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has gone
                loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        for ids, limit in encoded:
            self.prompt_tokens += len(ids)
            for _ in range(asked.n):
                index = len(self.rows)
                seed = None if asked.seed is None else (asked.seed + index) % 2**63
                sampling = Sampling(limit, asked.temperature, asked.top_p, asked.stops, seed)
                emit_here = lambda piece, index=index: emit(index, piece)  # noqa: E731
                self.rows.append(Row(self._service.text, ids, sampling, base, emit_here))
        self._service.batcher.submit(self.rows)

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Rows that have not ended are given up at the end of the ``with``, and counted."""
        try:
            yield
        finally:
            for row in self.rows:
                row.done = True
            for kind, count in (("prompt", self.prompt_tokens), ("completion", self._made)):
                self._service.metrics.tokens.labels(kind).inc(count)

    @property
    def _made(self) -> int:
        return sum(row.count for row in self.rows)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Row and piece as they come, until all rows have ended.

        Raises:
            Exception: what ended a row.
        """
        left = len(self.rows)
        while left:
            index, piece = await self._pieces.get()
            if piece.error is not None:
                raise piece.error
            left -= piece.finish is not None
            yield index, piece

    async def whole(self) -> dict[str, Any]:
        """The answer in one."""
        texts, ends = [""] * len(self.rows), [""] * len(self.rows)
        async for index, piece in self.pieces():
            texts[index] += piece.text
            ends[index] = piece.finish or ""
        self._log(texts)
        choices = [
            self._choice(i, {"message": {"role": "assistant", "content": text}}, text, end)
            for i, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]
        name = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": name, "choices": choices, "usage": self._usage()}

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        texts = [""] * len(self.rows)
        usage = self._asked.stream_options is not None and self._asked.stream_options.include_usage
        head = {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}
        try:
            async for index, piece in self.pieces():
                role = {} if texts[index] else {"role": "assistant"}
                texts[index] += piece.text
                delta = {"delta": {**role, "content": piece.text}}
                choice = self._choice(index, delta, piece.text, piece.finish)
                yield _event({**head, "choices": [choice], **({"usage": None} if usage else {})})
        except Exception as error:
            self._service.log.error(error)
            yield _event({"error": body_of(error)[1].model_dump()})
            return
        if usage:
            yield _event({**head, "choices": [], "usage": self._usage()})
        self._log(texts)
        yield "data: [DONE]\n\n"

    def _choice(self, index: int, said: dict[str, Any], text: str, end: str | None) -> dict[str, Any]:
        what = said if self._chat else {"text": text}
        return {"index": index, **what, "finish_reason": end, "logprobs": None}

    def _usage(self) -> dict[str, int]:
        made, read = self._made, self.prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    def _log(self, texts: list[str]) -> None:
        said = {"prompts": [to_json(prompt) for prompt in self._prompts], "answers": texts}
        tokens = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self._made}
        self._service.log("answer", answer=self._head["id"], **tokens, text=said)


def _event(said: dict[str, Any]) -> str:
    return f"data: {json.dumps(said)}\n\n"


class _Stream(StreamingResponse):
    """Gives the rows up when it ends, however it ends."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__(
            answer.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._answer.wanted():
            await super().__call__(scope, receive, send)


async def _answered(
    service: Service, request: Request, asked: Asked, prompts: Sequence[Prompt], limit: int | None, usual: int
) -> Response:
    """An answer to each prompt of up to ``limit`` new tokens, or where that is open, of ``usual``."""
    if asked.model not in service.models:
        names = " or ".join(service.models)
        raise ApiError(404, f"there is no model {asked.model!r}; ask {names}", "model_not_found", "model")
    count, most = len(prompts) * asked.n, service.settings.queue
    if not 1 <= count <= most:
        raise ApiError(422, f"this asks for {count} answers; 1 to {most} can be asked for", "invalid_value")
    answer = _Answer(service, asked, prompts)
    answer.queue(
        await run_in_threadpool(lambda: [encoded(service, prompt, limit, usual) for prompt in prompts])
    )
    if asked.stream:
        return _Stream(answer)
    with answer.wanted():
        made, left = asyncio.create_task(answer.whole()), asyncio.create_task(_left(request))
        try:
            await asyncio.wait({made, left}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(made.result()) if made.done() else Response(status_code=499)
        finally:
            made.cancel()
            left.cancel()


async def _left(request: Request) -> None:
    """Comes back when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def encoded(service: Service, prompt: Prompt, limit: int | None, usual: int) -> tuple[list[int], int]:
    """A prompt's ids and how many tokens may follow them.

    Raises:
        ApiError: an empty prompt, one that is too long, or more new tokens than there may be.
    """
    text, most = service.text, service.settings.max_tokens
    asked = question(prompt)
    if not asked.strip() or asked != asked.encode(errors="ignore").decode():
        what = "is no text (half a character)" if asked.strip() else "is empty"
        raise ApiError(422, f"the prompt {what}; give it some text", "invalid_value", "prompt")
    if limit is not None and limit > most:
        raise ApiError(422, f"max_tokens is {limit}, {most} at most here", "invalid_value", "max_tokens")
    try:
        text.check_size(prompt)
        ids = text.encode(prompt)
    except ChatTemplateError as error:
        raise ApiError(400, str(error), "chat_template", "messages") from error
    except TokenizerError as error:
        raise ApiError(400, str(error), _TOO_LONG) from error
    room = text.room(ids)
    longest = min(service.settings.max_prompt_tokens or text.max_length, text.max_length - (limit or 1))
    if len(ids) > longest:
        with_limit = "" if limit is None else f" with max_tokens {limit}"
        raise ApiError(400, f"the prompt has {len(ids)} tokens, {longest} at most{with_limit}", _TOO_LONG)
    return ids, limit or min(usual, most, room)
