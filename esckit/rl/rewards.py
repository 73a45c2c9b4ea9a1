"""The rewards of RL training: what a reply brings in the future, and whether its form is right (arXiv 2508.12935).

R = w_fut · R_fut + w_fmt · R_fmt. TRL counts a component that is missing as 0 and leaves a row out of its group only
where all components are missing. So both callables read one evaluation of the batch, and where R_fut could not be
measured both return None: an unmeasured reply must not pass for a worthless one.

R_fut comes from a function of conversation and reply (a reward model's, or a user's own such as
:func:`lexicon_reward`), or from the future of each output, simulated while training (:class:`OnlineMeasure`).
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, Protocol, SupportsFloat, TypeVar, get_args

from anyio.from_thread import BlockingPortal, start_blocking_portal

from esckit.config.sections import BackboneBinding, Binding, SupporterCheckpoint
from esckit.errors import ConfigError, ModelError, NotFiniteError
from esckit.ledger import Scope, derive_seed
from esckit.models.backbones import find_backbone
from esckit.models.checkpoint import kind_of
from esckit.play.rollout import Cast, Rules, play_future
from esckit.play.runner import booking
from esckit.prompts.prompt import load_prompt
from esckit.protocols import Critic, Seeker, Supporter
from esckit.registry import load_attr, load_function, own_code
from esckit.rl.recipe import RewardWeights, TrainRlRecipe
from esckit.roles.asking import read_output
from esckit.roles.cast import Casting, prompt_ids
from esckit.roles.pool import ModelPool, look_up
from esckit.roles.verdicts import load_preset
from esckit.text import n_words
from esckit.training.run import TrainingRun, gathered, together
from esckit.types import Context, Future, Generation, Outcome, ParseKind, Sampling, Turn

A = TypeVar("A")

T = TypeVar("T")

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

    def reward(self, weights: RewardWeights) -> float | None:
        """R = w_fut · R_fut + w_fmt · R_fmt; None where R_fut could not be measured."""
        if self.future is None or self.format is None:
            return None
        return weights.future * self.future + weights.format * self.format


def shuffled(group: Sequence[Judged], *place: str | int) -> list[Judged]:
    """Return the outputs of a group with each other's R_fut, drawn by the seed of a place; unmeasured ones stay so."""
    known = [each.future for each in group if each.future is not None]
    Random(derive_seed(*place)).shuffle(known)
    left = iter(known)
    return [each if each.future is None else replace(each, future=next(left)) for each in group]


class Measure(Protocol):
    """Measures R_fut of outputs whose reply is not blank."""

    def __call__(self, completions: Sequence[Completion]) -> Sequence[float | None]:
        """Return a number for each output, None where it could not be measured."""
        ...


# ---------------------------------------------------------------- the two callables


