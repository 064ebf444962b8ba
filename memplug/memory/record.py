"""The record of the key memory: unit keys, ids and switches, in slots that never have gaps.

Adding, removing and switching cost the same at any size: tensors double their capacity, a removed
entry's slot is taken by the last entry, and ids are looked up in a dict. Knows nothing about searching.

Letters: R think layers, D width, E entries, S tokens of a subject, P tokens of all subjects.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..saving.checked import check_rest, shaped

__all__ = ["KeyRecord", "checked_threshold"]

_ENTRY = np.dtype([("id", "i8"), ("seq", "i8"), ("length", "i8"), ("on", "?"), ("limit", "f4")])


def checked_threshold(value: float) -> float:
    """The value, if it is a cosine that a similarity may have to exceed.

    Raises:
        ValueError: it is not in [0, 1).
    """
    if not 0.0 <= value < 1.0:
        raise ValueError(
            f"threshold is {value!r}; give the cosine to exceed, 0 <= threshold < 1, for example 0.7"
        )
    return float(value)


class KeyRecord:
    """Spans of unit float16 keys under integer ids.

    Float16 holds a unit vector to 8e-5 of its cosines; it takes half the room of float32. An entry takes
    2 R S D bytes, and twice that at most, as tensors grow by doubling.

    Attributes:
        last: float16 (R, capacity, D), the key of each slot's last token.
        pool: float16 (R, capacity, D), the keys of all other tokens, in no order.
        rest: int64 (capacity, W), the row of the pool that holds the token j + 1 before the last.
        entries: by slot the caller's number `id`; `seq`, the place in the order of insertion, never given
            twice; S, `length`; `on`, whether it is searched; its threshold, `limit`.
        slot: id -> slot; slots 0..E-1 are in use.
    """

    def __init__(self, n_layers: int, dim: int, threshold: float, device: torch.device) -> None:
        self.n_layers, self.dim, self.device = n_layers, dim, device
        self.threshold = checked_threshold(threshold)
        self.last = torch.zeros(n_layers, 0, dim, dtype=torch.float16, device=device)
        self.pool = torch.zeros(n_layers, 0, dim, dtype=torch.float16, device=device)
        self.rest = np.zeros((0, 0), np.int64)
        self.entries = np.zeros(0, _ENTRY)
        self.slot: dict[int, int] = {}
        self._next_seq = 0
        self._free: list[int] = []  # unused rows of the pool

    # ---------------------------------------------------------------- what it holds

    def __len__(self) -> int:
        return len(self.slot)

    def __contains__(self, id: object) -> bool:
        return id in self.slot

    def ids(self) -> list[int]:
        """The ids, in order of insertion."""
        return self.entries["id"][self._slots()].tolist()

    def enabled(self, id: int) -> bool:
        """Whether the entry takes part in searches."""
        return bool(self.entries["on"][self._at(id)])

    def get(self, id: int) -> Tensor:
        """The entry's key as it is compared: float32 (R, S, D), unit rows to float16 rounding."""
        slot = self._at(id)
        rest = self.rest[slot, : self.entries["length"][slot] - 1][::-1].copy()
        before = self.pool[:, torch.from_numpy(rest).to(self.device)]
        return torch.cat([before, self.last[:, slot, None]], dim=1).float()

    def limit(self, id: int) -> float:
        """The entry's threshold."""
        return float(self.entries["limit"][self._at(id)])

    @property
    def nbytes(self) -> int:
        """Bytes of the keys."""
        return self.last.nbytes + self.pool.nbytes

    def _at(self, id: int) -> int:
        slot = self.slot.get(id)
        if slot is None:
            near = sorted(self.slot, key=lambda known: abs(known - id))[:3]
            held = f"the nearest are {near}" if near else "it is empty"
            raise ValueError(f"no entry has the id {id!r}; the memory holds {len(self)} entries, {held}")
        return slot

    def _slots(self) -> np.ndarray:
        """The slots in use, in order of insertion."""
        return np.argsort(self.entries["seq"][: len(self)])

    # ---------------------------------------------------------------- changing it

    def add(self, id: int, key: Tensor, *, threshold: float | None = None) -> None:
        """Add an entry.

        Args:
            id: the caller's number for it, an integer from 0.
            key: (R, S, D), any float dtype, S >= 1 tokens; scaled to unit length here.
            threshold: its own threshold; None takes the memory's.

        Raises:
            ValueError: the id is in use or negative; the key has another shape, is not finite or has a
                zero row; the threshold is out of range. Nothing is changed then.
        """
        limit = self.threshold if threshold is None else checked_threshold(threshold)
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < 2**63:
            raise ValueError(f"id is {id!r}; give an integer from 0")
        if id in self.slot:
            raise ValueError(f"the id {id} is in use; remove({id}) first, or choose another")
        unit = self._unit(id, key)
        slot, others = len(self), unit.shape[1] - 1
        self._reserve(slot + 1, others)
        rest = [self._free.pop() for _ in range(others)]
        self.last[:, slot] = unit[:, -1]
        if rest:
            self.pool[:, torch.tensor(rest, device=self.device)] = unit[:, :-1].flip(1)
            self.rest[slot, :others] = rest
        self.entries[slot] = id, self._next_seq, others + 1, True, limit
        self.slot[id] = slot
        self._next_seq += 1
        self._changed(slot)

    def remove(self, id: int) -> None:
        """Remove an entry.

        Raises:
            ValueError: no entry has this id.
        """
        slot, last = self._at(id), len(self) - 1
        self._free.extend(self.rest[slot, : self.entries["length"][slot] - 1].tolist())
        if slot != last:
            self.last[:, slot] = self.last[:, last]
            self.rest[slot], self.entries[slot] = self.rest[last], self.entries[last]
            self.slot[int(self.entries["id"][slot])] = slot
        del self.slot[id]
        self._changed(slot)

    def set_enabled(self, id: int, on: bool) -> None:
        """Switch an entry on or off; an entry that is off is found by no search.

        Raises:
            ValueError: no entry has this id.
        """
        self.entries["on"][self._at(id)] = on

    def _changed(self, slot: int | None) -> None:
        """Another key is at this slot now, or none, or all are others; for what is derived from the keys."""

    def _unit(self, id: int, key: Tensor) -> Tensor:
        shape, wanted = tuple(key.shape), f"({self.n_layers}, S, {self.dim}) with S >= 1 tokens"
        fits = len(shape) == 3 and shape[1] > 0 and (shape[0], shape[2]) == (self.n_layers, self.dim)
        if not fits or not key.is_floating_point():
            raise ValueError(f"the key of id {id} is {key.dtype} of shape {shape}; give floats {wanted}")
        key = key.detach().to(self.device).float()
        norm = torch.linalg.vector_norm(key, dim=-1, keepdim=True)
        if not bool(((norm > 0) & (norm < torch.inf)).all()):
            raise ValueError(
                f"the key of id {id} has a zero row, which points nowhere, or is not finite; see the hidden "
                "states"
            )
        return (key / norm).half()

    def _reserve(self, entries: int, others: int) -> None:
        """Room for so many entries and so many more rows of the pool, by doubling."""
        size, used, width = self.last.shape[1], self.pool.shape[1], self.rest.shape[1]
        if entries > size:
            more = max(64, 2 * size, entries) - size
            self.last = _grown(self.last, more)
            self.rest = np.pad(self.rest, ((0, more), (0, 0)))
            self.entries = np.concatenate([self.entries, np.zeros(more, _ENTRY)])
        if others > width:
            self.rest = np.pad(self.rest, ((0, 0), (0, others - width)))
        if others > len(self._free):
            more = max(64, used, others)
            self.pool = _grown(self.pool, more)
            self._free = list(range(used + more - 1, used - 1, -1)) + self._free

    # ---------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Tensor]:
        """The entries in order of insertion, as plain contiguous tensors on the CPU.

        ``last`` float16 (R, E, D); ``rest`` float16 (R, P - E, D), the other tokens, entry by entry, each
        from the one before the last to the first; ``length``, ``id`` int64 (E,); ``enabled`` bool (E,);
        ``threshold`` float32 (E,).
        """
        slots = self._slots()
        entries = self.entries[slots]
        rows = torch.from_numpy(self.rest[slots][self._used(entries["length"])]).to(self.device)
        plain = {"length": "length", "id": "id", "enabled": "on", "threshold": "limit"}
        return {
            "last": self.last[:, torch.from_numpy(slots).to(self.device)].cpu(),
            "rest": self.pool[:, rows].cpu(),
            **{name: torch.from_numpy(entries[field].copy()) for name, field in plain.items()},
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold what `state_dict` gave, and nothing else; settings such as the threshold stay.

        Raises:
            ValueError: a tensor is missing, of another dtype or shape, or holds impossible values.
                Nothing is changed then.
        """
        _check_tensors(tensors, self.n_layers, self.dim)
        self.last = tensors["last"].to(self.device, copy=True)
        self.pool = tensors["rest"].to(self.device, copy=True)
        id, length, on, limit = (tensors[n].cpu().numpy() for n in ("id", "length", "enabled", "threshold"))
        self.entries = np.zeros(len(id), _ENTRY)
        seq = np.arange(self._next_seq, self._next_seq + len(id))
        for name, column in zip(_ENTRY.names or (), (id, seq, length, on, limit), strict=True):
            self.entries[name] = column
        self.rest = np.zeros((len(id), int(length.max(initial=1)) - 1), np.int64)
        self.rest[self._used(length)] = np.arange(self.pool.shape[1])
        self.slot = {one: slot for slot, one in enumerate(id.tolist())}
        self._next_seq += len(id)
        self._free = []
        self._changed(None)

    def _used(self, length: np.ndarray) -> np.ndarray:
        """Bool (k, W): which columns of `rest` belong to spans of these lengths (k,)."""
        return np.arange(self.rest.shape[1]) < length[:, None] - 1


def _grown(tensor: Tensor, more: int) -> Tensor:
    grown = tensor.new_zeros(tensor.shape[0], tensor.shape[1] + more, tensor.shape[2])
    grown[:, : tensor.shape[1]] = tensor
    return grown


def _check_tensors(tensors: Mapping[str, Tensor], n_layers: int, dim: int) -> None:
    check_rest(tensors, ("last", "rest", "length", "id", "enabled", "threshold"))
    id = shaped(tensors, "id", (None,), torch.int64)
    length = shaped(tensors, "length", (len(id),), torch.int64)
    shaped(tensors, "enabled", (len(id),), torch.bool)
    limit = shaped(tensors, "threshold", (len(id),), torch.float32)
    if bool(((length < 1) | (id < 0) | (limit < 0) | (limit >= 1)).any()) or len(id.unique()) < len(id):
        raise ValueError("a key has no tokens, an id that is negative or another one's, or no threshold")
    for name, rows in (("last", len(id)), ("rest", int(length.sum()) - len(id))):
        for layer in shaped(tensors, name, (n_layers, rows, dim), torch.float16):
            # Rounding to float16 changes a norm by less than 2^-11.
            norm = torch.linalg.vector_norm(layer, dim=-1, dtype=torch.float32)
            if not bool(((norm - 1).abs() < 2e-3).all()):
                raise ValueError(f"a key (the tensor {name}) is not of length 1")
