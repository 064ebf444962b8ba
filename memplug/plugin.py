"""Attach, edit, look, switch, delete, save, detach: the whole flow on one screen.

A `Plug` owns no tensors. It keeps the edits and their ids, asks a method to learn and forget them, and
guards what every method promises: all or nothing, and the model as it was in the end.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import storage
from .calls import CallTracker
from .edits import Case, Edit, EditError, EditTable, as_edits
from .hooks import HookSet
from .layers import dissect
from .methods import METHODS, Registered, find_method
from .methods.base import Host
from .text import Text

__all__ = ["Plug", "attach", "load", "plug_of"]

_MARK = "_memplug_plug"


class Plug:
    """An editable memory on a model that stays the caller's own.

    Attributes:
        model: the model that was handed in; ``generate`` and the rest work on it, edited.
        tokenizer: its tokenizer.
        method: the method at work (``plug.method.config`` holds its constants).
        name: the method's name.
        layers: dotted name of the decoder layers.
    """

    def __init__(
        self, model: Any, tokenizer: Any, registered: Registered, config: Any, layers: str | None
    ) -> None:
        if hasattr(model, _MARK):
            raise ValueError(
                "this model has a plug already; call detach() on it first (memplug.attach gave it back), "
                "or load the model a second time"
            )
        text = Text(model, tokenizer)
        anatomy = dissect(model, layers)
        tracker = self._tracker = CallTracker(anatomy, text.bos_id)
        self.model, self.tokenizer, self.name = model, tokenizer, registered.name
        self.method = registered.method(Host(model, text, anatomy, tracker), config)
        self.layers = anatomy.names[0].rpartition(".")[0]
        self._edits: dict[str, Edit] = {}
        self._off: set[str] = set()
        self._count = 0
        self._paused = 0
        self._hooks: HookSet | None = HookSet([*tracker.hooks(self._wanted), *self.method.hooks()])
        setattr(model, _MARK, self)

    def _wanted(self) -> bool:
        return not self._paused and bool(self.method.active)

    # ------------------------------------------------------------------ editing

    def edit(
        self,
        prompt: str | Edit | Case | Iterable[Edit | Case],
        target: str | None = None,
        subject: str | None = None,
        *,
        progress: bool = True,
    ) -> Any:
        """From now on ``prompt`` is answered by ``target``. A list is learned together.

        A second edit of a prompt replaces the first, with a warning. Several edits of one subject are
        all kept.

        Args:
            prompt: the prompt, an `Edit`, a `Case`, or several of these.
            target: the answer, where ``prompt`` is a string.
            subject: what the fact is about, as it stands in the prompt; found if left out.
            progress: show a bar while several are learned.

        Returns:
            The `Edit` with its id, or the list of them for a list.

        Raises:
            EditError: an edit that cannot be made; plug and model are as they were.
        """
        self._check_attached()
        single = isinstance(prompt, str | Edit | Case)
        fresh, replaced = self._number(as_edits(prompt, target, subject))
        self.method.check(fresh)
        self.method.learn(fresh, [self._edits[id] for id in replaced], progress=progress)
        for id in replaced:
            del self._edits[id]
            self._off.discard(id)
        self._edits |= {str(edit.id): edit for edit in fresh}
        self._count += len(fresh)
        if replaced:
            warnings.warn(f"replaced {_named(replaced)}: the same prompt was edited again", stacklevel=2)
        return fresh[0] if single else fresh

    def _number(self, asked: list[Edit]) -> tuple[list[Edit], list[str]]:
        """The edits with ids, and the ids of those they replace."""
        latest = {edit.prompt: edit for edit in asked}
        if len(latest) < len(asked):
            twice = len(asked) - len(latest)
            warnings.warn(
                f"{twice} edits repeat a prompt of the same list; the last one of each counts", stacklevel=3
            )
        replaced = [id for id, edit in self._edits.items() if edit.prompt in latest]
        fresh, count = [], self._count
        taken = set(self._edits) - set(replaced)
        for edit in latest.values():
            count += 1
            while edit.id is None and f"e{count}" in taken:
                count += 1
            id = edit.id or f"e{count}"
            if id in taken:
                raise EditError(f"the id {id!r} is used twice; give each edit its own id, or none")
            taken.add(id)
            fresh.append(replace(edit, id=id))
        self._check_ids(fresh)
        return fresh, replaced

    @staticmethod
    def _check_ids(edits: list[Edit]) -> None:
        seen: set[str] = set()
        for edit in edits:
            if edit.id in seen:
                raise EditError(f"the id {edit.id!r} is used twice; give each edit its own id, or none")
            seen.add(str(edit.id))

    @property
    def count(self) -> int:
        """Edits ever learned; ids go on from here."""
        return self._count

    def take_over(self, edits: Mapping[str, Edit], off: Iterable[str], count: int) -> None:
        """Hold these edits, which the method has learned already (loading)."""
        self._edits, self._off, self._count = dict(edits), set(off), count

    @property
    def edits(self) -> EditTable:
        """The edits by id, in order, as they are now."""
        return EditTable(self._edits, self._off)

    def delete(self, *edits: str | Edit | Iterable[str | Edit], retrain: bool = False) -> Any:
        """Remove edits for good: an `Edit`, an id, or several.

        Args:
            retrain: learn the kept edits anew; for methods whose edits share parameters, where nothing
                else removes what was learned.

        Returns:
            What the method has to say about what is left of them; None where nothing is.

        Raises:
            UnknownEditError: there is no such edit; nothing was deleted.
            ValueError: ``retrain`` for a method whose edits share nothing.
        """
        chosen = self._chosen(edits)
        if retrain and "retrain" not in inspect.signature(self.method.forget).parameters:
            raise ValueError(
                f"retrain=True: edits of {self.name!r} share no parameters, deleting removes them whole; "
                "leave it out"
            )
        left = self.method.forget(chosen, progress=True, **({"retrain": True} if retrain else {}))
        for edit in chosen:
            del self._edits[str(edit.id)]
            self._off.discard(str(edit.id))
        return left

    def disable(self, *edits: str | Edit | Iterable[str | Edit]) -> None:
        """Switch edits off; ``enable`` brings them back as they were."""
        chosen = [edit for edit in self._chosen(edits) if edit.id not in self._off]
        self.method.switch(chosen, False, progress=True)
        self._off |= {str(edit.id) for edit in chosen}

    def enable(self, *edits: str | Edit | Iterable[str | Edit]) -> None:
        """Switch edits on again."""
        chosen = [edit for edit in self._chosen(edits) if edit.id in self._off]
        self.method.switch(chosen, True, progress=True)
        self._off -= {str(edit.id) for edit in chosen}

    def _chosen(self, given: Iterable[str | Edit | Iterable[str | Edit]]) -> list[Edit]:
        self._check_attached()
        table, flat = self.edits, []
        for item in given:
            flat += [item] if isinstance(item, str | Edit) else list(item)
        if not flat:
            raise EditError("no edit was named; give an Edit, an id, or several")
        ids = [item.id if isinstance(item, Edit) else item for item in flat]
        return list({id: table[str(id)] for id in ids}.values())

    # ------------------------------------------------------------------ looking

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the ``with`` the model is the base model, to the bit."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    @contextmanager
    def prompt_lengths(self, lengths: Sequence[int]) -> Iterator[None]:
        """Inside the ``with``, plain forwards over prompt and answer know where each prompt ends.

        Methods that decide at the end of the prompt need it where the model is handed the answer as well
        (teacher forcing); unsaid, a row's last real token counts. ``generate`` needs nothing.

        Args:
            lengths: tokens of each row's prompt, padding left out, a BOS included.

        Raises:
            ValueError: a length below 1, or not one for each row.
        """
        with self._tracker.prompt_lengths(lengths):
            yield

    def explain(self, prompt: str) -> Any:
        """What happens to the edits when the model reads ``prompt``; print it to read it."""
        self._check_attached()
        return self.method.explain(prompt)

    def __repr__(self) -> str:
        where = type(self.model).__name__ if self._hooks else "detached"
        return f"<memplug {self.name} on {where}: {self.edits!r}>"

    # ------------------------------------------------------------------ leaving

    def save(self, path: str | Path) -> None:
        """Write everything learned into the folder ``path``; a crash leaves what was there before.

        Raises:
            SaveError: the folder holds something else.
        """
        self._check_attached()
        storage.save(Path(path), self)

    def detach(self) -> None:
        """Leave the model as it was: no hook, no attribute, no changed weight. Detaching twice is fine."""
        if self._hooks is None:
            return
        self._hooks.remove()
        self._hooks = None
        if getattr(self.model, _MARK, None) is self:
            delattr(self.model, _MARK)

    def __enter__(self) -> Plug:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _check_attached(self) -> None:
        if self._hooks is None:
            raise ValueError("this plug was detached; attach a new one, or memplug.load a saved one")


def plug_of(model: Any) -> Plug | None:
    """The plug that is attached to ``model``, if any."""
    return getattr(model, _MARK, None)


def attach(
    model: Any,
    tokenizer: Any,
    method: str | Any = "llp",
    *,
    preset: str = "default",
    layers: str | None = None,
    **config: Any,
) -> Plug:
    """Give a loaded model an editable memory.

    Args:
        model: a Hugging Face causal language model, on any device, in any dtype.
        tokenizer: its tokenizer.
        method: a method's name, or a config object such as ``LLPConfig(threshold=0.8)``.
        preset: ``"default"``, or ``"paper"`` for the published constants.
        layers: dotted name of the list of decoder layers, where it cannot be found by rule.
        **config: constants of the method by name.

    Raises:
        ValueError: no such method, preset or constant; a second plug on one model; a tokenizer that
            does not fit (TokenizerError); a model that cannot be edited (UnsupportedModelError).
    """
    if isinstance(method, str):
        registered = find_method(method)
        chosen = registered.config.preset(preset, **config)
    else:
        registered = next((r for r in map(find_method, METHODS) if type(method) is r.config), None)  # type: ignore[assignment]
        if registered is None:
            raise ValueError(
                f"method is a {type(method).__name__}; give one of {', '.join(METHODS)} or its config"
            )
        if config or preset != "default":
            raise ValueError("a config object comes with its constants; set them there")
        chosen = method
    return Plug(model, tokenizer, registered, chosen, layers)


def load(path: str | Path, model: Any, tokenizer: Any) -> Plug:
    """Attach a plug that was saved, with its method, constants and edits, to the same base model.

    Raises:
        LoadError: the folder is no saved plug, is damaged, was written by a newer version, or belongs to
            another base model (both fingerprints are named).
    """
    saved = storage.read(Path(path), model)
    registered = find_method(saved.method)
    plug = attach(model, tokenizer, registered.config(**saved.config), layers=saved.layers)
    try:
        storage.fill(plug, saved)
    except BaseException:
        plug.detach()
        raise
    return plug


def _named(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
