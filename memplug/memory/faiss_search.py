"""FAISS: how it is found, and the search by it on a GPU: the nearest keys of each query, by product.

No index object and no copy: FAISS is handed the address of the keys on the GPU. It has its own CUDA stream,
which would race with PyTorch's, so it is told to use PyTorch's for each call.

Letters: N query tokens, n keys, D width.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import threading
from typing import Any

import torch
from torch import Tensor

from .exact import Pairs, pairs_of

__all__ = ["GpuScan", "faiss_module"]

_NEAREST = 64
_SCRATCH = 1 << 26  # bytes that FAISS may keep on the GPU; it would take 1.5 GB


def faiss_module(extra: str = "cpu") -> Any:
    """The faiss package.

    Raises:
        ImportError: it is not installed, or two of its distributions are, which overwrite each other.
    """
    installed = sorted(set(importlib.metadata.packages_distributions().get("faiss", ())))
    if len(installed) > 1:
        raise ImportError(
            f"{' and '.join(installed)} are both installed, but share one package folder and overwrite each "
            f"other; run `pip uninstall {' '.join(installed)}` and install one of them again"
        )
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f'FAISS is needed for this search; run `pip install "memplug[{extra}]"`, or use scan="exact"'
        ) from error


class GpuScan:
    """Products of FAISS on a GPU. Holds nothing beside FAISS's scratch memory; one search at a time.

    Raises:
        ImportError: FAISS is missing, or is the build for CPUs.
        ValueError: the device is not a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
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

    def near(self, queries: Tensor, keys: Tensor, floor: float) -> Pairs:
        """Pairs whose cosine may exceed `floor`.

        Args:
            queries: (N, D) float32, of length 1.
            keys: (n, D) float16, the record's of slots 0..n-1.
            floor: 0 <= floor < 1.
        """
        # Queries are rounded to float16, and sums over D elements are in float32.
        limit = floor - 2.0**-9 - queries.shape[1] * 2.0**-22
        with self._one:
            cosine, slot = self._nearest(
                queries.half().contiguous(), keys.contiguous(), min(_NEAREST, len(keys))
            )
        return pairs_of((cosine > limit).cpu().numpy(), slot.cpu().numpy(), queries, keys, floor)

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
