"""A trained strategy policy in use: prior of a search, chooser, and writer of replies (AFlow, arXiv 2602.08826).

:class:`CheckpointPolicy` scores strategies: score(a|s) = log π(a|s) + w · V(s, a) over the ``top_k`` strategies of
highest π, and takes the best one. One reading of the dialogue, no search, no draw. Its prompted counterpart is
:class:`esckit.roles.players.PromptedStrategist`.

:class:`FlowWriter` writes the reply itself. With ``response_weight`` above 0, ``train-flow`` also teaches the adapter
the supporter turns of good paths: the dialogue as ``flow_text/1``, then the marker of a supporter turn with its
strategy, then its words up to the line end. With the adapter off, the plain backbone is an ordinary chat model.

:class:`PrefixReader` reads only what a prefix does not share with one read before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from esckit.errors import NOT_FINITE, BackendError
from esckit.flow.model import FlowModel, load_flow_model
from esckit.flow.text import FlowText, drop_oldest, policy_id, writer_metadata
from esckit.ledger import Scope
from esckit.models.backbones import resolve_backbone
from esckit.models.checkpoint import ADAPTER, checkpoint_folder
from esckit.models.kvcache import PrefixKV, PrefixStore
from esckit.models.loading import (
    Dtype,
    as_dtype,
    base_decoder,
    cache_parameter,
    exact_dtype,
    load_adapter,
    load_causal,
    pick_device,
    pick_dtype,
)
from esckit.models.local import LocalModel
from esckit.models.packing import only_attends
from esckit.protocols import Decision
from esckit.types import Reply, Sampling, Scenario, Turn, Usage

HELD_BYTES = 512 * 2**20
"""Memory for keys and values: about ten thousand tokens of a 135M model in float32."""


class PrefixReader:
    """Reads last states of dialogue prefixes from the backbone of a flow model.

    A prefix comes as pieces, the header and one per turn. Each piece is read by itself behind the pieces before it,
    whether those were held or are read now, so that a state is the same to the last bit whatever was asked before.

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
        cache = DynamicCache()
        if n_done:
            shared = held.head(ends[n_done - 1])
            pairs = zip(shared.keys, shared.values, strict=True)
            cache = DynamicCache([(keys[None], values[None]) for keys, values in pairs])
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


DEFAULT_MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class PolicyReading:
    """What the policy says about one state, in taxonomy order.

    Attributes:
        probabilities: π(a|s); positive, sum 1.
        values: V(s, a), positive.
        scores: log π + w · V; minus infinity outside the ``top_k``.
        strategy: The name of the highest score, the first of equals.
        n_tokens: Tokens of the prefix.
    """

    probabilities: tuple[float, ...]
    values: tuple[float, ...]
    scores: tuple[float, ...]
    strategy: str
    n_tokens: int


