"""Prefix recall against literal concatenation: values, gradients, caches and padding, every family."""

from __future__ import annotations

import pytest
import torch
from families import CASES, EAGER_ONLY, FAMILIES, build, implementation_of

from memplug.model.architecture import UnsupportedModelError, inspect_model
from memplug.model.hooks import Hook, HookSet, capture_input, skipping_below
from memplug.model.prefix import Prefix
from memplug.model.recall import Recall
from memplug.model.tracker import CallTracker

Z, B, T = 2, 3, 9
# A window of 6 hides concatenated vectors from late tokens, but never a prefix: compare short rows only.
WINDOWED = {"mistral", "ministral", "gemma2", "gemma3_text", "gpt_oss"}
# A plain forward counts a left-padded row's positions from the mask, not from the first column.
COUNTS_FROM_MASK = {"opt"}
NO_POSITIONS = {"bloom", "mpt"}  # their forward takes no position_ids
NO_FLOAT64 = {"mixtral", "gpt_oss", "xglm"}  # grouped matrix products and a mask's limits have no float64


class Setup:
    """A model, a recall on it, and rows of random tokens."""

    def __init__(self, family, implementation=None, length=2, dtype=torch.float32):
        self.family = family
        self.model = build(family, implementation or implementation_of(family)).to(dtype)
        self.architecture = inspect_model(self.model)
        self.recall = Recall(self.model, self.architecture, Z)
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(3, 97, (B, T), generator=generator)
        self.values = torch.randn(B, length, self.architecture.width, generator=generator).to(dtype)

    def positions(self, start, end):
        """Position ids for a call, for families that take them."""
        return {} if self.family in NO_POSITIONS else {"position_ids": torch.arange(start, end)[None]}


def forced(setup, ids, values, **given):
    """Logits with every row's value recalled, through the prefix."""
    rows = len(ids)
    kv = setup.recall.project(values, torch.zeros(rows, dtype=torch.long))
    prefix = Prefix(kv, torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.long))
    with HookSet(setup.recall.hooks(lambda: None, lambda: None)), setup.recall.forced(prefix):
        return setup.model(input_ids=ids, use_cache=False, **given).logits


