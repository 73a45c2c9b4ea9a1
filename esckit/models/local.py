r"""Models of this machine: the local chat model, the batcher in front of its engine, and the perplexity scorer.

:class:`LocalModel` is a transformers model in this process behind the :class:`~esckit.protocols.ChatModel` seam.
Requests made in the same turn of the event loop reach the engine together; those that come later join the running batch
between two steps. The engine works in one thread of its own, so the event loop stays free.

:class:`PerplexityScorer` tells how surprising a reply is to a language model, given the conversation before it. It
stands beside the chat seam on purpose: a perplexity is of plain text under the scorer's own tokenizer, with no chat
template and no system prompt in between. The text form is ``ppl_text/2``::

    {BOS}Seeker: {text}\nSupporter: {text}\n … Supporter:      the context, which is not counted
     {reply}                                                    what is counted, from its first token to its last

The BOS token is there if the tokenizer defines one, whether or not it would add it: many models predict badly without
it. It is read and not counted. (``ppl_text/1`` of 0.1.0 had none.)
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional as F

from esckit.errors import NOT_FINITE, BackendError, ConfigError
from esckit.models.backbones import BackboneSource, resolve_backbone
from esckit.models.chat import ChatFormat, make_reply
from esckit.models.engine import Engine, ReadJob, WriteJob, Written
from esckit.models.loading import Dtype, exact_dtype, load_on, pick_device, pick_dtype
from esckit.models.streaming import listener
from esckit.protocols import Capability
from esckit.text import Controls, as_turn
from esckit.types import ChoiceScore, ChoiceScores, Message, NextToken, Reply, Sampling, Turn, Usage

if TYPE_CHECKING:
    from esckit.models.engine import Job, Result


class Batcher:
    """Hands jobs to an engine and their results back to the callers.

    One event loop at a time may use it. When that loop ends, what was in flight is forgotten.

    Args:
        engine: What does the work.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._arrivals: list[Job] = []
        self._dropped: set[Job] = set()
        self._waiters: dict[Job, asyncio.Future[Result]] = {}
        self._wake = threading.Event()
        self._driver: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def run(self, job: Job) -> Result:
        """Wait for the result of a job.

        Raises:
            BackendError: If the batch that held the job failed.
        """
        loop = asyncio.get_running_loop()
        if self._driver is None or self._driver.done() or self._driver.get_loop() is not loop:
            self._driver = loop.create_task(self._drive())
            self._driver.add_done_callback(self._driver_ended)
        waiter: asyncio.Future[Result] = loop.create_future()
        self._waiters[job] = waiter
        self._arrivals.append(job)
        self._wake.set()
        try:
            return await waiter
        finally:
            if self._waiters.pop(job, None) is not None:  # cancelled: the result is not wanted any more
                self._arrivals = [other for other in self._arrivals if other is not job]
                self._dropped.add(job)
                self._wake.set()

    async def aclose(self) -> None:
        """Stop the thread; requests in flight are cancelled. A later request starts it again."""
        driver = self._driver
        if driver is not None and not driver.done() and driver.get_loop() is asyncio.get_running_loop():
            driver.cancel()
            await asyncio.wait([driver])
        self._wake.set()
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    async def _drive(self) -> None:
        """Feed the engine until no caller waits."""
        loop = asyncio.get_running_loop()
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="esckit-model")
        while self._waiters:
            await asyncio.sleep(0)  # everybody who is ready in this turn of the loop comes along
            arrivals, dropped = self._arrivals, self._dropped
            self._arrivals, self._dropped = [], set()
            self._wake.clear()
            results = await loop.run_in_executor(
                self._thread, self._engine.advance, arrivals, dropped, self._wake.is_set
            )
            for job, result in results.items():
                waiter = self._waiters.pop(job, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(result)

    def _driver_ended(self, driver: asyncio.Task[None]) -> None:
        """After a failure or the end of the event loop: tell every waiter and empty the engine."""
        error = None if driver.cancelled() else driver.exception()
        if error is None and not driver.cancelled():
            return
        self._wake.set()
        waiters, self._waiters = self._waiters, {}
        self._arrivals, self._dropped = [], set()
        if self._thread is not None:
            self._thread.submit(self._engine.clear)
        for waiter in waiters.values():
            if waiter.done():
                continue
            if error is None:
                waiter.cancel()
            elif isinstance(error, RuntimeError):  # what torch raises, running out of memory included
                failure = BackendError(f"the local model failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                waiter.set_exception(failure)
            else:
                waiter.set_exception(error)


BATCH_TOKENS = {"cpu": 16_384, "cuda": 65_536}
"""Tokens that a model has in flight together, by the type of its device; what a recipe sets goes before."""


def batch_tokens(device: torch.device, wanted: int | None = None) -> int:
    """Return how many tokens a model on a device has in flight together."""
    return wanted or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])


