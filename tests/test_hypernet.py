"""Modules and features of the weight editors, each against the plain way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import build
from hypernet_tiny import asked_of, make_hosts, random_editor
from torch.func import functional_call
from weights_tiny import Opaque

from memplug.edits import Edit, EditError
from memplug.interface import Host
from memplug.methods.hypernet.config import FitConfig
from memplug.methods.hypernet.features import capture, requests
from memplug.methods.hypernet.grow_ranges import grow_ranges
from memplug.methods.inweights.branch import side_branch
from memplug.methods.inweights.rows import FORWARD_COSTS, alike
from memplug.model.architecture import UnsupportedModelError, inspect_model
from memplug.model.hooks import HookSet
from memplug.model.tracker import CallTracker
from memplug.text.tokens import Text
from memplug.weights.modules import find_sites


@pytest.fixture(scope="module")
def make_host(make_tokenizer: Callable[..., Any], make_llama: Callable[..., Any]) -> Callable[..., Host]:
    return make_hosts(make_tokenizer, make_llama)


# ---------------------------------------------------------------- modules


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "phi3"])
def test_the_rule_finds_the_mlp(family: str) -> None:
    model = build(family)
    sites = find_sites(model, inspect_model(model), [("gate", 0.25, 0.5), ("down", 0.5, 1.0)])
    width = model.config.hidden_size
    assert [site.layer for site in sites] == [1, 2, 3]
    assert sites[0].d_k == width
    assert all(site.d_v == width and site.d_k != width for site in sites[1:])


def test_modules_that_cannot_be_edited() -> None:
    model = build("llama")
    architecture = inspect_model(model)
    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(ValueError, match="names 'model.layers.0.mlp.up_proj' twice"):
        find_sites(model, architecture, (), [name, name])
    with pytest.raises(ValueError, match="did you mean 'model.layers.0.mlp.up_proj'"):
        find_sites(model, architecture, (), ["model.layers.0.mlp.uppproj"])
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(UnsupportedModelError, match="shares its weight"):
        find_sites(model, architecture, (), [name])
    assert find_sites(model, architecture, (), [name], writable=False)[0].name == name


@pytest.mark.parametrize(
    ("capacity", "layers"),
    [
        (0, [[2], [4, 5], []]),
        (49, [[1, 2, 3], [3, 4, 5, 6], []]),
        (16 * 16, [list(range(8)), list(range(8)), []]),
        (10**6, [list(range(8))] * 3),
    ],
)
def test_edits_are_spread_over_as_many_modules_as_their_tokens_need(
    make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any], capacity: int, layers: list[list[int]]
) -> None:
    tokenizer = make_tokenizer(["a b"], 300)
    model = make_llama(len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=8)
    host = Host(
        model, Text(model, tokenizer), architecture := inspect_model(model), CallTracker(architecture, None)
    )
    ranges = grow_ranges(host, (("gate", 2 / 8, 3 / 8), ("up", 4 / 8, 6 / 8)), capacity)
    found = find_sites(model, architecture, ranges)
    whiches = ("gate", "up", "down")
    assert [[s.layer for s in found if f"{which}_proj" in s.name] for which in whiches] == layers
    assert sum(site.d_k for site in found) >= min(capacity, 16 * 16)


def test_edits_are_not_spread_over_layers_that_cannot_be_edited(
    make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(["a b"], 300)
    model = make_llama(len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=8)
    model.model.layers[6].mlp = torch.nn.Identity()
    model.model.layers[6].self_attn = Opaque(model.model.layers[6].self_attn)
    host = Host(
        model, Text(model, tokenizer), architecture := inspect_model(model), CallTracker(architecture, None)
    )
    found = find_sites(
        model, architecture, grow_ranges(host, (("gate", 2 / 8, 3 / 8), ("up", 4 / 8, 5 / 8)), 10**6)
    )
    assert [site.layer for site in found] == [1, 2, 3, 3, 4, 5]
    with pytest.raises(UnsupportedModelError, match="layer 6"):
        grow_ranges(host, (("up", 6 / 8, 7 / 8),), 10**6)


def test_changes_beside_a_weight_stay_exact_under_autocast(make_host: Callable[..., Host]) -> None:
    host = make_host("llama", torch.float32)
    site = find_sites(host.model, host.architecture, [("up", 0.5, 0.6)])[0]
    draw = torch.Generator().manual_seed(0)
    x, a, b = (
        torch.randn(*size, generator=draw) for size in ((1, 3, site.d_k), (site.d_k, 2), (2, site.d_v))
    )
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = site.module(x.float()).float()
        with HookSet([side_branch(site, lambda: (a, 1e-3 * b))]):
            found = site.module(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain.bfloat16() + (x @ a @ (1e-3 * b)).bfloat16(), rtol=0, atol=0)


def test_modules_of_a_shape_are_solved_together_as_each_alone(make_host: Callable[..., Host]) -> None:
    host = make_host()
    config = FitConfig(rank=3, inner_lr=0.02, steps=2, ranges=(("gate", 0.0, 1.0), ("down", 0.5, 1.0)))
    editor = random_editor(host, config)
    made = editor.make(host, asked_of(host), observe=True)
    whole = made.factors(editor.sites)
    for index, site in enumerate(editor.sites):
        alone = [step[index].factors() for step in made.steps]
        change = sum(a[0] @ b[0] for a, b in alone)
        a, b = whole[site.name]
        torch.testing.assert_close(a @ b, change, rtol=1e-9, atol=1e-12)


def test_edits_that_are_learned_take_no_further_step(make_host: Callable[..., Host]) -> None:
    host = make_host()
    config = FitConfig(rank=3, inner_lr=0.02, steps=3, enough=1.0, ranges=(("gate", 0.0, 1.0),))
    asked = asked_of(host)

    def make(enough: float) -> Any:
        torch.manual_seed(0)
        editor = random_editor(host, replace(config, enough=enough))
        editor.observe(capture(host, editor.sites, asked), 0)
        return editor.make(host, asked)

    everything = make(1.0)
    assert [sorted(set(f.owner.tolist())) for f in everything.features] == [[0, 1, 2, 3]] * 3
    assert len(make(0.0).steps) == 1
    known = everything.features[1].known  # after the first step
    for (pair, _), least in zip(asked, everything.features[0].known, strict=True):
        with torch.no_grad():
            share = host.model(torch.tensor([pair.ids])).logits[0].softmax(-1)
        told = [share[i - 1, pair.ids[i]] for i in range(pair.start, len(pair.ids))]
        torch.testing.assert_close(torch.stack(told).min().float(), least)
    some = make(float(known.sort().values[1:3].mean()))
    left = (known < known.sort().values[1:3].mean()).nonzero()[:, 0].tolist()
    assert sorted(set(some.features[1].owner.tolist())) == left
    assert len(left) == 2
    for site, part in zip(some.features[1].keys, everything.features[1].keys, strict=True):
        mine = torch.isin(everything.features[1].owner, torch.tensor(left))
        torch.testing.assert_close(site, part[mine])


# ---------------------------------------------------------------- features


def test_rows_of_like_length_run_together_at_the_least_cost() -> None:
    cpu, rng = torch.device("cpu"), random.Random(0)
    assert alike([5, 5, 6, 900, 5, 901], 3, cpu) == [[0, 1, 4], [2], [3, 5]]
    for _ in range(30):
        lengths = [rng.choice([3, 4, 9, 40, 41, 100]) for _ in range(rng.randint(1, 8))]
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])

        def cost(parts: list[list[int]], lengths: list[int] = lengths) -> int:
            return sum(FORWARD_COSTS["cpu"] + len(p) * max(lengths[i] for i in p) for p in parts)

        found = alike(lengths, 8, cpu)
        assert sorted(row for part in found for row in part) == sorted(order)
        for cuts in itertools.product([False, True], repeat=len(order) - 1):  # every way to cut
            at = [0, *(i for i, cut in enumerate(cuts, 1) if cut), len(order)]
            assert cost(found) <= cost([order[a:b] for a, b in itertools.pairwise(at)])
    assert max(map(len, alike([7] * 20, 6, cpu))) <= 6
    assert len(alike(list(range(1, 60)), 256, torch.device("meta"))) == 1  # where a forward is dear


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_features_at_changed_modules_need_no_layer_below(make_host: Callable[..., Host], family: str) -> None:
    host = make_host(family)
    sites = find_sites(host.model, host.architecture, [("gate", 0.5, 0.75), ("down", 0.5, 1.0)])
    first = capture(host, sites, asked_of(host), micro_batch=3)
    with torch.no_grad():
        sites[0].weight.mul_(1.5)
    fresh = capture(host, sites, asked_of(host), micro_batch=3)
    ran: list[int] = []
    handle = host.architecture.layers[0].register_forward_hook(lambda *_: ran.append(1))
    again = capture(host, sites, asked_of(host), micro_batch=3, below=first.below)
    handle.remove()
    for one, two in zip([*fresh.keys, *fresh.gradients], [*again.keys, *again.gradients], strict=True):
        torch.testing.assert_close(one, two)
    assert not torch.allclose(first.gradients[0], again.gradients[0])
    assert torch.equal(fresh.owner, again.owner)


@pytest.mark.parametrize("tokens", ["answer", "all"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_features_are_the_inputs_and_slopes_of_each_request_alone(
    make_host: Callable[..., Host], family: str, tokens: str
) -> None:
    host = make_host(family)
    sites = find_sites(host.model, host.architecture, [("gate", 0.25, 0.5), ("down", 0.5, 1.0)])
    found = capture(host, sites, asked_of(host, tokens), micro_batch=3)
    for index, (pair, _) in enumerate(asked_of(host)):
        ids = torch.tensor([pair.ids[:-1]])
        weights = [site.weight.detach().clone().requires_grad_() for site in sites]
        named = {f"{site.name}.weight": w for site, w in zip(sites, weights, strict=True)}
        logits = functional_call(host.model, named, (ids,)).logits[0]
        target = torch.tensor(pair.ids[pair.start :])
        F.cross_entropy(logits[pair.start - 1 :], target).backward()
        mine = found.owner == index
        count = len(pair.ids) - 1 if tokens == "all" else len(pair.ids) - pair.start
        assert int(mine.sum()) == count
        for site, weight, keys, gradients in zip(sites, weights, found.keys, found.gradients, strict=True):
            if tokens == "all":  # then keys and slopes make up the whole gradient of the weight
                whole = site.stored(keys[mine].T @ gradients[mine])
                torch.testing.assert_close(weight.grad, whole, rtol=1e-8, atol=1e-10)
    alone = capture(host, sites, asked_of(host, tokens)[1:2])
    mine = found.owner == 1
    for together, single in zip(
        [*found.keys, *found.gradients], [*alone.keys, *alone.gradients], strict=True
    ):
        torch.testing.assert_close(together[mine], single, rtol=1e-9, atol=1e-12)


def test_where_features_are_taken(make_host: Callable[..., Host]) -> None:
    text = make_host().text
    edit = Edit("The capital of Borland is", "Castle Rock", "Borland")
    (asked,) = requests(text, edit, [edit.prompt], "answer")
    last = len(asked.pair.ids) - 1
    assert asked.at == list(range(asked.pair.start - 1, last))
    subject = text.asked_span(edit.prompt, 15, 22, edit.target)[1][-1]
    assert requests(text, edit, [edit.prompt], "both")[0].at == [subject, *asked.at]
    assert requests(text, edit, [edit.prompt], "all")[0].at == list(range(last))
    at_the_end = Edit("Who rules Borland", "Castle Rock", "Borland")
    (asked,) = requests(text, at_the_end, [at_the_end.prompt], "both")
    assert asked.at[0] == asked.pair.start - 1


def test_capturing_leaves_the_model_as_it_was(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.model.train()
    sites = find_sites(host.model, host.architecture, [("up", 0.5, 1.0)])
    capture(host, sites, asked_of(host))
    assert host.model.training
    assert all(p.requires_grad and p.grad is None for p in host.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.model.modules())


def test_features_that_are_not_finite_are_refused(make_host: Callable[..., Host]) -> None:
    host = make_host()
    with torch.no_grad():
        host.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    sites = find_sites(host.model, host.architecture, [("up", 0.5, 1.0)])
    with pytest.raises(EditError, match="are not finite"):
        capture(host, sites, asked_of(host))
