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

__all__ = ["KeyRecord", "checked_threshold", "unit_rows"]


def unit_rows(x: Tensor) -> Tensor:
    """Rows of `x` (..., D) in float32 with norm 1; rows that are zero or not finite become zero."""
    x = x.float()
    unit = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.nan_to_num(unit, 0.0, 0.0, 0.0)


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

    Float16 holds a unit vector to 8e-5 of its cosines; it takes half the room of float32.

    Attributes:
        last: float16 (R, capacity, D), the key of each slot's last token.
        pool: float16 (R, capacity, D), the keys of all other tokens, in no order.
        rest: int64 (capacity, W), the row of the pool that holds the token j + 1 before the last.
        length: int64 (capacity,), S of each slot.
        id, seq: int64 (capacity,), the caller's number and the place in the order of insertion; a seq
            is never given twice.
        on: bool (capacity,), whether the entry is searched.
        limit: float32 (capacity,), the entry's threshold.
        slot: id -> slot; slots 0..E-1 are in use.
    """

    def __init__(self, n_layers: int, dim: int, device: torch.device, first_seq: int = 0):
        self.n_layers, self.dim, self.device = n_layers, dim, device
        self.last = torch.zeros(n_layers, 0, dim, dtype=torch.float16, device=device)
        self.pool = torch.zeros(n_layers, 0, dim, dtype=torch.float16, device=device)
        self.rest = np.zeros((0, 0), np.int64)
        self.length = np.zeros(0, np.int64)
        self.id = np.zeros(0, np.int64)
        self.seq = np.zeros(0, np.int64)
        self.on = np.zeros(0, bool)
        self.limit = np.zeros(0, np.float32)
        self.slot: dict[int, int] = {}
        self.next_seq = first_seq
        self._free: list[int] = []  # unused rows of the pool

    def __len__(self) -> int:
        return len(self.slot)

    def at(self, id: int) -> int:
        """The slot of an id.

        Raises:
            ValueError: no entry has this id.
        """
        slot = self.slot.get(id)
        if slot is None:
            near = sorted(self.slot, key=lambda known: abs(known - id))[:3]
            held = f"the nearest are {near}" if near else "it is empty"
            raise ValueError(f"no entry has the id {id!r}; the memory holds {len(self)} entries, {held}")
        return slot

    def slots(self) -> np.ndarray:
        """The slots in use, in order of insertion."""
        return np.argsort(self.seq[: len(self)])

    def span(self, slot: int) -> Tensor:
        """The keys of a slot, float16 (R, S, D)."""
        rest = torch.from_numpy(self.rest[slot, : self.length[slot] - 1][::-1].copy()).to(self.device)
        return torch.cat([self.pool[:, rest], self.last[:, slot : slot + 1]], dim=1)

    def add(self, id: int, key: Tensor, limit: float) -> int:
        """Put a key (R, S, D) under a new id, and return its slot.

        Raises:
            ValueError: as `KeyMemory.add`; nothing is changed then.
        """
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
        self.length[slot], self.id[slot], self.seq[slot] = others + 1, id, self.next_seq
        self.on[slot], self.limit[slot] = True, limit
        self.slot[id] = slot
        self.next_seq += 1
        return slot

    def remove(self, id: int) -> int:
        """Remove an entry and return its slot, which the last entry has taken unless it was the last."""
        slot, last = self.at(id), len(self) - 1
        self._free.extend(self.rest[slot, : self.length[slot] - 1].tolist())
        if slot != last:
            self.last[:, slot] = self.last[:, last]
            for field in (self.rest, self.length, self.id, self.seq, self.on, self.limit):
                field[slot] = field[last]
            self.slot[int(self.id[slot])] = slot
        del self.slot[id]
        return slot

    def _unit(self, id: int, key: Tensor) -> Tensor:
        wanted = f"({self.n_layers}, S, {self.dim}) with S >= 1 tokens"
        shape = tuple(key.shape)
        if not key.is_floating_point():
            raise ValueError(f"the key of id {id} is of {key.dtype}; give a float tensor {wanted}")
        if len(shape) != 3 or shape[0] != self.n_layers or shape[1] < 1 or shape[2] != self.dim:
            raise ValueError(f"the key of id {id} has shape {shape}; give (R, S, D) = {wanted}")
        key = key.detach().to(self.device).float()
        norm = torch.linalg.vector_norm(key, dim=-1, keepdim=True)
        if not bool(((norm > 0) & (norm < torch.inf)).all()):
            if bool((norm == 0).any()):
                raise ValueError(
                    f"the key of id {id} has a zero row, which points nowhere; see the hidden states"
                )
            raise ValueError(f"the key of id {id} is not finite; look for NaN and inf in the hidden states")
        return (key / norm).half()

    def _reserve(self, entries: int, others: int) -> None:
        """Room for so many entries and so many more rows of the pool, by doubling."""
        size = self.last.shape[1]
        if entries > size:
            capacity = max(64, 2 * size, entries)
            self.last = _grown(self.last, capacity)
            for name in ("rest", "length", "id", "seq", "on", "limit"):
                old = getattr(self, name)
                new = np.zeros((capacity, *old.shape[1:]), old.dtype)
                new[:size] = old
                setattr(self, name, new)
        if others > self.rest.shape[1]:
            self.rest = np.pad(self.rest, ((0, 0), (0, others - self.rest.shape[1])))
        if others > len(self._free):
            used = self.pool.shape[1]
            capacity = max(64, 2 * used, used + others)
            self.pool = _grown(self.pool, capacity)
            self._free = list(range(capacity - 1, used - 1, -1)) + self._free

    # ---------------------------------------------------------------- saving

    def tensors(self) -> dict[str, Tensor]:
        """The entries in order of insertion, as plain contiguous tensors on the CPU.

        ``last`` float16 (R, E, D); ``rest`` float16 (R, P - E, D), the other tokens, entry by entry, each
        from the one before the last to the first; ``length``, ``id`` int64 (E,); ``enabled`` bool (E,);
        ``threshold`` float32 (E,).
        """
        slots = self.slots()
        used = np.arange(self.rest.shape[1])[None] < self.length[slots, None] - 1
        rows = torch.from_numpy(self.rest[slots][used]).to(self.device)
        return {
            "last": self.last[:, torch.from_numpy(slots).to(self.device)].cpu(),
            "rest": self.pool[:, rows].cpu(),
            "length": torch.from_numpy(self.length[slots]),
            "id": torch.from_numpy(self.id[slots]),
            "enabled": torch.from_numpy(self.on[slots]),
            "threshold": torch.from_numpy(self.limit[slots]),
        }

    def loaded(self, tensors: Mapping[str, Tensor]) -> KeyRecord:
        """A new record of this one's width that holds `tensors`, as `tensors()` gave them.

        Raises:
            ValueError: a tensor is missing, of another dtype or shape, or holds impossible values.
        """
        _check_tensors(tensors, self.n_layers, self.dim)
        count = len(tensors["id"])
        new = KeyRecord(self.n_layers, self.dim, self.device, self.next_seq)
        new.last = tensors["last"].to(self.device, copy=True)
        new.pool = tensors["rest"].to(self.device, copy=True)
        new.length = tensors["length"].cpu().numpy().copy()
        new.id = tensors["id"].cpu().numpy().copy()
        new.on = tensors["enabled"].cpu().numpy().copy()
        new.limit = tensors["threshold"].cpu().numpy().copy()
        new.seq = np.arange(self.next_seq, self.next_seq + count)
        new.next_seq += count
        new.rest = np.zeros((count, int(new.length.max(initial=1)) - 1), np.int64)
        used = np.arange(new.rest.shape[1])[None] < new.length[:, None] - 1
        new.rest[used] = np.arange(new.pool.shape[1])
        new.slot = {id: slot for slot, id in enumerate(new.id.tolist())}
        return new


def _grown(tensor: Tensor, capacity: int) -> Tensor:
    grown = tensor.new_zeros(tensor.shape[0], capacity, tensor.shape[2])
    grown[:, : tensor.shape[1]] = tensor
    return grown


def _check_tensors(tensors: Mapping[str, Tensor], n_layers: int, dim: int) -> None:
    dtypes = {
        "last": torch.float16,
        "rest": torch.float16,
        "length": torch.int64,
        "id": torch.int64,
        "enabled": torch.bool,
        "threshold": torch.float32,
    }
    if set(tensors) != set(dtypes):
        raise ValueError(
            f"saved keys hold {sorted(tensors)}; expected {sorted(dtypes)}: the file is not a key memory's"
        )
    count = tensors["id"].numel()
    length = tensors["length"]
    others = int(length.sum()) - count
    for name, dtype in dtypes.items():
        shape = {"last": (n_layers, count, dim), "rest": (n_layers, others, dim)}.get(name, (count,))
        given = tensors[name]
        if tuple(given.shape) != shape or given.dtype != dtype:
            raise ValueError(
                f"saved {name} is {given.dtype} of shape {tuple(given.shape)}, expected {dtype} of shape "
                f"{shape}: the file is damaged, or of a memory with other layers or another width"
            )
    broken = "the file is damaged; save it again or take another copy"
    if count and int(length.min()) < 1:
        raise ValueError(f"a saved length is {int(length.min())}, expected at least 1: {broken}")
    if count and int(tensors["id"].min()) < 0:
        raise ValueError(f"a saved id is {int(tensors['id'].min())}, expected at least 0: {broken}")
    if len(torch.unique(tensors["id"])) != count:
        raise ValueError(f"{count} saved ids are not all different: {broken}")
    if not bool(((tensors["threshold"] >= 0) & (tensors["threshold"] < 1)).all()):
        raise ValueError(f"a saved threshold is outside 0 <= threshold < 1: {broken}")
    for name in ("last", "rest"):
        for layer in tensors[name]:
            # Rounding to float16 changes a norm by less than 2^-11; NaN fails the comparison too.
            norm = torch.linalg.vector_norm(layer, dim=-1, dtype=torch.float32)
            if not bool(((norm - 1).abs() < 2e-3).all()):
                raise ValueError(f"saved {name} has a key that is not of length 1: {broken}")
