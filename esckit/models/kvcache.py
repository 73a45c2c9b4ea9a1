"""Shared prefixes in generation: keys and values that many rows read, where sequences come one after the other.

Keys and values of a prefix are held once, not once per row. All rows of a group ask it in a single matrix product, and
one softmax runs over prefix and own tokens together, so the result is that of ordinary attention on the whole sequence.
transformers hands the layout of a forward pass through to the attention function; the model code stays untouched.

Shapes per layer: a prefix is (n_kv_heads, P, D); the slots of the rows that are being written are (capacity,
n_kv_heads, room, D), left-aligned, so that a row may join or leave without moving the others. Where all sequences are
known beforehand, they are packed into one row instead (:mod:`esckit.models.packing`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

MIN_SHARED = 32
"""Shortest prefix, in tokens, worth computing on its own."""


class Group(NamedTuple):
    """Prompts, by index, whose first ``n_shared`` tokens are the same; 0 where they have nothing to share."""

    members: tuple[int, ...]
    n_shared: int


def n_common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Return the length of the common beginning of two sequences."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices compare in C, token by token would be slow
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def share_prefixes(prompts: Sequence[tuple[int, ...]], *, min_shared: int = MIN_SHARED) -> list[Group]:
    """Group prompts so that as many prompt tokens as possible are computed once, not once per prompt.

    At least one token of every prompt stays outside the shared part: its forward pass gives the first logits.

    Args:
        prompts: Token sequences.
        min_shared: Shorter common beginnings are not shared.

    Returns:
        Groups that hold every prompt once.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    common = [n_common(prompts[a], prompts[b]) for a, b in pairwise(order)]

    def best(low: int, high: int) -> tuple[int, list[Group]]:
        """Return the tokens saved and the groups of the sorted prompts ``low`` to ``high``, end excluded."""
        if high - low < 2:
            return 0, [Group((i,), 0) for i in order[low:high]]
        n_shared = min(*common[low : high - 1], *(len(prompts[i]) - 1 for i in order[low:high]))
        saved = (high - low - 1) * n_shared if n_shared >= min_shared else 0
        # sorted prompts differ most where two neighbours share least: the only cut that can pay
        cut = min(range(low, high - 1), key=lambda i: common[i]) + 1
        if all(n == common[cut - 1] for n in common[low : high - 1]) and saved:
            return saved, [Group(tuple(order[low:high]), n_shared)]
        (saved_left, left), (saved_right, right) = best(low, cut), best(cut, high)
        if saved_left + saved_right >= saved:
            return saved_left + saved_right, left + right
        return saved, [Group(tuple(order[low:high]), n_shared)]

    return best(0, len(order))[1]


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut rows into batches of similar length.

    Args:
        lengths: Tokens per row.
        max_tokens: Rows times longest row, padding included, of one batch (a longer row stands alone).

    Returns:
        Row indices per batch, shortest rows first; padding is at most half of a batch (short rows aside).
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches:
            batch = batches[-1]
            fits = (len(batch) + 1) * lengths[row] <= max_tokens
            if fits and lengths[row] <= 2 * lengths[batch[0]] + 16:
                batch.append(row)
                continue
        batches.append([row])
    return batches


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
            if layer.keys is None:
                layer.keys, layer.values = layer_keys[None, :, :0][:0], layer_values[None, :, :0][:0]
            layer.keys = _with_room(layer.keys, row + 1, length + 1)
            layer.values = _with_room(layer.values, row + 1, length + 1)
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
            layer.keys = _with_room(layer.keys, len(self.lengths), self.width)
            layer.values = _with_room(layer.values, len(self.lengths), self.width)
        self.rows = torch.arange(len(self.lengths), device=self.device)
        self.ends = torch.tensor(self.lengths, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]

    def key_positions(self, starts: Tensor) -> Tensor:
        """Return the position of each column (B, S), -1 where empty; ``starts`` (B,) are the prefix lengths."""
        columns = torch.arange(self.width, device=self.device)
        return torch.where(columns[None] <= self.ends[:, None], columns[None] + starts[:, None], -1)