def literal(setup, ids, values):
    """Logits with the values concatenated to the input of layer Z; layers below see the tokens only."""
    architecture, model, length = setup.architecture, setup.model, values.shape[1]
    hidden = capture_input(architecture, Z, lambda: model(input_ids=ids))

    def replace(_m, args, kwargs):
        bound = architecture.bind(args, kwargs)
        del bound[next(iter(bound))]
        return (torch.cat([values, hidden], dim=1),), bound

    position = {}
    if architecture.rotary or setup.family == "gptj":
        positions = torch.arange(-length, ids.shape[1]).expand(len(ids), -1)
        # GPT-J keeps a table of positions from 0 on: its vectors stand at 0, with the first token.
        position["position_ids"] = positions.clamp(min=0) if setup.family == "gptj" else positions
        # Said, since positions that do not rise by one are else taken for several texts in one row.
        position["attention_mask"] = torch.ones_like(positions)
    dummy = torch.zeros(len(ids), length, dtype=torch.long)
    with skipping_below(architecture, Z), HookSet([Hook(architecture.layers[Z], "before", replace)]):
        logits = model(input_ids=torch.cat([dummy, ids], dim=1), use_cache=False, **position).logits
    return logits[:, length:]


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_equals_literal_concatenation(family, implementation, length):
    setup = Setup(family, implementation, length)
    ids = setup.ids[:, : 6 - length] if family in WINDOWED else setup.ids
    expected = literal(setup, ids, setup.values)
    got = forced(setup, ids, setup.values)
    assert (expected - setup.model(input_ids=ids).logits).abs().max() > 1e-2  # the value does something
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_gradient_equals_that_of_literal_concatenation(family, implementation):
    exact = family not in NO_FLOAT64
    setup = Setup(family, implementation, 3, torch.float64 if exact else torch.float32)
    setup.model.requires_grad_(False)
    ids = setup.ids[:, :3] if family in WINDOWED else setup.ids
    weight = torch.randn(B, ids.shape[1], 97, generator=torch.Generator().manual_seed(2))
    gradients = []
    for run in (literal, forced):
        values = setup.values.clone().requires_grad_(True)
        logits = run(setup, ids, values)
        gradients.append(torch.autograd.grad((logits * weight).sum(), values)[0])
    assert gradients[0].abs().max() > 1e-2
    # Norms, rotary tables or the softmax stay in float32 in many families.
    tolerance = 1e-6 if exact else 2e-4
    torch.testing.assert_close(gradients[1], gradients[0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_oss", "bloom", "falcon", "gptj"])
def test_half_precision_stays_close_to_float32(family, dtype):
    short = 4 if family in WINDOWED else T
    exact = Setup(family)
    half = Setup(family, dtype=dtype)
    expected = forced(exact, exact.ids[:, :short], exact.values)
    got = forced(half, half.ids[:, :short], half.values)
    reference = literal(half, half.ids[:, :short], half.values)
    assert got.dtype == dtype
    scale = expected.abs().max()
    eps = torch.finfo(dtype).eps
    assert (got.float() - expected).abs().max() < 12 * eps * scale
    # Two orders of the same sums differ by no more than rounding does.
    assert (got.float() - reference.float()).abs().max() < 12 * eps * scale


class Recalling:
    """Recalls chosen values in the rows of a model's forwards, as a method would."""

    def __init__(self, setup, chosen):
        self.setup, self.chosen = setup, chosen
        self.tracker = CallTracker(setup.architecture, None)
        self.prefix = None

    def decide(self):
        call = self.tracker.current
        if call.past == 0:
            self.prefix = Prefix.stack(
                [
                    self.setup.recall.project(self.setup.values[c : c + 1], f[None]) if c >= 0 else None
                    for c, f in zip(self.chosen, call.first, strict=True)
                ],
                call.start,
            )
        return self.prefix

    def hooks(self):
        recall = self.setup.recall.hooks(self.decide, lambda: self.prefix)
        return HookSet([*self.tracker.hooks(lambda: True), *recall])


def run(setup, chosen, ids, **given):
    with torch.no_grad(), Recalling(setup, chosen).hooks():
        return setup.model(input_ids=ids, **given).logits


def pad(rows, side):
    """Ids and mask of rows of unequal length."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, at], mask[i, at] = row, 1
    return ids, mask


@pytest.mark.parametrize("given", ["generate", "plain"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_padded_rows_equal_rows_alone(family, implementation, side, given):
    setup = Setup(family, implementation)
    lengths, chosen = (9, 4, 6, 2), (0, 1, -1, 2)
    rows = [setup.ids[i % B, :n] for i, n in enumerate(lengths)]
    ids, mask = pad(rows, side)
    position = {}
    if given == "generate" and family not in NO_POSITIONS:
        position["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    together = run(setup, chosen, ids, attention_mask=mask, **position)
    for i, row in enumerate(rows):
        begin = max(lengths) - len(row) if side == "left" else 0
        # Without position ids a padded row's first token stands at the column it is in.
        first = begin if given == "plain" and family not in COUNTS_FROM_MASK else 0
        alone = run(setup, chosen[i : i + 1], row[None], **setup.positions(first, first + len(row)))
        mine = together[i, begin : begin + len(row)]
        torch.testing.assert_close(mine, alone[0], atol=2e-5, rtol=1e-4, msg=lambda m, i=i: f"row {i}: {m}")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_cached_equals_uncached(family, implementation, side):
    """Prefill of padded rows, some recalling, then a chunk of two tokens and single ones."""
    setup = Setup(family, implementation)
    rows = [setup.ids[0, :5], setup.ids[1, :3], setup.ids[2, :4]]
    ids, mask = pad(rows, side)
    more = setup.ids[:, 5:]
    ids, mask = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    def at(begin, end):
        given = {"attention_mask": mask[:, :end], "input_ids": ids[:, begin:end]}
        if family not in NO_POSITIONS:
            given["position_ids"] = positions[:, begin:end]
        return given

    with torch.no_grad(), Recalling(setup, (0, -1, 2)).hooks():
        whole = setup.model(**at(0, 9), use_cache=False).logits
        out = setup.model(**at(0, 5), use_cache=True)
        pieces = [out.logits]
        for begin, end in ((5, 7), (7, 8), (8, 9)):
            out = setup.model(**at(begin, end), past_key_values=out.past_key_values, use_cache=True)
            pieces.append(out.logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(pieces, 1)[real], whole[real], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "bloom", "falcon", "gptj"])
def test_cache_of_the_caller_keeps_its_length(family):
    setup = Setup(family)
    with torch.no_grad(), Recalling(setup, (0, 1, 2)).hooks():
        cache = setup.model(input_ids=setup.ids[:, :5], use_cache=True).past_key_values
    assert cache.get_seq_length() == 5
    assert {layer.keys.shape[-2] for layer in cache.layers} == {5}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mpt", "falcon"])
def test_a_row_that_recalls_nothing_beside_one_that_does(family):
    setup = Setup(family)
    plain = setup.model(input_ids=setup.ids).logits
    mixed = run(setup, (-1, 1, -1), setup.ids)
    torch.testing.assert_close(mixed[[0, 2]], plain[[0, 2]], atol=1e-5, rtol=1e-5)
    assert (mixed[1] - plain[1]).abs().max() > 1e-2


def test_no_recall_at_all_is_the_base_model_to_the_bit():
    setup = Setup("llama")
    assert torch.equal(run(setup, (-1, -1, -1), setup.ids), setup.model(input_ids=setup.ids).logits)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "bloom", "opt", "llama4_text"])
def test_resume_gives_the_logits_of_the_whole_forward(family):
    setup = Setup(family)
    hidden = capture_input(setup.architecture, Z, lambda: setup.model(input_ids=setup.ids))
    kv = setup.recall.project(setup.values, torch.zeros(B, dtype=torch.long))
    prefix = Prefix(kv, torch.tensor([True, False, True]), torch.zeros(B, dtype=torch.long))
    with HookSet(setup.recall.hooks(lambda: None, lambda: None)), setup.recall.forced(prefix):
        whole = setup.model(input_ids=setup.ids, use_cache=False).logits
    flat = torch.tensor([0, 5, T + 3, 3 * T - 1])
    with HookSet(setup.recall.hooks(lambda: None, lambda: None)):
        got = setup.recall.resume(
            hidden, lambda: setup.model(input_ids=setup.ids, use_cache=False), prefix, flat
        )
    torch.testing.assert_close(got, whole.flatten(0, 1)[flat], atol=1e-5, rtol=1e-4)


def test_other_attention_implementations_are_refused():
    model = build("llama")
    architecture = inspect_model(model)
    for name in ("flex_attention", "flash_attention_2"):
        model.config._attn_implementation = name
        with pytest.raises(UnsupportedModelError, match=f"'sdpa' or 'eager', the model has '{name}'"):
            Recall(model, architecture, Z)


def test_families_name_the_eager_only_ones():
    """The list in families.py is what transformers says, so that no case goes missing."""
    for family in FAMILIES:
        if family in EAGER_ONLY:
            with pytest.raises(ValueError, match="scaled_dot_product_attention"):
                build(family, "sdpa")


@pytest.mark.parametrize("family", [case for case in FAMILIES if case not in NO_POSITIONS])
def test_keys_that_were_moved_are_those_of_values_that_stand_there(family):
    """Rotary or learned positions, all layers turned alike or not; what cannot be moved stays as it is."""
    setup = Setup(family)
    at = torch.tensor([0, 5, 22])
    zero = torch.zeros(B, dtype=torch.long)
    with torch.no_grad():
        before = setup.recall.project(setup.values, zero)
        moved = setup.recall.turned(before, at)
        want = setup.recall.project(setup.values, at)
    for (keys, values), (other, same) in zip(moved, want, strict=True):
        torch.testing.assert_close(keys, other, rtol=2e-3, atol=2e-4)
        torch.testing.assert_close(values, same, rtol=2e-3, atol=2e-4)


def test_moved_keys_carry_gradients():
    setup = Setup("llama")
    values = setup.values.clone().requires_grad_()
    kv = setup.recall.project(values, torch.zeros(B, dtype=torch.long))
    moved = setup.recall.turned(kv, torch.tensor([3, 0, 9]))
    (got,) = torch.autograd.grad(sum((k[0] ** 3).sum() for k, _ in moved), values, retain_graph=True)
    there = setup.recall.project(values, torch.tensor([3, 0, 9]))
    (want,) = torch.autograd.grad(sum((k[0] ** 3).sum() for k, _ in there), values)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
