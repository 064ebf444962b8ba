"""Features, networks and the gradient that reaches them, against plain differentiation through the model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import build
from torch.func import functional_call

from memplug.calls import CallTracker
from memplug.edits import Case, Edit, EditError, Probe
from memplug.layers import UnsupportedModelError, dissect, evaluating, frozen
from memplug.methods.base import Host
from memplug.methods.hiedit import HiEditConfig
from memplug.methods.hypernet.capture import FORWARD_COSTS, alike, capture, flat_rows
from memplug.methods.hypernet.config import EditorConfig
from memplug.methods.hypernet.editor import Editor
from memplug.methods.hypernet.fitting import Trajectory
from memplug.methods.hypernet.nets import Normaliser
from memplug.methods.hypernet.samples import draw_batches, prepare, sample_of, weighted
from memplug.methods.hypernet.usual import Usual
from memplug.pristine import Pristine
from memplug.sites import find_sites
from memplug.text import Text

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


@pytest.fixture(scope="module")
def make_host(make_tokenizer: Callable[..., Any], make_llama: Callable[..., Any]) -> Callable[..., Host]:
    def make(family: str = "llama", dtype: torch.dtype = torch.float64) -> Host:
        tokenizer = make_tokenizer(TEXTS, 300)
        if family == "llama":
            model = make_llama(len(tokenizer), hidden_size=16, intermediate_size=24, initializer_range=0.3)
        else:
            model = build(family)
            model.resize_token_embeddings(len(tokenizer))
        model = model.to(dtype).eval()
        text, anatomy = Text(model, tokenizer), dissect(model)
        return Host(model, text, anatomy, CallTracker(anatomy, text.bos_id))

    return make


def _editor(host: Host, config: EditorConfig, *, gate: bool = False, seed: int = 1) -> Editor:
    """Networks with random weights in all places, so that every gradient matters."""
    sites = find_sites(host.model, host.anatomy, config.ranges, config.modules)
    editor = Editor(sites, config, gate).to(host.model.dtype)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in editor.named_parameters():
            if "step" not in name:
                noise = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
                parameter.add_(0.1 * noise)
    return editor


def _pairs(host: Host) -> list[Any]:
    return [host.text.pair(case.edit.prompt, case.edit.target) for case in CASES]


# ---------------------------------------------------------------- modules


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox", "phi3"])
def test_the_rule_finds_the_mlp(family: str) -> None:
    model = build(family)
    sites = find_sites(model, dissect(model), [("gate", 0.25, 0.5), ("down", 0.5, 1.0)])
    width = model.config.hidden_size
    assert [site.layer for site in sites] == [1, 2, 3]
    assert sites[0].d_k == width
    assert all(site.d_v == width and site.d_k != width for site in sites[1:])


def test_modules_that_cannot_be_edited() -> None:
    model = build("llama")
    anatomy = dissect(model)
    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(ValueError, match="names 'model.layers.0.mlp.up_proj' twice"):
        find_sites(model, anatomy, (), [name, name])
    with pytest.raises(ValueError, match="did you mean 'model.layers.0.mlp.up_proj'"):
        find_sites(model, anatomy, (), ["model.layers.0.mlp.uppproj"])
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(UnsupportedModelError, match="shares its weight"):
        find_sites(model, anatomy, (), [name])
    assert find_sites(model, anatomy, (), [name], writable=False)[0].name == name


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
    sites = find_sites(host.model, host.anatomy, [("gate", 0.5, 0.75), ("down", 0.5, 1.0)])
    first = capture(host, sites, _pairs(host), "answer", micro_batch=3)
    with torch.no_grad():
        sites[0].weight.mul_(1.5)
    fresh = capture(host, sites, _pairs(host), "answer", micro_batch=3)
    ran: list[int] = []
    handle = host.anatomy.layers[0].register_forward_hook(lambda *_: ran.append(1))
    again = capture(host, sites, _pairs(host), "answer", micro_batch=3, below=first.below)
    handle.remove()
    for one, two in zip([*fresh.keys, *fresh.slopes], [*again.keys, *again.slopes], strict=True):
        torch.testing.assert_close(one, two)
    assert not torch.allclose(first.slopes[0], again.slopes[0])
    assert torch.equal(fresh.owner, again.owner)


@pytest.mark.parametrize("tokens", ["answer", "all"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_features_are_the_inputs_and_slopes_of_each_request_alone(
    make_host: Callable[..., Host], family: str, tokens: str
) -> None:
    host = make_host(family)
    sites = find_sites(host.model, host.anatomy, [("gate", 0.25, 0.5), ("down", 0.5, 1.0)])
    found = capture(host, sites, _pairs(host), tokens, micro_batch=3)
    for index, pair in enumerate(_pairs(host)):
        ids = torch.tensor([pair.ids[:-1]])
        weights = [site.weight.detach().clone().requires_grad_() for site in sites]
        named = {f"{site.name}.weight": w for site, w in zip(sites, weights, strict=True)}
        logits = functional_call(host.model, named, (ids,)).logits[0]
        target = torch.tensor(pair.ids[pair.start :])
        F.cross_entropy(logits[pair.start - 1 :], target).backward()
        mine = found.owner == index
        count = len(pair.ids) - 1 if tokens == "all" else len(pair.ids) - pair.start
        assert int(mine.sum()) == count
        for site, weight, keys, slopes in zip(sites, weights, found.keys, found.slopes, strict=True):
            if tokens == "all":  # then keys and slopes make up the whole gradient of the weight
                whole = site.stored(keys[mine].T @ slopes[mine])
                torch.testing.assert_close(weight.grad, whole, rtol=1e-8, atol=1e-10)
    alone = capture(host, sites, _pairs(host)[1:2], tokens)
    mine = found.owner == 1
    for together, single in zip([*found.keys, *found.slopes], [*alone.keys, *alone.slopes], strict=True):
        torch.testing.assert_close(together[mine], single, rtol=1e-9, atol=1e-12)


def test_capturing_leaves_the_model_as_it_was(make_host: Callable[..., Host]) -> None:
    host = make_host()
    host.model.train()
    sites = find_sites(host.model, host.anatomy, [("up", 0.5, 1.0)])
    capture(host, sites, _pairs(host), "answer")
    assert host.model.training
    assert all(p.requires_grad and p.grad is None for p in host.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in host.model.modules())


def test_features_that_are_not_finite_are_refused(make_host: Callable[..., Host]) -> None:
    host = make_host()
    with torch.no_grad():
        host.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    sites = find_sites(host.model, host.anatomy, [("up", 0.5, 1.0)])
    with pytest.raises(EditError, match="are not finite"):
        capture(host, sites, _pairs(host), "answer")


# ---------------------------------------------------------------- normaliser


@pytest.mark.parametrize("sizes", [[1, 1, 1], [5, 1, 7], [20]])
def test_statistics_are_those_of_all_rows(sizes: list[int]) -> None:
    rows = np.random.default_rng(0).normal(3.0, [0.001] * 4 + [50.0] * 3, (sum(sizes), 7))
    normaliser = Normaliser(4, 3, floor=0.0)
    for part in np.split(rows, np.cumsum(sizes)[:-1]):
        normaliser.update(torch.tensor(part))
    np.testing.assert_allclose(normaliser.mean.numpy(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normaliser.std.numpy(), rows.std(0, ddof=1), rtol=1e-9)
    want = (rows - rows.mean(0)) / rows.std(0, ddof=1)
    np.testing.assert_allclose(normaliser(torch.tensor(rows)).numpy(), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rank", [6, 40])
def test_the_metric_is_the_second_moment_cut_to_its_principal_directions(rank: int) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 12, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, 12)
    usual = Usual(12, protect=7.0, rank=rank).double()
    keys = torch.randn(3, 12, generator=draw, dtype=torch.float64)
    assert torch.equal(usual(keys), keys)  # nothing is known yet
    usual.study(inputs)
    second = inputs.T @ inputs / len(inputs)
    values, axes = torch.linalg.eigh(second / second.diagonal().mean())
    values[: 12 - min(rank, 12)] = 0
    metric = torch.eye(12, dtype=torch.float64) + 7.0 * axes @ torch.diag(values) @ axes.T
    torch.testing.assert_close(usual(keys), keys @ torch.linalg.inv(metric))
    usual.study(inputs[:2])  # fewer inputs than directions
    assert int((usual.held > 0).sum()) == 2


@pytest.mark.parametrize("style", ["joint", "outer"])
def test_changes_keep_clear_of_the_usual_inputs(make_host: Callable[..., Host], style: str) -> None:
    host = make_host("llama")
    sites = find_sites(host.model, host.anatomy, [("gate", 0.25, 0.5), ("down", 0.5, 1.0)])
    pairs = _pairs(host)
    usual = capture(host, sites, pairs[1:], "all")
    moved: dict[float, float] = {}
    for protect in (0.0, 1e6):
        config = EditorConfig(style=style, protect=protect, protect_rank=4, inner_lr=1e-2)  # type: ignore[arg-type]
        editor = Editor(sites, config, gate=False).double()
        editor.observe(capture(host, sites, pairs, "answer"), 0)
        editor.study(usual.keys)
        made = editor.make(host, pairs[:1])
        factors = made.factors(sites)
        parts = {part.site: part.factors() for part in made.parts(sites)}
        for name, (a, b) in factors.items():  # the ledger's change is the one that was judged
            kept = (parts[name][0] @ parts[name][1]).double()
            torch.testing.assert_close(kept, a @ b, rtol=1e-4, atol=1e-7)
        moved[protect] = sum(
            float(((x @ a @ b).norm() / (a @ b).norm()).detach())
            for (a, b), x in zip(factors.values(), usual.keys, strict=True)
        )
    assert moved[1e6] < 0.8 * moved[0.0]


def test_a_constant_feature_is_not_blown_up() -> None:
    normaliser = Normaliser(2, 2, floor=0.05)
    rows = torch.randn(50, 4)
    rows[:, 1] = 1.0
    normaliser.update(rows)
    assert float(normaliser(torch.tensor([[0.0, 1.01, 0.0, 0.0]]))[0, 1]) < 1.0
    before = {name: value.clone() for name, value in normaliser.state_dict().items()}
    normaliser(rows)
    assert all(torch.equal(before[name], value) for name, value in normaliser.state_dict().items())


# ---------------------------------------------------------------- gradients


def _direct_loss(host: Host, editor: Editor, made: Any, judged: Any, config: EditorConfig) -> torch.Tensor:
    """The outer loss by whole matrices, whole forwards and autograd: no factors, no leaves, no caches."""
    weights, norm = {}, torch.zeros((), dtype=torch.float64)
    for index, site in enumerate(editor.sites):
        total = torch.zeros(site.d_k, site.d_v, dtype=torch.float64)
        for step in made.steps:
            keys, values = step[index].keys[0], step[index].values[0]
            if step[index].log_ridge is None:
                total = total + keys.T @ values
            else:
                system = keys.T @ keys + step[index].log_ridge.exp() * torch.eye(
                    site.d_k, dtype=torch.float64
                )
                total = total + torch.linalg.solve(system, keys.T @ values)
        total = total if made.choice is None else made.choice.mask[index] * total
        weights[f"{site.name}.weight"] = site.weight.detach() + site.stored(total)
        norm = norm + total.square().sum()
    loss = config.norm_weight * norm
    for item, weight in judged:
        for pair, kept in ((item.sample.asked, False), (item.sample.kept, True)):
            ids = torch.tensor([pair.ids[:-1]])
            logp = functional_call(host.model, weights, (ids,)).logits[0].log_softmax(-1)
            at = flat_rows([pair], ids.shape[1], ids.device)
            if kept:
                base = host.model(ids).logits[0].log_softmax(-1).detach()[at.flat]
                rows = F.kl_div(logp[at.flat], base, reduction="none", log_target=True).sum(-1)
                loss = loss + weight * config.locality_weight * (rows / at.size).sum()
            else:
                loss = loss + weight * F.nll_loss(logp[at.flat], at.target)
    return loss


@pytest.mark.parametrize("style", ["joint", "outer"])
@pytest.mark.parametrize("tokens", ["answer", "all"])
@pytest.mark.parametrize(
    ("family", "gate", "steps"), [("llama", False, 2), ("gpt2", False, 1), ("llama", True, 1)]
)
def test_the_gradient_at_the_networks_is_the_exact_one(
    make_host: Callable[..., Host], family: str, style: Any, tokens: Any, gate: bool, steps: int
) -> None:
    config = HiEditConfig(
        rank=3, n_blocks=2, hidden=5, style=style, tokens=tokens, steps=steps, norm_weight=0.1,
        back_samples=None, back_depth=3, inner_lr=0.02, micro_batch=3, gate_training="straight-through",
        ranges=(("gate", 0.25, 0.75), ("down", 0.5, 1.0)),
    )  # fmt: skip
    host = make_host(family)
    editor = _editor(host, config, gate=gate)
    rng = random.Random(0)
    samples = [sample_of(host, case, config, rng) for case in CASES]
    with evaluating(host.model), frozen(host.model):
        prepared = prepare(host, min(s.layer for s in editor.sites), samples, config)
        edits = [s.edit for s in samples]
        editor.observe(capture(host, editor.sites, edits, tokens), 0)
        if steps > 1:
            editor.observe(capture(host, editor.sites, edits[::-1], tokens), 1)
        pristine = Pristine({site.name: site for site in editor.sites})
        run = Trajectory(host, editor, pristine, rng, torch.Generator())
        run.history = [prepared[:2]]
        statistics = {n: b.clone() for n, b in editor.named_buffers()}
        done, _ = run.step(prepared[2:])
        ours = {n: p.grad.clone() for n, p in editor.named_parameters() if p.grad is not None}
        editor.zero_grad()
        observed = {n: b.clone() for n, b in editor.named_buffers()}
        assert any(not torch.equal(observed[n], statistics[n]) for n in observed)
        made = editor.make(host, edits[2:], train=True)
        loss = _direct_loss(host, editor, made, weighted(run.history, config, rng), config)
        loss.backward()
    assert done.losses.total(config) == pytest.approx(float(loss.detach()), rel=1e-8)
    theirs = {n: p.grad for n, p in editor.named_parameters() if p.grad is not None}
    used = {n for n in theirs if not (style == "outer" and "log_ridge" in n)}
    assert set(ours) >= used
    assert len(used) > 8
    for name in used:
        assert float(theirs[name].abs().max()) > 0, name
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-9, msg=name)


def test_linear_and_conv1d_are_edited_alike(make_host: Callable[..., Host]) -> None:
    """The same map, stored the other way round, is changed to the same map."""
    host = make_host("gpt2")
    config = EditorConfig(rank=3, inner_lr=0.05, modules=("transformer.h.1.mlp.c_fc",))
    editor = _editor(host, config)
    pairs = _pairs(host)
    with evaluating(host.model), frozen(host.model):
        conv = editor.make(host, pairs, observe=True).factors(editor.sites)["transformer.h.1.mlp.c_fc"]
        old = host.model.transformer.h[1].mlp.c_fc
        linear = torch.nn.Linear(*old.weight.shape).double()
        with torch.no_grad():
            linear.weight.copy_(old.weight.T)
            linear.bias.copy_(old.bias)
        host.model.transformer.h[1].mlp.c_fc = linear
        again = _editor(host, config)
        assert again.sites[0].flipped
        assert not editor.sites[0].flipped
        other = again.make(host, pairs, observe=True).factors(again.sites)["transformer.h.1.mlp.c_fc"]
    torch.testing.assert_close(conv[0] @ conv[1], other[0] @ other[1], rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- samples


def test_targets_are_traded_between_cases_that_ask_the_same() -> None:
    pool = {case.edit.target for case in CASES}
    other = Case(Edit("Who rules Ankaria?", "a king", "Ankaria"))
    seen = set()
    for seed in range(20):
        batches = draw_batches([*CASES, other], 5, 2, random.Random(seed), True)
        flat = [case for batch in batches for case in batch]
        assert len(flat) == 5
        assert [len(batch) for batch in batches] == [2, 2, 1]
        for case in flat:
            assert case.edit.target in (pool if case.edit.prompt != other.edit.prompt else {"a king"})
            seen.add((case.edit.subject, case.edit.target))
    assert len(seen) > len(CASES) + 3
    kept = draw_batches(CASES, 2, 2, random.Random(0), False)
    assert {case.edit for batch in kept for case in batch} == {case.edit for case in CASES}


def test_drawn_history_stands_for_the_whole() -> None:
    history: Any = [[f"{b}.{i}" for i in range(5)] for b in range(4)]
    whole = EditorConfig(back_depth=4, back_decay=0.5, back_samples=None)
    exact = dict(weighted(history, whole, random.Random(0)))
    assert sum(exact.values()) == pytest.approx(1.0)
    assert exact["1.4"] / exact["3.0"] == pytest.approx(0.25)
    part = EditorConfig(back_depth=4, back_decay=0.5, back_samples=6)
    mean: dict[str, float] = {}
    rng = random.Random(0)
    for _ in range(3000):
        drawn = weighted(history, part, rng)
        assert 5 < len(drawn) <= 5 + 6
        assert len({item for item, _ in drawn}) == len(drawn)  # none is run twice
        assert sum(weight for _, weight in drawn) == pytest.approx(1.0)
        for item, weight in drawn:
            mean[str(item)] = mean.get(str(item), 0.0) + weight / 3000
    assert all(mean[name] == pytest.approx(value, rel=0.25) for name, value in exact.items())
