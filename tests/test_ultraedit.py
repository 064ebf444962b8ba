"""Weight editing through the plug: what every weight-based method promises, on a tiny random model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import memplug
from memplug import editors as editors_module
from memplug.edits import Case, Edit, EditError, Probe
from memplug.hooks import HookSet
from memplug.methods.hypernet.branch import branch_hooks
from memplug.methods.hypernet.calibrate import LADDER, answered, find_step, stand_ins
from memplug.methods.hypernet.guard import CollapseError
from memplug.methods.hypernet.method import UnfittedError
from memplug.storage import LoadError

NAMES = ["Ankaria", "Borland", "Curia", "Dagmar", "Elba", "Fanoria"]
TOWNS = ["Bel", "Castle", "Dor", "Efra", "Gor", "Hol"]
EDITS = [Edit(f"The capital of {n} is", t, n) for n, t in zip(NAMES, TOWNS, strict=True)]
CASES = [Case(e, (f"What town rules {e.subject}?",), (Probe("The river is", "long"),)) for e in EDITS]
METHODS = ["ultraedit", "mend", "malmen", "rledit", "hiedit", "smedit"]
TINY: dict[str, Any] = {"rank": 4, "fit_steps": 2, "fit_batch": 2, "trajectory": (1, 2), "batch_size": 2}


@pytest.fixture(scope="module")
def make_model(make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    def make(seed: int = 0, **config: Any) -> tuple[Any, Any]:
        tokenizer = make_tokenizer([edit.prompt for edit in EDITS], 300)
        config = {"hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.3} | config
        return make_llama(len(tokenizer), seed=seed, **config), tokenizer

    return make


@pytest.fixture(scope="module")
def editor_file(
    make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A fitted editor's file for each method, fitted once."""
    files: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in files:
            files[method] = tmp_path_factory.mktemp("editors") / f"{method}.safetensors"
            with memplug.attach(*make_model(), method, **TINY) as plug:
                plug.fit(CASES, progress=False)
                plug.save_editor(files[method])
        return files[method]

    return get


@pytest.fixture
def make_plug(
    make_model: Callable[..., Any], editor_file: Callable[[str], Path]
) -> Callable[..., memplug.Plug]:
    def make(method: str, **config: Any) -> memplug.Plug:
        if method == "ultraedit":
            return memplug.attach(*make_model(), method, **({"batch_size": 2, "inner_lr": 0.02} | config))
        return memplug.attach(*make_model(), method, editor=editor_file(method), **config)

    return make


def _bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _logits(plug: memplug.Plug) -> torch.Tensor:
    with torch.no_grad():
        return plug.model(**plug.tokenizer(EDITS[0].prompt, return_tensors="pt")).logits


def _clean(model: Any) -> bool:
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return not hooked and not hasattr(model, "_memplug_plug")


@pytest.mark.parametrize("method", METHODS)
def test_edit_switch_delete_pause_detach(make_plug: Callable[..., Any], method: str) -> None:
    plug = make_plug(method)
    base = _bits(plug.model)
    one, two, three = plug.edit(EDITS[:3], progress=False)
    edited = _bits(plug.model)
    changed = {name for name in base if not torch.equal(base[name], edited[name])}
    assert changed
    assert changed <= {f"{site.name}.weight" for site in plug.method.sites}
    plug.disable(two)
    assert not _same(_bits(plug.model), edited)
    with plug.paused():
        assert _same(_bits(plug.model), base)
    plug.enable(two)
    assert _same(_bits(plug.model), edited)
    plug.delete(one)
    plug.disable(two, three)
    assert _same(_bits(plug.model), base)
    plug.enable(three)
    assert not _same(_bits(plug.model), base)
    plug.detach()
    assert _same(_bits(plug.model), base)
    assert _clean(plug.model)


def test_the_step_size_is_where_single_edits_gain_half(make_model: Callable[..., Any]) -> None:
    """Each stand-in edited alone, by the plain way: at the step size found, and at half of it."""
    plug = memplug.attach(*make_model(hidden_size=64, intermediate_size=128), "ultraedit", steps=1)
    method, base = plug.method, _bits(plug.model)
    host, pairs = method._host, stand_ins(plug.method._host, 24, 0)
    assert stand_ins(host, 24, 0) == pairs
    method.editor.make(host, pairs, observe=True)
    found = find_step(host, method.editor, pairs)

    def gained(step: float) -> float:
        method.editor.set_step(step)
        total = 0.0
        for pair in pairs:
            factors = method.editor.make(host, [pair]).factors(method.sites)
            with HookSet(branch_hooks(method.ledger.sites, factors)):
                total += float(answered(host, [pair])[0])
        return total / len(pairs)

    steps = [step for step in LADDER if step <= found * 1.01]
    assert found in steps
    assert gained(found) > gained(steps[-2])
    assert gained(found) >= 0.4 * max(gained(found * 2**n) for n in range(4))
    assert _same(_bits(plug.model), base)


