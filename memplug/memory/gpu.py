"""The scan by FAISS on a GPU: the nearest keys of each query, read from the record's own tensor.

No index object and no copy: FAISS is handed the address of the keys on the GPU. It has its own CUDA
stream, which would race with PyTorch's, so it is told to use PyTorch's for each call.

Letters: N query tokens, n keys, D width, l layers searched at once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from memplug.memory.products import Pairs, by_product, joined
from memplug.memory.signs import faiss_module

__all__ = ["FaissScan"]

_NEAREST = 64
_SCRATCH = 1 << 26  # bytes that FAISS may keep on the GPU; it would take 1.5 GB


class FaissScan:
    """Nothing of its own beside FAISS's scratch memory. One thread at a time.

    Raises:
        ImportError: FAISS is missing, or is the build for CPUs.
        ValueError: the device is not a CUDA device.
    """

    def __init__(self, device: torch.device):
        self.bits: int | None = None
        self.asked = self.crowded = 0
        if device.type != "cuda":
            raise ValueError(f'scan="faiss" works on a CUDA device, not on {device}; take "auto"')
        self.faiss = faiss_module("gpu")
        if not hasattr(self.faiss, "StandardGpuResources"):
            raise ImportError(
                "the FAISS that is installed is for CPUs; run `pip uninstall faiss-cpu` and "
                '`pip install "memplug[gpu]"`'
            )
        self.resources = self.faiss.StandardGpuResources()
        self.resources.setTempMemory(_SCRATCH)
        self._one = threading.Lock()  # FAISS takes its memory for one search at a time

    @property
    def nbytes(self) -> int:
        return 0

    def resize(self, capacity: int) -> None:
        pass  # it searches the record itself

    def write(self, slots: Tensor, keys: Tensor) -> None:
        pass

    def candidates(
        self, layers: Sequence[int], queries: Tensor, keys: Tensor, floor: float
    ) -> list[Pairs | None]:
        # Queries are rounded to float16, and sums over D elements are in float32.
        limit = floor - 2.0**-9 - queries.shape[2] * 2.0**-22
        found = []
        for layer, x in zip(layers, queries, strict=True):
            table = keys[layer]
            nearest = min(_NEAREST, len(table))
            with self._one:
                cosine, slot = self._nearest(x.half().contiguous(), table.contiguous(), nearest)
            near = cosine > limit
            full = near[:, -1] if nearest < len(table) else torch.zeros_like(near[:, 0])
            self.asked += len(x)
            pairs = []
            if bool(near.any()):
                token, place = torch.nonzero(near & ~full[:, None], as_tuple=True)
                pairs.append((token.cpu().numpy(), slot[token, place].cpu().numpy()))
                rows = torch.nonzero(full).squeeze(1)
                self.crowded += len(rows)
                rest, left = by_product(x[rows], table, floor), rows.cpu().numpy()
                pairs += [(left[token], at) for token, at in rest]
            found.append(joined([pair for pair in pairs if len(pair[0])]))
        return found

    def _nearest(self, queries: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Products (N, count) float32 and rows (N, count) int64 of the keys most like each query."""
        faiss, device = self.faiss, keys.device
        cosine = torch.empty(len(queries), count, device=device, dtype=torch.float32)
        slot = torch.empty(len(queries), count, device=device, dtype=torch.int64)
        call = faiss.GpuDistanceParams()
        call.metric, call.k, call.dims = faiss.METRIC_INNER_PRODUCT, count, queries.shape[1]
        call.vectors, call.numVectors = faiss.cast_integer_to_void_ptr(keys.data_ptr()), len(keys)
        call.queries, call.numQueries = faiss.cast_integer_to_void_ptr(queries.data_ptr()), len(queries)
        call.vectorType = call.queryType = faiss.DistanceDataType_F16
        call.outDistances = faiss.cast_integer_to_float_ptr(cosine.data_ptr())
        call.outIndices = faiss.cast_integer_to_idx_t_ptr(slot.data_ptr())
        call.outIndicesType = faiss.IndicesDataType_I64
        with torch.cuda.device(device):  # FAISS takes the thread's current device for the keys' one
            index = torch.cuda.current_device()
            call.device = index
            before = self.resources.getDefaultStream(index)
            stream = torch.cuda.current_stream().cuda_stream
            self.resources.setDefaultStream(index, faiss.cast_integer_to_cudastream_t(stream))
            try:
                faiss.bfKnn(self.resources, call)
            finally:
                self.resources.setDefaultStream(index, before)
        return cosine, slot
