"""Packed rows: what several token sequences begin with in common is read once, in one forward pass without padding.

The sequences are the paths of a tree, and all its nodes stand in one row in depth-first preorder. A token's position
counts along its path, not along the row. Preorder makes subtrees contiguous, so

    query q may attend to key k  ⇔  k ≤ q and q < subtree_end[k]

which says "k's node is q's node or an ancestor, and causal inside the node". A token's output depends on its id, its
position and the allowed keys, and these are those of its prefix alone: by induction over the layers the hidden states
are those of encoding every prefix by itself.

A dense mask makes every query look at every key of the row and throws most of it away: about a quarter of the causal
triangle is live in a 60-simulation tree. So :func:`tree_attention` cuts the row into runs, a run being a node followed
by first children (they stand next to each other in preorder); its queries see the keys of the run and of its
ancestors, nothing else. The result is the same sum over the same keys, differentiable by the framework itself.

Flow training packs search trees, the reward model packs inputs (:class:`PackedStates`). Where sequences come one after
the other, as in generation, prefixes are shared by keeping keys and values instead (:mod:`esckit.models.kvcache`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from esckit.errors import ConfigError
from esckit.models.kvcache import n_common


class NodeSpan(NamedTuple):
    """One node's tokens in a packed row: [start, end), and the index of its parent's span, -1 at a root."""

    start: int
    end: int
    parent: int


@dataclass(frozen=True, slots=True)
class TreeRow:
    """The nodes of one or more trees as one row.

    Attributes:
        spans: The nodes.
        ids: Their tokens, as long as the row.
        positions: Position of each token on its path.
    """

    spans: tuple[NodeSpan, ...]
    ids: tuple[int, ...]
    positions: tuple[int, ...]

    @classmethod
    def of(cls, nodes: Iterable[tuple[Sequence[int], int]]) -> Self:
        """Lay out nodes in preorder, each given as its tokens and the index of its parent, -1 at a root."""
        spans: list[NodeSpan] = []
        ids: list[int] = []
        positions: list[int] = []
        for tokens, parent in nodes:
            first = positions[spans[parent].end - 1] + 1 if parent >= 0 else 0
            spans.append(NodeSpan(len(ids), len(ids) + len(tokens), parent))
            ids += tokens
            positions += range(first, first + len(tokens))
        return cls(tuple(spans), tuple(ids), tuple(positions))

    def subtree_end(self) -> list[int]:
        """Return for each token where the subtree of its node ends."""
        ends = [span.end for span in self.spans]
        for index in reversed(range(len(ends))):
            parent = self.spans[index].parent
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[index])
        return [end for span, end in zip(self.spans, ends, strict=True) for _ in range(span.end - span.start)]

    def tail(self, hidden: Tensor, leaf: int, n: int) -> Tensor:
        """Return the states of the last ``n`` tokens of the path to a node (n, d), of those of the row (L, d)."""
        pieces: list[Tensor] = []
        while n > 0 and leaf >= 0:
            span = self.spans[leaf]
            pieces.insert(0, hidden[max(span.start, span.end - n) : span.end])
            n, leaf = n - len(pieces[0]), span.parent
        return torch.cat(pieces)


@dataclass(frozen=True, slots=True)
class PackedRows:
    """B rows of L tokens and the S states that are read from them.

    Attributes:
        input_ids: (B, L).
        position_ids: (B, L), counted along paths.
        readout_row: Row of each state's last token (S,).
        readout_column: Its column (S,).
        subtree_end: (B, L); None for plain causal rows, padded on the right.
        spans: The nodes of the row in order, for B = 1 with ``subtree_end``; None otherwise.
        target_row: Row of each token whose successor is to be predicted (N,); None without a response term.
        target_column: Its column (N,).
        target_ids: The successor (N,).
    """

    input_ids: Tensor
    position_ids: Tensor
    readout_row: Tensor
    readout_column: Tensor
    subtree_end: Tensor | None = None
    spans: tuple[NodeSpan, ...] | None = None
    target_row: Tensor | None = None
    target_column: Tensor | None = None
    target_ids: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the rows on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def padded(self, multiple: int) -> Self:
        """Return the rows filled up on the right to a multiple of a number of tokens, and who sees whom in them.

        No real token sees the padding, and every padding token sees something: itself, or all in plain causal rows.
        """
        n_rows, length = self.input_ids.shape
        more = (0, -length % multiple)
        ends = torch.arange(1, sum(more) + length + 1, device=self.input_ids.device).expand(n_rows, -1)
        if self.subtree_end is None:
            ends = torch.full_like(ends, ends.shape[1])
        else:
            ends = torch.cat([self.subtree_end, ends[:, length:]], dim=1)
        return replace(
            self,
            input_ids=F.pad(self.input_ids, more),
            position_ids=F.pad(self.position_ids, more),
            subtree_end=ends,
            spans=None,
        )

    @property
    def n_tokens(self) -> int:
        """Tokens read, padding included."""
        return self.input_ids.numel()


def allowed(subtree_end: Tensor) -> Tensor:
    """Return which keys each query may attend to, boolean (B, L, L), from ``subtree_end`` (B, L)."""
    index = torch.arange(subtree_end.shape[1], device=subtree_end.device)
    return (index <= index.unsqueeze(1)) & (index.unsqueeze(1) < subtree_end.unsqueeze(1))


def additive_mask(subtree_end: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask (B, 1, L, L) to add to attention scores: 0 or the least finite number.

    Never boolean: some attention implementations add a boolean mask as 0 and 1 and are then silently wrong.
    """
    mask = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=subtree_end.device)
    return torch.where(allowed(subtree_end), mask.new_zeros(()), mask).unsqueeze(1)


