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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from esckit.errors import NOT_FINITE, BackendError, ModelError
from esckit.flow.model import FlowModel, load_flow_model
from esckit.flow.text import FlowText, drop_oldest, policy_id, writer_metadata
from esckit.ledger import Scope
from esckit.models.backbones import resolve_backbone
from esckit.models.batches import Batches, first_alone
from esckit.models.checkpoint import ADAPTER, BACKBONE, checkpoint_folder
from esckit.models.kvcache import EMPTY_PREFIX, MIN_SHARED, PrefixKV, PrefixStore, length_batches
from esckit.models.loading import (
    Dtype,
    base_decoder,
    cache_parameter,
    exact_dtype,
    load_adapter,
    load_base,
    load_causal,
    merge_adapter,
    on_device,
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

    What is not held of a prefix is read in one forward pass, all of it if nothing is held. The state is the same
    whatever was asked before, but for the last bits, as everywhere with local models.

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
        self._keeps = only_attends(decoder.config.to_dict())

    def read(self, ids: tuple[int, ...]) -> Tensor:
        """Return the state of the last of some tokens, at least one, as (1, d)."""
        return self.read_all([ids])

    @torch.no_grad()
    def read_all(self, prefixes: Sequence[tuple[int, ...]]) -> Tensor:
        """Return the last states of several prefixes, each of at least one token, as (n, d); they are read together."""
        held = [self._held(ids) for ids in prefixes]
        lengths = [len(ids) for ids in prefixes]
        states: list[Tensor] = [torch.empty(0)] * len(prefixes)
        for rows in length_batches(lengths, BATCH_TOKENS):
            found = self._read_rows([prefixes[row] for row in rows], [held[row] for row in rows])
            for row, state in zip(rows, found, strict=True):
                states[row] = state
        return torch.stack(states)

    def _held(self, ids: tuple[int, ...]) -> PrefixKV:
        held = self._store.longest(ids[:-1]) if self._keeps else EMPTY_PREFIX
        return held if held.length >= MIN_SHARED else EMPTY_PREFIX  # other dialogues, too, begin with a few of them

    def _read_rows(self, prefixes: Sequence[tuple[int, ...]], held: Sequence[PrefixKV]) -> Tensor:
        """Return the last states, (n, d), and hold the keys and values.

        What is held of a row is filled up on its left and what is new on its right, so that both lie side by side and
        distances within a row stay what they are.
        """
        n_held, n_new = (
            max(one.length for one in held),
            [len(i) - h.length for i, h in zip(prefixes, held, strict=True)],
        )
        width, device = max(n_new), self._device
        ids, positions = torch.zeros(2, len(prefixes), width, dtype=torch.long, device=device).unbind()
        mask = torch.zeros(len(prefixes), n_held + width, dtype=torch.long, device=device)
        for row, (tokens, one, n) in enumerate(zip(prefixes, held, n_new, strict=True)):
            ids[row, :n] = torch.tensor(tokens[one.length :], device=device)
            positions[row, :n] = torch.arange(one.length, len(tokens), device=device)
            mask[row, n_held - one.length : n_held + n] = 1
        cache = DynamicCache(_filled_up(held, n_held)) if n_held else DynamicCache() if self._keeps else None
        states: Tensor = self._backbone(
            input_ids=ids,
            position_ids=positions,
            **({} if bool(mask.all()) else {"attention_mask": mask}),
            use_cache=self._keeps,
            **{self._cache_parameter: cache},
        ).last_hidden_state
        if cache is not None:
            for row, (tokens, one, n) in enumerate(zip(prefixes, held, n_new, strict=True)):
                kept = slice(n_held - one.length, n_held + n)
                keys, values = zip(
                    *((each.keys[row, :, kept].clone(), each.values[row, :, kept].clone()) for each in cache.layers),
                    strict=True,
                )
                self._store.add(PrefixKV(tokens, keys, values))
        return states[torch.arange(len(prefixes)), torch.tensor(n_new) - 1]


def _filled_up(held: Sequence[PrefixKV], length: int) -> list[tuple[Tensor, Tensor]]:
    """Return per layer the keys and values of several prefixes, (n, heads, length, D), filled up on the left."""
    like = max(held, key=lambda one: one.length)
    pairs = []
    for layer in range(len(like.keys)):
        shape = (len(held), like.keys[layer].shape[0], length, like.keys[layer].shape[2])
        keys, values = (
            like.keys[layer].new_zeros(shape),
            like.values[layer].new_zeros((*shape[:3], like.values[layer].shape[2])),
        )
        for row, one in enumerate(held):
            if one.length:
                keys[row, :, length - one.length :] = one.keys[layer]
                values[row, :, length - one.length :] = one.values[layer]
        pairs.append((keys, values))
    return pairs


BATCH_TOKENS = 32_768
"""Tokens of dialogues that are read together, what is held of them included."""

DEFAULT_MAX_TOKENS = 4096
"""Where a checkpoint does not say how long its states are: those of 0.1.0 do not."""


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
        max_tokens: Above it whole oldest exchanges after the header go.
        is_invariant: Read each dialogue alone and whole, so that its numbers are the same in every bit.
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
        is_invariant: bool = False,
    ) -> None:
        self.name, self.strategies = name, model.strategies
        self._model, self._text = model.eval(), text
        self._value_weight, self._top_k, self._max_tokens = value_weight, top_k, max_tokens
        self._reader = PrefixReader(self._model, held_bytes=0 if is_invariant else HELD_BYTES)
        self._batches: Batches[tuple[Scenario, Sequence[Turn]], PolicyReading] = Batches(
            self._read_together, first_alone if is_invariant else None
        )

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
        max_tokens: int | None = None,
        is_invariant: bool = False,
    ) -> Self:
        """Load a checkpoint.

        Args:
            run: The run folder of ``train-flow``, or the checkpoint in it.
            abbreviations: Strategy name to abbreviation of the taxonomy it is wanted for, in its order.
            dtype: Type of the backbone's weights; ``auto`` is float32, on a GPU bfloat16.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            value_weight: None is 1, or 0 where the checkpoint's values were not trained.
            top_k: How many strategies may be chosen; None is all.
            max_tokens: Above it whole oldest exchanges after the header go; None is what the checkpoint says.
            is_invariant: Read each dialogue alone and whole.

        Raises:
            CheckpointError: If there is no whole checkpoint, or it is of another taxonomy.
            ConfigError: If its backbone cannot be reached, or there is no such device.
        """
        place = pick_device(device)
        model, tokenizer, metadata = load_flow_model(
            run, dtype=exact_dtype(dtype, place), strategies=tuple(abbreviations)
        )
        tags = abbreviations if metadata.strategy_tags else None
        text = FlowText(tokenizer, situation=metadata.situation, tags=tags, single_turns=metadata.max_tokens is None)
        if value_weight is None:
            value_weight = 0.0 if metadata.objective.get("name") == "bc" else 1.0
        return cls(
            on_device(model, place, name=policy_id(run)),
            text,
            name=policy_id(run),
            value_weight=value_weight,
            top_k=top_k,
            max_tokens=max_tokens or metadata.max_tokens or DEFAULT_MAX_TOKENS,
            is_invariant=is_invariant,
        )

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        """Return the strategy of the highest score, π, which is positive, and V.

        Decisions that wait at the same time are read together, off the event loop.

        Raises:
            BackendError: As :meth:`read`.
        """
        reading = await self._batches.ask((scenario, tuple(turns)))
        usage = Usage(calls=1, prompt_tokens=reading.n_tokens)
        scope.spend("strategist", usage)
        return Decision(reading.strategy, reading.probabilities, usage, reading.values)

    def read(self, scenario: Scenario, turns: Sequence[Turn]) -> PolicyReading:
        """Return everything that the policy says about a dialogue in which the supporter speaks next.

        Raises:
            BackendError: ``not_finite`` if a probability or a value is not finite.
        """
        (reading,) = self._read_together([(scenario, turns)])
        if isinstance(reading, ModelError):
            raise reading
        return reading

    @torch.no_grad()
    def _read_together(self, asked: Sequence[tuple[Scenario, Sequence[Turn]]]) -> list[PolicyReading | ModelError]:
        prefixes = [self._text.ids(scenario, turns, max_tokens=self._max_tokens) for scenario, turns in asked]
        outputs = self._model.judge(self._reader.read_all(prefixes))
        # float64, so that the probabilities sum to 1 as finely as whoever smooths and stores them expects.
        log_pi, values = outputs.log_pi.double().log_softmax(dim=-1), outputs.log_value.double().exp()
        return [self._reading(log_pi[row], values[row], len(ids)) for row, ids in enumerate(prefixes)]

    def _reading(self, log_pi: Tensor, values: Tensor, n_tokens: int) -> PolicyReading | ModelError:
        if not bool(log_pi.isfinite().all() and values.isfinite().all()):
            return BackendError(
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
            n_tokens=n_tokens,
        )

    async def aclose(self) -> None:
        """Do nothing: there is nothing to release."""