_STORED_BYTES = 2**30


class LocalModel:
    """A local chat model; concurrent calls are worked off together.

    What a call returns depends on its own arguments only. With the same logits the draws are equal whatever else is in
    flight; the logits themselves may differ in the last bits with the shape of the batch.

    Args:
        model: A causal language model of transformers, on its device and in its number type.
        tokenizer: Its tokenizer.
        name: Name for provenance: registry name, folder name or hub id.
        max_batch_tokens: Tokens in flight together; None takes a default for the device.
        is_invariant: Compute each call alone, so that its logits are the same in every bit.
    """

    capabilities: frozenset[Capability] = frozenset(("score", "next_token"))

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, max_batch_tokens: int | None = None, is_invariant: bool = False
    ) -> None:
        model.eval()
        device = next(model.parameters()).device
        self.name = name
        self._engine = Engine(
            model,
            max_batch_tokens=batch_tokens(device, max_batch_tokens),
            max_stored_bytes=_STORED_BYTES,
            is_invariant=is_invariant,
        )
        self._batcher = Batcher(self._engine)
        eos = model.generation_config.eos_token_id
        self._chat = ChatFormat.of(tokenizer, [eos] if isinstance(eos, int) else eos or [])
        self.context_length = int(model.config.get_text_config(decoder=True).max_position_embeddings)

    @classmethod
    def load(
        cls,
        ref: str,
        *,
        dtype: Dtype = "auto",
        device: str = "auto",
        max_batch_tokens: int | None = None,
        is_invariant: bool = False,
    ) -> LocalModel:
        """Load a backbone; calls with equal arguments return the same object, so that roles share one copy.

        Args:
            ref: NAME, FOLDER or HUB-ID (see :mod:`esckit.models.backbones`).
            dtype: ``auto`` is bfloat16 where processor or GPU computes in it, else float32.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            max_batch_tokens: Tokens in flight together; None takes a default for the device.
            is_invariant: Compute each call alone.

        Raises:
            ConfigError: If there is no such backbone, or it cannot be reached or loaded.
        """
        place = pick_device(device)
        return _load(resolve_backbone(ref), pick_dtype(dtype, place), place, max_batch_tokens, is_invariant)

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
        """Write on from token ids, for text forms that are not a chat.

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
            prompt=prompt,
            sampling=sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, room)}),
            seed=seed,
            stop_ids=self._chat.stop_ids,
            is_stopped=(lambda ids: _find_stop(self._chat.decode(ids), stop) is not None) if stop else None,
            on_token=self._teller(opening, stop),
        )
        written = await self._batcher.run(job)
        assert isinstance(written, Written)
        if written.stop_reason is None:
            raise BackendError(
                f"logits of {self.name} that are not finite, after {len(written.ids)} tokens",
                kind=NOT_FINITE,
                expected="finite logits",
                hint="Try dtype: float32, or check the weights",
            )
        ids = written.ids[:-1] if written.ids[-1] in self._chat.stop_ids else written.ids
        text = self._chat.decode(ids)
        return make_reply(
            opening + text[: _find_stop(text, stop)],
            written.stop_reason,
            Usage(calls=1, prompt_tokens=len(prompt), completion_tokens=len(written.ids)),
            max_tokens=sampling.max_tokens,
        )

    def _teller(self, opening: str, stop: tuple[str, ...]) -> Callable[[list[int]], None] | None:
        """Return what tells the listener of this task, if there is one, of every new token."""
        listen = listener()
        if listen is None:
            return None
        loop = asyncio.get_running_loop()

        def tell(ids: list[int]) -> None:
            text = self._chat.decode(ids[:-1] if ids[-1] in self._chat.stop_ids else ids)
            # A character of several tokens is there with the last of them.
            loop.call_soon_threadsafe(listen, opening + text[: _find_stop(text, stop)].rstrip("\ufffd"))

        return tell

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
        log_p = await self._batcher.run(ReadJob(prompt, continuations, temperature))
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
def _load(
    source: BackboneSource, dtype: torch.dtype, device: torch.device, max_batch_tokens: int | None, is_invariant: bool
) -> LocalModel:
    """Load weights and tokenizer, once per process for equal arguments."""
    model, tokenizer = load_on(source, device, dtype=dtype)
    return LocalModel(model, tokenizer, name=source.name, max_batch_tokens=max_batch_tokens, is_invariant=is_invariant)


def _find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return where the first stop string begins, None if there is none."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found, default=None)


_LABELS = {"seeker": "Seeker", "supporter": "Supporter"}


class Surprise(NamedTuple):
    """Summed negative log-likelihood (nats) of a reply, and its number of tokens."""

    nll: float
    n_tokens: int


class PerplexityScorer:
    """Scores replies with a causal language model.

    Args:
        model: A causal language model of transformers, on its device.
        tokenizer: Its tokenizer.
        name: Name and revision, for provenance; a BOS token is added to it.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._controls = Controls.of(tokenizer)
        self._device = next(model.parameters()).device
        self._longest = int(model.config.get_text_config(decoder=True).max_position_embeddings)
        bos = tokenizer.bos_token_id
        self._start: list[int] = [] if bos is None else [bos]
        self.name = name if bos is None else f"{name}, after {tokenizer.bos_token}"

    @classmethod
    def load(cls, ref: str, *, dtype: Dtype = "auto", device: str = "auto") -> PerplexityScorer:
        """Load a backbone; ``auto`` is float32 on a processor, bfloat16 on a GPU.

        Raises:
            ConfigError: If there is no such backbone, or it cannot be loaded.
        """
        place = pick_device(device)
        model, tokenizer = load_on(resolve_backbone(ref), place, dtype=exact_dtype(dtype, place))
        # Asked again: where it had to be downloaded, the revision is known only now.
        return cls(model, tokenizer, name=resolve_backbone(ref).identity)

    @torch.inference_mode()
    def score(self, turns: Sequence[Turn], reply: str) -> Surprise:
        """Return how surprising a reply is after some turns.

        Args:
            turns: The conversation; the oldest part goes where the model cannot read it all.
            reply: The reply, not blank.

        Raises:
            BackendError: ``too_long`` if the reply alone does not fit, ``not_finite`` if its likelihood is not finite.
        """
        talk = "\n".join([*(f"{_LABELS[turn.speaker]}: {as_turn(turn.text)}" for turn in turns), "Supporter:"])
        counted = self._encode(f" {reply.strip()}")
        room = self._longest - len(self._start) - len(counted)
        if room < 1:
            most = len(counted) + room - 1
            raise BackendError(f"a reply of {len(counted)} tokens", kind="too_long", expected=f"at most {most}")
        context = self._start + self._encode(talk)[-room:]
        ids = torch.tensor([context + counted], device=self._device)
        logits = self._model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1].float()
        nll = float(F.cross_entropy(logits, ids[0, len(context) :], reduction="sum"))
        if not math.isfinite(nll):
            raise BackendError(f"a negative log-likelihood of {nll}", kind=NOT_FINITE, expected="a finite number")
        return Surprise(nll, len(counted))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(self._controls.neutralise(text), add_special_tokens=False))
