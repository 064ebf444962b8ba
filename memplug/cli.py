"""The command line: edit, list, switch, delete, ask, on a saved plug or a store; serve; fit; compare; demo.

Heavy imports are inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .commands.compare import compare, report
from .commands.fit import fit
from .commands.history import history, rollback
from .commands.serve import serve
from .commands.shared import (
    Device,
    Dtype,
    Folder,
    Model,
    explained,
    has_plug,
    keep,
    load_model,
    new_plug,
    open_plug,
    peek,
    quiet,
)
from .text.printable import printable

if TYPE_CHECKING:
    from .edits import Case
    from .plugin import Plug
    from .text.chat import Prompt

__all__ = ["app"]

app = typer.Typer(
    help="Give a language model an editable memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

System = Annotated[str | None, typer.Option(help="Text of a system turn before the user's.")]
Ids = Annotated[list[str], typer.Argument(help="Ids of edits, see `memplug list`.", show_default=False)]


def _change(
    folder: str, ids: list[str], model: str, device: str, dtype: str, change: Callable[[Plug], None]
) -> None:
    """Load a plug, change these edits of it, save it, and show what it holds."""
    with explained():
        _, table = peek(folder)
        for id in ids:
            table[id]  # an unknown one is told before a model is loaded
        plug = open_plug(folder, *load_model(model, device, dtype))
        change(plug)
        keep(plug, folder)
        typer.echo(repr(plug.edits))


@app.command()
def edit(
    folder: Folder,
    prompt: Annotated[str | None, typer.Argument(help="The prompt to be answered anew.")] = None,
    target: Annotated[str | None, typer.Argument(help="Its answer from now on.")] = None,
    subject: Annotated[str | None, typer.Option(help="What the fact is about; found if left out.")] = None,
    cases: Annotated[
        str | None,
        typer.Option("--cases", help="Many edits: FILE.jsonl, FILE.csv, zsre:FILE, ..."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first so many of them.")] = None,
    skip_bad: Annotated[bool, typer.Option(help="Count broken lines instead of stopping at one.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's turn in the model's chat template.")
    ] = False,
    system: System = None,
    model: Model = "world",
    method: Annotated[
        str | None, typer.Option(help="Editing method, for a new plug; llp if left out.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Its constants, for a new plug: default or paper.")] = "default",
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Edit facts into a plug; a new one is made where FOLDER has none. Many are saved as they are made,
    and a call that was stopped goes on."""
    with explained():
        wanted = _wanted(prompt, target, subject, cases, limit, skip_bad, chat, system)
        is_new = not has_plug(folder)
        if not is_new and method not in (None, made := peek(folder)[0]):
            raise ValueError(
                f"{folder} was made with --method {made}, not {method}; leave it out, or name another folder"
            )
        loaded = load_model(model, device, dtype)
        plug = new_plug(folder, *loaded, method, preset) if is_new else open_plug(folder, *loaded)
        for some in _parts(plug, wanted) if cases else [wanted]:
            plug.edit(some)
            keep(plug, folder)  # another command may have saved there meanwhile
        typer.echo(repr(plug.edits))


def _parts(plug: Plug, cases: list[Case]) -> Iterator[list[Case]]:
    """Cases whose edits are not held yet, some at a time: what a stopped call saved is not made again."""
    from .text.chat import canonical

    held = {canonical(edit.prompt): edit.target for edit in plug.edits.values()}
    left = [case for case in cases if held.get(canonical(case.edit.prompt)) != case.edit.target]
    if len(left) < len(cases):
        typer.echo(f"{len(cases) - len(left)} of {len(cases)} edits were made before", err=True)
    size = _together(plug)
    for start in range(0, len(left), size):
        yield left[start : start + size]


def _together(plug: Plug) -> int:
    """Edits of a file that are made between two saves: some of the method's batches."""
    return max(256, int(getattr(plug.method.config, "batch_size", 1)))


def _wanted(
    prompt: str | None,
    target: str | None,
    subject: str | None,
    cases: str | None,
    limit: int | None,
    skip_bad: bool,
    chat: bool,
    system: str | None,
) -> Any:
    from .edits import Edit
    from .text.chat import in_chat

    if system is not None and (cases is not None or not chat):
        raise ValueError(
            "--system is a turn before a PROMPT in a chat; give it with --chat and without --cases"
        )
    if cases is None:
        if prompt is None or target is None:
            raise ValueError("give a PROMPT and a TARGET, or --cases FILE")
        edit = Edit(prompt, target, subject)
        return [Edit(in_chat(edit.prompt, system), target, subject) if chat else edit]
    if prompt is not None:
        raise ValueError("give either a PROMPT or --cases, not both")
    from .data import load_cases

    read = load_cases(cases, limit=limit, skip_bad=skip_bad)
    if read.skipped:
        typer.echo(f"left out {len(read.skipped)} broken rows", err=True)
    return [case.in_chat() for case in read.cases] if chat else read.cases


