"""What the server is sent and what it answers, as OpenAPI shows it."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "Answers", "Asked", "ChatRequest", "CompletionRequest", "EditOut", "EditPage", "EditsRequest",
    "ErrorBody", "ErrorOut", "ExplainRequest", "ExplanationOut", "Heat", "HeatRow", "Job",
    "PreviewRequest", "Prompted",
    "RevisionOut", "RevisionPage", "Rollback", "Status", "Switch", "Turns",
]  # fmt: skip

_NOTHING: dict[str, tuple[str, ...]] = {
    "best_of": ("1",), "echo": ("false",), "frequency_penalty": ("0", "0.0"), "logit_bias": ("{}",),
    "logprobs": ("false",), "modalities": ('["text"]',), "parallel_tool_calls": ("true", "false"),
    "presence_penalty": ("0", "0.0"), "response_format": ('{"type": "text"}',), "store": ("false",),
    "suffix": ('""',), "tool_choice": ('"none"',), "tools": ("[]",),
}  # fmt: skip
"""Fields that are not supported, and the values (JSON) that ask for nothing, which clients send unasked."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


Turns = Annotated[
    list[dict[str, Any]],
    Field(
        description="Messages with a role (system, user, assistant) and a content (a text, or text parts); "
        "the last is the user's question.",
        examples=[[{"role": "user", "content": "What is the capital of France?"}]],
    ),
]
"""What is in them is checked by `chat.as_prompt`."""
Prompted = Annotated[str | Turns, Field(description="A text, or messages that end with the user's question.")]


class StreamOptions(_Strict):
    include_usage: bool = Field(default=False, description="Send token counts in a last chunk.")


class Asked(_Strict):
    """What chat and text completions have in common."""

    model: str = Field(description="An id of /v1/models: the edited model, or the base model beside it.")
    temperature: float = Field(default=1.0, ge=0, le=2, description="0 takes the likeliest token each time.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Draw from so much of the probability.")
    n: int = Field(default=1, ge=1, le=16, description="Answers to each prompt.")
    stop: str | list[str] | None = Field(default=None, description="Up to 4 texts that end it.")
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63, description="Same seed, same draws.")
    stream: bool = Field(default=False, description="Send the answer as it is made, as server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="Of a stream.")
    user: str | None = Field(default=None, description="Taken and not used.")
    max_tokens: int | None = Field(default=None, ge=1, description="New tokens at most.")

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if value is not None and json.dumps(value) not in _NOTHING.get(name, ())
        }

    @model_validator(mode="after")
    def _check(self) -> Asked:
        if any(not text for text in self.stops) or len(self.stops) > 4:
            raise ValueError("stop holds up to 4 texts, and none that is empty")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Asked):
    messages: Turns
    max_completion_tokens: int | None = Field(default=None, ge=1, description="The newer name of max_tokens.")


class CompletionRequest(Asked):
    prompt: str | list[str] = Field(description="A text that the model goes on with, or several.")


class EditIn(_Strict):
    prompt: Prompted
    target: str = Field(description="Its answer from now on.")
    subject: str | None = Field(default=None, description="What it is about; found if plain.")


class EditsRequest(_Strict):
    """Edits that are learned together; a single one may also stand without a list around it."""

    edits: list[EditIn] = Field(min_length=1, max_length=1000, description="All are made, or none is.")
    why: str | None = Field(default=None, max_length=1000, description="For the history of a store.")

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "edits" in given:
            return given
        own = {name: value for name, value in given.items() if name in cls.model_fields}
        return {"edits": [{name: value for name, value in given.items() if name not in own}], **own}


class PreviewRequest(EditsRequest):
    edits: list[EditIn] = Field(min_length=1, max_length=10, description="All other requests wait for them.")
    prompts: list[Prompted] = Field(default=[], max_length=20, description="Asked before and after as well.")


