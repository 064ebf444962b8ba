"""What the edited modules read on ordinary text: the second moments of their keys, kept on disk.

MEMIT, equation 15: ``C = lambda E[k k']`` stands for all facts that the module holds already. The file is one
safetensors file with JSON in its header; it belongs to one base model, a part of whose fingerprint is in its
name, and is refused for any other.

Letters: M modules, d_k a module's input width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from ...configs import SavedPath
from ...edits import EditError
from ...interface import Host
from ...model.architecture import evaluating
from ...model.hooks import Hook, OwnHooks, run_through
from ...retrieval.samples import sample_texts
from ...saving.files import LoadError, saving, write_atomically
from ...saving.manifest import FORMAT, parsed
from ...saving.plugs import fingerprint
from ...text.chat import in_chat
from ...text.printable import brief
from ...weights.modules import LinearModule
from ..inweights.rows import chunks
from .config import LocateConfig

__all__ = ["Moments", "moments_of", "second_moments"]

_KEY = "memplug"
_ROWS = 32
_TOP_K = 200  # of the text that the model writes itself


@dataclass(frozen=True)
class Moments:
    """Second moments of the modules' inputs.

    Attributes:
        by_site: float32 [d_k,d_k] by module, the mean of ``k k'`` over tokens.
        tokens: how many tokens the mean is over.
    """

    by_site: dict[str, Tensor]
    tokens: int


def moments_of(host: Host, sites: Sequence[LinearModule], config: LocateConfig) -> Moments:
    """The moments on the text that ``config`` names, from its cache where they are kept there.

    The model must be the base model as it is.

    Raises:
        EditError: the text cannot be read, has no token, or is a file that only a saved config names.
        SaveError: they cannot be written into the cache.
        LoadError: the kept file is damaged, or was made for another base model (both fingerprints are named).
    """
    named = [site.name for site in sites]
    source = [config.covariance, config.covariance_texts, config.covariance_length, config.seed]
    if isinstance(config.covariance, SavedPath):
        raise EditError(
            f"the plug was saved with covariance={brief(config.covariance)}, a file that is not read unless "
            "you name it: load(folder, model, tokenizer, covariance=...) with it, or with None for text that "
            "the model writes itself"
        )
    if isinstance(config.covariance, str):
        source[0] = hashlib.sha256(_file(config.covariance)).hexdigest()
    asked = hashlib.sha256(json.dumps([source, named]).encode()).hexdigest()[:16]
    path = None
    if config.cache_dir is not None and not isinstance(config.cache_dir, SavedPath):
        name = f"moments-{type(host.model).__name__}-{fingerprint(host.model)[:8]}-{asked}.safetensors"
        path = Path(config.cache_dir) / name
        if path.is_file():
            return _read(path, host.model, sites)
    moments = second_moments(host, sites, _texts(host, config), config.covariance_length)
    if path is not None:
        _write(path, host.model, moments)
    return moments


def second_moments(host: Host, sites: Sequence[LinearModule], texts: Sequence[str], length: int) -> Moments:
    """The mean of ``k k'`` over all tokens of the texts, each cut to ``length`` tokens; summed in float64.

    Raises:
        EditError: no text has a token.
    """
    rows = [ids for text in texts if (ids := host.text.encode(text)[: min(length, host.text.max_length)])]
    if host.text.has_chat and rows:
        # What a template puts around a question is read in every chat.
        chats = [host.text.encode(in_chat(host.text.decode(ids))) for ids in rows]
        rows += [ids for ids in chats if len(ids) < host.text.max_length]
    if not rows:
        raise EditError("the text for the covariance has no token; give texts that are not empty")
    rows.sort(key=len)
    sums = {s.name: torch.zeros(s.d_k, s.d_k, dtype=torch.float64, device=s.device) for s in sites}
    last = max(site.layer for site in sites)
    for part in chunks(range(len(rows)), _ROWS):
        batch = host.text.batch([rows[i] for i in part])
        real = batch.mask.bool().flatten()

        def add(site: LinearModule, real: Tensor = real) -> Hook:
            def before(_m: nn.Module, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
                keys = args[0].detach().reshape(-1, site.d_k)
                if len(keys) != len(real):
                    raise EditError(
                        f"{site.name} is not called once on every token; name other modules with "
                        "modules=(...)"
                    )
                keys = keys[real.to(keys.device)].double()
                sums[site.name] += (keys.T @ keys).to(sums[site.name].device)

            return Hook(site.module, "before", before)

        with evaluating(host.model), OwnHooks(map(add, sites)):
            run_through(host.architecture, last, partial(host.forward, host.architecture.decoder, batch))
    tokens = sum(map(len, rows))
    return Moments({name: (total / tokens).float() for name, total in sums.items()}, tokens)


def _texts(host: Host, config: LocateConfig) -> list[str]:
    given = config.covariance
    if given is None:
        return sample_texts(host.text, config.covariance_texts, config.covariance_length, _TOP_K, config.seed)
    if isinstance(given, str):
        lines = _file(given).decode(errors="replace").splitlines()
        given = tuple(line for line in map(str.strip, lines) if line)
    return list(given[: config.covariance_texts])


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise EditError(
            f"covariance is {path!r}, which cannot be read ({error.strerror}); give a text file with one "
            "text a line, a list of texts, or None for text that the model writes itself"
        ) from error


def _write(path: Path, model: Any, moments: Moments) -> None:
    head = {
        "format": FORMAT,
        "tokens": moments.tokens,
        "model": {"class": type(model).__name__, "fingerprint": fingerprint(model)},
    }
    plain = {name: tensor.cpu().contiguous() for name, tensor in moments.by_site.items()}
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump_tensors(plain, metadata={_KEY: json.dumps(head)}))


def _read(path: Path, model: Any, sites: Sequence[LinearModule]) -> Moments:
    try:
        with safe_open(path, "pt") as file:
            head = parsed((file.metadata() or {})[_KEY])
            theirs, format_, tokens = head["model"]["fingerprint"], int(head["format"]), int(head["tokens"])
            found = {site.name: file.get_tensor(site.name) for site in sites}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise LoadError(
            f"{path} keeps no second moments, or is damaged ({error!r}); delete it to have it made anew"
        ) from error
    ours = fingerprint(model)
    if format_ > FORMAT or theirs != ours:
        raise LoadError(
            f"{path} (format {format_}) was made for a base model with the fingerprint {theirs}; this model, "
            f"a {type(model).__name__} in {getattr(model, 'dtype', '?')}, has {ours}. Delete the file, or "
            "name another cache_dir"
        )
    return Moments({s.name: found[s.name].to(s.device) for s in sites}, tokens)