def test_an_edit_is_answered_and_explained(make_model: Callable[..., Any]) -> None:
    """Statistics come from the model alone, and the first edit works."""
    model, tokenizer = make_model(hidden_size=64, intermediate_size=128)
    plug = memplug.attach(model, tokenizer, "ultraedit", steps=8, inner_lr=0.0256)
    state = torch.random.get_rng_state()
    edit = plug.edit("The capital of Ankaria is", "Castle", subject="Ankaria")
    assert torch.equal(torch.random.get_rng_state(), state)
    ids = plug.tokenizer(edit.prompt, return_tensors="pt")
    out = plug.model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert plug.tokenizer.decode(out).strip().startswith("Castle")
    told = plug.explain(edit.prompt)
    assert told.edited.startswith("Castle")
    assert not told.base.startswith("Castle")
    assert {one.module for one in told.edits[0].touched} == {site.name for site in plug.method.sites}
    whole = plug.method.ledger.relative_change()
    assert {one.module: one.share for one in told.edits[0].touched} == pytest.approx(whole, rel=1e-3)
    assert "The capital of Ankaria is" in str(told)


@pytest.mark.parametrize("method", METHODS)
def test_side_mode_equals_the_written_weights(make_plug: Callable[..., Any], method: str) -> None:
    merged, side = make_plug(method), make_plug(method, mode="side")
    base, untouched = _bits(side.model), _logits(side)
    for plug in (merged, side):
        plug.edit(EDITS[:4], progress=False)
        plug.disable("e3")
    assert _same(_bits(side.model), base)
    torch.testing.assert_close(_logits(side), _logits(merged), rtol=1e-3, atol=1e-4)
    assert not torch.equal(_logits(side), untouched)
    with side.paused():
        assert torch.equal(_logits(side), untouched)
    side.disable("e1", "e2", "e4")
    assert torch.equal(_logits(side), untouched)
    side.enable("e1")
    given = side.merge()
    assert given is side.model
    assert _clean(given)
    assert not _same(_bits(given), base)


