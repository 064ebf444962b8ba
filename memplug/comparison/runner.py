"""Compare methods: each makes the same edits on the same model, for each seed, and all are judged alike."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..chat import in_chat
from ..data import Loaded
from ..edits import Case
from ..evaluation import Reference, Scores, refer
from ..evaluation.general import General, open_general
from ..evaluation.protocol import check_targets
from ..layers import input_device
from ..plugin import plug_of
from ..storage import fingerprint
from ..text import Text
from .bits import NotRestoredError, bits_of
from .casebook import Casebook, Drawn, open_casebook, open_fitting
from .contenders import Contender, contenders
from .environment import environment
from .folder import Folder, plain
from .preference import preferences
from .processes import Processes
from .progress import all_made
from .result import FORMAT, VERSION, Comparison, failed, is_failure
from .run import Bench, general_scores, run
from .settings import Settings, checked_points, default_points, named, room

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
        model: a Hugging Face causal language model, without a plug.
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
    if chat:
        Text(model, tokenizer).encode(in_chat("Who is it?"))  # without a template this raises at once
    book = open_casebook(cases, drop=drop, skip_bad=skip_bad, probes=probes, chat=chat)
    wanted = open_fitting(fit_cases, skip_bad=skip_bad)
    rivals = contenders(methods, constants)
    sets = [open_general(one) if isinstance(one, str | Path) else one for one in general]
    n = book.size(edits)
    settings = Settings(
        model=name or str(getattr(model.config, "name_or_path", "") or type(model).__name__),
        cases=book.name,
        methods=tuple(one.label for one in rivals),
        edits=n,
        batch=batch,
        seeds=tuple(seeds),
        points=default_points(n, batch) if points is None else checked_points(points, n, batch),
        level=level,
        max_new_tokens=room(model, tokenizer, book) if max_new_tokens is None else max_new_tokens,
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
    with _root(out) as root:
        plan = _Plan(model, tokenizer, settings, book, rivals, sets, wanted, retry, progress)
        return plan.carry_out(root)


@contextmanager
def _root(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="memplug-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class _Plan:
    """All runs of a comparison."""

    model: Any
    tokenizer: Any
    settings: Settings
    book: Casebook
    rivals: list[Contender]
    sets: list[General]
    fit_cases: int | Sequence[Case] | None
    retry: bool
    progress: bool

    def carry_out(self, root: Path) -> Comparison:
        """Make this process's runs; the first process gathers all."""
        settings, here = self.settings, Processes.here()
        data = self.book.account(settings.edits, settings.seeds)
        identity = {
            "fingerprint": fingerprint(self.model),
            **self.book.identity(settings.edits, settings.seeds),
        }
        if here.rank == 0:
            Folder.open(root, settings, identity, self.rivals)
        here.wait()
        folder = Folder(root)
        self._check_cases(folder)
        bits = bits_of(self.model)
        todo = [(rival, seed) for seed in settings.seeds for rival in self.rivals]
        try:
            for seed, rivals in _by_seed(here.mine(todo)):
                self._seed(folder, seed, rivals, bits, here)
        except NotRestoredError:
            self._gather(folder, data, todo)
            raise
        here.wait()
        return self._gather(folder, data, todo, write=here.rank == 0)

    def _check_cases(self, folder: Folder) -> None:
        """All seeds' cases fit the model, before the first hour of work; those that were asked before do."""
        for seed in self.settings.seeds:
            if not folder.base(seed).is_file():
                cases = self.book.draw(self.settings.edits, seed).cases
                check_targets(self.model, self.tokenizer, cases, self.settings.max_new_tokens)

    def _seed(
        self, folder: Folder, seed: int, rivals: Sequence[Contender], bits: str, here: Processes
    ) -> None:
        open_ = [rival for rival in rivals if self._open(folder.read(folder.run(rival.label, seed)))]
        if not open_ and folder.base(seed).is_file():
            return
        bench = self._bench(folder, seed, here)
        for rival in open_:
            result, error = _attempt(bench, rival)
            result["restored"] = bits_of(self.model) == bits
            if not result["restored"]:
                error = NotRestoredError(
                    f"{rival.label!r} did not leave the model as it was (parameters, buffers or hooks differ "
                    "after detach), so that nothing after it could be compared; load the model anew, and "
                    "leave the method out"
                )
                result = {**failed(rival, seed, error), "restored": False}
            made = {"environment": environment(self.settings.device), "command": self.settings.command}
            folder.write(folder.run(rival.label, seed), {**result, **made})
            state = folder.state(rival.label, seed)
            if error is None or not result["restored"] or not all_made(state, self.settings.edits):
                folder.forget(rival.label, seed)
            if isinstance(error, NotRestoredError):
                raise error

    def _open(self, run: Mapping[str, Any] | None) -> bool:
        return run is None or (self.retry and run["status"] == "failed")

    def _bench(self, folder: Folder, seed: int, here: Processes) -> Bench:
        settings, wanted = self.settings, self.fit_cases
        drawn = self.book.draw(settings.edits, seed)
        reference = self._refer(drawn)
        base = folder.read(folder.base(seed)) or {}
        if not {"answers", "general_answers", "preference"} <= base.keys():  # earlier versions kept less
            told = Scores.from_answers(reference.answers(drawn.cases), level=settings.level)
            base["scores"], base["answers"] = told.to_dict(), told.to_dict(answers=True)["answers"]
            asked = general_scores(self.sets, self.model, self.tokenizer, settings)
            base["general"], base["general_answers"] = asked
            base["preference"] = preferences(self.model, self.tokenizer, drawn, reference, settings)
            folder.write(folder.base(seed), base)
        return Bench(
            model=self.model,
            tokenizer=self.tokenizer,
            settings=settings,
            folder=folder,
            seed=seed,
            drawn=drawn,
            reference=reference,
            general=self.sets,
            fit_cases=None if wanted is None else lambda: self.book.fitting(wanted, settings.edits, seed),
            progress=self.progress and here.rank == 0,
        )

    def _refer(self, drawn: Drawn) -> Reference:
        return refer(
            self.model,
            self.tokenizer,
            drawn.cases,
            everything=True,
            batch_size=self.settings.batch_size,
            max_new_tokens=self.settings.max_new_tokens,
        )

    def _gather(
        self,
        folder: Folder,
        data: Mapping[str, Any],
        todo: Sequence[tuple[Contender, int]],
        write: bool = True,
    ) -> Comparison:
        files = dict.fromkeys(folder.run(rival.label, seed) for rival, seed in todo)
        files |= dict.fromkeys(sorted((folder.root / "runs").glob("*.json")))  # what earlier calls added
        runs = [one for file in files if (one := folder.read(file)) is not None]
        settings = self.settings.to_dict()
        settings["methods"] = list(dict.fromkeys([*settings["methods"], *(one["method"] for one in runs)]))
        settings["seeds"] = sorted({*settings["seeds"], *(one["seed"] for one in runs)})
        results = {
            "format": FORMAT,
            "version": VERSION,
            "environment": environment(self.settings.device),
            "settings": settings,
            "fingerprint": (folder.read(folder.root / "settings.json") or {}).get("fingerprint"),
            "data": dict(data),
            "base": {str(seed): folder.read(folder.base(seed)) for seed in settings["seeds"]},
            "runs": runs,
        }
        if write:
            folder.write(folder.root / "results.json", results)
        return Comparison(results)


def _attempt(bench: Bench, rival: Contender) -> tuple[dict[str, Any], Exception | None]:
    try:
        return run(bench, rival), None
    except Exception as error:
        if not is_failure(error):
            raise
        row = failed(rival, bench.seed, error)
        error.__traceback__ = None  # its frames hold the method's tensors
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return row, error


def _by_seed(todo: Sequence[tuple[Contender, int]]) -> list[tuple[int, list[Contender]]]:
    seeds = dict.fromkeys(seed for _, seed in todo)
    return [(seed, [rival for rival, own in todo if own == seed]) for seed in seeds]