class PairedRewards:
    """``future_reward`` and ``format_reward`` over one evaluation of each batch.

    Args:
        measure: Measures R_fut.
        n_generations: Outputs of one context, which stand side by side.
        process_index: Which process this is; a process holds a slice of the step's outputs.
        shuffle_seed: Gives outputs of one context each other's R_fut (``reward.shuffled``); None shuffles nothing.
    """

    def __init__(
        self, measure: Measure, *, n_generations: int, process_index: int = 0, shuffle_seed: int | None = None
    ) -> None:
        self._measure = measure
        self._shuffle_seed = shuffle_seed
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
        return [judged.future for judged in self._judge_batch(completions, columns)]

    def format_reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return R_fmt of each output; None where R_fut could not be measured."""
        return [judged.format for judged in self._judge_batch(completions, columns)]

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
        _require_finite(values)
        found = dict(zip(asked, values, strict=True))
        self._judging = ()
        return tuple(
            # A blank reply is known and worthless: a property of the policy, not a measurement that failed.
            Judged(each, found[each.context_id, each.generation.raw] if each.generation.response else 0.0)
            for each in completions
        )

    def _judge_batch(self, completions: Sequence[Any], columns: dict[str, Any]) -> tuple[Judged, ...]:
        # TRL hands over a list of chat messages for each output.
        texts = [str(completion[0]["content"]) for completion in completions]
        step = int(columns["trainer_state"].global_step)
        key = (step, tuple(columns["context_id"]), tuple(texts))
        if key != self._key:
            first = self._process_index * len(texts)
            rows = zip(texts, columns["context_id"], columns["conversation"], strict=True)
            batch = [
                Completion(
                    context_id=context_id,
                    turns=tuple(Turn(**turn) for turn in conversation),
                    generation=read_output(text),
                    index=(first + row) % self._n_generations,
                    step=step,
                )
                for row, (text, context_id, conversation) in enumerate(rows)
            ]
            self.last, self._key = together(lambda: self.judge(batch)), key
            if (seed := self._shuffle_seed) is not None:
                # Outputs of a context stand side by side.
                groups = groupby(self.last, lambda each: each.completion.context_id)
                self.last = tuple(
                    each for name, group in groups for each in shuffled(list(group), seed, "shuffled", name, step)
                )
            log_outputs(self.last, columns["log_metric"])
        return self.last


def log_outputs(judged: Sequence[Judged], log_metric: Callable[[str, float], None]) -> None:
    """Give TRL the shares and sums of some outputs, at least one, that it averages over processes and steps."""
    kinds = [each.completion.generation.parse_kind for each in judged]
    for kind in PARSE_KINDS:
        log_metric(f"parse/{kind}", kinds.count(kind) / len(kinds))
    log_metric("unscored", sum(each.future is None for each in judged) / len(judged))
    measured = [
        (each.future, n_words(each.completion.generation.response)) for each in judged if each.future is not None
    ]
    terms = [(1.0, r, w, r * r, w * w, r * w) for r, w in measured]
    for index, name in enumerate(MOMENTS):
        log_metric(f"moment/{name}", sum(term[index] for term in terms))


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


# ---------------------------------------------------------------- rewards that are predicted


ScoreReplies = Callable[[Sequence[Sequence[Turn]], Sequence[str]], Sequence[float | None]]
"""A function of (conversations, responses): a reward model's ``score``, or a user's own."""


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
            ConfigError: If the function does not return one number, or None, for each reply.
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
        given: object = self.score(turns, [completion.generation.response for completion in completions])
        if not isinstance(given, Iterable):
            raise ConfigError(f"a reward that gives {given!r}", expected="a list: a number, or None, for each reply")
        values = list(given)
        for value in values:
            if value is not None and not isinstance(value, SupportsFloat):
                raise ConfigError(f"a reward that gives {value!r} for a reply", expected="a number, or None")
        if len(values) != len(completions):
            raise ConfigError(f"a reward that gives {len(values)} numbers", expected=f"{len(completions)}, one a reply")
        return [None if value is None else float(value) for value in values]

    def _score_alone(self, completion: Completion) -> float | None:
        try:
            return self._score([completion])[0]
        except ModelError:
            return None


def _require_finite(values: Iterable[float | None]) -> None:
    for value in values:
        if value is not None and not math.isfinite(value):
            raise NotFiniteError("the reward", value)


WORDS = frozenset({"feel", "hear", "sounds", "hard", "sorry", "understand", "together", "help", "what"})


def lexicon_reward(conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
    """Return for each response how many different words of :data:`WORDS` it uses, over three, at most 1.

    It is no measure of support. It shows that training does what it should where no judge is at hand, one can check it
    by hand, and it is an example for a reward of one's own: ``reward.kind: esckit.rl.rewards:lexicon_reward``.
    """
    return [min(len(WORDS & set(re.findall(r"[a-z']+", text.casefold()))), 3) / 3 for text in responses]


# ---------------------------------------------------------------- the reward that is played


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


def after(output: Generation, cast: Cast) -> Cast:
    """Return the cast of a future whose first supporter turn is given."""
    return replace(cast, supporter=FirstReply(output, cast.supporter))


@dataclass(frozen=True, slots=True)
class OnlineMeasure:
    """Measures outputs by their futures, one each.

    Attributes:
        contexts: By id.
        cast: Seeker, critic, and the supporter that continues after the policy's reply.
        rules: How futures are played.
        value: What of a future counts.
        run_seed: Seed of the run.
        portal: An event loop in a thread of its own: TRL's training loop may itself run inside an event loop.
    """

    contexts: Mapping[str, Context]
    cast: Cast
    rules: Rules
    value: Literal["scaled", "raw", "goal"]
    run_seed: int
    portal: BlockingPortal

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Return the value of each output's future, None where it failed."""
        futures = play_all(self.portal, self._future, completions)
        return [future_value(future, self.rules, self.value) for future in futures]

    async def _future(self, completion: Completion) -> Future:
        context = self.contexts[completion.context_id]
        return await play_future(
            context.model_copy(update={"id": f"{context.id}:g{completion.step}"}),
            completion.index,
            cast=after(completion.generation, self.cast),
            rules=self.rules,
            run_seed=self.run_seed,
        )