FLEX_BLOCK = 128
"""Tokens of a block of FlexAttention; rows of other lengths are refused or wrong in some releases of torch."""


def block_mask(subtree_end: Tensor) -> Any:
    """Return FlexAttention's block mask of rows whose length is a multiple of :data:`FLEX_BLOCK`."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < subtree_end[batch, key])

    n_rows, length = subtree_end.shape
    return create_block_mask(visible, n_rows, None, length, length, device=subtree_end.device, BLOCK_SIZE=FLEX_BLOCK)


TREE_ATTENTION = "esckit_tree"

MAX_RUN_TOKENS = 200
"""A run is cut above this length, so that little of a long one's upper triangle is computed in vain."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive nodes of a row whose queries are computed together.

    Attributes:
        nodes: Indices of the nodes above its first one, root first, and of its own.
        mask: Additive mask (queries, keys).
    """

    nodes: tuple[int, ...]
    mask: Tensor


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """How a packed row is cut: tokens per node, tokens per run, and the runs."""

    node_sizes: list[int]
    run_sizes: list[int]
    runs: tuple[Run, ...]


def tree_layout(spans: Sequence[NodeSpan], *, dtype: torch.dtype, device: torch.device) -> TreeLayout:
    """Return the layout of a row.

    Args:
        spans: The nodes in row order; they fill the row without gaps.
        dtype: Compute type of the attention.
        device: Where the masks are needed.
    """
    sizes = [span.end - span.start for span in spans]
    ancestors: list[tuple[int, ...]] = []
    for span in spans:
        ancestors.append(() if span.parent < 0 else (*ancestors[span.parent], span.parent))
    heads = [0]
    for index, span in enumerate(spans[1:], start=1):
        if span.parent != index - 1 or span.end - spans[heads[-1]].start > MAX_RUN_TOKENS:
            heads.append(index)
    runs = []
    for first, last in zip(heads, [*heads[1:], len(spans)], strict=True):
        n_queries = sum(sizes[first:last])
        n_above = sum(sizes[node] for node in ancestors[first])
        mask = torch.full((n_queries, n_queries), torch.finfo(dtype).min, dtype=dtype, device=device).triu(1)
        runs.append(Run((*ancestors[first], *range(first, last)), F.pad(mask, (n_above, 0))))
    return TreeLayout(sizes, [run.mask.shape[0] for run in runs], tuple(runs))


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: TreeLayout,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend along the paths of a tree; an attention function of transformers' ``AttentionInterface``.

    Args:
        module: The attention layer.
        query: (B, H, L, D).
        key: (B, G, L, D), G key-value heads.
        value: (B, G, L, D).
        attention_mask: Unused; the layout says what is allowed.
        layout: How the rows are cut; all rows of a batch alike.
        **kwargs: ``scaling``, ``dropout`` and, in soft-capped models, ``softcap``.

    Returns:
        The outputs (B, L, H, D), and no weights.
    """
    n_groups = query.shape[1] // key.shape[1]
    keys = repeat_kv(key, n_groups).split(layout.node_sizes, dim=2)
    values = repeat_kv(value, n_groups).split(layout.node_sizes, dim=2)
    outputs = []
    for run, queries in zip(layout.runs, query.split(layout.run_sizes, dim=2), strict=True):
        run_keys = torch.cat([keys[node] for node in run.nodes], dim=2)
        run_values = torch.cat([values[node] for node in run.nodes], dim=2)
        outputs.append(_attend(queries, run_keys, run_values, run.mask, **kwargs))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> Tensor:
    """Return attention outputs (B, H, queries, D).

    On a CPU the plain formula is faster than the fused kernel, whose backward pass is slow there, bfloat16 above all;
    runs are short enough for its memory. Soft-capped scores have no fused kernel. Scores stay in float32, as in fused
    kernels: rounded to bfloat16 they would keep eight bits.
    """
    if softcap is None and query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.float() * scaling) @ key.float().transpose(2, 3)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = (scores + mask).softmax(dim=-1)
    return F.dropout(weights.to(value.dtype), p=dropout) @ value