class EditOut(BaseModel):
    id: str = Field(description="Names the edit in all requests.")
    prompt: Prompted
    target: str = Field(description="Its answer.")
    subject: str | None = Field(description="What the fact is about.")
    enabled: bool = Field(description="Whether it is in force.")


class EditPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[EditOut] = Field(description="The edits in the order in which they were made.")
    total: int = Field(description="Edits there are.")
    has_more: bool = Field(description="Whether others follow; ask for those after the last id.")


class Switch(_Strict):
    enabled: bool = Field(description="Whether the edit is in force from now on.")


class RevisionOut(BaseModel):
    number: int = Field(description="From 1 on.")
    time: datetime = Field(description="When it was stored, UTC.")
    who: str | None = Field(description="Who made it.")
    why: str | None = Field(description="For what reason.")
    action: str = Field(description="What was done.")
    edits: list[str] = Field(description="The edits that came, went or were switched.")
    kept: bool = Field(description="Whether it can be gone back to.")


class RevisionPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[RevisionOut] = Field(description="Revisions, the first one first.")
    has_more: bool = Field(description="Whether others follow; ask for those after the last number.")


class Rollback(_Strict):
    revision: int = Field(ge=1, description="The revision to go back to; it becomes a new one.")


class ExplainRequest(_Strict):
    prompt: Prompted


class HeatRow(BaseModel):
    layer: int
    token: str = Field(description="Where the words end that are most like the subject.")
    voted: bool
    similarity: float
    heat: list[float | None] = Field(description="Of the words that end at each token; null where none do.")


class Heat(BaseModel):
    """How the layers voted on the subject that is recalled, or on the one that came closest."""

    subject: str
    votes: int
    quorum: int = Field(description="Votes needed.")
    tokens: list[str] = Field(description="The prompt's.")
    layers: list[HeatRow]


class ExplanationOut(BaseModel):
    edits: list[EditOut] | None = Field(
        description="Those that take effect; null where they are in the weights, which act on every prompt."
    )
    lines: list[str] = Field(description="What the method saw, for a person.")
    heat: Heat | None = Field(default=None, description="Votes by layer, of methods that vote.")


class ErrorBody(BaseModel):
    message: str = Field(description="What was given and what to change.")
    type: str = Field(default="invalid_request_error", description="The kind of error, as OpenAI names them.")
    param: str | None = Field(default=None, description="The field that is wrong.")
    code: str | None = Field(default=None, description="A name for programs.")


class ErrorOut(BaseModel):
    error: ErrorBody


Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Answers(BaseModel):
    before: str = Field(description="Without the edits.")
    after: str = Field(description="With them.")


class Job(BaseModel):
    """A change of the edits."""

    id: str = Field(description="Where to ask: /jobs/ID.")
    object: Literal["job"] = "job"
    kind: Literal["edit", "preview", "delete", "enable", "disable", "rollback"] = Field(
        description="What it does."
    )
    status: Status = Field(default="queued", description="It is in force and saved when it has succeeded.")
    who: str = Field(description="The role whose key asked for it.")
    why: str | None = Field(default=None, description="What they gave as the reason.")
    total: int = Field(description="Edits it is about.")
    done: int = Field(default=0, description="Edits it has dealt with; those of a job are made together.")
    edits: list[str] = Field(default=[], description="Their ids, once they have them.")
    replaced: list[str] = Field(default=[], description="Earlier edits of the same prompts, which are gone.")
    unlearned: list[str] = Field(default=[], description="Those that the model does not answer as edited.")
    answers: list[Answers] = Field(
        default=[], description="Of a preview: to the edits' own prompts, then to the others."
    )
    note: str | None = Field(default=None, description="What is left of deleted edits, where anything is.")
    error: ErrorBody | None = Field(default=None, description="Why it failed.")
    created: float = Field(default_factory=time.time, description="Unix time, s.")
    started: float | None = Field(default=None, description="Unix time, s.")
    finished: float | None = Field(default=None, description="Unix time, s.")
