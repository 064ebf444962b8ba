"""Compare methods: each makes the same edits on the same model, for each seed, and all are judged alike."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..attached import plug_of
from ..data import Loaded
from ..edits import Case
from ..evaluation.encoding import longest
from ..evaluation.general import General, open_general
from ..evaluation.protocol import check_targets
from ..model.architecture import input_device
from ..saving.plugs import fingerprint
from ..text.chat import in_chat
from ..text.tokens import Text
from .cases import open_cases, open_fitting
from .checkpoint import Checkpoint
from .context import RunContext
from .environment import environment
from .folder import Folder, plain
from .model_state import NotRestoredError, bits_of
from .preference import preferences
from .processes import Processes
from .result import FORMAT, VERSION, Comparison
from .run import failed_row, general_scores, is_failure, run
from .settings import Settings, named, points_of
from .specs import MethodSpec, method_specs

__all__ = ["compare"]


def compare(
    model: Any,
    tokenizer: Any,
    cases: str | Path | Loaded | Sequence[Case],
    *,
    methods: str | Iterable[Any] = ("llp", "elder", "ultraedit"),
    edits: int | None = None,
    batch: int = 1,
    seeds: int | Iterable[int] = (0,),
    points: int | Sequence[int] | None = None,
    general: str | Path | Iterable[str | Path | General] = (),
    fit_cases: int | str | Path | Sequence[Case] | None = 500,
    fit_steps: int | None = None,
    constants: Mapping[str, Mapping[str, Any]] | None = None,
    drop: str | Collection[str] = (),
    skip_bad: bool = False,
    probes: int | None = None,
    chat: bool = False,
    level: float = 0.95,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    out: str | Path | None = None,
    retry: bool = False,
    progress: bool = True,
    name: str | None = None,
    command: str | None = None,
) -> Comparison:
    """Let every method make the same edits on the same model, and judge all alike.

    For each seed the cases are put into the seed's order and edited in batches. Each edit is scored right
    after its batch, and all are scored after the last; at some points in between the first and the latest
    edits and general abilities are looked at again. Between two methods the model is checked to be the base
    model to the bit. A method that fails is a row with its error; the others go on.

    Stopped and called again with the same ``out`` and settings, it goes on where it was, and gives what it
    would have given. Under ``accelerate launch`` or ``torchrun`` the runs are spread over the processes.

    Args:
        model: a Hugging Face causal language model or encoder-decoder, without a plug.
        tokenizer: its tokenizer.
        cases: ``"world"`` (the made-up world of the embedded model), a source as for `load_cases`, what
            that gave, or cases.
        methods: each a name, ``"name:preset"``, a config object, or a pair (label, any of these); a text may
            hold several names with commas between.
        edits: edits of a run; None takes all cases (100 of the made-up world).
        batch: edits made together.
        seeds: each decides the order of the cases, which of them are taken, and what methods draw.
        points: numbers of edits at which to look; by default half-way, or 100, 200, 500, ...
        general: ``"skills"`` (the embedded model's), a file of choices, an lm-eval task, or a `General`.
        fit_cases: what to fit editors on that have to be fitted and come without: how many further cases of
            the same source at most, another source, cases, or None to fit none. Those that share a subject
            with an edit are left out.
        fit_steps: steps of such a fitting.
        constants: constants by label or method name.
        drop: oddities to leave out of the cases: "no-op", "repeated", "contradicting"; counted anyway.
        skip_bad: count broken rows instead of raising at the first.
        probes: ask at most so many rephrasings, locality questions and so on about a case, drawn by the seed.
        chat: put every prompt of the cases that is a text into the tokenizer's chat template, as one user
            turn: edits are made and judged in chat, and editors fitted on such prompts. General abilities
            are asked as they are.
        level: coverage of the intervals.
        max_new_tokens: where a generated answer is cut off, one number for all; None: as much as the longest
            target of the cases needs, 32 at least; 0 generates none.
        batch_size: prompts scored at once.
        out: the folder for everything that is made; None keeps nothing.
        retry: run again what failed before, in a folder that is there already.
        progress: show bars.
        name: how the model is called in the results; by default as its config says.
        command: the command line, for the record.

    Returns:
        The comparison, the same in all processes.

    Raises:
        ValueError: settings that make no sense, cases that cannot be read, a folder of another comparison.
        ChatTemplateError: ``chat``, and the tokenizer has no chat template.
        NotRestoredError: a method did not leave the model as it was; what was done so far is in ``out``.
    """
    if plug_of(model) is not None:
        raise ValueError(
            "this model has a plug; call detach() on it first, methods are compared on the base model"
        )
    methods = methods.split(",") if isinstance(methods, str) else methods
    drop = drop.split(",") if isinstance(drop, str) else drop
    general = [general] if isinstance(general, str | Path) else general
    seeds = [seeds] if isinstance(seeds, int) else seeds
    points = [points] if isinstance(points, int) else points
    text = Text(model, tokenizer)
    if chat:
        text.encode(in_chat("Who is it?"))  # without a template this raises at once
    source = open_cases(cases, drop=drop, skip_bad=skip_bad, probes=probes, chat=chat)
    wanted = open_fitting(fit_cases, skip_bad=skip_bad)
    specs = method_specs(methods, constants)
    sets = [open_general(one) if isinstance(one, str | Path) else one for one in general]
    n = source.size(edits)
    if max_new_tokens is None:  # the same for all seeds
        max_new_tokens = max(32, 2 + longest(text, source.targets()))
    settings = Settings(
        model=name or str(getattr(model.config, "name_or_path", "") or type(model).__name__),
        cases=source.name,
        methods=tuple(spec.label for spec in specs),
        edits=n,
        batch=batch,
        seeds=tuple(seeds),
        points=points_of(points, n, batch),
        level=level,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        general=tuple(one.name for one in sets),
        drop=tuple(sorted(drop)),
        probes=probes,
        fit_cases=named(fit_cases),
        fit_steps=fit_steps,
        device=str(input_device(model)),
        dtype=str(getattr(model, "dtype", "?")).removeprefix("torch."),
        command=command,
        general_sets={one.name: plain(one.asked()) for one in sets if hasattr(one, "asked")},
        chat=chat,
    )
    where = nullcontext(out) if out is not None else tempfile.TemporaryDirectory(prefix="memplug-")
    with where as root:
        folder, here = Folder(Path(root).expanduser()), Processes.here()
        shown = progress and here.rank == 0
        context = RunContext(model, tokenizer, settings, folder, source, sets, wanted, here, shown)
        return _make(context, specs, retry)


def _make(context: RunContext, specs: Sequence[MethodSpec], retry: bool) -> Comparison:
    """Make this process's runs; the first process gathers all."""
    settings, folder, here = context.settings, context.folder, context.processes
    data = context.source.account(settings.edits, settings.seeds)
    if here.rank == 0:
        identity = context.source.identity(settings.edits, settings.seeds)
        folder.open(settings, {"fingerprint": fingerprint(context.model), **identity}, specs)
    here.wait()
    # All seeds' cases fit the model, before the first hour of work; those that were asked before do.
    for seed in (seed for seed in settings.seeds if not folder.base(seed).is_file()):
        cases = context.source.draw(settings.edits, seed).cases
        check_targets(context.model, context.tokenizer, cases, settings.max_new_tokens)
    bits = bits_of(context.model)
    mine = here.mine([(spec, seed) for seed in settings.seeds for spec in specs])
    try:
        for seed in dict.fromkeys(seed for _, seed in mine):
            rows = [(spec, folder.read(folder.run(spec.label, seed))) for spec, own in mine if own == seed]
            todo = [spec for spec, row in rows if not row or (retry and row["status"] == "failed")]
            if todo or not folder.base(seed).is_file():
                _make_seed(context.at(seed), todo, bits)
    except NotRestoredError:
        _gather(context, specs, data, write=True)
        raise
    here.wait()
    return _gather(context, specs, data, write=here.rank == 0)


def _make_seed(context: RunContext, specs: Sequence[MethodSpec], bits: str) -> None:
    """Score the base model where that has not been done, and make the runs of a seed."""
    settings, folder, seed = context.settings, context.folder, context.seed
    base = folder.read(folder.base(seed)) or {}
    if not {"answers", "general_answers", "preference"} <= base.keys():  # earlier versions kept less
        scores = context.scores(context.reference.answers(context.drawn.cases))
        base["scores"], base["answers"] = scores.to_dict(), [row.to_dict() for row in scores.answers]
        base["general"], base["general_answers"] = general_scores(context)
        base["preference"] = preferences(context)
        folder.write(folder.base(seed), base)
    for spec in specs:
        row, error = _attempt(context, spec)
        row["restored"] = bits_of(context.model) == bits
        if not row["restored"]:
            error = NotRestoredError(
                f"{spec.label!r} did not leave the model as it was (parameters, buffers or hooks differ "
                "after detach), so that nothing after it could be compared; load the model anew, and leave "
                "the method out"
            )
            row = {**failed_row(spec, seed, error), "restored": False}
        made = {"environment": environment(settings.device), "command": settings.command}
        folder.write(folder.run(spec.label, seed), {**row, **made})
        checkpoint = Checkpoint(folder.state(spec.label, seed))
        if error is None or not row["restored"] or not checkpoint.holds(settings.edits):
            checkpoint.remove()
        if isinstance(error, NotRestoredError):
            raise error


def _attempt(context: RunContext, spec: MethodSpec) -> tuple[dict[str, Any], Exception | None]:
    try:
        return run(context, spec), None
    except Exception as error:
        if not is_failure(error):
            raise
        row = failed_row(spec, context.seed, error)
        error.__traceback__ = None  # its frames hold the method's tensors
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return row, error


def _gather(
    context: RunContext, specs: Sequence[MethodSpec], data: dict[str, Any], write: bool
) -> Comparison:
    folder, settings = context.folder, context.settings.to_dict()
    files = [folder.run(spec.label, seed) for seed in context.settings.seeds for spec in specs]
    files += sorted((folder.root / "runs").glob("*.json"))  # what earlier calls added
    runs = [row for file in dict.fromkeys(files) if (row := folder.read(file)) is not None]
    settings["methods"] = list(dict.fromkeys([*settings["methods"], *(row["method"] for row in runs)]))
    settings["seeds"] = sorted({*settings["seeds"], *(row["seed"] for row in runs)})
    results = {
        "format": FORMAT,
        "version": VERSION,
        "environment": environment(context.settings.device),
        "settings": settings,
        "fingerprint": (folder.read(folder.root / "settings.json") or {}).get("fingerprint"),
        "data": data,
        "base": {str(seed): folder.read(folder.base(seed)) for seed in settings["seeds"]},
        "runs": runs,
    }
    if write:
        folder.write(folder.root / "results.json", results)
    return Comparison(results)
