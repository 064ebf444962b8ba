"""Several processes and one folder; a machine that fails; a process that is killed while it saves."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError
from saver import QUICK, Saver

import memplug
from memplug.saving import plugs as storage
from memplug.saving.files import LOCK, locked
from memplug.saving.plugs import LoadError, SaveError, peek

ROUNDS = 25


@pytest.fixture(scope="module")
def start(model, tokenizer, tmp_path_factory):
    """The folder of the model; that of a plug with one edit."""
    home, folder = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("plug") / "facts"
    model.save_pretrained(home)
    tokenizer.save_pretrained(home)
    with memplug.attach(model, tokenizer, "icl", **QUICK) as plug:
        plug.edit("Where was Ada Quill born?", "Zarnow", "Ada Quill")
        plug.save(folder)
    return home, folder


@pytest.fixture(scope="module")
def savers(start):
    both = [Saver(start[0]), Saver(start[0])]
    try:
        for saver, name in zip(both, ("Tam", "Orlo"), strict=True):
            assert saver.do(f"edit {name}") == "ok"
        yield both
    finally:
        for saver in both:
            saver.end()


@pytest.fixture
def plug(model, tokenizer, start):
    with memplug.load(start[1], model, tokenizer) as plug:
        yield plug


def both(savers, line):
    for saver in savers:
        saver.ask(line)
    return [saver.answer() for saver in savers]


def subjects(folder):
    return [edit.subject for edit in peek(folder)[1].values()]


@pytest.mark.slow
def test_two_that_save_at_once_leave_one_of_the_two(savers, model, tokenizer, tmp_path):
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        assert both(savers, f"save {folder}") == ["ok", "ok"]
        assert subjects(folder) in (["Tam"], ["Orlo"])
        memplug.load(folder, model, tokenizer).detach()  # the tensors are there, too
        assert len(list(folder.iterdir())) == 3


@pytest.mark.slow
def test_of_two_that_loaded_the_same_the_second_to_save_is_told(start, savers, model, tokenizer, tmp_path):
    for number in range(ROUNDS):
        folder = shutil.copytree(start[1], tmp_path / str(number))
        assert both(savers, f"load {folder}") == ["ok", "ok"]
        for saver, name in zip(savers, ("Tam", "Orlo"), strict=True):
            assert saver.do(f"edit {name}") == "ok"
        done = both(savers, f"save {folder}")
        told = 1 - done.index("ok")
        assert "was saved by another process or plug since this one was loaded" in done[told], done
        assert "load it again" in done[told]
        assert subjects(folder) == ["Ada Quill", ("Tam", "Orlo")[1 - told]]
        memplug.load(folder, model, tokenizer).detach()
        name = ("Tam", "Orlo")[told]
        assert [savers[told].do(line) for line in (f"load {folder}", f"edit {name}", f"save {folder}")] == [
            "ok"
        ] * 3
        assert sorted(subjects(folder)) == ["Ada Quill", "Orlo", "Tam"]


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_whole_save_and_no_lock(start, model, tokenizer, tmp_path):
    folder, draw = shutil.copytree(start[1], tmp_path / "facts"), random.Random(0)
    for _ in range(4):
        saver = Saver(start[0])
        try:
            assert saver.do(f"load {folder}") == "ok"
            assert saver.do(f"forever {folder}") == "begun"
            time.sleep(0.05 + 0.2 * draw.random())
        finally:
            saver.end()
        with memplug.load(folder, model, tokenizer) as plug:
            assert list(plug.edits) == ["e1"]
            plug.save(folder)
        memplug.load(folder, model, tokenizer).detach()
        assert len(list(folder.iterdir())) == 3


def test_who_may_overwrite_what(model, tokenizer, start, tmp_path):
    folder, told = shutil.copytree(start[1], tmp_path / "facts"), "by another process or plug"
    with memplug.load(folder, model, tokenizer) as plug:
        plug.disable("e1")
        plug.save(folder)
        plug.save(folder)  # its own earlier save is in nobody's way
        plug.edit("Where was Tam Wickes born?", "Marrow", "Tam Wickes")
        plug.save(folder)
    with memplug.load(start[1], model, tokenizer) as late:
        with pytest.raises(SaveError, match=told):
            late.save(folder, overwrite=False)  # it never saw what is there
        late.saves.add(folder, "what was there before")
        with pytest.raises(SaveError, match=f"{told}.* into another folder, or replace it with save.*=True"):
            late.save(folder)
        assert len(peek(folder)[1]) == 2
        late.save(folder, overwrite=True)
        assert len(peek(folder)[1]) == 1
        late.disable("e1")
        late.save(folder)
        late.enable("e1")
        shutil.rmtree(folder)
        late.save(folder)  # one that is gone cannot be lost
    with memplug.attach(model, tokenizer, "icl", **QUICK) as fresh:
        fresh.save(folder)  # as asked: it was not loaded from there


def test_waiting_has_an_end(tmp_path):
    second = locked(tmp_path, patience=0.2)
    with locked(tmp_path), pytest.raises(SaveError, match="another process has been saving into"), second:
        pass
    with locked(tmp_path, patience=0):
        pass


def test_a_load_waits_for_no_lock(model, tokenizer, start):
    with locked(start[1]):
        memplug.load(start[1], model, tokenizer).detach()


def test_a_load_that_a_save_overtakes_reads_again(model, tokenizer, plug, start, tmp_path, monkeypatch):
    folder = shutil.copytree(start[1], tmp_path / "facts")
    plug.edit("Where was Tam Wickes born?", "Marrow", "Tam Wickes")
    original, left = storage._tensors, [2]

    def overtaken(path, digest):
        if left[0]:
            left[0] -= 1
            plug.disable("e1") if left[0] else plug.enable("e1")
            plug.save(folder)
        return original(path, digest)

    monkeypatch.setattr(storage, "_tensors", overtaken)
    saved = storage.read(folder, model)
    assert list(saved.said.edits) == ["e1", "e2"]


# ---------------------------------------------------------------------- faults of the machine


def entries(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


FAULTS = {
    "disk full while tensors are written": (
        "memplug.saving.plugs.save_file",
        SafetensorError("I/O error: No space"),
    ),
    "disk full at the flush": ("os.fsync", OSError(errno.ENOSPC, "No space left on device")),
    "read-only": ("pathlib.Path.mkdir", OSError(errno.EROFS, "Read-only file system")),
    "no permission to replace": ("os.replace", PermissionError(errno.EACCES, "Permission denied")),
    "no permission to lock": (
        "memplug.saving.files.FileLock.acquire",
        PermissionError(errno.EACCES, "Permission denied"),
    ),
    "no locks": ("memplug.saving.files.FileLock.acquire", NotImplementedError("no flock here")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_changes_nothing(fault, plug, model, tokenizer, start, tmp_path, monkeypatch):
    folder = shutil.copytree(start[1], tmp_path / "facts")
    plug.edit("Where was Tam Wickes born?", "Marrow", "Tam Wickes")
    before, (where, error) = entries(folder), FAULTS[fault]

    def fail(*_args, **_kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(SaveError, match=f"facts .*{getattr(error, 'strerror', None) or error}.*[.;]"):
            plug.save(folder)
    assert entries(folder) == before
    plug.save(folder)
    plug.detach()
    with memplug.load(folder, model, tokenizer) as loaded:
        assert list(loaded.edits) == ["e1", "e2"]


@contextlib.contextmanager
def files_of_at_most(size):
    """The system refuses larger ones, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 700])
