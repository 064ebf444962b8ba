"""The scans propose every pair above the floor, and few others."""

from __future__ import annotations

import copy
import importlib.metadata
import math
import sys
import threading

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from memplug.memory import KeyMemory, match, signs, small
from memplug.memory.gpu import FaissScan
from memplug.memory.products import ProductScan, quickest_format
from memplug.memory.signs import SignScan, fewest_bits, pass_rate, radius

CPU = torch.device("cpu")
FORMATS = [torch.int8, torch.bfloat16, torch.float32, torch.float16]


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


def exact(queries: Tensor, keys: Tensor, floor: float) -> list[set[tuple[int, int]]]:
    cosines = queries.double() @ keys.double().transpose(1, 2)
    return [set(map(tuple, torch.nonzero(layer > floor).tolist())) for layer in cosines]


def proposed(scan, queries: Tensor, keys: Tensor, floor: float) -> list[set[tuple[int, int]]]:
    scan.resize(keys.shape[1])
    scan.write(torch.arange(keys.shape[1]), keys.float())
    found = scan.candidates([0, 1], queries, keys, floor)
    assert all(pairs is None or len(pairs[0]) for pairs in found)
    return [set() if p is None else set(zip(p[0].tolist(), p[1].tolist(), strict=True)) for p in found]


@pytest.mark.parametrize("floor", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("giant", [False, True])
@pytest.mark.parametrize("dtype", FORMATS)
def test_products_miss_nothing_and_propose_little_else(dtype, giant, floor):
    keys, queries = world(500, 96, 40, giant=giant)
    truth = exact(queries, keys, floor)
    generous = exact(queries, keys, floor - 0.08)
    got = proposed(ProductScan(2, 96, CPU, dtype), queries, keys, floor)
    for layer in range(2):
        assert truth[layer] <= got[layer] <= generous[layer]
        assert len(truth[layer]) > 5


def test_products_in_many_blocks(monkeypatch):
    monkeypatch.setattr("memplug.memory.products._BLOCK", 1000)
    keys, queries = world(3000, 32, 60)
    got = proposed(ProductScan(2, 32, CPU), queries, keys, 0.7)
    for mine, truth in zip(got, exact(queries, keys, 0.7), strict=True):
        assert truth <= mine


def test_a_giant_element_does_not_coarsen_the_other_queries():
    """A token of almost one element alone, among tokens that are near to keys but not near enough."""
    generator = torch.Generator().manual_seed(0)
    keys = normalize(torch.randn(2, 200, 1024, generator=generator), dim=-1).half()
    near = normalize(keys[:, :50].float(), dim=-1)
    aside = torch.randn(2, 50, 1024, generator=generator)
    aside = normalize(aside - (aside * near).sum(-1, keepdim=True) * near, dim=-1)
    queries = 0.65 * near + math.sqrt(1 - 0.65**2) * aside
    queries[:, 20] = 0
    queries[:, 20, 3] = 1
    assert proposed(ProductScan(2, 1024, CPU, torch.int8), queries, keys, 0.7) == [set(), set()]


def test_a_query_of_zeros_is_near_nothing():
    keys, queries = world(100, 16, 10)
    queries[:, 3] = 0
    for scan in (ProductScan(2, 16, CPU), SignScan(2, 16, 512, seed=0)):
        assert all(token != 3 for pairs in proposed(scan, queries, keys, 0.7) for token, _ in pairs)


def test_int8_is_refused_where_it_is_wrong_or_missing(monkeypatch):
    formats = (torch.float32, torch.int8)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: torch.zeros(len(a), b.shape[1], dtype=torch.int32))
    assert quickest_format(CPU, 64, formats) == torch.float32
    monkeypatch.delattr(torch, "_int_mm")
    assert quickest_format(CPU, 64, formats) == torch.float32
    keys, queries = world(500, 64, 30)
    got = proposed(ProductScan(2, 64, CPU), queries, keys, 0.7)
    for mine, truth in zip(got, exact(queries, keys, 0.7), strict=True):
        assert truth <= mine


