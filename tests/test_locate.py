"""Wanted states, keys, second moments and the closed-form solves, against literal formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TEXTS, build, lexical

import memplug
from memplug.edits import Edit, EditError
from memplug.layers import UnsupportedModelError
from memplug.methods.locate import covariance
from memplug.methods.locate.covariance import moments_of
from memplug.methods.locate.rows import look, mean_keys, subject_rows
from memplug.methods.locate.target import find_targets
from memplug.methods.memit import MEMITConfig
from memplug.solve import SolveError, directed
from memplug.storage import LoadError

EDITS = [
    Edit("Where was Ada Quill born?", "Zarnow", "Ada Quill", "a"),
    Edit("The founder of Orlo Bridge is", "Tam", "Orlo Bridge", "b"),
    Edit("In Vestland, the capital is", "Marrow", "Vestland", "c"),
]
QUICK: dict[str, Any] = {
    "ranges": (("down", 0.0, 0.5),),
    "covariance": tuple(TEXTS),
    "n_prefixes": 2,
    "prefix_tokens": 4,
    "steps": 6,
    "guard_every": 0,
}


@pytest.fixture(scope="module")
def make_plug(make_tokenizer: Callable[..., Any]) -> Callable[..., memplug.Plug]:
    tokenizer = make_tokenizer(TEXTS, 300)

    def make(
        method: str, family: str = "llama", seed: int = 0, teachable: bool = False, **config: Any
    ) -> memplug.Plug:
        if teachable:
            model = lexical(family, len(tokenizer), seed=seed)
        else:
            model = build(family, seed=seed, vocab_size=len(tokenizer))
        return memplug.attach(model, tokenizer, method, **(QUICK | config))

    return make


def _read(model: Any, module: Any, ids: list[int]) -> torch.Tensor:
    """[T,d_k]: what a module reads on one text, by a plain forward."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0].double()))
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
    finally:
        handle.remove()
    return seen[0]


# ---------------------------------------------------------------------- solves


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_directions_solve_the_least_squares_problem_under_a_metric(rows: int) -> None:
    draw = torch.Generator().manual_seed(0)
    keys, values = (
        torch.randn(rows, 6, generator=draw).double(),
        torch.randn(rows, 5, generator=draw).double(),
    )
    half = torch.randn(6, 20, generator=draw).double()
    metric = half @ half.T
    a, b = directed(keys, values, 0.7, keys @ torch.linalg.inv(metric))
    want = torch.linalg.solve(keys.T @ keys + 0.7 * metric, keys.T @ values)
    torch.testing.assert_close(a @ b, want, rtol=1e-9, atol=1e-12)
    assert a.shape[1] == min(rows, 6)


def test_without_a_ridge_values_are_met_exactly_by_the_smallest_change() -> None:
    draw = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 6, generator=draw).double(), torch.randn(2, 5, generator=draw).double()
    half = torch.randn(6, 20, generator=draw).double()
    metric = half @ half.T
    a, b = directed(keys, values, 0.0, keys @ torch.linalg.inv(metric))
    torch.testing.assert_close(keys @ (a @ b), values)
    # Orthogonal, under the metric, to every change that leaves the keys alone.
    free = torch.eye(6).double() - torch.linalg.pinv(keys) @ keys
    assert float((free @ metric @ (a @ b)).norm()) < 1e-9 * float((metric @ (a @ b)).norm())
    with pytest.raises(SolveError, match="raise the ridge"):
        directed(torch.cat([keys, keys]), torch.cat([values, values]) + 1, 0.0, torch.cat([keys, keys]))


