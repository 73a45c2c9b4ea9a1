"""The local chat model: a transformers model in this process behind the :class:`~esckit.protocols.ChatModel` seam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import torch

from esckit.errors import NOT_FINITE, BackendError, ConfigError
from esckit.models.backbones import BackboneSource, resolve_backbone
from esckit.models.batcher import Batcher
from esckit.models.chat import ChatFormat
from esckit.models.decode import Broken, Engine, ReadJob, WriteJob, Written
from esckit.models.loading import Dtype, load_causal, pick_device, pick_dtype
from esckit.models.reasoning import make_reply
from esckit.protocols import Capability
from esckit.types import ChoiceScore, ChoiceScores, Message, NextToken, Reply, Sampling, Usage

_BATCH_TOKENS = {"cpu": 16_384, "cuda": 65_536}
_STORED_BYTES = 2**30


class LocalModel:
    """A local chat model; concurrent calls are worked off together.

    What a call returns depends on its own arguments only. With the same logits the draws are equal whatever else is in
    flight; the logits themselves may differ in the last bits with the shape of the batch.

    Args:
        model: A causal language model of transformers, where it shall run and in the dtype it shall run in.
        tokenizer: Its tokenizer.
        name: Name for provenance.
        max_batch_tokens: Tokens in flight together; None takes a default for the device.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, max_batch_tokens: int | None = None) -> None:
        model.eval()
        device = next(model.parameters()).device
        self._name = name
        self._engine = Engine(
            model,
            max_batch_tokens=max_batch_tokens or _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["cpu"]),
            max_stored_bytes=_STORED_BYTES,
        )
        self._batcher = Batcher(self._engine)
        self._chat = ChatFormat.of(tokenizer, _eos_ids(model))
        self.context_length = int(model.config.get_text_config(decoder=True).max_position_embeddings)

    @classmethod
    def load(
        cls,
        ref: str,
        *,
        dtype: Dtype = "auto",
        device: str = "auto",
        threads: int | None = None,
        max_batch_tokens: int | None = None,
    ) -> LocalModel:
        """Load a backbone; calls with equal arguments return the same object, so that roles share one copy.

        Args:
            ref: NAME, FOLDER or HUB-ID (see :mod:`esckit.models.backbones`).
            dtype: ``auto`` is bfloat16 where processor or GPU computes in it, else float32.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            threads: Threads of torch for the whole process; None leaves them as they are.
            max_batch_tokens: Tokens in flight together; None takes a default for the device.

        Raises:
            ConfigError: If there is no such backbone, or it cannot be reached or loaded.
        """
        place = pick_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        return _load(resolve_backbone(ref), pick_dtype(dtype, place), place, max_batch_tokens)

    @property
    def name(self) -> str:
        """Registry name, folder name or hub id."""
        return self._name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Everything."""
        return frozenset(("score", "next_token"))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a manifest should say about this model."""
        n = self._chat.guard.n_broken
        return (f"{n} control strings in what {self.name} read were broken up",) if n else ()

    async def check(self) -> None:
        """Do nothing: a model that was loaded can be used."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the length of the prompt that these messages make, in tokens."""
        return len(self._chat.encode(messages))

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Write the next assistant message.

        Raises:
            BackendError: ``too_long`` if the prompt leaves no room, ``not_finite`` if the logits are not finite,
                ``backend`` if the model failed.
        """
        return await self.continue_tokens(self._chat.encode(messages), sampling, seed=seed, opening=self._chat.opening)

    async def continue_tokens(
        self, prompt: tuple[int, ...], sampling: Sampling, *, seed: int, opening: str = ""
    ) -> Reply:
        """Write on from token ids, for text forms that are no chat.

        Args:
            prompt: Token ids to write on from.
            sampling: Decoding settings.
            seed: Seed of this call's draws.
            opening: The mark of the reasoning that the prompt leaves open.

        Raises:
            BackendError: ``too_long`` if the prompt leaves no room, ``not_finite`` if the logits are not finite,
                ``backend`` if the model failed.
        """
        prompt = self._fitting(prompt)
        stop = (*self._chat.stop, *(text for text in sampling.stop if text))
        room = self.context_length - len(prompt)
        job = WriteJob(
            id=0,
            prompt=prompt,
            sampling=sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, room)}),
            seed=seed,
            stop_ids=self._chat.stop_ids,
            is_stopped=(lambda ids: _find_stop(self._chat.decode(ids), stop) is not None) if stop else None,
        )
        written = await self._batcher.run(job)
        if isinstance(written, Broken):
            raise BackendError(
                f"logits of {self.name} that are not finite, after {written.n_tokens} tokens",
                kind=NOT_FINITE,
                expected="finite logits",
                hint="Try dtype: float32, or check the weights",
            )
        assert isinstance(written, Written)
        ids = written.ids[:-1] if written.ids[-1] in self._chat.stop_ids else written.ids
        text = self._chat.decode(ids)
        return make_reply(
            opening + text[: _find_stop(text, stop)],
            written.stop_reason,
            Usage(calls=1, prompt_tokens=len(prompt), completion_tokens=len(written.ids)),
            max_tokens=sampling.max_tokens,
        )

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Return per choice the log-probability of the assistant answering exactly it and ending its turn.

        Raises:
            BackendError: ``too_long`` if a choice does not fit behind the prompt, ``not_finite`` if a log-probability
                is not finite, ``backend`` if the model failed.
        """
        prompt = self._prompt(messages)
        answers = tuple(self._chat.answer(choice) for choice in choices)
        log_p = await self._read(prompt, answers, temperature)
        scores = tuple(ChoiceScore(p, len(answer)) for p, answer in zip(log_p, answers, strict=True))
        return ChoiceScores(scores, Usage(calls=1, prompt_tokens=len(prompt)))

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        """Return per label the summed probability of all single tokens that decode, stripped, to it.

        Raises:
            ConfigError: If no single token reads as one of the labels.
            BackendError: ``too_long``, ``not_finite`` or ``backend``, as for :meth:`complete`.
        """
        prompt = self._prompt(messages)
        missing = [label for label in labels if label not in self._label_tokens]
        if missing:
            raise ConfigError(
                f"no single token of {self.name} reads {', '.join(map(repr, missing))}",
                expected="labels of one token, such as letters or digits",
            )
        tokens = [self._label_tokens[label] for label in labels]
        log_p = await self._read(prompt, tuple((token,) for ids in tokens for token in ids), temperature)
        p = iter(torch.tensor(log_p, dtype=torch.float64).exp().tolist())
        probabilities = tuple(sum(next(p) for _ in ids) for ids in tokens)
        usage = Usage(calls=1, prompt_tokens=len(prompt), completion_tokens=1)
        return NextToken(probabilities, min(1.0, sum(probabilities)), usage)

    async def aclose(self) -> None:
        """Stop the worker thread; a later call would start it again."""
        await self._batcher.aclose()

    def _prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the prompt of a read-out, behind any reasoning that the template opens: what is read is an answer."""
        return self._fitting(self._chat.encode(messages) + self._chat.closed_reasoning())

    def _fitting(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        if len(prompt) >= self.context_length:
            raise BackendError(
                f"the prompt has {len(prompt)} tokens",
                kind="too_long",
                expected=f"fewer than the {self.context_length} that {self.name} can read",
            )
        return prompt

    async def _read(
        self, prompt: tuple[int, ...], continuations: tuple[tuple[int, ...], ...], temperature: float
    ) -> tuple[float, ...]:
        if not continuations:
            return ()
        longest = len(prompt) + max(map(len, continuations)) - 1
        if longest > self.context_length:
            raise BackendError(f"prompt and choice have {longest} tokens", kind="too_long")
        log_p = await self._batcher.run(ReadJob(0, prompt, continuations, temperature))
        assert isinstance(log_p, tuple)
        return log_p

    @cached_property
    def _label_tokens(self) -> Mapping[str, tuple[int, ...]]:
        """Single tokens by what they decode to, stripped."""
        tokens: dict[str, list[int]] = {}
        for token in range(self._engine.vocab_size):
            tokens.setdefault(self._chat.decode((token,)).strip(), []).append(token)
        return {text: tuple(ids) for text, ids in tokens.items() if text}


@cache
def _load(source: BackboneSource, dtype: torch.dtype, device: torch.device, max_batch_tokens: int | None) -> LocalModel:
    """Load weights and tokenizer, once per process for equal arguments."""
    model, tokenizer = load_causal(source, dtype=dtype)
    return LocalModel(model.to(device), tokenizer, name=source.name, max_batch_tokens=max_batch_tokens)


def _eos_ids(model: Any) -> list[int]:
    """Return what the model's generation settings name as end of text."""
    eos = model.generation_config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def _find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return where the first stop string begins, None if there is none."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found, default=None)