@pytest.mark.parametrize("bits", [512, 1024])
@pytest.mark.parametrize("common", [0.0, 0.8])
def test_signs_miss_nothing(bits, common):
    keys, queries = world(5000, 128, 80, common=common)
    truth = exact(queries, keys, 0.7)
    got = proposed(SignScan(2, 128, bits, seed=1), queries, keys, 0.7)
    for layer in range(2):
        assert truth[layer] <= got[layer]
        assert len(truth[layer]) > 10
    if not common:
        assert sum(map(len, got)) < 5 * sum(map(len, truth))


def test_too_many_near_codes_are_found_by_products():
    """2,000 keys in one place: more than FAISS is asked for."""
    generator = torch.Generator().manual_seed(0)
    centre = normalize(torch.randn(2, 1, 64, generator=generator), dim=-1)
    keys = normalize(
        centre + 0.3 * normalize(torch.randn(2, 2000, 64, generator=generator), dim=-1), dim=-1
    ).half()
    other = normalize(torch.randn(2, 5, 64, generator=generator), dim=-1)
    queries = torch.cat([other[:, :3], centre, other[:, 3:]], dim=1)
    scan = SignScan(2, 64, 512, seed=0)
    got = proposed(scan, queries, keys, 0.7)
    assert got == exact(queries, keys, 0.7)
    assert len(got[0]) > 1900
    assert (scan.asked, scan.crowded) == (12, 2)


def test_radius_bounds_the_binomial_law():
    """Against the law summed in whole numbers, and against drawn codes."""
    p = math.acos(0.7) / math.pi + signs._BLUR
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
    scan = SignScan(1, 48, 512, seed=3)
    for cosine in (0.7, 0.3):
        other = cosine * a + math.sqrt(1 - cosine**2) * b
        codes = np.unpackbits(scan._encode([0], a[None]) ^ scan._encode([0], other[None]), axis=2).sum(2)
        expected = 512 * math.acos(cosine) / math.pi
        assert codes.mean() == pytest.approx(expected, rel=0.02)
        within = float((codes <= radius(512, 0.7)).mean())
        assert (
            within == 1.0 if cosine == 0.7 else within == pytest.approx(pass_rate(512, cosine, 0.7), rel=0.35)
        )


def test_layers_have_projections_of_their_own_and_a_seed_repeats_them():
    scan = SignScan(2, 16, 512, seed=5)
    assert not torch.equal(scan.projection[0], scan.projection[1])
    assert torch.equal(scan.projection, SignScan(2, 16, 512, seed=5).projection)
    assert not torch.equal(scan.projection, SignScan(2, 16, 512, seed=6).projection)


@pytest.mark.parametrize(("common", "expected"), [(0.0, 512), (0.58, 1024), (0.75, 2048), (2.0, None)])
def test_codes_are_as_long_as_the_background_needs(common, expected):
    generator = torch.Generator().manual_seed(0)
    direction = normalize(torch.randn(512, generator=generator), dim=-1)
    rows = normalize(
        normalize(torch.randn(1064, 512, generator=generator), dim=-1) + common * direction, dim=-1
    )
    assert fewest_bits(rows[:64], rows[64:], 10_000, 0.7) == expected


def memory_of(keys: Tensor, **settings) -> KeyMemory:
    memory = KeyMemory(len(keys), keys.shape[2], **settings)
    for id in range(keys.shape[1]):
        memory.add(id, keys[:, id : id + 1])
    return memory


def test_auto_takes_signs_for_large_memories_and_the_results_are_the_same(monkeypatch):
    monkeypatch.setattr(small, "_KEYS", 0)
    monkeypatch.setattr(match, "_SIGNS_SIZE", 512 * 300)
    keys, queries = world(700, 512, 40)
    auto, by_product = KeyMemory(2, 512), memory_of(keys, scan="exact")
    for id in range(700):
        auto.add(id, keys[:, id : id + 1])
        if id in (100, 400, 699):
            auto.search(queries[:, :, None])
            assert auto._matcher._scan.bits == (None if id == 100 else 512)
    for mine, other in zip(
        auto.search(queries[:, :, None])[0], by_product.search(queries[:, :, None])[0], strict=True
    ):
        assert torch.equal(mine, other)
    assert (auto.search(queries[:, :, None])[0].winner >= 0).sum() > 5
    for id in range(600):
        auto.remove(id)
    auto.search(queries[:, :, None])
    assert auto._matcher._scan.bits is None


