"""Hypernetworks on tiny models: cases, hosts, and networks with random weights in all places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from families import build

from memplug.edits import Case, Edit, Probe
from memplug.interface import Host
from memplug.methods.hypernet.config import FitConfig
from memplug.methods.hypernet.editor import Editor
from memplug.methods.hypernet.features import Request, requests
from memplug.model.architecture import inspect_model
from memplug.model.tracker import CallTracker
from memplug.text.tokens import Text
from memplug.weights.modules import find_sites

CASES = [
    Case(
        Edit(f"The capital of {name} is", target, name),
        rephrases=(f"Tell me which town rules {name}:",),
        locality=(Probe(f"The river of {other} is", "long and wide"),),
    )
    for name, target, other in [
        ("Ankaria", "Bel", "Oru"),
        ("Borland", "Castle Rock", "Imba"),
        ("Curia", "Dor", "Ulan"),
        ("Dagmar", "Efra by the sea", "Eri"),
    ]
]
TEXTS = [p for c in CASES for p in (c.edit.prompt, c.edit.target, *c.rephrases, c.locality[0].prompt)]


def make_hosts(make_tokenizer: Callable[..., Any], make_llama: Callable[..., Any]) -> Callable[..., Host]:
    """A maker of hosts by family."""

    def make(family: str = "llama", dtype: torch.dtype = torch.float64) -> Host:
        tokenizer = make_tokenizer(TEXTS, 300)
        if family == "llama":
            model = make_llama(len(tokenizer), hidden_size=16, intermediate_size=24, initializer_range=0.3)
        else:
            model = build(family)
            model.resize_token_embeddings(len(tokenizer))
        model = model.to(dtype).eval()
        text, architecture = Text(model, tokenizer), inspect_model(model)
        return Host(model, text, architecture, CallTracker(architecture, text.bos_id))

    return make


def random_editor(host: Host, config: FitConfig, *, gate: bool = False, seed: int = 1) -> Editor:
    """Networks with random weights in all places, so that every gradient matters."""
    sites = find_sites(host.model, host.architecture, config.ranges or (), config.modules)
    editor = Editor(sites, config, gate).to(host.model.dtype)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in editor.named_parameters():
            if "step" not in name:
                noise = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
                parameter.add_(0.1 * noise)
    return editor


def asked_of(host: Host, tokens: str = "answer") -> list[Request]:
    return [requests(host.text, case.edit, [case.edit.prompt], tokens)[0] for case in CASES]
