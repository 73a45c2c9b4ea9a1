"""The two rewards of RL training as TRL's callables: what a reply brings in the future, and whether its form is right.

R = w_fut · R_fut + w_fmt · R_fmt (RLFF-ESC, arXiv 2508.12935). TRL counts a component that is missing as 0 and leaves a
row out of its group only where all components are missing. So both callables read one evaluation of the batch, and
where R_fut could not be measured both say None: an unmeasured reply must not pass for a worthless one.

The reward that is played, not predicted: the future of each output, simulated while training (arXiv 2508.12935).

TRL calls rewards from its training loop, which may itself run inside an event loop; so futures are played on a loop in
a thread of their own.

A reward that one can check by hand: the share of a short list of supportive words that a reply uses.

It is no measure of support. It shows that training does what it should where no judge is at hand, and how a reward
of one's own is written: a recipe names it as ``reward.kind: esckit.rl.rewards:lexicon_reward``.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, Literal, Protocol, Self, SupportsFloat, TypeVar, get_args

from esckit.errors import ConfigError, ModelError, NotFiniteError
from esckit.ledger import Scope
from esckit.play.rollout import Cast, Rules, play_future
from esckit.processes import together
from esckit.protocols import Supporter
from esckit.roles.asking import clean_reply, split_output
from esckit.text import n_words
from esckit.types import Context, Future, Generation, Outcome, ParseKind, Turn

PARSE_KINDS: tuple[ParseKind, ...] = get_args(ParseKind)

MOMENTS = ("n", "r", "w", "rr", "ww", "rw")
"""Sums over measured replies of 1, R_fut, words, and their products, from which a correlation is computed."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One output of the policy.

    Attributes:
        context_id: The context it answers.
        turns: The conversation before it, whole.
        generation: The output, taken apart.
        index: Which output of its group it is, from 0.
        step: Optimiser steps taken before it was written.
    """

    context_id: str
    turns: tuple[Turn, ...]
    generation: Generation
    index: int
    step: int


@dataclass(frozen=True, slots=True)
class Judged:
    """An output and its R_fut, None if that could not be measured."""

    completion: Completion
    future: float | None

    @property
    def format(self) -> float | None:
        """R_fmt: 1.0 if well-formed, else 0.0; None where R_fut is."""
        return None if self.future is None else float(self.completion.generation.parse_kind == "ok")


class Measure(Protocol):
    """Measures R_fut of outputs whose reply is not blank."""

    def __call__(self, completions: Sequence[Completion]) -> Sequence[float | None]:
        """Return a number for each, None where there is none to be had."""
        ...


ScoreReplies = Callable[[Sequence[Sequence[Turn]], Sequence[str]], Sequence[float | None]]
"""A function of (conversations, responses); a reward model's ``score``, or a user's own."""


@dataclass(frozen=True, slots=True)
class ReplyMeasure:
    """Measures by a function of conversation and reply; reasoning is never shown to it.

    Attributes:
        score: The function.
        hard_label: Give 1 where its number is above one half, and 0 elsewhere.
    """

    score: ScoreReplies
    hard_label: bool = False

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return R_fut of each; None for those that the function cannot take.

        Raises:
            NotFiniteError: If a number is not finite.
        """
        try:
            values = self._score(completions)
        except ModelError:
            # One reply that does not fit must not take its whole batch along.
            values = [self._score_alone(completion) for completion in completions]
        _require_finite(values)  # before the comparison, which NaN would pass as a bad reply
        return [float(value > 0.5) if self.hard_label and value is not None else value for value in values]

    def _score(self, completions: Sequence[Completion]) -> list[float | None]:
        turns = [completion.turns for completion in completions]
        values = _numbers(self.score(turns, [completion.generation.response for completion in completions]))
        if len(values) != len(completions):
            raise ConfigError(f"a reward that gives {len(values)} numbers", expected=f"{len(completions)}, one a reply")
        return values

    def _score_alone(self, completion: Completion) -> float | None:
        try:
            return self._score([completion])[0]
        except ModelError:
            return None


def _require_finite(values: Iterable[float | None]) -> None:
    for value in values:
        if value is not None and not math.isfinite(value):
            raise NotFiniteError("the reward", value)


