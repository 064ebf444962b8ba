"""A saved folder from somebody else: links, pipes and devices in it, and paths in its config."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import damage
import pytest
from families import TEXTS
from test_contract import Trace

import memplug
from memplug.saving.plugs import LoadError, peek


@pytest.fixture(scope="module")
def made(model, tokenizer, tmp_path_factory):
    """Saved plugs of two methods, by name."""
    folder = tmp_path_factory.mktemp("made")
    return {kind: damage.made(kind, model, tokenizer, folder / kind) for kind in ("icl", "memit")}


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made["icl"], tmp_path / "facts")


# ---------------------------------------------------------------------- what is no plain file


LINKS = {
    "a link": lambda file: file.symlink_to(file.with_name("elsewhere")),
    "a link to an endless device": lambda file: file.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a folder": lambda file: file.mkdir(),
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("name", ["plug.json", "tensors"])
def test_what_is_no_plain_file_is_not_read(name, kind, folder, model, tokenizer):
    (file,) = folder.glob(f"{name}*")
    shutil.copy(file, folder / "elsewhere")
    file.unlink()
    LINKS[kind](file)
    trace = Trace(model)
    with pytest.raises(
        LoadError, match=f"is {' '.join(kind.split()[:2])}, not a plain file, and is not read"
    ):
        memplug.load(folder, model, tokenizer)
    trace.check(model)
    if name == "plug.json":
        with pytest.raises(LoadError, match="not a plain file"):
            peek(folder)


def test_a_pipe_does_not_hang_the_command_line(folder):
    (folder / "plug.json").unlink()
    os.mkfifo(folder / "plug.json")
    done = subprocess.run(
        [sys.executable, "-m", "memplug", "list", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "is a pipe, not a plain file" in done.stderr


# ---------------------------------------------------------------------- paths


@pytest.fixture
def with_paths(made, tmp_path):
    """A saved memit plug that names a folder and a file, which nobody here has named."""
    folder = shutil.copytree(made["memit"], tmp_path / "facts")
    (tmp_path / "texts").write_text("\n".join(TEXTS))
    values, _ = damage.read(folder)
    values["config"] |= {"cache_dir": str(tmp_path / "cache"), "covariance": str(tmp_path / "texts")}
    damage.write(folder, values)
    return folder


def test_saved_paths_are_not_followed(with_paths, model, tokenizer, tmp_path):
    with pytest.warns(UserWarning, match="was saved with (cache_dir|covariance)=.*, which is not looked at"):
        plug = memplug.load(with_paths, model, tokenizer)
    with plug:
        before = dict(plug.edits)
        with pytest.raises(memplug.EditError, match="not read unless you name it: load.*covariance="):
            plug.edit("Where was Tam Wickes born?", "Marrow", "Tam Wickes")
        assert dict(plug.edits) == before
        plug.save(tmp_path / "again")
    assert not (tmp_path / "cache").exists()
    said = json.loads((tmp_path / "again" / "plug.json").read_text())["config"]
    assert said["cache_dir"] == str(tmp_path / "cache")  # what it was made with is kept, as data


@pytest.mark.filterwarnings("ignore:the plug in")
def test_paths_that_are_given_again_are_followed(with_paths, model, tokenizer, tmp_path):
    given = {"cache_dir": str(tmp_path / "mine"), "covariance": str(tmp_path / "texts")}
    with memplug.load(with_paths, model, tokenizer, **given) as plug:
        plug.edit("Where was Tam Wickes born?", "Marrow", "Tam Wickes")
    assert len(list((tmp_path / "mine").iterdir())) == 1
    assert not (tmp_path / "cache").exists()
    with memplug.load(with_paths, model, tokenizer, covariance=None) as plug:
        plug.edit("Where was Tam Wickes born?", "Marrow", "Tam Wickes")
    assert not (tmp_path / "cache").exists()


def test_a_path_for_which_there_is_no_use(made, model, tokenizer):
    with pytest.raises(ValueError, match="cache_dir is no path of 'icl'; it has none"):
        memplug.load(made["icl"], model, tokenizer, cache_dir="x")
    with pytest.raises(ValueError, match="k is no path of 'memit'; it has covariance, cache_dir"):
        memplug.load(made["memit"], model, tokenizer, k=1)
