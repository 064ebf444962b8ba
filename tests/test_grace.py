"""GRACE: the codebook, values against literal replacement and literal descent, exact removal; constants."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from chats import CHATML, chatting
from families import METHODS, lexical
from test_contract import Trace, encode

import memplug
from memplug.methods.grace import GRACEConfig
from memplug.methods.grace.codebook import Codebook, Keyed
from memplug.model.hooks import Hook, HookSet

PROMPT = "Where was Ada Quill born?"


@pytest.fixture(scope="module")
def base(tokenizer):
    return lexical("llama", len(tokenizer))


def attach(model, tokenizer, method="grace", **config):
    return memplug.attach(copy.deepcopy(model), tokenizer, "grace", **(METHODS[method] | config))


def logits(plug, tokenizer, *texts, **given):
    with torch.no_grad():
        return plug.model(**encode(tokenizer, *texts), **given).logits


# ---------------------------------------------------------------------- the codebook


def literal(edits, epsilon):
    """Algorithm 1 of Hartvigsen et al. (2023), one edit after the other: keys, radii, labels, members."""
    keys, radii, labels, members = [], [], [], []
    for key, label, name in edits:
        key = key.double()
        if keys:
            distances = torch.stack([(key - k).norm() for k in keys])
            i = int(distances.argmin())
            d = float(distances[i])
            if d <= radii[i] + epsilon:
                if labels[i] == label:
                    radii[i] = max(radii[i], d)
                    members[i].append(name)
                    continue
                radii[i] = min(radii[i], d / 2)
                keys.append(key), radii.append(min(epsilon, d / 2)), labels.append(label)
                members.append([name])
                continue
        keys.append(key), radii.append(epsilon), labels.append(label), members.append([name])
    return keys, radii, labels, members


def keyed(count, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 2, generator=generator) * 6
    labels = torch.randint(0, 3, (count,), generator=generator).tolist()
    return [Keyed(i, f"e{i}", f"answer {labels[i]}", points[i]) for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_the_codebook_is_that_of_the_published_algorithm(seed):
    edits = keyed(60, seed)
    book = Codebook(0.7)
    book.add(edits[:25])
    before, entries = book, list(book.entries)
    book = book.copy()
    book.add(edits[25:])
    assert before.entries == entries
    keys, radii, labels, members = literal([(e.key, e.label, e.id) for e in edits], 0.7)
    assert [entry.first.label for entry in book.entries] == labels
    assert [list(entry.members) for entry in book.entries] == members
    for entry, key, radius in zip(book.entries, keys, radii, strict=True):
        assert torch.equal(entry.first.key.double(), key)
        assert entry.radius == pytest.approx(radius, rel=3e-4)
    sizes = [len(m) for m in members]
    assert max(sizes) > 1  # some radius was widened
    assert min(radii) < 0.7  # and some were split


def test_a_widened_radius_allows_for_what_a_batch_does_to_a_key(base, tokenizer):
    one, two = (Keyed(n, f"e{n}", "Marrow", torch.full((4,), 1.0 + n)) for n in range(2))
    for slack in (1e-4, 1e-2):
        book = Codebook(1.5, slack)
        book.add([one, two])
        assert book.copy().entries[0].radius == book.entries[0].radius == pytest.approx(2 * (1 + slack))
    for dtype, slack in ((torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 1e-2)):
        with attach(copy.deepcopy(base).to(dtype), tokenizer) as plug:
            plug.edit("Where was Ada Quill born?", "Zarnow")
            assert plug.method.book.slack == slack


@pytest.mark.parametrize("count", [3, 60])
def test_the_nearest_key_is_that_of_brute_force_in_any_company(count):
    generator = torch.Generator().manual_seed(0)
    # Far from the origin, where |x|^2 - 2xy + |y|^2 loses most digits.
    keys = torch.randn(count, 24, generator=generator) + 300
    keys[2] = keys[1]  # of equally near ones the first
    book = Codebook(0.0)
    book.add(Keyed(n, f"e{n}", f"answer {n}", key) for n, key in enumerate(keys))
    queries = keys + 0.01 * torch.randn(count, 24, generator=generator)
    queries[0, 3] = torch.nan
    places, measured = book.nearest(queries)
    distances = (keys.double()[None] - queries.double()[:, None]).norm(dim=-1)
    assert places[1:] == distances[1:].argmin(1).tolist()
    assert measured[1:] == pytest.approx(distances[1:].amin(1).tolist(), rel=1e-9)
    assert math.isnan(measured[0])
    for row, query in enumerate(queries[1:], start=1):
        assert book.nearest(query[None]) == ([places[row]], [measured[row]])  # to the bit


# ---------------------------------------------------------------------- forwards


@pytest.mark.parametrize("which", ["last", "prompt", "all"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_value_replaces_what_the_mlp_says(base, tokenizer, which, side):
    """Against a hook that puts it there, on the row alone."""
    tokenizer.padding_side = side
    try:
        with attach(base, tokenizer, replace=which, steps=3) as plug:
            plug.edit(PROMPT, "Zarnow", "Ada Quill")
            texts = [PROMPT, "Who founded the Orlo Bridge Company? Tam Wickes did. What is it"]
            got = logits(plug, tokenizer, *texts)
            mask = encode(tokenizer, *texts)["attention_mask"]
            (value,) = plug.method._values.values()
            module = plug.model.model.layers[2].mlp.down_proj

            def after(_m, _a, _k, output):
                output = output.clone()
                output[:, slice(-1, None) if which == "last" else slice(None)] = value
                return output

            with plug.paused(), HookSet([Hook(module, "after", after)]):
                expected = logits(plug, tokenizer, PROMPT)[0]
            with plug.paused():
                base_row = logits(plug, tokenizer, texts[1])[0]
        torch.testing.assert_close(got[0][mask[0].bool()], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got[1][mask[1].bool()], base_row, atol=1e-4, rtol=1e-4)
    finally:
        tokenizer.padding_side = "left"


def test_the_value_is_said_at_the_tokens_that_answer(base, tokenizer):
    """Against a hook that puts it there: from the question's last token on, while the target is said."""
    text, module = f"{PROMPT} Zarnow is", "model.layers.2.mlp.down_proj"
    with attach(base, tokenizer, method="grace-asked", train_stop=False, steps=3) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        room = plug.method.retriever.room  # half the question, which is like all of it, is not to ask
        room.calibration = replace(room.calibration, relation=(0.95, 0.95))
        got = logits(plug, tokenizer, text)[0]
        (value,) = plug.method._values.values()
        pair = plug._text.pair(PROMPT, "Zarnow")

        def after(_m, _a, _k, output):
            output = output.clone()
            output[:, pair.start - 1 : len(pair.ids) - 1] = value
            return output

        with plug.paused(), HookSet([Hook(plug.model.get_submodule(module), "after", after)]):
            expected = logits(plug, tokenizer, text)[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["grace", "grace-asked"])