def load_writer(run: Path) -> tuple[Any, Any]:
    """Return the language model of a checkpoint that was trained to write, in float32, and its tokenizer.

    Raises:
        CheckpointError: If it was not trained to write, or is not whole.
        ConfigError: If its backbone cannot be had.
    """
    metadata, folder = writer_metadata(run), checkpoint_folder(run)
    # In float32: in a narrow type the sum of weight and update would round the update away.
    causal, tokenizer = load_causal(resolve_backbone(metadata.backbone), dtype=torch.float32)
    if metadata.trainable == "lora":
        merge_adapter(load_adapter(causal.get_decoder(), folder / ADAPTER), causal=causal)
    else:  # into the weights that are there, so that tied ones stay tied
        causal.get_decoder().load_state_dict(load_base(folder / BACKBONE, dtype=torch.float32).state_dict())
    return causal, tokenizer


class FlowWriter:
    """Writes supporter turns in the text form of flow training.

    Args:
        model: The trained backbone, an adapter merged.
        text: The text form; it holds no situation, which a supporter does not know.
        max_tokens: Longest prompt, within what the model can read; None is that.
    """

    def __init__(self, model: LocalModel, text: FlowText, *, max_tokens: int | None = None) -> None:
        self.name = model.name
        self._model, self._text, self._max_tokens = model, text, max_tokens

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        abbreviations: Mapping[str, str],
        dtype: Dtype = "auto",
        device: str = "auto",
        is_invariant: bool = False,
    ) -> Self:
        """Load a checkpoint that was trained to write.

        Args:
            run: The run folder of ``train-flow``.
            abbreviations: Strategy name to abbreviation, of the checkpoint's taxonomy.
            dtype: ``auto`` is bfloat16 where processor or GPU computes in it, else float32.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            is_invariant: Compute each reply alone.

        Raises:
            CheckpointError: If it was not trained to write, or its text form holds what a supporter does not know.
            ConfigError: If its backbone cannot be had.
        """
        place, limit = pick_device(device), writer_metadata(run).max_tokens
        causal, tokenizer = load_writer(run)
        causal = on_device(causal, place, name=policy_id(run), dtype=pick_dtype(dtype, place))
        model = LocalModel(causal, tokenizer, name=policy_id(run), is_invariant=is_invariant)
        text = FlowText(tokenizer, situation=False, tags=abbreviations, single_turns=limit is None)
        return cls(model, text, max_tokens=limit)

    async def write(self, turns: Sequence[Turn], strategy: str, sampling: Sampling, scope: Scope) -> Reply:
        """Write the next supporter turn under a strategy; whole oldest exchanges go where the talk is too long."""
        header = self._text.header(Scenario(id="unknown"))  # the seeker's situation is private
        marker = self._text.turn(Turn(speaker="supporter", text=""), strategy=strategy).marker
        longest = self._model.context_length - sampling.max_tokens
        if self._max_tokens is not None:
            longest = min(longest, self._max_tokens)
        kept = drop_oldest(self._text.exchanges(turns), longest - len(header) - len(marker))
        prompt = (*header, *chain.from_iterable(kept), *marker)
        one_line = sampling.model_copy(update={"stop": (*sampling.stop, "\n")})
        return await self._model.continue_tokens(prompt, one_line, seed=scope.seed("supporter"))

    async def aclose(self) -> None:
        """Stop the model."""
        await self._model.aclose()
