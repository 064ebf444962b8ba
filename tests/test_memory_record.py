"""What the key memory holds: saved and loaded, counted, freed; bad entries, settings and queries."""

from __future__ import annotations

import pytest
import torch
from memory_oracle import D, R, World, batch, both, filled

from memplug.memory import KeyMemory


def test_saved_and_loaded_memory_finds_the_same():
    world = World(9)
    memory, oracle = both()
    filled(world, memory, oracle, 30)
    for id in (0, 7, 70):
        memory.remove(id)
    memory.set_enabled(21, False)
    saved = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    other = KeyMemory(R, D)
    other.add(0, torch.ones(R, 1, D))
    other.load_state_dict(saved)
    assert other.ids() == memory.ids()
    assert not other.enabled(21)
    for id in memory.ids():
        assert torch.equal(other.get(id), memory.get(id))
    queries, valid = batch(world, 8, 10)
    assert torch.equal(memory.search(queries, valid)[0], other.search(queries, valid)[0])
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, saved[name])
    other.remove(21)
    other.add(21, world.states([1, 2, 3]))
    assert other.ids()[-1] == 21
    assert torch.equal(saved["last"], memory.state_dict()["last"]), "loading shared its tensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("id"), "the tensor 'id' is missing"),
        (lambda s: s.update(more=s["id"]), "nothing is known of the tensor 'more'"),
        (lambda s: s.update(last=s["last"].float()), "the tensor last is torch.float32"),
        (lambda s: s.update(last=s["last"][:2]), "the tensor last is"),
        (lambda s: s.update(rest=s["rest"][:, 1:]), "the tensor rest is"),
        (lambda s: s["last"][0, 0].mul_(0.5), "the tensor last. is not of length 1"),
        (lambda s: s["rest"][1, 0].fill_(float("nan")), "the tensor rest has values that are not finite"),
        (lambda s: s["id"].copy_(s["id"][:1].expand(3)), "an id that is negative or another one's"),
        (lambda s: s["id"].sub_(100), "an id that is negative"),
        (lambda s: s["length"].copy_(torch.tensor([0, 3, 2])), "a key has no tokens"),
        (lambda s: s["threshold"].fill_(2.0), "no threshold"),
    ],
)
def test_loading_damaged_tensors_is_refused(change, message):
    world = World(1)
    memory = KeyMemory(R, D)
    for id, length in enumerate((1, 2, 2)):
        memory.add(id, world.states(world.draw(length)))
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    saved = {name: tensor.clone() for name, tensor in before.items()}
    change(saved)
    with pytest.raises(ValueError, match=message):
        memory.load_state_dict(saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory.state_dict().items())


@pytest.mark.parametrize(
    ("id", "key", "threshold", "message"),
    [
        (1, torch.ones(R, 1, D), None, r"id 1 is in use; remove\(1\) first"),
        (-1, torch.ones(R, 1, D), None, "give an integer from 0"),
        ("a", torch.ones(R, 1, D), None, "give an integer from 0"),
        (2, torch.ones(R, D), None, r"shape \(3, 8\)"),
        (2, torch.ones(R + 1, 1, D), None, r"shape \(4, 1, 8\)"),
        (2, torch.ones(R, 1, D + 1), None, r"shape \(3, 1, 9\)"),
        (2, torch.ones(R, 0, D), None, "S >= 1"),
        (2, torch.ones(R, 1, D, dtype=torch.long), None, "torch.int64"),
        (2, torch.full((R, 1, D), float("nan")), None, "not finite"),
        (2, torch.full((R, 1, D), float("inf")), None, "not finite"),
        (2, torch.zeros(R, 1, D), None, "zero row"),
        (2, torch.ones(R, 1, D), 1.0, "threshold is 1.0"),
        (2, torch.ones(R, 1, D), -0.1, "threshold is -0.1"),
    ],
)
def test_bad_entries_change_nothing(id, key, threshold, message):
    memory = KeyMemory(R, D)
    memory.add(1, torch.ones(R, 1, D))
    before = memory.state_dict()
    with pytest.raises(ValueError, match=message):
        memory.add(id, key, threshold=threshold)
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory.state_dict().items())


@pytest.mark.parametrize("call", ["remove", "get", "enabled"])
def test_an_unknown_id_is_named(call):
    memory = KeyMemory(R, D)
    with pytest.raises(ValueError, match="no entry has the id 3; the memory holds 0 entries, it is empty"):
        getattr(memory, call)(3)
    memory.add(5, torch.ones(R, 1, D))
    with pytest.raises(ValueError, match=r"no entry has the id 3; .* the nearest are \[5\]"):
        getattr(memory, call)(3)
    assert 5 in memory
    assert 3 not in memory


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"top_k": 0}, "top_k is 0"),
        ({"quorum": 4}, "quorum is 4, not a whole number from 1 to 3"),
        ({"quorum": 0}, "quorum is 0"),
        ({"scan": "quick"}, "scan is 'quick'; choose one of auto, exact, sign, faiss"),
        ({"order": "newest"}, "order is 'newest'"),
        ({"scan": "sign", "device": "meta"}, 'scan="sign" works on the CPU, not on meta'),
        ({"scan": "faiss"}, 'scan="faiss" works on a CUDA device, not on cpu'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        KeyMemory(R, D, **settings)


def test_queries_that_do_not_fit():
    memory = KeyMemory(R, D)
    queries = torch.ones(R, 2, 4, D)
    for bad, message in (
        (queries[:2], "2 layers"),
        (queries[..., :5], "shape"),
        (queries.long(), "torch.int64"),
        (queries[:, 0], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            memory.search(bad)
    with pytest.raises(ValueError, match=r"valid is torch.bool of shape \(2, 3\)"):
        memory.search(queries, torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"valid is .*int64"):
        memory.search(queries, torch.ones(2, 4, dtype=torch.long))
    _, state = memory.search(queries)
    with pytest.raises(ValueError, match=r"the state has 2 rows.* state.select"):
        memory.search(queries[:, :1], None, state)


def test_memory_grows_with_the_keys_and_frees_what_spans_leave():
    world = World(0)
    memory = KeyMemory(R, D)
    assert memory.nbytes == 0
    for round_ in range(5):
        for id in range(100):
            memory.add(id, world.states(world.draw(4)))
        if round_ == 0:
            size = memory.nbytes
        for id in range(100):
            memory.remove(id)
    assert memory.nbytes == size