class CheckpointPolicy:
    """A checkpoint of ``train-flow`` as a :class:`~esckit.protocols.StrategyPolicy`.

    Args:
        model: The flow model, in eval mode on its device.
        text: The text form it was trained with.
        name: For provenance.
        value_weight: w; 0 where the values were not trained.
        top_k: How many strategies may be chosen; None is all.
        max_tokens: Above it whole oldest turns after the header go.
    """

    def __init__(
        self,
        model: FlowModel,
        text: FlowText,
        *,
        name: str,
        value_weight: float = 1.0,
        top_k: int | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        self.name, self.strategies = name, model.strategies
        self._model, self._text = model.eval(), text
        self._value_weight, self._top_k, self._max_tokens = value_weight, top_k, max_tokens
        self._reader = PrefixReader(self._model)
        # One thread: forward passes queue up instead of fighting for the cores, and the event loop stays free.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="esckit-policy")

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        abbreviations: Mapping[str, str],
        dtype: Dtype = "auto",
        device: str = "auto",
        value_weight: float | None = None,
        top_k: int | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> Self:
        """Load a checkpoint.

        Args:
            run: The run folder of ``train-flow``, or the checkpoint in it.
            abbreviations: Strategy name to abbreviation of the taxonomy it is wanted for, in its order.
            dtype: Type of the backbone's weights; ``auto`` is float32, on a GPU bfloat16.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            value_weight: None is 1, or 0 where the checkpoint's values were not trained.
            top_k: How many strategies may be chosen; None is all.
            max_tokens: Above it whole oldest turns after the header go.

        Raises:
            CheckpointError: If there is no whole checkpoint, or it is of another taxonomy.
            ConfigError: If its backbone cannot be reached, or there is no such device.
        """
        place = pick_device(device)
        model, tokenizer, metadata = load_flow_model(
            run, dtype=exact_dtype(dtype, place), strategies=tuple(abbreviations)
        )
        tags = abbreviations if metadata.strategy_tags else None
        text = FlowText(tokenizer, situation=metadata.situation, tags=tags)
        if value_weight is None:
            value_weight = 0.0 if metadata.objective.get("name") == "bc" else 1.0
        return cls(
            model.to(place), text, name=policy_id(run), value_weight=value_weight, top_k=top_k, max_tokens=max_tokens
        )

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        """Return the strategy of the highest score, and π, which is positive; read off the event loop."""
        reading = await asyncio.get_running_loop().run_in_executor(self._thread, self.read, scenario, turns)
        usage = Usage(calls=1, prompt_tokens=reading.n_tokens)
        scope.spend("strategist", usage)
        return Decision(reading.strategy, reading.probabilities, usage)

    @torch.no_grad()
    def read(self, scenario: Scenario, turns: Sequence[Turn]) -> PolicyReading:
        """Return everything that the policy says about a dialogue in which the supporter speaks next.

        Raises:
            BackendError: ``not_finite`` if a probability or a value is not finite.
        """
        pieces = self._text.pieces(scenario, turns, max_tokens=self._max_tokens)
        outputs = self._model.judge(self._reader.read(pieces))
        # float64, so that the probabilities sum to 1 as finely as whoever smooths and stores them expects.
        log_pi = outputs.log_pi[0].double().log_softmax(dim=0)
        values = outputs.log_value[0].double().exp()
        if not bool(log_pi.isfinite().all() and values.isfinite().all()):
            raise BackendError(
                f"probabilities or values of {self.name} that are not finite",
                kind=NOT_FINITE,
                expected="finite numbers",
            )
        scores = log_pi + self._value_weight * values
        if self._top_k is not None:
            allowed = torch.zeros_like(scores, dtype=torch.bool)
            allowed[log_pi.topk(min(self._top_k, len(scores))).indices] = True
            scores = scores.masked_fill(~allowed, -torch.inf)
        return PolicyReading(
            probabilities=tuple(log_pi.exp().tolist()),
            values=tuple(values.tolist()),
            scores=tuple(scores.tolist()),
            strategy=self.strategies[int(scores.argmax())],
            n_tokens=sum(map(len, pieces)),
        )

    async def aclose(self) -> None:
        """Stop the thread; calling it twice is harmless."""
        self._thread.shutdown(wait=True)


class FlowWriter:
    """Writes supporter turns in the text form of flow training.

    Args:
        model: The backbone with the adapter merged.
        text: The text form; it holds no situation, which a supporter does not know.
    """

    def __init__(self, model: LocalModel, text: FlowText) -> None:
        self.name = model.name
        self._model, self._text = model, text

    @classmethod
    def load(cls, run: Path, *, abbreviations: Mapping[str, str], dtype: Dtype = "auto", device: str = "auto") -> Self:
        """Load a checkpoint that was trained to write.

        Args:
            run: The run folder of ``train-flow``.
            abbreviations: Strategy name to abbreviation, of the checkpoint's taxonomy.
            dtype: ``auto`` is bfloat16 where processor or GPU computes in it, else float32.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            CheckpointError: If it was not trained to write, or its text form holds what a supporter does not know.
            ConfigError: If its backbone cannot be had.
        """
        metadata, place = writer_metadata(run), pick_device(device)
        # Merged in float32: in a narrow type the sum of weight and update would round the update away.
        causal, tokenizer = load_causal(resolve_backbone(metadata.backbone), dtype=torch.float32)
        load_adapter(causal.get_decoder(), checkpoint_folder(run) / ADAPTER).merge_and_unload()
        model = LocalModel(as_dtype(causal, pick_dtype(dtype, place)).to(place), tokenizer, name=policy_id(run))
        return cls(model, FlowText(tokenizer, situation=False, tags=abbreviations))

    async def write(self, turns: Sequence[Turn], strategy: str, sampling: Sampling, scope: Scope) -> Reply:
        """Write the next supporter turn under a strategy; whole oldest turns go where the talk is too long."""
        header = self._text.header(Scenario(id="unknown"))  # the seeker's situation is private
        marker = self._text.turn(Turn(speaker="supporter", text=""), strategy=strategy).marker
        room = self._model.context_length - len(header) - len(marker) - sampling.max_tokens
        pieces = drop_oldest([self._text.turn(turn).ids for turn in turns], room)
        prompt = header + tuple(token for piece in pieces for token in piece) + marker
        one_line = sampling.model_copy(update={"stop": (*sampling.stop, "\n")})
        return await self._model.continue_tokens(prompt, one_line, seed=scope.seed("supporter"))

    async def aclose(self) -> None:
        """Stop the model."""
        await self._model.aclose()