def use_attention(backbone: PreTrainedModel, name: str) -> None:
    """Switch a backbone to an attention implementation: transformers' own names, or ``esckit_tree``."""
    AttentionInterface.register(TREE_ATTENTION, tree_attention)
    backbone.set_attn_implementation(name)


PATH_MODE = "Set encoding.mode: path"


def check_packable(config: Mapping[str, Any], *, longest_path: int) -> None:
    """Refuse backbones whose hidden states in a packed row would differ from those of the prefix alone.

    Args:
        config: The backbone's configuration as plain data (``config.to_dict()``).
        longest_path: Tokens of the longest path.

    Raises:
        ConfigError: If tokens mix other than by full attention, if positions come from the row index, or if a path is
            not shorter than a sliding window. The hint names ``encoding.mode: path``.
    """
    name = config.get("model_type", "this backbone")
    layers = set(config.get("layer_types") or ())
    if foreign := layers - _ATTENTION:
        raise ConfigError(
            f"{name} has layers of type {', '.join(sorted(foreign))}", expected="attention layers only", hint=PATH_MODE
        )
    if name in _RECURRENT:
        raise ConfigError(f"{name} is recurrent", expected="attention layers only", hint=PATH_MODE)
    if name in _ROW_BIASED or config.get("alibi") or (config.get("attn_config") or {}).get("alibi"):
        raise ConfigError(f"{name} takes positions from the row index", expected="position ids", hint=PATH_MODE)
    window = config.get("sliding_window")
    slides = "sliding_attention" in layers or (not layers and config.get("use_sliding_window", True))
    if window and slides and longest_path >= window:
        raise ConfigError(
            f"a path of {longest_path} tokens and a sliding window of {window} in {name}",
            expected="paths shorter than the window",
            hint=f"{PATH_MODE}, or lower encoding.max_path_tokens",
        )


def only_attends(config: Mapping[str, Any]) -> bool:
    """Return whether a backbone's tokens mix by attention alone, so that a text can be read piece by piece."""
    return not set(config.get("layer_types") or ()) - _ATTENTION and config.get("model_type") not in _RECURRENT


_ATTENTION = frozenset({"full_attention", "sliding_attention"})

_RECURRENT = frozenset(
    {"mamba", "mamba2", "rwkv", "falcon_mamba", "recurrent_gemma", "jamba", "bamba", "zamba", "zamba2"}
)

_ROW_BIASED = frozenset({"bloom", "mpt"})