# ---------------------------------------------------------------------- keys and moments


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_keys_are_means_of_what_the_module_reads_at_the_subjects_last_token(
    make_plug: Callable[..., Any], family: str
) -> None:
    plug = make_plug("memit", family)
    host, site, text = plug.method._host, plug.method.sites[1], plug.method._host.text
    prefixes = ["Who founded it?", "Tam"]
    rows = subject_rows(text, EDITS, prefixes)
    keys = mean_keys(look(host, rows, site, site.layer, [], 4).inputs, rows, len(EDITS))
    for edit, key in zip(EDITS, keys, strict=True):
        read = []
        for front in ("", *prefixes):
            whole = f"{front} {edit.prompt}".strip()
            until = whole[: len(whole) - len(edit.prompt)] + edit.prompt[: edit.prompt.index(edit.subject)]
            ids = text.encode(until + edit.subject)
            assert text.encode(whole)[: len(ids)] == ids
            read.append(_read(plug.model, site.module, text.encode(whole))[len(ids) - 1])
        want = read[0] / 2 + (read[1] + read[2]) / 4
        torch.testing.assert_close(key.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_moments_are_means_over_all_tokens(make_plug: Callable[..., Any], family: str) -> None:
    plug = make_plug("memit", family, covariance_length=12)
    host, sites = plug.method._host, plug.method.sites
    moments = moments_of(host, sites, plug.method.config)
    for site in sites:
        keys = torch.cat([_read(plug.model, site.module, host.text.encode(text)[:12]) for text in TEXTS])
        assert moments.tokens == len(keys)
        want = keys.T @ keys / len(keys)
        torch.testing.assert_close(moments.by_site[site.name].double(), want, rtol=1e-4, atol=1e-6)


def test_moments_are_kept_for_one_base_model(
    make_plug: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(plug: memplug.Plug) -> Any:
        return moments_of(plug.method._host, plug.method.sites, plug.method.config)

    first = of(make_plug("memit", cache_dir=str(tmp_path)))
    (file,) = tmp_path.iterdir()
    made: list[int] = []
    compute = covariance.second_moments
    monkeypatch.setattr(covariance, "second_moments", lambda *given: made.append(1) or compute(*given))
    again = of(make_plug("alphaedit", cache_dir=str(tmp_path)))
    assert not made
    assert again.tokens == first.tokens
    assert all(torch.equal(again.by_site[name], tensor) for name, tensor in first.by_site.items())
    # Another text, another file.
    other = make_plug("memit", cache_dir=str(tmp_path), covariance=("Marrow is.",))
    of(other)
    assert len(made) == 1
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(LoadError, match=r"fingerprint \w+; this model, a LlamaForCausalLM.*Delete the file"):
        of(make_plug("memit", seed=1, cache_dir=str(tmp_path)))
    file.write_bytes(file.read_bytes()[:-40])
    plug = make_plug("memit", cache_dir=str(tmp_path))
    with pytest.raises(LoadError, match="damaged"):
        plug.edit(EDITS[0])
    assert not plug.edits


def test_where_the_text_comes_from(make_plug: Callable[..., Any], tmp_path: Path) -> None:
    def of(**config: Any) -> Any:
        plug = make_plug("memit", **config)
        return moments_of(plug.method._host, plug.method.sites, plug.method.config)

    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(TEXTS) + "\n")
    listed, read = of(), of(covariance=str(file))
    assert all(torch.equal(listed.by_site[name], read.by_site[name]) for name in listed.by_site)
    state = torch.random.get_rng_state()
    sampled = [of(covariance=None, covariance_texts=6, covariance_length=9) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sampled[0].tokens == sampled[1].tokens > 12
    name = next(iter(listed.by_site))
    assert torch.equal(sampled[0].by_site[name], sampled[1].by_site[name])
    with pytest.raises(EditError, match=r"cannot be read \(No such file.*one text a line"):
        of(covariance=str(tmp_path / "none"))


# ---------------------------------------------------------------------- wanted states


def test_wanted_states_answer_as_edited_and_do_not_see_each_other(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("memit", teachable=True)
    host, layer = plug.method._host, plug.method._last
    config = MEMITConfig(steps=25, lr=0.5, stop_loss=0.3, kl_weight=0.01)
    none = MEMITConfig(steps=0)
    start = find_targets(host, layer, EDITS, ["Tam"], none)
    found = find_targets(host, layer, EDITS, ["Tam"], config)
    assert bool((found.loss < 0.8 * start.loss).all())
    for index, edit in enumerate(EDITS):
        alone = find_targets(host, layer, [edit], ["Tam"], config)
        torch.testing.assert_close(alone.state[0], found.state[index], rtol=1e-2, atol=1e-2)
        pairs = [
            host.text.pair(f"{front} {edit.prompt}".strip(), edit.target, stop=True) for front in ("", "Tam")
        ]
        literal = []
        for ids, begin in pairs:
            with torch.no_grad():
                logp = plug.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            literal.append(
                -sum(float(logp[t - 1, ids[t]]) for t in range(begin, len(ids))) / (len(ids) - begin)
            )
        assert float(start.loss[index]) == pytest.approx(sum(literal) / 2, rel=1e-4)
    short = find_targets(host, layer, EDITS, [], MEMITConfig(steps=10, clamp=0.25))
    length = (short.state - start.state).norm(dim=-1) / start.state.norm(dim=-1)
    assert bool((length < 0.2501).all())
    assert bool((length > 0.2).any())


def test_what_is_said_of_the_subject_is_held(make_plug: Callable[..., Any]) -> None:
    """The divergence after "<subject> is a", with the state put in by a plain hook."""
    plug = make_plug("memit")
    host, layer, text = plug.method._host, plug.method._last, plug.method._host.text
    base = find_targets(host, layer, EDITS[:1], [], MEMITConfig(steps=0)).state

    def moved(weight: float) -> float:
        config = MEMITConfig(steps=20, kl_weight=weight, stop_loss=0.0, weight_decay=0.0)
        added = (find_targets(host, layer, EDITS[:1], [], config).state - base)[0]
        ids, span = text.span("Ada Quill is a", 0, 9)

        def put(_m: Any, _a: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            here = torch.zeros_like(hidden)
            here[0, span[-1]] = added
            return hidden + here

        inputs = torch.tensor([ids])
        with torch.no_grad():
            before = plug.model(input_ids=inputs).logits[0, -1].log_softmax(-1)
            handle = host.anatomy.layers[layer].register_forward_hook(put)
            after = plug.model(input_ids=inputs).logits[0, -1].log_softmax(-1)
            handle.remove()
        return float((after.exp() * (after - before)).sum())

    assert moved(20.0) < moved(0.0) / 3


# ---------------------------------------------------------------------- the methods


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("earlier", [True, False])
def test_memit_is_the_literal_formula(make_plug: Callable[..., Any], family: str, earlier: bool) -> None:
    plug = make_plug("memit", family, earlier=earlier, covariance_weight=300.0, floor=0.01)
    method = plug.method
    plug.edit(EDITS[:1])
    plug.edit(EDITS[1:], progress=False)
    first, second = method.ledger.entries
    with plug.paused():
        moments = moments_of(method._host, method.sites, method.config).by_site
    for site in method.sites:
        prior = moments[site.name].double()
        prior = prior + 0.01 * prior.diagonal().mean() * torch.eye(site.d_k)
        prior = prior * 300.0 * site.d_k / 16384
        for entry in (first, second):
            (part,) = (part for part in entry.parts if part.site == site.name)
            keys, values = part.keys.double(), part.values.double()
            want = torch.linalg.solve(prior + keys.T @ keys, keys.T @ values)
            a, b = entry.factors()[site.name]
            torch.testing.assert_close((a @ b).double(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
            if earlier:
                prior = prior + keys.T @ keys


def test_alphaedit_is_the_literal_formula(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("alphaedit", threshold=0.2, ridge=0.05, n_prefixes=0)
    method, text = plug.method, plug.method._host.text
    site = method.sites[0]
    moments = moments_of(method._host, method.sites, method.config).by_site[site.name].double()
    values, vectors = torch.linalg.eigh(moments)
    free = vectors[:, values.cumsum(0) <= 0.2 * values.sum()]
    assert 0 < free.shape[1] < site.d_k
    projection = free @ free.T

    def keys_of(edits: list[Edit]) -> torch.Tensor:
        rows = [text.span(e.prompt, b := e.prompt.index(e.subject), b + len(e.subject)) for e in edits]
        return torch.stack([_read(plug.model, site.module, ids)[span[-1]] for ids, span in rows])

    past = torch.zeros(site.d_k, site.d_k).double()
    ridge = 0.05 * float(moments.diagonal().sum())
    for batch in (EDITS[:1], EDITS[1:]):
        keys = keys_of(batch)  # of the lowest edited layer: no edit changes them
        plug.edit(batch, progress=False)
        entry = method.ledger.entries[-1]
        part = next(part for part in entry.parts if part.site == site.name)
        system = projection @ (past + keys.T @ keys) + ridge * torch.eye(site.d_k)
        want = torch.linalg.solve(system, projection @ keys.T @ part.values.double())
        a, b = entry.factors()[site.name]
        torch.testing.assert_close((a @ b).double(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
        past = past + keys.T @ keys
        used = vectors[:, values.cumsum(0) > 0.2 * values.sum()]
        assert float((used.T @ (a @ b).double()).norm()) < 1e-5 * float((a @ b).norm())


def _state_behind(plug: memplug.Plug, layer: int, edit: Edit) -> torch.Tensor:
    host = plug.method._host
    rows = subject_rows(host.text, [edit], ())
    return look(host, rows, plug.method.sites[0], layer, [], 8).hidden[0]


def test_rome_meets_the_wanted_state_exactly(make_plug: Callable[..., Any]) -> None:
    rome = MEMITConfig.preset("rome")
    assert rome.constraint == "equality"
    plug = make_plug(
        "memit",
        constraint="equality",
        batch_size=1,
        earlier=False,
        n_prefixes=0,
        ranges=(("down", 0.25, 0.5),),
    )
    layer = plug.method._last
    for edit in EDITS:
        wanted = find_targets(plug.method._host, layer, [edit], [], plug.method.config).state[0]
        before = _state_behind(plug, layer, edit)
        plug.edit(edit)
        after = _state_behind(plug, layer, edit)
        assert float((after - wanted).norm()) < 1e-3 * float((before - wanted).norm())
        (part,) = plug.method.ledger.entries[-1].parts
        a, b = plug.method.ledger.entries[-1].factors()[part.site]
        assert torch.linalg.matrix_rank(a @ b) == 1


def test_layers_share_what_is_to_be_done(make_plug: Callable[..., Any]) -> None:
    """With nothing to hold, two layers reach the wanted state together, each its share."""
    plug = make_plug("memit", covariance_weight=1e-6, n_prefixes=0)
    layer = plug.method._last
    assert [site.layer for site in plug.method.sites] == [0, 1]
    wanted = find_targets(plug.method._host, layer, EDITS, [], plug.method.config).state
    before = torch.stack([_state_behind(plug, layer, edit) for edit in EDITS])
    plug.edit(EDITS, progress=False)
    after = torch.stack([_state_behind(plug, layer, edit) for edit in EDITS])
    assert float((after - wanted).norm()) < 1e-2 * float((before - wanted).norm())
    first, second = plug.method.ledger.entries[0].parts
    torch.testing.assert_close(first.values, (wanted - before) / 2, rtol=1e-3, atol=1e-4)
    assert float(second.values.norm()) > 0.1 * float(first.values.norm())


def test_an_edit_taken_from_a_batch_leaves_the_smaller_solve(make_plug: Callable[..., Any]) -> None:
    """In the lowest layer that is the batch without it, to rounding."""
    whole, alone = make_plug("memit", n_prefixes=0), make_plug("memit", n_prefixes=0)
    whole.edit(EDITS, progress=False)
    whole.delete("b")
    alone.edit([EDITS[0], EDITS[2]], progress=False)
    low = whole.method.sites[0].name
    mine, theirs = (plug.method.ledger.change(low) for plug in (whole, alone))
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=2e-3 * float(theirs.abs().max()))


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("method", "config", "error", "match"),
    [
        (
            "memit",
            {"ranges": (("up", 0, 0.5),)},
            ValueError,
            "which has 48 outputs; give at most one linear a layer",
        ),
        ("memit", {"ranges": (("down", 0, 1),)}, UnsupportedModelError, "last edited layer is 3 of 4"),
        (
            "memit",
            {"constraint": "hard"},
            ValueError,
            r"constraint is 'hard'; choose one of \('least squares'",
        ),
        ("memit", {"floor": -1}, ValueError, "floor is -1; choose a value from 0 to 1"),
        ("alphaedit", {"units": "metric"}, ValueError, "units is 'metric'"),
        ("alphaedit", {"ridge": 0}, ValueError, "ridge is 0; choose"),
        ("memit", {"covariance": ()}, ValueError, "covariance holds no text"),
        ("memit", {"covariance": ("", "a")}, ValueError, "covariance holds no text"),
    ],
)
def test_bad_constants(
    make_plug: Callable[..., Any], method: str, config: dict[str, Any], error: type, match: str
) -> None:
    with pytest.raises(error, match=match):
        make_plug(method, **config)


def test_too_little_text(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("memit", covariance=("Marrow is.",), floor=0.0)
    with pytest.raises(EditError, match=r"is singular: .* 48 inputs .* a floor above 0"):
        plug.edit(EDITS[0])
    plug = make_plug("alphaedit", threshold=0.0, covariance_length=64, covariance=tuple(TEXTS * 3))
    plug.method._moments = moments_of(plug.method._host, plug.method.sites, plug.method.config)
    plug.method._prefixes = []
    for tensor in plug.method._moments.by_site.values():
        tensor += torch.eye(len(tensor))
    with pytest.raises(EditError, match=r"no direction of .* is free at threshold 0.0; its|raise the"):
        plug.edit(EDITS[0])
    assert not plug.edits


def test_a_model_that_overflows(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("memit")
    with torch.no_grad():
        plug.model.model.layers[3].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(EditError, match="not finite .edit 1 of its batch"):
        plug.edit(EDITS[:2], progress=False)
    assert not plug.edits
    assert not plug.method.ledger.entries