def _numbers(found: object) -> list[float | None]:
    """Return what a function of a user's own gave as plain numbers.

    Raises:
        ConfigError: If it is no list, or something in it is no number.
    """
    if not isinstance(found, Iterable):
        raise ConfigError(f"a reward that gives {found!r}", expected="a list: a number, or None, for each reply")
    values = list(found)
    for value in values:
        if value is not None and not isinstance(value, SupportsFloat):
            raise ConfigError(f"a reward that gives {value!r} for a reply", expected="a number, or None")
    return [None if value is None else float(value) for value in values]


class PairedRewards:
    """``future_reward`` and ``format_reward`` over one evaluation of each batch.

    Args:
        measure: Measures R_fut.
        n_generations: Outputs of one context, which stand side by side.
        process_index: Which process this is; a process holds a slice of the step's outputs.
    """

    def __init__(self, measure: Measure, *, n_generations: int, process_index: int = 0) -> None:
        self._measure = measure
        self._n_generations = n_generations
        self._process_index = process_index
        self._key: tuple[Any, ...] | None = None
        self._judging: tuple[str, ...] = ()
        self.last: tuple[Judged, ...] = ()

    @property
    def context_ids(self) -> tuple[str, ...]:
        """Contexts of the outputs that are being judged, else of the last batch."""
        return self._judging or tuple(each.completion.context_id for each in self.last)

    def future_reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return R_fut of each output; 0.0 for a blank reply, None where it could not be measured."""
        return [judged.future for judged in self._judge(completions, columns)]

    def format_reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return R_fmt of each output; None where R_fut could not be measured."""
        return [judged.format for judged in self._judge(completions, columns)]

    def judge(self, completions: Sequence[Completion]) -> tuple[Judged, ...]:
        """Return outputs with their R_fut; equal outputs of one context are measured once.

        Raises:
            NotFiniteError: If a number is not finite.
        """
        self._judging = tuple(completion.context_id for completion in completions)
        asked: dict[tuple[str, str], Completion] = {}
        for completion in completions:
            if completion.generation.response:
                asked.setdefault((completion.context_id, completion.generation.raw), completion)
        values = self._measure(list(asked.values())) if asked else ()
        found = dict(zip(asked, values, strict=True))
        _require_finite(values)
        self._judging = ()
        return tuple(
            # A blank reply is known and worthless: a property of the policy, not a measurement that failed.
            Judged(each, found[each.context_id, each.generation.raw] if each.generation.response else 0.0)
            for each in completions
        )

    def _judge(self, completions: Sequence[Any], columns: dict[str, Any]) -> tuple[Judged, ...]:

        texts = [text_of(completion) for completion in completions]
        step = int(columns["trainer_state"].global_step)
        key = (step, tuple(columns["context_id"]), tuple(texts))
        if key != self._key:
            first = self._process_index * len(texts)
            batch = [
                Completion(
                    context_id=context_id,
                    turns=tuple(Turn(**turn) for turn in conversation),
                    generation=split_output(text),
                    index=(first + row) % self._n_generations,
                    step=step,
                )
                for row, (text, context_id, conversation) in enumerate(
                    zip(texts, columns["context_id"], columns["conversation"], strict=True)
                )
            ]
            self.last, self._key = together(lambda: self.judge(batch)), key
            _log(self.last, columns["log_metric"])
        return self.last


