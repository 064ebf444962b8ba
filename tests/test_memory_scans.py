"""The scans propose every pair above the floor, and few others."""

from __future__ import annotations

import copy
import math
import sys
import threading

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from memplug.memory import KeyMemory, exact, signs
from memplug.memory import keys as keys_module
from memplug.memory.exact import near_by_product
from memplug.memory.faiss_search import GpuScan
from memplug.memory.signs import SignScan, fewest_bits, radius


def world(
    n: int, dim: int, n_queries: int, *, giant: bool = False, common: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Unit keys (2, n, D) float16 and queries (2, N, D) at cosines of 0.5 to 0.9 to some of them.

    Args:
        giant: a third of the queries and keys have one element that dwarfs the others.
        common: length of a vector added to all of them.
    """
    generator = torch.Generator().manual_seed(n + dim)
    keys = normalize(torch.randn(2, n, dim, generator=generator), dim=-1)
    keys += common * normalize(torch.randn(dim, generator=generator), dim=-1)
    if giant:
        keys[:, ::3, 1] += 3
    keys = normalize(keys, dim=-1)
    noise = normalize(torch.randn(2, n_queries, dim, generator=generator), dim=-1)
    near = keys[:, torch.arange(n_queries) * 7 % n]
    queries = near + noise * torch.linspace(0.1, 1.6, n_queries)[:, None]
    return keys.half(), normalize(queries, dim=-1)


def brute(queries: Tensor, keys: Tensor, floor: float) -> list[set[tuple[int, int]]]:
    cosines = queries.double() @ keys.double().transpose(1, 2)
    return [set(map(tuple, torch.nonzero(layer > floor).tolist())) for layer in cosines]


def pairs(found) -> set[tuple[int, int]]:
    assert len(set(zip(*map(tuple, found), strict=True))) == len(found[0]), "a pair came twice"
    return set(zip(*(part.tolist() for part in found), strict=True))


def memory_of(keys: Tensor, **settings) -> KeyMemory:
    memory = KeyMemory(len(keys), keys.shape[2], **settings)
    for id in range(keys.shape[1]):
        memory.add(id, keys[:, id : id + 1])
    return memory


def codes_of(keys: Tensor, bits: int, monkeypatch, seed: int = 0) -> SignScan:
    """Codes of this length, whatever the keys are."""
    monkeypatch.setattr(signs, "fewest_bits", lambda *_: bits)
    return SignScan(memory_of(keys, scan="exact"), seed)


@pytest.mark.parametrize("floor", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("giant", [False, True])
@pytest.mark.parametrize("block", [1 << 20, 3000])
def test_products_miss_nothing_and_propose_little_else(block, giant, floor, monkeypatch):
    monkeypatch.setattr(exact, "_BLOCK", block)
    keys, queries = world(500, 96, 40, giant=giant)
    truth, generous = brute(queries, keys, floor), brute(queries, keys, floor - 0.001)
    for layer in range(2):
        got = pairs(near_by_product(queries[layer], keys[layer], floor))
        assert truth[layer] <= got <= generous[layer]
        assert len(truth[layer]) > 5


@pytest.mark.parametrize("bits", [512, 1024])
@pytest.mark.parametrize("common", [0.0, 0.8])
def test_signs_miss_nothing(bits, common, monkeypatch):
    keys, queries = world(5000, 128, 80, common=common)
    truth, scan = brute(queries, keys, 0.7), codes_of(keys, bits, monkeypatch)
    for layer in range(2):
        got = pairs(scan.near(layer, queries[layer], 0.7))
        assert truth[layer] <= got
        assert len(truth[layer]) > 10
        assert common or len(got) < 5 * len(truth[layer])
    assert scan.bits == bits
    lower = brute(queries, keys, 0.6)
    assert lower[0] <= pairs(scan.near(0, queries[0], 0.6)), "the radius followed the floor"


def test_radius_bounds_the_binomial_law(monkeypatch):
    """Against the law summed in whole numbers, and against drawn codes."""
    p = math.acos(0.7) / math.pi
    for bits in (256, 512):
        h = radius(bits, 0.7)
        beyond = [
            sum(math.comb(bits, k) * p**k * (1 - p) ** (bits - k) for k in range(limit + 1, bits + 1))
            for limit in (h, h - 1)
        ]
        assert beyond[0] <= signs.LOSS < beyond[1]
    generator = torch.Generator().manual_seed(0)
    a = normalize(torch.randn(3000, 48, generator=generator), dim=-1)
    b = torch.randn(3000, 48, generator=generator)
    b = normalize(b - (b * a).sum(-1, keepdim=True) * a, dim=-1)
    scan = codes_of(a[None], 512, monkeypatch, seed=3)
    scan.near(0, a[:1], 0.7)
    for cosine in (0.7, 0.3):
        other = cosine * a + math.sqrt(1 - cosine**2) * b
        differing = np.unpackbits(scan._made.codes[0, :3000] ^ scan._made.of(other), axis=1).sum(1)
        assert differing.mean() == pytest.approx(512 * math.acos(cosine) / math.pi, rel=0.02)
        expected = 1 - signs._at_most(512, cosine)[511 - radius(512, 0.7)]
        assert (differing <= radius(512, 0.7)).mean() == pytest.approx(expected, rel=0.35)


@pytest.mark.parametrize(("common", "expected"), [(0.0, 512), (0.58, 1024), (0.75, 2048), (2.0, 0)])
def test_codes_are_as_long_as_the_background_needs(common, expected):
    generator = torch.Generator().manual_seed(0)
    direction = normalize(torch.randn(512, generator=generator), dim=-1)
    rows = normalize(
        normalize(torch.randn(1064, 512, generator=generator), dim=-1) + common * direction, dim=-1
    )
    assert fewest_bits(rows[:64], rows[64:], 10_000, 0.7) == expected


def test_auto_takes_signs_for_large_memories_and_the_results_are_the_same(monkeypatch):
    monkeypatch.setattr(keys_module, "_SIGNS_SIZE_MANY", 512 * 300)
    keys, queries = world(700, 512, 40)
    auto, by_product = KeyMemory(2, 512), memory_of(keys, scan="exact")
    for id in range(700):
        auto.add(id, keys[:, id : id + 1])
        if id in (100, 400, 699):
            auto.search(queries[:, :, None])
            assert auto._signs.bits == (0 if id == 100 else 512)
    winner, expected = (one.search(queries[:, :, None])[0] for one in (auto, by_product))
    assert torch.equal(winner, expected)
    assert (winner >= 0).sum() > 5
    size = auto.nbytes
    assert size > by_product.nbytes
    auto.load_state_dict(by_product.state_dict())
    assert auto.nbytes < size, "codes of other keys were kept"
    assert torch.equal(auto.search(queries[:, :, None])[0], expected)


def test_signs_are_given_up_where_everything_is_alike():
    generator = torch.Generator().manual_seed(0)
    keys = 4 * torch.randn(2, 1, 512, generator=generator) + torch.randn(2, 200, 512, generator=generator)
    memory = memory_of(keys, scan="sign")
    assert memory.search(keys[:, 7:8, None])[0].tolist() == [7]
    assert memory._signs.bits == 0


def test_without_faiss_auto_multiplies_and_signs_say_what_to_install(monkeypatch):
    monkeypatch.setattr(keys_module, "_SIGNS_SIZE", 0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "memplug\[cpu\]"'):
        KeyMemory(2, 512, scan="sign")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    keys, queries = world(50, 512, 10)
    assert memory_of(keys).search(queries[:, :, None])[0][0] == 0


def test_two_distributions_of_faiss_are_named(monkeypatch):
    both = {"faiss": ["faiss-gpu", "faiss-cpu", "faiss-cpu"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: both)
    with pytest.raises(ImportError, match="faiss-cpu and faiss-gpu are both installed"):
        KeyMemory(2, 8, scan="sign")


def test_the_scan_follows_the_record():
    """Additions, removals and what takes a removed entry's place, between searches."""
    keys, _ = world(200, 64, 1)
    for scan in ("exact", "sign"):
        memory = memory_of(keys[:, :150], scan=scan)
        everything = keys[:, :, None].float()
        assert memory.search(everything[:, :150])[0].tolist() == list(range(150))
        for id in range(0, 150, 2):
            memory.remove(id)
        for id in range(150, 200):
            memory.add(id, keys[:, id : id + 1])
        expected = [id if id % 2 or id >= 150 else -1 for id in range(200)]
        assert memory.search(everything)[0].tolist() == expected
        twin = copy.deepcopy(memory)
        memory.remove(1)
        assert twin.search(everything)[0].tolist() == expected


class NearestByTorch(GpuScan):
    """The scan with FAISS's part done by PyTorch, to test the rest without a GPU."""

    def __init__(self):
        self._one = threading.Lock()

    def _nearest(self, queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return (queries.float() @ keys.float().T).topk(count)


@pytest.mark.parametrize("n", [20, 500])
def test_the_nearest_keys_of_faiss_become_proposals(n):
    """Of the 500 more are near than FAISS is asked for."""
    keys, queries = world(n, 32, 40, common=1.4)
    truth, wide = brute(queries, keys, 0.7), brute(queries, keys, 0.65)
    for layer in range(2):
        got = pairs(NearestByTorch().near(queries[layer], keys[layer], 0.7))
        assert truth[layer] <= got <= wide[layer] != truth[layer]
    most = np.bincount([token for token, _ in truth[0]]).max()
    assert (most > 64) == (n == 500)


def test_faiss_for_gpus_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr("memplug.memory.faiss_search.faiss_module", lambda extra: object())
    with pytest.raises(ImportError, match=r'for CPUs.*pip install "memplug\[gpu\]"'):
        GpuScan(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("scan", ["auto", "faiss"])
def test_results_on_a_gpu_are_those_on_the_cpu(scan):
    if scan == "faiss" and not hasattr(pytest.importorskip("faiss"), "StandardGpuResources"):
        pytest.skip("faiss is the build for CPUs")
    keys, queries = world(5000, 256, 200, common=0.5)
    on_cpu, on_gpu = memory_of(keys, scan="exact"), memory_of(keys, scan=scan, device="cuda")
    side = torch.cuda.Stream()
    for stream in (torch.cuda.current_stream(), side):
        with torch.cuda.stream(stream):
            expected, _ = on_cpu.search(queries[:, :, None])
            winner, state = on_gpu.search(queries[:, :, None].cuda())
            assert torch.equal(winner, expected)
            winner, _ = on_gpu.search(queries[:, :, None].cuda(), None, state.select(torch.arange(200)))
            assert torch.equal(winner, expected)
    assert (expected >= 0).sum() > 20