def _with_room(slots: Tensor, n_rows: int, length: int) -> Tensor:
    """Return slots (rows, n_kv_heads, room, D) for so many rows of so many tokens: the same ones, or a larger copy."""
    n_held, n_heads, held, width = slots.shape
    if n_held >= n_rows and held >= length:
        return slots
    capacity = n_held if n_held >= n_rows else max(n_rows, 2 * n_held)
    fresh = slots.new_zeros(capacity, n_heads, max(held, -(-length // _ROOM_STEP) * _ROOM_STEP), width)
    fresh[:n_held, :, :held] = slots
    return fresh


ATTENTION = "esckit_shared_prefix"


class PrefixUse(NamedTuple):
    """Rows of a batch that continue one prefix: their indices (n,), or all of them as a slice."""

    rows: Tensor | slice
    kv: PrefixKV


def uses_of(prefixes: Sequence[PrefixKV], device: torch.device) -> tuple[PrefixUse, ...]:
    """Return which rows use which prefix; rows without one are in none."""
    rows: dict[PrefixKV, list[int]] = {}
    for row, kv in enumerate(prefixes):
        if kv.length:
            rows.setdefault(kv, []).append(row)
    return tuple(
        PrefixUse(slice(None) if len(index) == len(prefixes) else torch.tensor(index, device=device), kv)
        for kv, index in rows.items()
    )


@dataclass(frozen=True)
class Layout:
    """What belongs to what in one forward pass.

    Attributes:
        query_pos: Position of each query token in its sequence, prefix included (B, T); -1 for padding.
        key_pos: Position of each own key (B, S); -1 where there is no token.
        uses: Which rows continue which prefix.
    """

    query_pos: Tensor
    key_pos: Tensor
    uses: tuple[PrefixUse, ...]

    @cached_property
    def n_positions(self) -> int:
        """Length of the longest sequence."""
        return int(self.query_pos.max()) + 1

    def own_mask(self) -> Tensor | None:
        """Return which own keys a query may see, bool (B, 1, T, S); None where plain causal attention will do.

        A padding query sees the padding, because a softmax over nothing would spread NaN into the batch.
        """
        is_whole = not self.uses and self.query_pos is self.key_pos  # from position 0 on, nothing cached before
        if is_whole and bool((self.query_pos >= 0).all()):
            return None
        query, key = self.query_pos[:, :, None], self.key_pos[:, None, :]
        return (((key >= 0) & (key <= query)) | (query < 0))[:, None]


def use_shared_prefix_attention(model: Any) -> None:
    """Let a transformers model read shared prefixes; without a layout it attends as before."""
    AttentionInterface.register(ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def shared_prefix_attention(  # noqa: PLR0913 - transformers fixes the signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend to the own keys and, where the layout names one, to the prefix of each row.

    Args:
        module: The attention module; its ``layer_idx`` picks the prefix's layer.
        query: (B, n_heads, T, D).
        key: Own keys (B, n_kv_heads, S, D).
        value: Own values (B, n_kv_heads, S, D).
        attention_mask: Own mask, bool (B, 1, T, S); None means causal.
        scaling: Factor on the scores; None means ``D ** -0.5``.
        softcap: Bound of the scores (Gemma 2), None for no bound.
        sliding_window: How far back this layer sees, None for all the way.
        layout: The batch's layout; None outside :class:`~esckit.models.engine.Engine`.
        kwargs: What else transformers passes.

    Returns:
        The attended values (B, T, n_heads, D), and None in place of weights.
    """
    window = sliding_window if layout is not None and sliding_window and layout.n_positions > sliding_window else None
    uses = layout.uses if layout is not None else ()
    if not uses and window is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    n_rows, n_heads, n_queries, width = query.shape
    n_kv_heads, n_own = key.shape[1], key.shape[2]
    n_prefix = max((use.kv.length for use in uses), default=0)
    # (B, n_kv_heads, heads per kv head * T, D): the heads that share a key become rows of one product
    grouped = _precise(query.reshape(n_rows, n_kv_heads, -1, width))
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # which transformers sets on each attention module
    scores = _scores(grouped, key, uses, n_prefix, layer) * (scaling or width**-0.5)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    by_query = scores.view(n_rows, n_kv_heads, -1, n_queries, n_prefix + n_own)
    own_mask = attention_mask
    if own_mask is None:  # causal: the queries are the last tokens of the keys
        own_mask = torch.ones(1, 1, n_queries, n_own, dtype=torch.bool, device=query.device).tril(n_own - n_queries)
    by_query[..., n_prefix:].masked_fill_(~own_mask[:, :, None], -torch.inf)
    if layout is not None and window is not None:
        by_query.masked_fill_(_out_of_window(layout, n_prefix, window), -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(grouped.dtype)
    attended = weights[..., n_prefix:] @ _precise(value)
    for use in uses:
        attended[use.rows] += _times(weights[use.rows, :, :, : use.kv.length], use.kv.values[layer])
    by_head = attended.to(query.dtype).view(n_rows, n_heads, n_queries, width)
    return by_head.transpose(1, 2).contiguous(), None


def _precise(part: Tensor) -> Tensor:
    """Return float32 on the processor, whose products in bfloat16 would round every score to eight bits.

    The fused kernels of torch keep scores in float32, too. On a GPU the copies would cost more than they give.
    """
    return part.float() if part.device.type == "cpu" else part


def _scores(grouped: Tensor, key: Tensor, uses: tuple[PrefixUse, ...], n_prefix: int, layer: int) -> Tensor:
    """Return raw scores (B, n_kv_heads, Q, n_prefix + S); -inf where a row has a shorter prefix or none."""
    own = grouped @ _precise(key).transpose(-1, -2)
    if not uses:
        return own
    of_prefixes = [_times(grouped[use.rows], use.kv.keys[layer].transpose(-1, -2)) for use in uses]
    if isinstance(uses[0].rows, slice):
        return torch.cat([of_prefixes[0], own], dim=-1)
    scores = own.new_full((*own.shape[:-1], n_prefix + own.shape[-1]), -torch.inf)
    scores[..., n_prefix:] = own
    for use, of_prefix in zip(uses, of_prefixes, strict=True):
        scores[use.rows, :, :, : use.kv.length] = of_prefix
    return scores


def _times(rows: Tensor, of_prefix: Tensor) -> Tensor:
    """Multiply what several rows hold (n, H, Q, K) with what one prefix holds (H, K, P) into (n, H, Q, P)."""
    n_rows, n_kv_heads, n_queries, width = rows.shape
    flat = rows.transpose(0, 1).reshape(n_kv_heads, n_rows * n_queries, width)
    return (flat @ _precise(of_prefix)).view(n_kv_heads, n_rows, n_queries, -1).transpose(0, 1)


def _out_of_window(layout: Layout, n_prefix: int, window: int) -> Tensor:
    """Return which keys lie too far back, bool (B, 1, 1, T, n_prefix + S); padding queries see everything."""
    prefix = torch.arange(n_prefix, device=layout.key_pos.device).expand(layout.key_pos.shape[0], -1)
    key = torch.cat([prefix, layout.key_pos], dim=1)
    query = layout.query_pos[:, :, None]
    return ((query - key[:, None, :] >= window) & (query >= 0))[:, None, None]