def play_all(portal: BlockingPortal, play: Callable[[A], Coroutine[Any, Any, T]], items: Sequence[A]) -> list[T]:
    """Return what playing each of the items gives, all at once, in the event loop behind a portal."""

    async def play_them() -> list[T]:
        return await asyncio.gather(*map(play, items))

    playing = portal.start_task_soon(play_them)
    try:
        return playing.result()
    except BaseException:
        # Interrupted: tasks in flight must not call models any more.
        playing.cancel()
        raise


def future_value(future: Future, rules: Rules, value: Literal["scaled", "raw", "goal"]) -> float | None:
    """Return what a future is worth; None if it failed."""
    reward = future.fraction
    if reward is None:
        return None
    if value == "goal":
        return float(future.outcome is Outcome.RESOLVED)
    return float(reward if value == "raw" else scaled(reward, rules))


def scaled(reward: Fraction, rules: Rules) -> Fraction:
    """Return a reward in [0, 1], between the worst and the best that the rules allow.

    (reward − lo) / (hi − lo) with lo = (−1 + 1/(T+1))/2 and hi = 3/4 (1 if the first exchange is scored), so that the
    weights of the components keep their meaning.
    """
    lowest = (Fraction(1, rules.horizon + 1) - 1) / 2
    highest = Fraction(1) if rules.score_first_exchange else Fraction(3, 4)
    return (reward - lowest) / (highest - lowest)


# ---------------------------------------------------------------- from a recipe's ``reward:`` to a measure

# The paper's random reward; looked up by name, since trainings do not import each other.
_UNTRAINED_TEMPLATE = "esckit.reward.text:reward_template"
_UNTRAINED = "esckit.reward.model:RewardModel.untrained"


def check_reward(recipe: TrainRlRecipe) -> dict[str, str]:
    """Check that the reward can be built, before anything heavy is loaded.

    Returns:
        The identity of every prompt that the reward is read with and no checkpoint answers for.

    Raises:
        ConfigError: If a model, a prompt or a function that is named does not exist.
    """
    kind = recipe.reward.kind
    if recipe.algorithm == "dpo":
        return {}
    if kind == "untrained":
        assert recipe.models.reward is not None
        find_backbone(str(recipe.models.reward.backbone))
        return {"reward_model": str(load_attr(_UNTRAINED_TEMPLATE)(recipe.reward.prompt).prompt)}
    if ":" in kind:
        _own_function(kind)
    if kind != "online":
        return {}
    bindings, critic, prompts = online_bindings(recipe), recipe.online.critic, recipe.online.prompts.model_dump()
    look_up(bindings.values())
    own = prompts["critic"] or load_preset(critic.preset).prompt
    asked = {"critic": own}
    if critic.readout == "expected" and prompts["critic"] is None:
        asked["critic_letters"] = f"{own}_letters"  # what a model that gives probabilities of letters is asked
    critics = {role: load_prompt(name, "resolution critic").identity for role, name in asked.items()}
    return {**_spoken_prompts(bindings, prompts), **critics}


def online_bindings(recipe: TrainRlRecipe) -> dict[str, Binding]:
    """Return the models that play beside the policy, by role.

    In futures that includes a supporter, the untrained policy unless one is named; in dialogues the policy speaks.
    """
    roles, grpo = recipe.models, recipe.grpo
    assert roles.seeker is not None
    assert roles.critic is not None
    if recipe.episode == "dialogue":
        return {"seeker": roles.seeker, "critic": roles.critic}
    sampling = Sampling(
        temperature=grpo.temperature, top_k=grpo.top_k, top_p=grpo.top_p, max_tokens=grpo.max_completion_tokens
    )
    untrained: Binding
    if roles.policy.checkpoint is not None:
        untrained = SupporterCheckpoint(
            checkpoint=roles.policy.checkpoint, sampling=sampling, on_length="last_sentence"
        )
    else:
        untrained = BackboneBinding(backbone=str(roles.policy.backbone), sampling=sampling, on_length="last_sentence")
    return {"supporter": roles.supporter or untrained, "seeker": roles.seeker, "critic": roles.critic}