def test_a_disk_that_takes_no_more(size, plug, start, tmp_path):
    folder = shutil.copytree(start[1], tmp_path / "facts")
    before = entries(folder)
    plug.edit("Where was Tam Wickes born?", "Marrow", "Tam Wickes")
    with files_of_at_most(size), pytest.raises(SaveError, match="could not be saved .*File too large"):
        plug.save(folder)
    assert entries(folder) == before
    with files_of_at_most(size), pytest.raises(SaveError, match="could not be saved"):
        plug.save(tmp_path / "new")
    plug.save(folder)
    plug.save(tmp_path / "new")
    assert subjects(tmp_path / "new") == subjects(folder) == ["Ada Quill", "Tam Wickes"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_written(plug, start, tmp_path):
    folder = shutil.copytree(start[1], tmp_path / "facts")
    folder.chmod(0o500)
    try:
        with pytest.raises(SaveError, match="Permission denied"):
            plug.save(folder)
    finally:
        folder.chmod(0o700)
    plug.save(folder)


def test_what_cannot_be_tidied_up_is_no_failure(plug, start, tmp_path, monkeypatch):
    folder = shutil.copytree(start[1], tmp_path / "facts")
    plug.edit("Where was Tam Wickes born?", "Marrow", "Tam Wickes")

    def fail(*_args, **_kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        plug.save(folder)
    assert subjects(folder) == ["Ada Quill", "Tam Wickes"]
    plug.save(folder)
    assert len(list(folder.iterdir())) == 3


def test_an_editor_that_cannot_be_written(tiny_plug, tmp_path, monkeypatch):
    with tiny_plug("malmen") as plug:
        plug.save_editor(tmp_path / "editor")
        before = (tmp_path / "editor").read_bytes()
        with (
            files_of_at_most(64),
            pytest.raises(SaveError, match="editor could not be saved .File too"),
        ):
            plug.save_editor(tmp_path / "editor")
    assert (tmp_path / "editor").read_bytes() == before


def test_a_manifest_that_may_not_be_read(model, tokenizer, start, tmp_path, monkeypatch):
    folder = shutil.copytree(start[1], tmp_path / "facts")
    original = os.open

    def fail(path, *args, **kwargs):
        if str(path).endswith("plug.json"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(LoadError, match="plug.json cannot be read .Permission denied"):
        memplug.load(folder, model, tokenizer)