@app.command("list")
def list_(folder: Folder) -> None:
    """Show the edits of a saved plug; needs no model."""
    with explained():
        method, table = peek(folder)
        typer.echo(f"method {printable(method)}: {table!r}")


@app.command()
def delete(
    folder: Folder, ids: Ids, model: Model = "world", device: Device = "cpu", dtype: Dtype = "auto"
) -> None:
    """Delete edits for good."""
    _change(folder, ids, model, device, dtype, lambda plug: plug.delete(ids))


@app.command()
def disable(
    folder: Folder, ids: Ids, model: Model = "world", device: Device = "cpu", dtype: Dtype = "auto"
) -> None:
    """Switch edits off."""
    _change(folder, ids, model, device, dtype, lambda plug: plug.disable(ids))


@app.command()
def enable(
    folder: Folder, ids: Ids, model: Model = "world", device: Device = "cpu", dtype: Dtype = "auto"
) -> None:
    """Switch edits on again."""
    _change(folder, ids, model, device, dtype, lambda plug: plug.enable(ids))


@app.command()
def ask(
    folder: Folder,
    prompts: Annotated[list[str], typer.Argument(help="Prompts to be answered.", show_default=False)],
    model: Model = "world",
    explain: Annotated[bool, typer.Option(help="Say which edit was recalled, and why.")] = False,
    base: Annotated[bool, typer.Option(help="Show the unedited model's answer beside it.")] = False,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--plain",
            help="Ask through the chat template, or the text as it is. The template is used where the "
            "tokenizer has one, if left out.",
        ),
    ] = None,
    system: System = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    device: Device = "cpu",
    dtype: Dtype = "auto",
) -> None:
    """Ask the edited model, greedily."""
    with explained():
        if chat is False and system is not None:
            raise ValueError("--system is a turn of a chat; leave out --plain, or --system")
        from .evaluation import answer

        plug = open_plug(folder, *load_model(model, device, dtype))
        asked = _asked(plug.tokenizer, prompts, chat, system)

        def answers() -> list[str]:
            return answer(plug.model, plug.tokenizer, asked, max_new_tokens=max_new_tokens)

        edited = answers()
        with plug.paused():
            before = answers() if base else [""] * len(prompts)
        for prompt, read, new, old in zip(prompts, asked, edited, before, strict=True):
            beside = f"   (base model: {printable(old)})" if base else ""
            typer.echo(f"{printable(prompt)} {printable(new)}{beside}")
            if explain:
                typer.echo(str(plug.explain(read)))


def _asked(tokenizer: Any, prompts: list[str], chat: bool | None, system: str | None) -> list[Prompt]:
    """The prompts as they are asked: where nobody chose, through the template if there is one; it is told."""
    from .text.chat import in_chat
    from .text.templates import has_template

    if chat is None and (has_template(tokenizer) or system is not None):
        chat = True
        if has_template(tokenizer):
            typer.echo("asked through the chat template; --plain asks the text as it is", err=True)
    return [in_chat(prompt, system) for prompt in prompts] if chat else list(prompts)


@app.command()
def demo(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="smollm2, world (the embedded model and its made-up facts), or a path or hub id of a chat "
            "model; smollm2 where it is at hand, else world, if left out.",
        ),
    ] = None,
    edits: Annotated[
        int | None,
        typer.Option(min=2, max=1000, help="Facts to edit: a dozen at most, or of the world, 100."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which facts of the world.")] = 0,
    compared: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Edits of the comparison on the world, 20; 0 for no comparison."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the comparison on the world; a new ./memplug-demo if left out."),
    ] = None,
) -> None:
    """Edit facts of a real chat model, ask, look, switch, delete, save; compare methods: some minutes."""
    with explained():
        from .demo import run

        quiet()
        sys.exit(run(model, edits, seed, compared, out))


app.command()(compare)
app.command()(fit)
app.command()(history)
app.command()(rollback)
app.command()(report)
app.command()(serve)