def _spoken_prompts(bindings: Mapping[str, Binding], prompts: Mapping[str, str | None]) -> dict[str, str]:
    return prompt_ids({role: binding for role, binding in bindings.items() if role != "critic"}, prompts)


@contextmanager
def open_measure(
    recipe: TrainRlRecipe, contexts: Mapping[str, Context], run: TrainingRun
) -> Iterator[tuple[Measure, dict[str, Any]]]:
    """Build what measures R_fut, with facts for the manifest; leaving the context closes its models.

    What models cost that are called while training is booked on the run.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what it is asked for.
    """
    kind, source = recipe.reward.kind, recipe.models.reward
    if kind == "online":
        with _online(recipe, contexts, run) as built:
            yield built
        return
    if ":" in kind:
        score = _own_function(kind)
    else:
        assert source is not None
        options = {"dtype": source.dtype, "device": source.device}
        if kind == "untrained":
            template, max_length = load_attr(_UNTRAINED_TEMPLATE)(recipe.reward.prompt), source.max_length
            model = load_attr(_UNTRAINED)(source.backbone, template, max_length=max_length, seed=recipe.seed, **options)
        else:
            trained = Path(str(source.checkpoint))
            model = kind_of(trained, "scorer").load(trained, "scorer", {}, **options)
        score = model.score
    yield ReplyMeasure(score, hard_label=recipe.reward.value == "hard_label"), {}


@contextmanager
def _online(
    recipe: TrainRlRecipe, contexts: Mapping[str, Context], run: TrainingRun
) -> Iterator[tuple[Measure, dict[str, Any]]]:
    rules, value = online_rules(recipe), recipe.online.value
    with open_players(recipe, run) as (supporter, seeker, critic, portal, facts):
        assert supporter is not None
        cast = Cast(supporter, seeker, critic)
        yield OnlineMeasure(contexts, cast, rules, value, recipe.seed, portal), facts


def online_rules(recipe: TrainRlRecipe) -> Rules:
    """Return how futures are played while training."""
    online = recipe.online
    return Rules(online.horizon, Fraction(online.critic.threshold), online.score_first_exchange)


class Players(NamedTuple):
    """Who plays beside the policy while it is trained.

    Attributes:
        supporter: Continues futures; None in dialogues.
        portal: The event loop in which they play.
        facts: What the manifest says about their models.
    """

    supporter: Supporter | None
    seeker: Seeker
    critic: Critic
    portal: BlockingPortal
    facts: dict[str, Any]


@contextmanager
def open_players(recipe: TrainRlRecipe, run: TrainingRun) -> Iterator[Players]:
    """Load the models of seeker and critic; leaving the context closes them, and what they cost is booked on the run.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what it is asked for.
    """
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ModelPool(recipe.executor, recipe.budget, recipe.cache)) as pool,
        ExitStack() as stack,
    ):
        supporter, seeker, critic, names = portal.call(online_players, pool, recipe)
        if run.folder is not None:
            books = booking(run.folder, pool, n_processes=run.process.count)
            stack.enter_context(portal.wrap_async_context_manager(books))
        facts = {**pool.facts(), "online_prompts": names, "determinism": pool.determinism()}
        yield Players(supporter, seeker, critic, portal, facts)
        # The first process ends the servers that all of them ask: not before the last answer.
        gathered([None])


async def online_players(
    pool: ModelPool, recipe: TrainRlRecipe
) -> tuple[Supporter | None, Seeker, Critic, dict[str, str]]:
    """Load who plays beside the policy; return supporter (None in dialogues), seeker, critic, and their prompts."""
    online, bindings = recipe.online, online_bindings(recipe)
    await pool.prepare(bindings)
    prompts = online.prompts.model_dump()
    casting = Casting(pool, bindings, prompts, online.max_attempts)
    supporter = casting.supporter() if "supporter" in bindings else None
    critic = casting.resolution_critic(online.critic, load_preset(online.critic.preset))
    return supporter, casting.seeker(), critic, {**_spoken_prompts(bindings, prompts), "critic": critic.asked_by}


def _own_function(target: str) -> ScoreReplies:
    found = load_function(target, field="reward.kind", expected="a function of (conversations, responses)")

    def score(conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> Sequence[float | None]:
        with own_code(f"the reward {target!r}"):
            values: Sequence[float | None] = found(conversations, responses)
            # What it gives may be a generator, whose code runs only now.
            return list(values) if isinstance(values, Iterator) else values

    return score