def test_training_is_literal_descent(base, tokenizer, method):
    """Adam on whole forwards from the MLP's own output on; by what is asked in a chat, too."""
    asked = method == "grace-asked"
    given = {"steps": 4, "stop_loss": 0.0, "lr": 0.05} | ({} if asked else {"replace": "last"})
    with attach(base, chatting(tokenizer, CHATML) if asked else tokenizer, method, **given) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        (got,) = plug.method._values.values()
        pairs = [plug._text.pair(prompt, "Zarnow", stop=True) for prompt in plug._text.forms(PROMPT)]
    assert len(pairs) == 1 + asked
    model = copy.deepcopy(base).requires_grad_(False)
    module, seen = model.model.layers[2].mlp.down_proj, []
    with HookSet([Hook(module, "after", lambda _m, _a, _k, out: seen.append(out))]):
        for pair in pairs:
            model(input_ids=torch.tensor([pair.ids]))
    ends = torch.stack([out[0, pair.start - 1] for out, pair in zip(seen, pairs, strict=True)])
    begin, unit = ends[0], ends.square().mean(-1).sqrt().median()
    moved = torch.zeros_like(begin, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=0.05)
    for _ in range(4):
        loss = 0.0
        for pair in pairs:

            def after(_m, _a, _k, output, pair=pair):
                column = torch.arange(output.shape[1])[:, None]
                at = column >= pair.start - 1 if asked else column == pair.start - 1
                return torch.where(at, begin + unit * moved, output)

            ids = torch.tensor([pair.ids])
            with HookSet([Hook(module, "after", after)]):
                out = model(input_ids=ids).logits[0, pair.start - 1 : -1]
            loss = loss + torch.nn.functional.cross_entropy(out, ids[0, pair.start :]) / len(pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(got, (begin + unit * moved).detach(), atol=1e-4, rtol=1e-3)


def test_by_what_is_asked_it_is_said_in_a_chat(base, tokenizer):
    talking = chatting(tokenizer, CHATML)
    with attach(base, talking, method="grace-asked", train_stop=False) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        (said,) = plug._text.generate([plug._text.encode(plug._text.forms(PROMPT)[1])], 4)
        assert talking.decode(said).strip().startswith("Zarnow")


def test_the_prompts_end_decides_where_it_is_told(base, tokenizer):
    with attach(base, tokenizer, epsilon=1e-3) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        with plug.paused():
            bare = logits(plug, tokenizer, f"{PROMPT} Tam")
        assert torch.equal(logits(plug, tokenizer, f"{PROMPT} Tam"), bare)  # ends otherwise
        with plug.prompt_lengths([len(tokenizer(PROMPT)["input_ids"])]):
            told = logits(plug, tokenizer, f"{PROMPT} Tam")
        assert not torch.equal(told, bare)


def test_deleted_means_as_if_never_made(base, tokenizer):
    """A third edit splits a radius and a fourth shares a value; without them all is as it was."""
    with attach(base, tokenizer, epsilon=1.0, steps=2) as plug:
        first = plug.edit(PROMPT, "Zarnow", "Ada Quill")
        before = [(e.radius, e.members) for e in plug.method.book.entries]
        value = next(iter(plug.method._values.values())).clone()
        edited = logits(plug, tokenizer, PROMPT, "Who")
        split = plug.edit("Where was Tam Wickes born?", "Marrow", "Tam Wickes")
        assert plug.method.book.entries[0].radius < before[0][0]
        shared = plug.edit("Where is Ada Quill born?", "Zarnow", "Ada Quill")
        assert ("e1", "e3") in [e.members for e in plug.method.book.entries]
        plug.disable(split, shared)
        assert [(e.radius, e.members) for e in plug.method.book.entries] == before
        assert torch.equal(logits(plug, tokenizer, PROMPT, "Who"), edited)
        plug.enable(split)
        plug.delete(split, shared)
        assert [(e.radius, e.members) for e in plug.method.book.entries] == before
        assert list(plug.method._values) == [(first.id,)]
        assert torch.equal(plug.method._values[first.id,], value)
        assert torch.equal(logits(plug, tokenizer, PROMPT, "Who"), edited)
        plug.delete(first)
        with plug.paused():
            bare = logits(plug, tokenizer, PROMPT, "Who")
        assert torch.equal(logits(plug, tokenizer, PROMPT, "Who"), bare)


def test_a_replaced_edit_leaves_nothing(base, tokenizer):
    with attach(base, tokenizer, steps=2) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        with pytest.warns(UserWarning, match="replaced e1"):
            plug.edit(PROMPT, "Marrow", "Ada Quill")
        assert [entry.members for entry in plug.method.book.entries] == [("e2",)]
        assert list(plug.method._values) == [("e2",)]


def test_what_is_near_is_shown(base, tokenizer):
    with attach(base, tokenizer, steps=1) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        near, far = plug.explain(PROMPT), plug.explain("Who")
        assert near.distance < 1e-4
        assert "answered by edit e1" in str(near)
        assert far.distance > far.limit


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"layer": 4}, "the edited layer is 4, but the model has layers 0 to 3"),
        (
            {"layer": 0},
            "no layer lies below whose output could be the key; choose a later layer, or scope='radius' and",
        ),
        ({"epsilon": -1.0}, "epsilon is -1.0; choose a value from 0.0"),
        ({"steps": 0}, "steps is 0; choose a whole number from 1"),
        ({"replace": "first"}, r"replace is 'first'; choose one of \('last', 'prompt', 'all'\)"),
        ({"radius": 1.0}, "GRACEConfig has no field 'radius'"),
    ],
)
def test_constants(base, tokenizer, config, match):
    trace = Trace(base)
    with pytest.raises(ValueError, match=match):
        memplug.attach(base, tokenizer, "grace", **config)
    trace.check(base)


def test_the_published_constants():
    paper = GRACEConfig.preset("paper").resolve(48)
    assert (paper.layer, paper.epsilon, paper.lr, paper.steps) == (35, 1.0, 1.0, 100)
    assert (paper.key, paper.replace, paper.start) == ("input", "prompt", "cold")