def test_merge_gives_an_ordinary_model(make_plug: Callable[..., Any], tmp_path: Path) -> None:
    plug = make_plug("rledit")
    plug.edit(EDITS[:2], progress=False)
    want = _logits(plug)
    model = plug.merge()
    assert _clean(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = again(**plug.tokenizer(EDITS[0].prompt, return_tensors="pt")).logits
    assert torch.equal(found, want)
    with pytest.raises(ValueError, match="detached"):
        plug.merge()


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load_give_the_same_bits(
    make_plug: Callable[..., Any], make_model: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    plug = make_plug(method)
    plug.edit(EDITS[:3], progress=False)
    plug.disable("e2")
    plug.save(tmp_path / "p")
    loaded = memplug.load(tmp_path / "p", *make_model())
    assert _same(_bits(loaded.model), _bits(plug.model))
    for one in (plug, loaded):
        one.enable("e2")
        one.edit(EDITS[3], progress=False)
    assert _same(_bits(loaded.model), _bits(plug.model))
    with pytest.raises(LoadError, match="fingerprint"):
        memplug.load(tmp_path / "p", *make_model(seed=5))


@pytest.mark.parametrize("method", METHODS)
def test_replay_is_the_model_in_which_the_edit_had_never_been_made(
    make_plug: Callable[..., Any], method: str
) -> None:
    plug, other = make_plug(method), make_plug(method)
    plug.edit([EDITS[0], EDITS[1]], progress=False)
    plug.edit([EDITS[2], EDITS[3]], progress=False)
    plug.edit(EDITS[4], progress=False)
    plug.disable("e1")
    plug.delete("e3", replay=True)
    other.edit([EDITS[0], EDITS[1]], progress=False)
    other.edit(EDITS[3], progress=False)
    other.edit(EDITS[4], progress=False)
    other.disable("e1")
    assert list(plug.edits) == ["e1", "e2", "e4", "e5"]
    mine, theirs = (one.method.ledger for one in (plug, other))
    assert all(torch.equal(mine.change(site), theirs.change(site)) for site in mine.sites)
    assert _same(_bits(plug.model), _bits(other.model))


def test_replay_is_for_weights_alone(make_model: Callable[..., Any]) -> None:
    plug = memplug.attach(*make_model(), "llp", value_steps=1, n_statements=0, n_prefixes=0)
    plug.edit(EDITS[0])
    with pytest.raises(ValueError, match="replay=True: deleting an edit of 'llp'"):
        plug.delete("e1", replay=True)
    assert len(plug.edits) == 1


def test_a_second_edit_of_a_prompt_replaces_the_first(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("ultraedit")
    plug.edit(EDITS[0])
    with pytest.warns(UserWarning, match="replaced e1"):
        plug.edit(EDITS[0].prompt, "Hol", EDITS[0].subject)
    assert [entry.ids for entry in plug.method.ledger.entries] == [("e2",)]


def test_the_guard_refuses_and_rolls_back(make_plug: Callable[..., Any]) -> None:
    for limits, message in [
        ({"max_change": 1e-6}, "times its norm"),
        ({"max_perplexity": 1.0, "max_change": 1e9}, "perplexity"),
    ]:
        plug = make_plug("ultraedit", guard_texts=("The river of Elba is long",), inner_lr=0.5, **limits)
        base = _bits(plug.model)
        with pytest.raises(CollapseError, match=message):
            plug.edit(EDITS[:4], progress=False)
        assert _same(_bits(plug.model), base)
        assert not plug.edits
        assert not plug.method.ledger.entries
    quiet = make_plug("ultraedit", guard_every=0, max_change=1e-6)
    quiet.edit(EDITS[:4], progress=False)
    assert len(quiet.edits) == 4


@pytest.mark.parametrize("statistics", ["frozen", "stream"])
def test_a_failing_edit_changes_nothing(
    make_plug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, statistics: str
) -> None:
    plug = make_plug("ultraedit", statistics=statistics)
    plug.edit(EDITS[0])
    bits = _bits(plug.model)
    state = {n: t.clone() for n, t in plug.method.editor.state_dict().items()}
    look, calls = plug.method._guard.look, []

    def fail() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no room")
        look()

    monkeypatch.setattr(plug.method._guard, "look", fail)
    with pytest.raises(MemoryError):
        plug.edit([*EDITS[1:5], Edit(EDITS[0].prompt, "Dor", EDITS[0].subject)], progress=False)
    assert _same(_bits(plug.model), bits)
    assert list(plug.edits) == ["e1"]
    assert all(torch.equal(state[n], t) for n, t in plug.method.editor.state_dict().items())
    with plug.paused(), pytest.raises(EditError, match="the plug is paused"):
        plug.edit(EDITS[1])


def test_nan_in_features(make_plug: Callable[..., Any]) -> None:
    plug = make_plug("rledit")
    with torch.no_grad():
        plug.model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(EditError, match="are not finite"):
        plug.edit(EDITS[0])
    assert not plug.edits


def test_editors_that_do_not_fit(
    make_model: Callable[..., Any], editor_file: Callable[[str], Path], tmp_path: Path
) -> None:
    file = editor_file("rledit")
    with pytest.raises(UnfittedError, match=r"not fitted; call plug.fit\(cases\)"):
        memplug.attach(*make_model(), "rledit").edit(EDITS[0])
    with pytest.raises(UnfittedError, match="no fitted editor to save"):
        memplug.attach(*make_model(), "rledit").save_editor(tmp_path / "x")
    model, tokenizer = make_model(seed=3)
    with pytest.raises(LoadError, match="fitted for a LlamaForCausalLM with the fingerprint"):
        memplug.attach(model, tokenizer, "rledit", editor=file)
    assert _clean(model)
    with pytest.raises(ValueError, match="fitted for 'rledit', not 'smedit'"):
        memplug.attach(*make_model(), "smedit", editor=file)
    with pytest.raises(ValueError, match="do not fit this 'rledit' configuration"):
        memplug.attach(*make_model(), "rledit", editor=file, rank=9)
    with pytest.raises(LoadError, match="is not a file"):
        memplug.attach(*make_model(), "rledit", editor=tmp_path)
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match="damaged"):
        memplug.attach(*make_model(), "rledit", editor=tmp_path / "cut")
    model, tokenizer = make_model(tie_word_embeddings=False)
    model.model.layers[1].mlp.gate_proj.weight = model.model.layers[2].mlp.gate_proj.weight
    with pytest.raises(memplug.UnsupportedModelError, match="shares its weight"):
        memplug.attach(model, tokenizer, "rledit")
    assert _clean(model)


def test_the_shipped_editor_is_taken_for_its_own_model(
    make_model: Callable[..., Any], editor_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editors_module, "_SHIPPED", editor_file("smedit").parent)
    plug = memplug.attach(*make_model(), "smedit")
    assert plug.method.config.rank == TINY["rank"]
    plug.edit(EDITS[0])
    assert memplug.attach(*make_model(), "smedit", batch_size=7).method.config.rank == TINY["rank"]
    for given in ({"rank": 9}, {"norm_weight": 0.0}):  # asks for an editor of its own
        plug = memplug.attach(*make_model(), "smedit", **given)
        assert not bool(plug.method.editor.fitted)
    with pytest.raises(UnfittedError):
        memplug.attach(*make_model(seed=4), "smedit").edit(EDITS[0])


def test_edits_do_not_touch_another_model(make_plug: Callable[..., Any]) -> None:
    one, two = make_plug("ultraedit"), make_plug("ultraedit")
    one.edit(EDITS[0])
    want = _bits(one.model)
    two.edit(EDITS[1:3], progress=False)
    two.detach()
    assert _same(_bits(one.model), want)
