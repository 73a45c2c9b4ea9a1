"""The engine: many requests to one model, worked off together. Torch only; it knows nothing of asyncio or chat.

Prompts that share a beginning read one copy of its keys and values (:mod:`esckit.models.kvcache`). Rows join the
running batch as soon as there is room for them and leave it when they are done, so a long reply delays no other.

The first part is the step from logits to the next token of each row, as pure tensor functions. A row's draw depends on
its own logits, its own settings and its own uniform number only, never on the rows beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from esckit.models.kvcache import (
    EMPTY_PREFIX,
    MIN_SHARED,
    Layout,
    PrefixKV,
    PrefixStore,
    SlotCache,
    length_batches,
    share_prefixes,
    use_shared_prefix_attention,
    uses_of,
)
from esckit.models.loading import cache_parameter
from esckit.types import Sampling, StopReason

_CUT_WIDTHS = (256, 4096)
"""How many of the likeliest tokens are looked at before all are sorted."""


def uniforms(seed: int, n: int) -> Tensor:
    """Return the uniform numbers in [0, 1) of a call's first ``n`` tokens, float64 (n,), from its own generator."""
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Settings(NamedTuple):
    """Decoding settings of a batch, one number per row.

    Attributes:
        temperature: float32 (B,); 0 is greedy.
        top_p: float64 (B,); 1 keeps all tokens.
        top_k: int64 (B,); 0 keeps all tokens.
        penalty: float32 (B,); 1 changes nothing.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor
    penalty: Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device) -> Settings:
        """Collect the settings of several rows."""
        return cls(
            temperature=torch.tensor([s.temperature for s in samplings], dtype=torch.float32, device=device),
            top_p=torch.tensor([s.top_p for s in samplings], dtype=torch.float64, device=device),
            top_k=torch.tensor([s.top_k or 0 for s in samplings], dtype=torch.long, device=device),
            penalty=torch.tensor([s.repetition_penalty for s in samplings], dtype=torch.float32, device=device),
        )

    def rows(self, index: Tensor) -> Settings:
        """Return the settings of some rows."""
        return Settings(*(numbers[index] for numbers in self))


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make tokens that the prompt or the reply already holds less likely (arXiv 1909.05858, equation 2, sign-safe).

    Args:
        logits: (B, V).
        seen: bool (B, V).
        penalty: (B,); positive logits are divided by it, negative ones multiplied.

    Returns:
        New logits (B, V).
    """
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * factor, logits / factor), logits)


def draw(logits: Tensor, settings: Settings, uniform: Tensor) -> Tensor:
    """Choose the next token of each row.

    Temperature first, then the ``top_k`` likeliest, then the fewest of them whose share reaches ``top_p``.

    Args:
        logits: float32 (B, V), penalties applied.
        settings: Settings of the rows.
        uniform: float64 (B,) in [0, 1); a row's token is where the cumulative probability passes it.

    Returns:
        Token ids (B,).
    """
    chosen = logits.argmax(dim=-1)
    sampled = settings.temperature > 0
    if not bool(sampled.any()):
        return chosen
    is_cut = (settings.top_k > 0) | (settings.top_p < 1)
    for which in (sampled & ~is_cut, sampled & is_cut):
        rows = which.nonzero().flatten()
        if len(rows):
            own = settings.rows(rows)
            scaled = logits[rows] / own.temperature[:, None]
            if bool(is_cut[rows[0]]):
                chosen[rows] = _draw_cut(scaled, own, uniform[rows])
            else:
                chosen[rows] = _invert(torch.softmax(scaled, dim=-1).double(), uniform[rows])
    return chosen


def _draw_cut(logits: Tensor, settings: Settings, uniform: Tensor) -> Tensor:
    """Draw from the likeliest tokens, sorting no more of them than a row needs."""
    n_tokens = logits.shape[-1]
    log_total = torch.logsumexp(logits, dim=-1, keepdim=True)
    chosen = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    for width in (*(w for w in _CUT_WIDTHS if w < n_tokens), n_tokens):
        top, ids = logits[rows].topk(width, dim=-1)
        own = settings.rows(rows)
        p = (top - log_total[rows]).exp().double()
        enough = torch.where(own.top_k > 0, own.top_k <= width, p.sum(dim=-1) >= own.top_p) | (width == n_tokens)
        if bool(enough.any()):
            ready = enough.nonzero().flatten()
            kept = _keep_likeliest(p[ready], own.rows(ready))
            ranks = _invert(kept, uniform[rows[ready]])
            chosen[rows[ready]] = ids[ready].gather(1, ranks[:, None]).squeeze(1)
        rows = rows[~enough]
        if not len(rows):
            break
    return chosen


