"""Last states of dialogue prefixes: what a prefix shares with one read before is not read again.

A prefix comes as pieces, the header and one per turn. Each piece is read by itself behind the pieces before it, whether
those were held or are read now, so that a state is the same to the last bit whatever was asked before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from esckit.models.capabilities import cache_parameter
from esckit.models.flow_model import FlowModel, base_decoder
from esckit.models.kvcache import PrefixKV, PrefixStore
from esckit.models.packable import only_attends

HELD_BYTES = 512 * 2**20
"""Memory for keys and values: about ten thousand tokens of a 135M model in float32."""


class PrefixReader:
    """Reads last states from the backbone of a flow model.

    Args:
        model: In eval mode on its device.
        held_bytes: Memory for the keys and values of earlier prefixes.
    """

    def __init__(self, model: FlowModel, *, held_bytes: int = HELD_BYTES) -> None:
        decoder = base_decoder(model.backbone)
        self._backbone = model.backbone
        self._cache_parameter = cache_parameter(decoder)
        self._device = decoder.device
        self._store = PrefixStore(held_bytes)
        self._in_pieces = only_attends(decoder.config.to_dict())

    @torch.no_grad()
    def read(self, pieces: Sequence[tuple[int, ...]]) -> Tensor:
        """Return the state of the last token (1, d).

        Args:
            pieces: Token ids, at least one piece, none empty.
        """
        ids = tuple(token for piece in pieces for token in piece)
        if not self._in_pieces:
            return self._forward(ids, 0, None)
        held = self._store.longest(ids)
        ends = list(accumulate(len(piece) for piece in pieces))
        n_done = max((at for at, end in enumerate(ends[:-1], start=1) if end <= held.length), default=0)
        cache = _cache(held.head(ends[n_done - 1])) if n_done else DynamicCache()
        for piece, end in zip(pieces[n_done:], ends[n_done:], strict=True):
            state = self._forward(piece, end - len(piece), cache)
        if held.length < len(ids):
            keys, values = zip(*((layer.keys[0], layer.values[0]) for layer in cache.layers), strict=True)
            self._store.add(PrefixKV(ids, keys, values))
        return state

    def _forward(self, ids: Sequence[int], start: int, cache: DynamicCache | None) -> Tensor:
        """Read tokens that stand from position ``start`` on, behind what a cache holds."""
        states: Tensor = self._backbone(
            input_ids=torch.tensor([list(ids)], device=self._device),
            position_ids=torch.arange(start, start + len(ids), device=self._device).unsqueeze(0),
            use_cache=cache is not None,
            **{self._cache_parameter: cache},
        ).last_hidden_state
        return states[:, -1]


def _cache(prefix: PrefixKV) -> DynamicCache:
    return DynamicCache([(keys[None], values[None]) for keys, values in zip(prefix.keys, prefix.values, strict=True)])
