"""Ctrl-C at any line of an edit, a switch, a deletion, a save, a pause or a detach: all or nothing of it.

A spread sample of the lines; with MEMPLUG_EVERY_LINE=1 all of them, which takes some minutes a method.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from families import METHODS, TEXTS, method_of
from locating import QUICK as LOCATING
from test_contract import CASES, Trace, encode

import memplug
from memplug.model.gate import Gate
from memplug.saving import plugs as storage

BORN, FOUNDED = "Where was Ada Quill born?", "Who founded the Orlo Bridge Company?"
OWN = str(Path(memplug.__file__).parent)
GIVEN = {
    "llp-answer": METHODS["llp-answer"] | {"value_steps": 2},
    "llp": METHODS["llp"] | {"value_steps": 2, "key_steps": 2},
    "elder": METHODS["elder"] | {"steps": 2},
    "grace-asked": METHODS["grace-asked"] | {"steps": 2},
    "icl": {},
    "finetune": {"steps": 2, "guard_every": 1, "guard_texts": tuple(TEXTS), "keep": 0},
    "memit": LOCATING | {"steps": 2},
    "mend": METHODS["mend"],
}
EVERY = bool(os.environ.get("MEMPLUG_EVERY_LINE"))
SAMPLE = 5  # lines of each call


@pytest.fixture(autouse=True)
def interruptible():
    """A process that a shell started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", params=GIVEN)
def saved(request, model, tokenizer, tmp_path_factory):
    """The method's place in the list, and its plug with one edit in force and one off."""
    name, path = request.param, tmp_path_factory.mktemp("plug") / "facts"
    with (
        warnings.catch_warnings(),
        memplug.attach(copy.deepcopy(model), tokenizer, method_of(name), **GIVEN[name]) as plug,
    ):
        warnings.simplefilter("ignore")
        if name == "mend":
            plug.fit(CASES, progress=False)
        plug.edit(BORN, "Zarnow", "Ada Quill")
        plug.edit("Who is Tam Wickes?", "Ada", "Tam Wickes")
        plug.disable("e2")
        plug.save(path)
    return list(GIVEN).index(name), path


class Lines:
    """Notes which of memplug's lines a call runs, in order, and how often.

    ``at``: the line at which it is broken off, and at the how many-th time.
    """

    def __init__(self, at=(None, 1), hard=False):
        self.seen, self._at, self._hard = {}, at, hard

    def __enter__(self):
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _enter(self, frame, _event, _arg):
        return self._line if frame.f_code.co_filename.startswith(OWN) else None

    def _line(self, frame, event, _arg):
        if event == "line":
            line = frame.f_code.co_filename, frame.f_lineno
            self.seen[line] = self.seen.get(line, 0) + 1
            if (line, self.seen[line]) == self._at:
                if self._hard:
                    raise KeyboardInterrupt
                signal.raise_signal(signal.SIGINT)
        return self._line


def paused(plug, folder):
    with plug.paused():
        pass


CALLS = {
    "edit": lambda plug, _: plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company"),
    "disable": lambda plug, _: plug.disable("e1"),
    "enable": lambda plug, _: plug.enable("e2"),
    "delete": lambda plug, _: plug.delete("e1"),
    "save": lambda plug, folder: plug.save(folder),
    "pause": paused,
    "detach": lambda plug, _: plug.detach(),
}


class Place:
    """Where calls are broken off: a plug that is loaded anew for each."""

    def __init__(self, saved, model, tokenizer, folder):
        self._saved, self._model, self._tokenizer = saved, model, tokenizer
        self.folder = folder
        self.trace = Trace(copy.deepcopy(model))

    def fresh(self):
        return memplug.load(self._saved, copy.deepcopy(self._model), self._tokenizer)

    def logits(self, plug):
        found = []

        def run():
            with torch.no_grad():
                found.append(plug.model(**encode(self._tokenizer, BORN, FOUNDED)).logits)

        run()
        thread = threading.Thread(target=run, daemon=True)  # which would wait for a gate that was left shut
        thread.start()
        thread.join(30)
        assert len(found) == 2, "another thread's forward waits for ever"
        assert torch.equal(*found)
        return found[0]

    def state(self, plug):
        tensors, meta = plug.method.state()
        held = {name: tensor.clone() for name, tensor in tensors.items()}
        trace = Trace(plug.model)
        return held, meta, repr(plug.edits), plug.count, self.logits(plug), trace.modules, trace.flags

    @staticmethod
    def same(one, two):
        (held, *rest, logits, modules, flags), (other, *others, bits, ones, marks) = one, two
        return (
            held.keys() == other.keys()
            and all(torch.equal(tensor, other[name]) for name, tensor in held.items())
            and torch.equal(logits, bits)
            and (rest, modules, flags) == (others, ones, marks)
        )


@pytest.fixture
def place(saved, model, tokenizer, tmp_path):
    return Place(saved[1], model, tokenizer, tmp_path / "saved")


def chosen(places, offset):
    if EVERY or len(places) <= SAMPLE:
        return places
    step = len(places) / SAMPLE
    return [places[int((i + (offset * 0.37) % 1) * step)] for i in range(SAMPLE)]


def lines_and_forwards(seen, offset):
    """Where to break off: lines at their first time, and forwards, at the begin of each."""
    code = Gate.enter.__code__
    enter = code.co_filename, min(line for *_, line in code.co_lines() if line and line > code.co_firstlineno)
    forwards = [(enter, n + 1) for n in range(seen.get(enter, 0))]
    return chosen([(line, 1) for line in seen], offset) + chosen(forwards, offset)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_broken_off_has_been_done_or_has_not(saved, place, name):
    call = CALLS[name]
    with place.fresh() as plug:
        before = place.state(plug)
        if name == "save":
            plug.save(place.folder)
            plug.disable("e1")
            before = place.state(plug)
        with Lines() as lines:
            call(plug, place.folder)
        if name != "detach":
            after = place.state(plug)
    for at in lines_and_forwards(lines.seen, saved[0]):
        where = f"{name}, broken off at {at}"
        with place.fresh() as plug:
            if name == "save":
                plug.disable("e1")
            with Lines(at), suppress(KeyboardInterrupt):
                call(plug, place.folder)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, where
            if name != "detach":
                now = place.state(plug)
                done = place.same(now, after)
                assert done or place.same(now, before), where
                if not done:  # the next one does it
                    call(plug, place.folder)
                    assert place.same(place.state(plug), after), where
            plug.detach()
            plug.detach()
            place.trace.check(plug.model)
            if name == "save":
                storage.read(place.folder, plug.model)
                assert storage.peek(place.folder)[1].keys() == {"e1", "e2"}, where


def test_a_detach_that_any_error_broke_off_is_finished_by_the_next(saved, place):
    with place.fresh() as plug, Lines() as lines:
        plug.detach()
    # A tracer can raise where nothing else can, between a lock that is taken and its `with`.
    mine = [(line, 1) for line in lines.seen if Path(line[0]).name not in ("gate.py", "interrupts.py")]
    for at in chosen(mine, saved[0]):
        with place.fresh() as plug:
            with Lines(at, hard=True), suppress(KeyboardInterrupt):
                plug.detach()
            plug.detach()
            place.trace.check(plug.model)