def text_of(completion: Any) -> str:
    """Return the text of a completion as TRL hands it over: a list of chat messages, or the text itself."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def _log(judged: Sequence[Judged], log_metric: Callable[[str, float], None]) -> None:
    """Hand TRL the shares and sums that it averages over processes and steps."""
    kinds = [each.completion.generation.parse_kind for each in judged]
    for kind in PARSE_KINDS:
        log_metric(f"parse/{kind}", kinds.count(kind) / len(kinds))
    log_metric("unscored", sum(each.future is None for each in judged) / len(judged))
    measured = [
        (each.future, n_words(each.completion.generation.response)) for each in judged if each.future is not None
    ]
    sums = (
        float(len(measured)),
        sum(r for r, _ in measured),
        sum(w for _, w in measured),
        sum(r * r for r, _ in measured),
        sum(w * w for _, w in measured),
        sum(r * w for r, w in measured),
    )
    for name, value in zip(MOMENTS, sums, strict=True):
        log_metric(f"moment/{name}", value)


def correlation(sums: dict[str, float]) -> float | None:
    """Return Pearson's r from the sums of :data:`MOMENTS`, None where one side does not vary."""
    n = sums["n"]
    if n < 2:
        return None
    variance_r = sums["rr"] - sums["r"] ** 2 / n
    variance_w = sums["ww"] - sums["w"] ** 2 / n
    # What rounding leaves of a constant is no variance.
    if variance_r <= 1e-9 * sums["rr"] or variance_w <= 1e-9 * sums["ww"]:
        return None
    return (sums["rw"] - sums["r"] * sums["w"] / n) / math.sqrt(variance_r * variance_w)


T = TypeVar("T")

OnlineValue = Literal["scaled", "raw", "goal"]


class LoopThread:
    """An event loop in a thread of its own; leaving the context ends both."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="esckit-rollouts", daemon=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine that runs on the loop."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Interrupted: what is in flight must not go on calling models.
            future.cancel()
            raise

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the loop and wait for the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True, slots=True)
class FirstReply:
    """A supporter whose first turn is given; after it another one speaks."""

    first: Generation
    then: Supporter

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Return the given turn in exchange 0, and what the other says from exchange 1 on."""
        if scope.place[-1] == 0:
            return self.first
        return await self.then.reply(turns, scope, strategy=strategy)


@dataclass(frozen=True, slots=True)
class OnlineMeasure:
    """Measures outputs by their futures, one each.

    Attributes:
        contexts: By id.
        cast: Seeker, critic, and the supporter that goes on after the policy's reply.
        rules: How futures are played.
        value: What of a future counts.
        run_seed: Seed of the run.
        loop: Plays them.
    """

    contexts: Mapping[str, Context]
    cast: Cast
    rules: Rules
    value: OnlineValue
    run_seed: int
    loop: LoopThread

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return the value of each output's future, None where it failed."""
        futures = self.loop.run(self._play(completions))
        return [future_value(future, self.rules, self.value) for future in futures]

    async def _play(self, completions: Sequence[Completion]) -> list[Future]:
        return list(await asyncio.gather(*map(self._future, completions)))

    async def _future(self, completion: Completion) -> Future:
        context = self.contexts[completion.context_id]
        said = completion.generation
        reply = clean_reply(said.response, speaking="supporter") or said.response
        first = FirstReply(said.model_copy(update={"response": reply}), self.cast.supporter)
        return await play_future(
            context.model_copy(update={"id": f"{context.id}:g{completion.step}"}),
            completion.index,
            cast=Cast(first, self.cast.seeker, self.cast.critic),
            rules=self.rules,
            run_seed=self.run_seed,
        )


def future_value(future: Future, rules: Rules, value: OnlineValue) -> float | None:
    """Return what a future is worth; None if it failed.

    ``scaled`` is (reward − lo) / (hi − lo) with lo = (−1 + 1/(T+1))/2 and hi = 3/4 (1 if the first exchange is scored),
    so that the weights of the components keep their meaning.
    """
    reward = future.fraction
    if reward is None:
        return None
    if value == "goal":
        return float(future.outcome is Outcome.RESOLVED)
    return float(reward if value == "raw" else scaled(reward, rules))


def scaled(reward: Fraction, rules: Rules) -> Fraction:
    """Return a reward in [0, 1], between the worst and the best that the rules allow."""
    lowest = (Fraction(1, rules.horizon + 1) - 1) / 2
    highest = Fraction(1) if rules.score_first_exchange else Fraction(3, 4)
    return (reward - lowest) / (highest - lowest)


WORDS = frozenset({"feel", "hear", "sounds", "hard", "sorry", "understand", "together", "help", "what"})

ENOUGH = 3

_WORD = re.compile(r"[a-z']+")


def lexicon_reward(conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
    """Return for each response how many different words of the list it uses, over three, at most 1."""
    return [min(len(WORDS & set(_WORD.findall(text.casefold()))), ENOUGH) / ENOUGH for text in responses]
