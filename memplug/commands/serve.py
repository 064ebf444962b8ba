"""``memplug serve``: answer requests with an edited model, and edit it meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import Device, Dtype, Model, explained, has_plug, keep, load_model, new_plug, open_plug, peek

__all__ = ["serve"]


def serve(
    model: Model = "smollm2",
    plug: Annotated[
        str | None,
        typer.Option(
            help="Folder of the saved plug, or a store (FILE.db or a URL); each change is saved in it. A new "
            "one is made there. Nothing is kept if left out."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Editing method, for a new plug; llp if left out.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a key.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File with lines `ask KEY` and `edit KEY`, beside MEMPLUG_ASK_KEY and MEMPLUG_EDIT_KEY in "
            "the environment. Keys for ask reach /v1 and /metrics, those for edit everything."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's id in requests; its own if left out.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers that are made together at most.")] = 8,
    queue: Annotated[int, typer.Option(min=1, help="Answers that may wait; more get 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens of an answer at most.")] = 512,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt at most.")] = None,
    rate: Annotated[int, typer.Option(min=0, help="Requests a minute for each key; 0 for any number.")] = 600,
    log_text: Annotated[
        bool, typer.Option("--log-text", help="Write prompts, answers and facts too.")
    ] = False,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Serve an edited model over HTTP: /v1 as the OpenAI API, /edits to change it, a console at /.

    Logs are JSON lines on stderr. Ctrl-C ends it when the requests and the change under way are done.
    """
    with explained():
        from ..serving.run import run
        from ..serving.settings import Keys, Settings

        read = Keys.read(keys)
        read.check_host(host)
        known = name or (Path(model).name if Path(model).exists() else model)
        settings = Settings(
            known, batch, queue=queue, max_tokens=max_tokens, max_prompt_tokens=max_prompt_tokens, rate=rate,
            log_text=log_text,
        )  # fmt: skip
        where = plug or ""
        is_new = not where or not has_plug(where)
        if not is_new and method not in (None, made := peek(where)[0]):
            raise ValueError(f"the plug was made with {made}, not {method}; leave the method out")
        loaded = load_model(model, device, dtype)
        served = new_plug(where, *loaded, method, "default") if is_new else open_plug(where, *loaded)

        def save() -> None:
            if where:
                keep(served, where)

        run(served, save, settings, read, host, port)