def test_auto_gives_signs_up_where_everything_is_alike(monkeypatch):
    """The sample of the first search is of unlike texts; then come texts near to all keys."""
    monkeypatch.setattr(small, "_KEYS", 0)
    monkeypatch.setattr(match, "_SIGNS_SIZE", 0)
    monkeypatch.setattr(signs, "_NEAREST", (1, 4))
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(2, 1, 512, generator=generator)
    keys = direction + torch.randn(2, 200, 512, generator=generator)
    memory = memory_of(keys)
    assert memory.search(torch.randn(2, 1, 50, 512, generator=generator))[0].winner.tolist() == [-1]
    seen = [memory._matcher._scan.bits]
    for _ in range(8):
        memory.search(keys[:, None, :] + torch.randn(2, 1, 200, 512, generator=generator))
        seen.append(memory._matcher._scan.bits)
    assert seen[0] == 512
    assert seen[-1] is None
    hits, _ = memory.search(keys[:, 7:8, None])
    assert hits.winner.tolist() == [7]


def test_without_faiss_auto_multiplies_and_signs_say_what_to_install(monkeypatch):
    monkeypatch.setattr(small, "_KEYS", 0)
    monkeypatch.setattr(match, "_SIGNS_SIZE", 0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "memplug\[cpu\]"'):
        KeyMemory(2, 512, scan="sign")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    keys, queries = world(50, 512, 10)
    memory = memory_of(keys)
    assert memory.search(queries[:, :, None])[0].winner[0] == 0
    assert memory._matcher._scan.bits is None


def test_two_distributions_of_faiss_are_named(monkeypatch):
    version = importlib.metadata.version

    def both(name: str) -> str:
        return "1.15.1" if name in ("faiss-cpu", "faiss-gpu") else version(name)

    monkeypatch.setattr("importlib.metadata.version", both)
    with pytest.raises(ImportError, match="faiss-cpu and faiss-gpu are both installed"):
        KeyMemory(2, 8, scan="sign")


def test_the_scan_follows_the_record():
    """Additions, removals and what takes a removed entry's place, between searches."""
    keys, _ = world(200, 64, 1)
    for scan in ("exact", "sign"):
        memory = memory_of(keys[:, :150], scan=scan)
        everything = keys[:, :, None].float()
        assert memory.search(everything[:, :150])[0].winner.tolist() == list(range(150))
        for id in range(0, 150, 2):
            memory.remove(id)
        for id in range(150, 200):
            memory.add(id, keys[:, id : id + 1])
        expected = [id if id % 2 or id >= 150 else -1 for id in range(200)]
        assert memory.search(everything)[0].winner.tolist() == expected
        assert memory.nbytes > memory._record.last.nbytes
        twin = copy.deepcopy(memory)
        memory.remove(1)
        assert twin.search(everything)[0].winner.tolist() == expected


class NearestByTorch(FaissScan):
    """The scan with FAISS's part done by PyTorch, to test the rest without a GPU."""

    def __init__(self):
        self.bits, self.asked, self.crowded = None, 0, 0
        self._one = threading.Lock()

    def _nearest(self, queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return (queries.float() @ keys.float().T).topk(count)


@pytest.mark.parametrize("n", [20, 500])
def test_the_nearest_keys_of_faiss_become_proposals(n):
    keys, queries = world(n, 32, 40, common=1.4)
    scan = NearestByTorch()
    truth, got = exact(queries, keys, 0.7), proposed(scan, queries, keys, 0.7)
    for layer in range(2):
        assert truth[layer] <= got[layer]
        assert truth[layer] != exact(queries, keys, 0.65)[layer] >= got[layer]
    assert (scan.crowded > 0) == (n > 64), "more near keys than FAISS is asked for"


def test_faiss_for_gpus_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr("memplug.memory.gpu.faiss_module", lambda extra: object())
    with pytest.raises(ImportError, match=r'for CPUs.*pip install "memplug\[gpu\]"'):
        FaissScan(torch.device("cuda"))


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
            hits, state = on_gpu.search(queries[:, :, None].cuda())
            assert all(torch.equal(mine, other) for mine, other in zip(hits, expected, strict=True))
            hits, _ = on_gpu.search(queries[:, :, None].cuda(), None, state.select(torch.arange(200)))
            assert torch.equal(hits.winner, expected.winner)
    assert (expected.winner >= 0).sum() > 20
