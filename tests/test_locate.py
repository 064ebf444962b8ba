"""Wanted states, keys, second moments and the closed-form solves, against literal formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TEXTS
from locating import EDITS, maker, read

import memplug
from memplug.edits import EditError
from memplug.methods.locate import covariance, target
from memplug.methods.locate.covariance import moments_of
from memplug.methods.locate.rows import look, means, owners, subject_rows
from memplug.methods.locate.target import find_targets
from memplug.methods.memit import MEMITConfig
from memplug.saving.plugs import LoadError
from memplug.weights.solve import SolveError, directed


@pytest.fixture(scope="module")
def make_plug(make_tokenizer: Callable[..., Any]) -> Callable[..., memplug.Plug]:
    return maker(make_tokenizer)


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
    keys = means(look(host, rows, site, site.layer, [], 4).inputs, rows)
    assert owners(rows).tolist() == [0, 0, 1, 1, 2, 2]
    for edit, alone, behind in zip(EDITS, keys[::2], keys[1::2], strict=True):
        seen = []
        for front in ("", *prefixes):
            whole = f"{front} {edit.prompt}".strip()
            until = whole[: len(whole) - len(edit.prompt)] + edit.prompt[: edit.prompt.index(edit.subject)]
            ids = text.encode(until + edit.subject)
            assert text.encode(whole)[: len(ids)] == ids
            seen.append(read(plug.model, site.module, text.encode(whole))[len(ids) - 1])
        torch.testing.assert_close(alone.double(), seen[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(behind.double(), (seen[1] + seen[2]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_moments_are_means_over_all_tokens(make_plug: Callable[..., Any], family: str) -> None:
    plug = make_plug("memit", family, covariance_length=12)
    host, sites = plug.method._host, plug.method.sites
    moments = moments_of(host, sites, plug.method.config)
    for site in sites:
        keys = torch.cat([read(plug.model, site.module, host.text.encode(text)[:12]) for text in TEXTS])
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
    before = set(tmp_path.iterdir())
    assert len(before) == 2
    # Another model of the same class, another file; a file under another's name is refused.
    theirs = of(make_plug("memit", seed=1, cache_dir=str(tmp_path)))
    assert len(made) == 2
    (third,) = set(tmp_path.iterdir()) - before
    assert not any(torch.equal(theirs.by_site[name], tensor) for name, tensor in first.by_site.items())
    again = of(make_plug("memit", cache_dir=str(tmp_path)))
    assert all(torch.equal(again.by_site[name], tensor) for name, tensor in first.by_site.items())
    third.write_bytes(file.read_bytes())
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


def test_wanted_states_answer_as_edited_and_do_not_see_each_other(
    make_plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "has_reduced_products", lambda: False)
    plug = make_plug("memit", teachable=True)
    host, layer = plug.method._host, plug.method._last
    config = MEMITConfig(steps=25, lr=0.5, stop_loss=0.3, kl_weight=0.01, anchor=False)
    none = MEMITConfig(steps=0)
    start = find_targets(host, layer, EDITS, ["Tam"], none)
    found = find_targets(host, layer, EDITS, ["Tam"], config)
    assert bool((found.loss < 0.8 * start.loss).all())
    for index, edit in enumerate(EDITS):
        alone = find_targets(host, layer, [edit], ["Tam"], config)
        torch.testing.assert_close(alone.state[0], found.state[index], rtol=1e-2, atol=1e-2)
        pairs = [host.text.pair(f"{front} {edit.prompt}".strip(), edit.target) for front in ("", "Tam")]
        literal = []
        for ids, begin, _ in pairs:
            with torch.no_grad():
                logp = plug.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            literal.append(
                -sum(float(logp[t - 1, ids[t]]) for t in range(begin, len(ids))) / (len(ids) - begin)
            )
        assert float(start.loss[index]) == pytest.approx(sum(literal) / 2, rel=1e-4)
    short = find_targets(host, layer, EDITS, [], MEMITConfig(steps=10, clamp=0.25, anchor=False))
    length = (short.state - start.state).norm(dim=-1) / start.state.norm(dim=-1)
    assert bool((length < 0.2501).all())
    assert bool((length > 0.2).any())


def test_what_is_said_of_the_subject_is_held(make_plug: Callable[..., Any]) -> None:
    """The divergence after "<subject> is a", with the state put in by a plain hook."""
    plug = make_plug("memit")
    host, layer, text = plug.method._host, plug.method._last, plug.method._host.text
    base = find_targets(host, layer, EDITS[:1], [], MEMITConfig(steps=0)).state

    def moved(weight: float) -> float:
        config = MEMITConfig(
            steps=20, kl_weight=weight, stop_loss=0.0, weight_decay=0.0, n_kept=0, anchor=False
        )
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
            handle = host.architecture.layers[layer].register_forward_hook(put)
            after = plug.model(input_ids=inputs).logits[0, -1].log_softmax(-1)
            handle.remove()
        return float((after.exp() * (after - before)).sum())

    assert moved(20.0) < moved(0.0) / 3