def _keep_likeliest(p: Tensor, settings: Settings) -> Tensor:
    """Zero what the cuts leave out; ``p`` (B, K) falls from left to right, the first of a row always stays."""
    rank = torch.arange(p.shape[-1], device=p.device)
    in_top_k = (settings.top_k[:, None] == 0) | (rank < settings.top_k[:, None])
    p = p * in_top_k
    # without top_k the share is of the whole distribution, with it of what top_k left
    total = torch.where(settings.top_k > 0, p.sum(dim=-1), torch.ones_like(settings.top_p))
    before = p.cumsum(dim=-1) - p
    return p * (before < (settings.top_p * total)[:, None])


def _invert(p: Tensor, uniform: Tensor) -> Tensor:
    """Return per row of ``p`` (B, K), not normalised, where its cumulative sum passes the uniform number."""
    cumulative = p.cumsum(dim=-1)
    target = (uniform * cumulative[:, -1])[:, None]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    # rounding may put the target at the very end, where only tokens of probability 0 are left
    last = (p > 0).long().mul(torch.arange(1, p.shape[-1] + 1, device=p.device)).argmax(dim=-1)
    return torch.minimum(index, last)


_CHUNK = 1024
"""Prompt tokens of one forward pass; bounds the memory of a long prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class WriteJob:
    """Write a reply. Equal jobs are still different jobs.

    Attributes:
        prompt: Prompt tokens.
        sampling: Decoding settings; stop strings are found by ``is_stopped``.
        seed: Fixes the draws.
        stop_ids: Tokens that end the reply.
        is_stopped: True if the tokens written so far hold a stop string; None where there is none to look for.
        on_token: Takes the tokens written so far after each of them, in the engine's thread; None where nobody listens.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    stop_ids: frozenset[int]
    is_stopped: Callable[[list[int]], bool] | None = None
    on_token: Callable[[list[int]], None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ReadJob:
    """Read the log-probability of fixed continuations of one prompt.

    Attributes:
        prompt: Prompt tokens.
        continuations: Token sequences, none empty.
        temperature: Divides the logits.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Written:
    """The tokens of a reply, the one that ended it included; no reason to stop where the next logits are not finite."""

    ids: tuple[int, ...]
    stop_reason: StopReason | None


Job = WriteJob | ReadJob

Result = Written | tuple[float, ...]
"""A reply, or one log-probability (natural log, perhaps not finite) per continuation."""


@dataclass(slots=True, eq=False)
class _Row:
    """A reply that is being written; ``prefix`` is what it shares with other rows."""

    job: WriteJob
    prefix: PrefixKV
    draws: Tensor
    seen: Tensor | None
    ids: list[int] = field(default_factory=list)

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the reply has ended, None if it has not."""
        if self.ids[-1] in self.job.stop_ids or (self.job.is_stopped is not None and self.job.is_stopped(self.ids)):
            return StopReason.STOP
        return StopReason.LENGTH if len(self.ids) == self.job.sampling.max_tokens else None


class _Piece(NamedTuple):
    """Tokens to run through the model behind a prefix."""

    prefix: PrefixKV
    ids: tuple[int, ...]


class Engine:
    """Runs jobs on one model. Not thread-safe: one thread at a time.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        max_batch_tokens: Tokens of all rows in flight together, prompts not shared and replies included.
        max_stored_bytes: Memory for the keys and values of prompts that later ones may begin with.
        is_invariant: Compute each job alone and from its first token on, so that its logits do not depend on others in
            any bit. Nothing is stored then.
    """

    def __init__(self, model: Any, *, max_batch_tokens: int, max_stored_bytes: int, is_invariant: bool = False) -> None:
        use_shared_prefix_attention(model)
        self.model = model
        self._cache_parameter = cache_parameter(model)
        self.max_batch_tokens = max_batch_tokens
        self.device = next(model.parameters()).device
        config = model.config.get_text_config(decoder=True)
        self.n_layers = int(config.num_hidden_layers)
        self.vocab_size = int(config.vocab_size)
        self.is_invariant = is_invariant
        self.store = PrefixStore(0 if is_invariant else max_stored_bytes)
        self.slots = SlotCache(self.n_layers, self.device)
        self.rows: list[_Row] = []
        self.waiting: list[WriteJob] = []
        self.reading: list[ReadJob] = []
        self._retreated = False

    @torch.inference_mode()
    def advance(
        self, arrivals: Sequence[Job], dropped: Collection[Job], interrupted: Callable[[], bool]
    ) -> dict[Job, Result]:
        """Take jobs in and work until one is done, or until interrupted (but one step at least).

        Args:
            arrivals: New jobs.
            dropped: Jobs whose results are not wanted any more.
            interrupted: Returns whether the caller has new requests; called between steps.

        Returns:
            Results by job; the rest stays in flight.
        """
        self.reading += [job for job in arrivals if isinstance(job, ReadJob)]
        self.waiting += [job for job in arrivals if isinstance(job, WriteJob)]
        self.drop(dropped)
        results: dict[Job, Result] = {}
        try:
            while self.reading:
                results[self.reading[0]] = self._read(self.reading[0])
                del self.reading[0]
            self._admit(results)
            while self.rows and not results:
                self._step(results)
                if interrupted():
                    break
        except torch.OutOfMemoryError:
            if self._retreated:
                raise
            self._retreat()
        else:
            self._retreated = self._retreated and not results
        return results

    def drop(self, jobs: Collection[Job]) -> None:
        """Forget jobs."""
        if jobs:
            self.waiting = [job for job in self.waiting if job not in jobs]
            self.reading = [job for job in self.reading if job not in jobs]
            self._keep([i for i, row in enumerate(self.rows) if row.job not in jobs])

    def clear(self) -> None:
        """Forget all jobs and stored prefixes."""
        self.waiting = []
        self.reading = []
        self._keep([])
        self.store.clear()

    def _retreat(self) -> None:
        """After running out of memory: start the rows over in a batch half as large."""
        # what was being admitted may stand in both lists
        self.waiting = list(dict.fromkeys([*(row.job for row in self.rows), *self.waiting]))
        self._keep([])
        self.store.clear()
        self.max_batch_tokens //= 2
        self._retreated = True
        torch.cuda.empty_cache()

    def _admit(self, results: dict[Job, Result]) -> None:
        """Start waiting jobs while there is room, oldest group of a common prefix first, none is passed over.

        One job always starts when nothing else runs.
        """
        jobs: list[WriteJob] = []
        pieces: list[_Piece] = []
        room = self.max_batch_tokens - self._tokens_in_flight()
        is_idle = not self.rows
        able = self.waiting
        if self.is_invariant:  # a job that is computed alone waits until the one before it is done
            able = self.waiting[:1] if is_idle else []
        groups = share_prefixes([job.prompt for job in able])
        for group in sorted(groups, key=lambda group: min(group.members)):
            members: list[WriteJob] = []
            for job in (self.waiting[i] for i in sorted(group.members)):
                need = len(job.prompt) + job.sampling.max_tokens - (group.n_shared if members else 0)
                if need > room and not is_idle:
                    break
                members.append(job)
                room, is_idle = room - need, False
            if members:
                jobs += members
                pieces += self._pieces([job.prompt for job in members], group.n_shared)
            if len(members) < len(group.members):
                break
        if jobs:
            self._start(jobs, pieces, results)
        self.waiting = [job for job in self.waiting if job not in jobs]

    def _pieces(self, prompts: Sequence[tuple[int, ...]], n_shared: int) -> list[_Piece]:
        """Split prompts that share a beginning into prefixes whose keys are there, or are made now, and the rest."""
        known = [self._known(prompt) for prompt in prompts]
        n_known = [kv.length for kv in known]
        if n_shared and len(prompts) * n_shared >= sum(n_known) + max(0, n_shared - max(n_known)):
            same = [kv for kv in known if kv.length == n_shared]
            prefix = same[0] if same else self._prefix(prompts[0][:n_shared])
            return [_Piece(prefix, prompt[n_shared:]) for prompt in prompts]
        for i, prompt in enumerate(prompts):
            if len(prompt) - known[i].length > _CHUNK:
                known[i] = self._prefix(prompt[:-1])
        return [_Piece(kv, prompt[kv.length :]) for kv, prompt in zip(known, prompts, strict=True)]

    def _known(self, prompt: tuple[int, ...]) -> PrefixKV:
        """Return the longest beginning of a prompt, the last token aside, that running rows or the store hold."""
        used = dict.fromkeys(row.prefix for row in self.rows)
        fitting = [kv for kv in used if kv.length < len(prompt) and prompt[: kv.length] == kv.ids]
        best = max(fitting, key=lambda kv: kv.length, default=EMPTY_PREFIX)
        stored = self.store.longest(prompt[:-1])
        # reading what other rows read costs less than a copy, so a little more in the store does not pay
        return stored if stored.length >= best.length + MIN_SHARED else best

    def _start(self, jobs: list[WriteJob], pieces: list[_Piece], results: dict[Job, Result]) -> None:
        """Run the prompts and draw the first token of each."""
        n_users = Counter([*(piece.prefix for piece in pieces), *(row.prefix for row in self.rows)])
        first, last_logits = len(self.rows), []
        for batch in length_batches([len(piece.ids) for piece in pieces], 2 * _CHUNK):
            logits, cache = self._run([pieces[i] for i in batch], n_logits=1)
            last_logits.append(logits[:, -1])
            for row, i in enumerate(batch):
                prefix, ids = pieces[i].prefix, pieces[i].ids
                keys, values = _own(cache, row, len(ids))
                is_shared = prefix.length > 0 and n_users[prefix] > 1
                if not is_shared or len(ids) >= MIN_SHARED:  # the next turn's prompt will begin with this one
                    whole = prefix.extended(ids, keys, values)
                    self.store.add(whole)
                    if not is_shared:
                        keys, values, prefix = list(whole.keys), list(whole.values), EMPTY_PREFIX
                self.slots.append(keys, values)
                job, seen = jobs[i], None
                if job.sampling.repetition_penalty != 1.0:
                    seen = torch.zeros(self.vocab_size, dtype=torch.bool, device=self.device)
                    seen[list(job.prompt)] = True
                self.rows.append(_Row(job, prefix, uniforms(job.seed, job.sampling.max_tokens), seen))
        self._take(torch.cat(last_logits), self.rows[first:], results)

    def _step(self, results: dict[Job, Result]) -> None:
        """Write one token in every row."""
        self.slots.begin_step()
        prefixes = [row.prefix for row in self.rows]
        starts = torch.tensor([prefix.length for prefix in prefixes], device=self.device)
        query_pos = (starts + self.slots.ends)[:, None]
        layout = Layout(query_pos, self.slots.key_positions(starts), uses_of(prefixes, self.device))
        tokens = torch.tensor([[row.ids[-1]] for row in self.rows], device=self.device)
        self._take(self._forward(tokens, layout, self.slots, n_logits=1)[:, -1], self.rows, results)

    def _take(self, logits: Tensor, rows: list[_Row], results: dict[Job, Result]) -> None:
        """Draw a token for each of the rows from logits (B, V); move what is finished to the results."""
        settings = Settings.of([row.job.sampling for row in rows], self.device)
        penalised = [row for row in rows if row.seen is not None]
        if penalised:
            nothing = torch.zeros(self.vocab_size, dtype=torch.bool, device=self.device)
            seen = torch.stack([row.seen if row.seen is not None else nothing for row in rows])
            logits = penalise(logits, seen, settings.penalty)
        uniform = torch.stack([row.draws[len(row.ids)] for row in rows]).to(self.device)
        # The largest of a row is NaN if any is. Tokens that a model rules out may well have minus infinity.
        finite = logits.amax(dim=-1).isfinite().tolist()
        for row, token, is_finite in zip(rows, draw(logits, settings, uniform).tolist(), finite, strict=True):
            if not is_finite:
                results[row.job] = Written(tuple(row.ids), None)
                continue
            row.ids.append(token)
            if row.job.on_token is not None:
                row.job.on_token(row.ids)
            if row.seen is not None:
                row.seen[token] = True
            if (reason := row.stop_reason) is not None:
                results[row.job] = Written(tuple(row.ids), reason)
        self._keep([i for i, row in enumerate(self.rows) if row.job not in results])
        if not all(finite):
            self.slots.wipe()

    def _keep(self, index: list[int]) -> None:
        if len(index) < len(self.rows):
            self.slots.keep(index)
            self.rows = [self.rows[i] for i in index]

    def _tokens_in_flight(self) -> int:
        own = (len(row.job.prompt) - row.prefix.length + row.job.sampling.max_tokens for row in self.rows)
        return sum(prefix.length for prefix in {row.prefix for row in self.rows}) + sum(own)

    # ------------------------------------------------------------ reading

    def _read(self, job: ReadJob) -> tuple[float, ...]:
        """Return the log-probability of each continuation; they share the prompt's forward pass."""
        prefix = self._prefix(job.prompt[:-1])
        # continuations that differ in the last token only are read in one row
        inputs = list(dict.fromkeys((job.prompt[-1], *c[:-1]) for c in job.continuations))
        log_p: dict[tuple[int, ...], Tensor] = {}
        for batch in length_batches([len(ids) for ids in inputs], _CHUNK):
            longest = max(len(inputs[i]) for i in batch)
            logits, _ = self._run([_Piece(prefix, inputs[i]) for i in batch], n_logits=longest)
            scaled = torch.log_softmax(logits / job.temperature, dim=-1).cpu()
            for row, i in enumerate(batch):
                log_p[inputs[i]] = scaled[row, longest - len(inputs[i]) :]
        scores = []
        for continuation in job.continuations:
            table = log_p[(job.prompt[-1], *continuation[:-1])]
            scores.append(float(table[torch.arange(len(continuation)), list(continuation)].double().sum()))
        return tuple(scores)

    # ------------------------------------------------------------ the model

    def _prefix(self, ids: tuple[int, ...]) -> PrefixKV:
        """Return keys and values of exactly these tokens, computing what the store does not hold."""
        kv = self.store.longest(ids)
        while kv.length < len(ids):
            chunk = ids[kv.length : kv.length + _CHUNK]
            _, cache = self._run([_Piece(kv, chunk)], n_logits=1)
            kv = kv.extended(chunk, *_own(cache, 0, len(chunk)))
            self.store.add(kv)
        return kv

    def _run(self, pieces: Sequence[_Piece], *, n_logits: int) -> tuple[Tensor, DynamicCache]:
        """Run pieces, padded on the left; return the last logits (B, n_logits, V) and their keys and values."""
        longest = max(len(piece.ids) for piece in pieces)
        pads = [longest - len(piece.ids) for piece in pieces]
        tokens = torch.tensor([[0] * pad + list(p.ids) for pad, p in zip(pads, pieces, strict=True)])
        columns = torch.arange(longest)
        start = torch.tensor([[piece.prefix.length] for piece in pieces])
        pad = torch.tensor(pads)[:, None]
        position = torch.where(columns >= pad, columns - pad + start, -1).to(self.device)
        cache = DynamicCache()
        layout = Layout(position, position, uses_of([piece.prefix for piece in pieces], self.device))
        return self._forward(tokens.to(self.device), layout, cache, n_logits=n_logits), cache

    def _forward(self, tokens: Tensor, layout: Layout, cache: DynamicCache | SlotCache, *, n_logits: int) -> Tensor:
        output = self.model(
            input_ids=tokens,
            attention_mask=layout.own_mask(),
            position_ids=layout.query_pos.clamp(min=0),
            use_cache=True,
            logits_to_keep=n_logits,
            layout=layout,
            **{self._cache_parameter: cache},
        )
        logits: Tensor = output.logits
        return logits.float()


def _own(cache: DynamicCache, row: int, length: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the last ``length`` keys and values of a row, per layer (n_kv_heads, length, D)."""
    keys = [layer.keys[row, :, -length:] for layer in cache.layers]
    return keys, [layer.values[row, :, -length:] for layer in cache.layers]
