"""Edit, look, switch, delete, save, detach: the whole flow on one screen.

A `Plug` owns no tensors. It keeps the edits and their ids, asks a method to learn and forget them, and
guards what every method promises: all or nothing, and the model as it was in the end.

Any number of threads may run the model, also while one edits, switches, deletes, saves or detaches; changes
are made one after the other. See `gate`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .attached import MARK, Attached
from .edits import Case, Edit, as_edits
from .ids import listed, numbered
from .interface import ChangesWeights, Fits
from .methods.editors import SavedEditor, write_editor
from .methods.unlearned import unlearned, warn_unlearned
from .model.architecture import uncast
from .saving import plugs as storage
from .saving.hub import push
from .text.chat import Given, as_prompt, is_chat, question, show

__all__ = ["Plug"]


class Plug(Attached):
    """An editable memory on a model that stays the caller's own.

    Attributes:
        model: the model that was handed in; ``generate`` and the rest work on it, edited.
        tokenizer: its tokenizer.
        method: the method at work (``plug.method.config`` holds its constants).
        name: the method's name.
        layers: dotted name of the decoder layers.
        saves: the saves that it was loaded from or made.
        store: where each change is kept before the call returns; None where it was attached without one.
    """

    # ------------------------------------------------------------------ editing

    def edit(
        self,
        prompt: Given | Edit | Case | Iterable[Edit | Case],
        target: str | None = None,
        subject: str | None = None,
        *,
        progress: bool = True,
    ) -> Any:
        """From now on ``prompt`` is answered by ``target``. A list is learned together.

        A second edit of a prompt replaces the first, with a warning; a text and the same text as a single
        user turn are one prompt. Several edits of one subject are all kept. Edits that the model, asked with
        their own prompts, does not answer with their targets are kept with a warning, and kept as well where
        warnings are errors.

        Args:
            prompt: the prompt (a text, or messages with roles and contents of which the last is the user's
                question), an `Edit`, a `Case`, or several of the latter two.
            target: the answer, where ``prompt`` is a text or messages.
            subject: what the fact is about, as it stands in the question; found if left out and plain.
            progress: show a bar while several are learned.

        Returns:
            The `Edit` with its id, or the list of them for a list.

        Raises:
            EditError: an edit that cannot be made; plug and model are as they were.
            StoreError: it cannot be stored; plug and model are as they were. So of all changes.
            ChatTemplateError: messages, and the tokenizer has no chat template that takes them.
        """
        self._check_attached()
        single = isinstance(prompt, str | Edit | Case) or is_chat(prompt)
        asked = as_edits(prompt, target, subject)
        with self._changing("edit"):
            fresh, replaced = numbered(asked, self._edits, self._count)
            self.method.check(fresh)
            told = self.method.learn(fresh, [self._edits[id] for id in replaced], progress=progress)
            kept = {id: edit for id, edit in self._edits.items() if id not in replaced}
            self.take_over(
                kept | {str(edit.id): edit for edit in fresh},
                self._off.difference(replaced),
                self._count + len(fresh),
            )
            failed, trouble = list[Edit](), ""  # from here on the edits are in force, whatever happens
            try:
                failed = self.unlearned([edit for edit in fresh if edit.id not in (told or ())])
            except RuntimeError as error:  # out of memory
                trouble = str(error)
        warn_unlearned([show(edit.prompt) for edit in failed], len(fresh), 2)
        if trouble:
            warnings.warn(
                f"the edits are made, but whether they were learned could not be asked: {trouble}",
                stacklevel=2,
            )
        if replaced:
            warnings.warn(f"replaced {listed(replaced)}: the same prompt was edited again", stacklevel=2)
        return fresh[0] if single else fresh

    def unlearned(self, edits: Sequence[Edit]) -> list[Edit]:
        """Those of these edits in force that the model, asked with their own prompts, does not answer with
        their targets; none while it is paused."""
        return [] if self._paused else unlearned(self._host, edits)

    def delete(
        self, *edits: str | Edit | Iterable[str | Edit], retrain: bool = False, replay: bool = False
    ) -> Any:
        """Remove edits for good: an `Edit`, an id, or several.

        Args:
            retrain: learn the kept edits anew; for methods whose edits share parameters, where nothing
                else removes what was learned.
            replay: make all later edits anew; for methods whose edits were predicted on weights that held
                the deleted ones.

        Returns:
            What the method has to say about what is left of them; None where nothing is.

        Raises:
            UnknownEditError: there is no such edit; nothing was deleted.
            ValueError: ``retrain`` or ``replay`` for a method that has no use for it.
        """
        how = {name: True for name, asked in (("retrain", retrain), ("replay", replay)) if asked}
        for name in how.keys() - inspect.signature(self.method.forget).parameters.keys():
            raise ValueError(
                f"{name}=True: deleting an edit of {self.name!r} removes it whole without that; leave it out"
            )
        with self._changing("delete"):
            chosen = self._chosen(edits)
            left = self.method.forget(chosen, progress=True, **how)
            gone = {str(edit.id) for edit in chosen}
            kept = {id: edit for id, edit in self._edits.items() if id not in gone}
            self.take_over(kept, self._off - gone, self._count)
        return left

    def disable(self, *edits: str | Edit | Iterable[str | Edit]) -> None:
        """Switch edits off; ``enable`` brings them back as they were."""
        with self._changing("disable"):
            chosen = [edit for edit in self._chosen(edits) if edit.id not in self._off]
            self.method.switch(chosen, False, progress=True)
            self.take_over(self._edits, self._off.union(str(edit.id) for edit in chosen), self._count)

    def enable(self, *edits: str | Edit | Iterable[str | Edit]) -> None:
        """Switch edits on again."""
        with self._changing("enable"):
            chosen = [edit for edit in self._chosen(edits) if edit.id in self._off]
            self.method.switch(chosen, True, progress=True)
            self.take_over(self._edits, self._off.difference(str(edit.id) for edit in chosen), self._count)

    # ------------------------------------------------------------------ learning to edit

    def fit(self, cases: Iterable[Case], **options: Any) -> Any:
        """Teach the method to edit this model, from cases that share no subject with later edits.

        Args:
            cases: edits with rephrases and locality probes.
            **options: of the method (progress, checkpoint, ...).

        Raises:
            ValueError: the method needs no fitting, the plug holds edits already, or cases are missing.
        """
        self._check_attached()
        if not isinstance(self.method, Fits):
            raise ValueError(f"{self.name!r} needs no fitting; call edit(...) at once")
        with self._changing("fit"):
            if self._edits:
                raise ValueError(f"the plug holds {len(self._edits)} edits; delete them, or fit a fresh plug")
            return self.method.fit(list(cases), **options)

    def save_editor(self, path: str | Path, *, half: bool = False) -> None:
        """Write what `fit` learned to a file; ``attach(..., editor=path)`` takes it up again.

        Args:
            path: the file.
            half: store networks in half precision: half the size, and steps of fitting that were smaller than
                a thousandth of a weight are lost.

        Raises:
            ValueError: there is nothing fitted.
        """
        self._check_attached()
        if not isinstance(self.method, Fits):
            raise ValueError(f"{self.name!r} has no editor to save; plug.save(folder) keeps its edits")
        with uncast():
            tensors = self.method.editor_state()
        with self.alone():
            write_editor(Path(path), self.name, self.method.config, tensors, self.model, half)

    def take_editor(self, saved: SavedEditor) -> None:
        """Edit with this editor from now on.

        Raises:
            ValueError: it belongs to another method or other constants.
        """
        if saved.method != self.name or not isinstance(self.method, Fits):
            raise ValueError(
                f"the editor was fitted for {saved.method!r}, not {self.name!r}; name that method"
            )
        with self._lock, uncast():
            self.method.load_editor(saved.tensors)

    # ------------------------------------------------------------------ looking

    def explain(self, prompt: Given) -> Any:
        """What happens to the edits when the model reads ``prompt``; print it to read it.

        Args:
            prompt: a text, or messages, which are read through the chat template.

        Raises:
            ValueError: the prompt is neither, is empty, or is longer than the model's context.
        """
        self._check_attached()
        asked = as_prompt(prompt)
        if not question(asked).strip():
            raise ValueError(f"the prompt is empty ({prompt!r}); give it some text")
        if question(asked) != question(asked).encode(errors="ignore").decode():
            raise ValueError(f"the prompt is no text ({prompt!r}: half a character); mend its encoding")
        self._text.check_size(asked)
        self._text.check_length(self._text.encode(asked), asked)
        with self._lock, self._tracker.gate.uninterrupted(), uncast():
            self._check_attached()
            return self.method.explain(asked)

    def __repr__(self) -> str:
        where = type(self.model).__name__ if self._hooks else "detached"
        return f"<memplug {self.name} on {where}: {self.edits!r}>"

    # ------------------------------------------------------------------ leaving

    def save(self, path: str | Path, *, overwrite: bool | None = None) -> None:
        """Write everything learned into the folder ``path``; a crash leaves what was there before.

        Processes that save into one folder take turns.

        Args:
            path: the folder; made if it is not there.
            overwrite: whether an earlier save in it may be replaced. None: yes, unless this plug was loaded
                from or saved into the folder, and it holds another save since. False: only a save that this
                plug was loaded from or made itself. True: any.

        Raises:
            SaveError: the folder holds something else, or a save that may not be replaced; or it cannot be
                written (disk full, no permission, ...). What was there before is as it was.
        """
        folder = Path(path)
        with self._lock, self._tracker.gate.uninterrupted(), uncast():
            self._check_attached()
            storage.save(folder, self, self.saves.replaceable(folder, overwrite))

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        message: str | None = None,
    ) -> str:
        """Save into a repository of the Hugging Face Hub, with a card that lists the edits.

        ``memplug.load(repository, model, tokenizer)`` takes it up again.

        Args:
            repository: its id, "user/facts"; made if it is not there.
            private: whether a new one is private; None is the account's own setting.
            token: None is the one that `hf auth login` left.
            message: of the commit.

        Returns:
            The URL of the commit.

        Raises:
            SaveError: the Hub refuses it, or cannot be reached.
        """
        self._check_attached()
        return push(self, repository, private, token, message)

    def detach(self) -> None:
        """Leave the model as it was: no hook, no attribute, no changed weight.

        Waits for forwards and changes of other threads that are under way. Detaching twice is fine: where the
        first was broken off, the second goes on with it.
        """
        with self._lock, self._tracker.gate.changing(), uncast():
            if self._hooks is None:
                return
            self._hooks.remove()
            if isinstance(self.method, ChangesWeights):
                self.method.release()
            if getattr(self.model, MARK, None) is self:
                delattr(self.model, MARK)
            self._hooks = None
        if self.store is not None:
            self.store.close()

    def merge(self) -> Any:
        """Make the edits part of the weights and detach: what is given back is an ordinary model.

        Raises:
            ValueError: the method's edits are not in the weights.
        """
        self._check_attached()
        if not isinstance(self.method, ChangesWeights):
            raise ValueError(
                f"edits of {self.name!r} are not weights and cannot be merged; save the plug instead"
            )
        with self._lock, self._tracker.gate.changing(), uncast():
            self.method.merge()
            self.detach()
        return self.model

    def __enter__(self) -> Plug:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()
