"""Keys and values: prefixes held once for all who share them, and one slot per row that is being written.

Shapes per layer: a prefix is (n_kv_heads, P, D); the slots are (capacity, n_kv_heads, room, D), left-aligned, so that a
row may join or leave without moving the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from esckit.models.grouping import n_common

_ROOM_STEP = 64


@dataclass(frozen=True, slots=True, eq=False)
class PrefixKV:
    """Keys and values of a token sequence that starts at position 0.

    Attributes:
        ids: The tokens.
        keys: Per layer (n_kv_heads, P, D).
        values: Per layer (n_kv_heads, P, D).
    """

    ids: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def n_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    def head(self, n: int) -> PrefixKV:
        """Return the first ``n`` tokens as a view."""
        if n == self.length:
            return self
        return PrefixKV(self.ids[:n], tuple(k[:, :n] for k in self.keys), tuple(v[:, :n] for v in self.values))

    def extended(self, ids: Sequence[int], keys: Sequence[Tensor], values: Sequence[Tensor]) -> PrefixKV:
        """Return this prefix with more tokens behind it; ``keys`` and ``values`` per layer (n_kv_heads, T, D)."""
        if not self.ids:
            return PrefixKV(tuple(ids), tuple(k.clone() for k in keys), tuple(v.clone() for v in values))
        return PrefixKV(
            (*self.ids, *ids),
            tuple(torch.cat(pair, dim=1) for pair in zip(self.keys, keys, strict=True)),
            tuple(torch.cat(pair, dim=1) for pair in zip(self.values, values, strict=True)),
        )


EMPTY_PREFIX = PrefixKV((), (), ())


class PrefixStore:
    """The prefixes used last, up to an amount of memory.

    Args:
        max_bytes: Memory held at most; what was not used for longest goes first.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[int, ...], PrefixKV] = OrderedDict()

    def longest(self, ids: tuple[int, ...]) -> PrefixKV:
        """Return the longest stored beginning of ``ids``; empty if nothing matches."""
        best, n_best = EMPTY_PREFIX, 0
        for entry in self._entries.values():
            n = n_common(entry.ids, ids)
            if n > n_best:
                best, n_best = entry, n
        if n_best:
            self._entries.move_to_end(best.ids)
        return best.head(n_best)

    def add(self, kv: PrefixKV) -> None:
        """Keep a prefix; entries that it begins with become superfluous."""
        covered = [ids for ids in self._entries if kv.ids[: len(ids)] == ids]
        for ids in covered:
            del self._entries[ids]
        self._entries[kv.ids] = kv
        n_bytes = sum(entry.n_bytes for entry in self._entries.values())
        while n_bytes > self.max_bytes:
            n_bytes -= self._entries.popitem(last=False)[1].n_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


class SlotLayer(DynamicLayer):
    """One layer of :class:`SlotCache`: writes a step's keys and values to each row's own end."""

    def __init__(self, slots: SlotCache) -> None:
        super().__init__()
        self.slots = slots

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store one token per row, (B, n_kv_heads, 1, D), and return the filled part (B, n_kv_heads, S, D)."""
        rows, ends, width = self.slots.rows, self.slots.ends, self.slots.width
        self.keys[rows, :, ends] = key_states[:, :, 0]
        self.values[rows, :, ends] = value_states[:, :, 0]
        return self.keys[: len(rows), :, :width], self.values[: len(rows), :, :width]


class SlotCache(Cache):
    """The own keys and values of the rows in flight; row ``i`` holds ``lengths[i]`` tokens from column 0 on.

    Args:
        n_layers: Number of layers of the model.
        device: Where the model runs.
    """

    def __init__(self, n_layers: int, device: torch.device) -> None:
        self.device = device
        self.lengths: list[int] = []
        self.rows = torch.zeros(0, dtype=torch.long)
        self.ends = torch.zeros(0, dtype=torch.long)
        self.width = 0
        super().__init__(layers=[SlotLayer(self) for _ in range(n_layers)])

    def append(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Add a row; ``keys`` and ``values`` per layer (n_kv_heads, T, D)."""
        row, length = len(self.lengths), keys[0].shape[1]
        for layer, layer_keys, layer_values in zip(self.layers, keys, values, strict=True):
            layer.keys = _with_room(layer.keys, layer_keys, row + 1)
            layer.values = _with_room(layer.values, layer_values, row + 1)
            layer.keys[row, :, :length] = layer_keys
            layer.values[row, :, :length] = layer_values
        self.lengths.append(length)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; without any, the memory is given back."""
        width = max((self.lengths[row] for row in rows), default=0)
        index = torch.tensor(rows, dtype=torch.long, device=self.device)
        for layer in self.layers:
            if not rows:
                layer.keys = layer.values = None
                continue
            layer.keys[: len(rows), :, :width] = layer.keys[index, :, :width]
            layer.values[: len(rows), :, :width] = layer.values[index, :, :width]
        self.lengths = [self.lengths[row] for row in rows]

    def wipe(self) -> None:
        """Zero what no row holds: a NaN left behind there would reach the others, since 0 · NaN is NaN in attention."""
        for layer in self.layers:
            if layer.keys is not None:
                capacity, _, room, _ = layer.keys.shape
                held = torch.tensor([*self.lengths, *[0] * (capacity - len(self.lengths))], device=self.device)
                empty = (torch.arange(room, device=self.device) >= held[:, None])[:, None, :, None]
                layer.keys.masked_fill_(empty, 0.0)
                layer.values.masked_fill_(empty, 0.0)

    def begin_step(self) -> None:
        """Fix where the next token of each row goes."""
        self.width = max(self.lengths) + 1
        for layer in self.layers:
            if layer.keys.shape[2] < self.width:
                layer.keys = _grown(layer.keys, layer.keys.shape[0], self.width)
                layer.values = _grown(layer.values, layer.values.shape[0], self.width)
        self.rows = torch.arange(len(self.lengths), device=self.device)
        self.ends = torch.tensor(self.lengths, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]

    def key_positions(self, starts: Tensor) -> Tensor:
        """Return the position of each column (B, S), -1 where empty; ``starts`` (B,) are the prefix lengths."""
        columns = torch.arange(self.width, device=self.device)
        return torch.where(columns[None] <= self.ends[:, None], columns[None] + starts[:, None], -1)


def _with_room(slots: Tensor | None, row: Tensor, n_rows: int) -> Tensor:
    """Return slots that hold ``n_rows`` rows as long as ``row`` (n_kv_heads, T, D), and one token more."""
    n_heads, length, width = row.shape
    if slots is None:
        slots = row.new_zeros(0, n_heads, 0, width)
    if slots.shape[0] >= n_rows and slots.shape[2] > length:
        return slots
    capacity = slots.shape[0] if slots.shape[0] >= n_rows else max(n_rows, 2 * slots.shape[0])
    return _grown(slots, capacity, length + 1)


def _grown(slots: Tensor, capacity: int, length: int) -> Tensor:
    """Return a larger copy of ``slots`` (rows, n_kv_heads, room, D)."""
    n_rows, n_heads, held, width = slots.shape
    room = max(held, -(-length // _ROOM_STEP) * _ROOM_STEP)
    fresh = slots.new_zeros(capacity, n_heads, room, width)
    fresh[:n_rows, :, :held] = slots
    return fresh