def prefix_tree(sequences: Sequence[tuple[int, ...]]) -> tuple[TreeRow, tuple[int, ...]]:
    """Return the row of sequences, none empty, that are sorted, and the node at which each of them ends."""
    nodes: list[tuple[tuple[int, ...], int]] = []
    leaves = [0] * len(sequences)

    def grow(low: int, high: int, start: int, parent: int) -> None:
        """Add what the sequences from ``low`` to ``high``, end excluded, hold from position ``start`` on."""
        end = n_common(sequences[low], sequences[high - 1])
        node = parent
        if end > start:
            node = len(nodes)
            nodes.append((sequences[low][start:end], parent))
        while low < high and len(sequences[low]) == end:
            leaves[low] = node
            low += 1
        while low < high:
            token, cut = sequences[low][end], low + 1
            while cut < high and sequences[cut][end] == token:
                cut += 1
            grow(low, cut, end, node)
            low = cut

    grow(0, len(sequences), 0, -1)
    return TreeRow.of(nodes), tuple(leaves)


class States(NamedTuple):
    """What was read of one sequence.

    Attributes:
        total: Sum of the states of all its tokens (d,), float32.
        tail: States of its last tokens, as many as asked for (n, d).
    """

    total: Tensor
    tail: Tensor


class PackedStates:
    """Reads states from a decoder.

    Args:
        decoder: A transformers decoder without LM head, in evaluation mode; its attention is set here.
        max_tokens: Tokens of one forward pass.
        longest: Tokens of the longest sequence. Backbones that cannot be packed at this length (a sliding window,
            states that are handed on) read the sequences one by one.
    """

    def __init__(self, decoder: Any, *, max_tokens: int, longest: int) -> None:
        self.decoder = decoder
        self.max_tokens = max_tokens
        self.n_read = 0
        self._device = next(decoder.parameters()).device
        try:
            check_packable(decoder.config.to_dict(), longest_path=longest)
        except ConfigError:
            self._packs = False
        else:
            self._packs = True
            use_attention(decoder, TREE_ATTENTION)

    @torch.inference_mode()
    def read(self, sequences: Sequence[tuple[int, ...]], n_tail: Sequence[int]) -> list[States]:
        """Return the states of each sequence, in the order given.

        Args:
            sequences: Token ids, none empty.
            n_tail: How many last tokens' states are wanted of each, at least 1.
        """
        found: dict[int, States] = {}
        for chunk in self._chunks(sequences):
            row, leaves = prefix_tree([sequences[at] for at in chunk])
            hidden = self._forward(row)
            totals: list[Tensor] = []
            for span in row.spans:
                own = hidden[span.start : span.end].float().sum(dim=0)
                totals.append(own + totals[span.parent] if span.parent >= 0 else own)
            for at, leaf in zip(chunk, leaves, strict=True):
                found[at] = States(totals[leaf], row.tail(hidden, leaf, n_tail[at]))
        return [found[at] for at in range(len(sequences))]

    def _chunks(self, sequences: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """Yield indices of sequences in sorted order whose tokens, shared ones counted once, fit one pass."""
        chunk: list[int] = []
        held = 0
        for index in sorted(range(len(sequences)), key=lambda i: sequences[i]):
            ids = sequences[index]
            fresh = len(ids) - (n_common(sequences[chunk[-1]], ids) if chunk else 0)
            if chunk and (held + fresh > self.max_tokens or not self._packs):
                yield chunk
                chunk, held, fresh = [], 0, len(ids)
            chunk.append(index)
            held += fresh
        if chunk:
            yield chunk

    def _forward(self, row: TreeRow) -> Tensor:
        """Return the states of a row (L, d)."""
        self.n_read += len(row.ids)
        dtype = self.decoder.get_input_embeddings().weight.dtype
        layout = {"layout": tree_layout(row.spans, dtype=dtype, device=self._device)} if self._packs else {}
        states: Tensor = self.decoder(
            input_ids=torch.tensor([row.ids], device=self._device),
            position_ids=torch.tensor([row.positions], device=self._device),
            use_cache=False,
            **layout,
        ).last_hidden_state
        return states[0]
