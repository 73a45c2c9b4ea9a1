"""The suite ``dialogue``: self-play from the scenarios of the split, one case a scenario.

The metrics here belong to no critic: turn rewards, strategies, words, cost. Those of the critics are in
:mod:`esckit.evaluate.suites.critics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from esckit.config.sections import ResolutionCritic, RoleOptions, Section
from esckit.data.contexts import require_situations
from esckit.errors import ConfigError
from esckit.evaluate.suite import (
    MALFORMED,
    STAGES,
    CaseFile,
    Material,
    Player,
    Suite,
    Unit,
    Work,
    played_by,
    prompted,
    stage_of,
)
from esckit.evaluate.suites.critics import (
    CriticOutcome,
    CriticScale,
    Episode,
    EpisodeMetric,
    critic_rows,
    failure_reason,
    headline_metrics,
    read_outcome,
)
from esckit.evaluate.suites.world import world_metrics, world_rows
from esckit.metrics.metric import FIRST, RATIO, Array, Facts, Metric, Stats, Sums, Unscored, not_estimated
from esckit.play.rollout import EpisodeCast, play_episode
from esckit.prompts.prompt import Prompt, load_prompt
from esckit.protocols import Critic, Supporter
from esckit.roles.cast import Casting, role_prompt
from esckit.roles.rubric import load_rubric
from esckit.roles.verdicts import load_preset
from esckit.text import TOKENIZER, n_words
from esckit.types import EpisodeTurn, Record, Scenario, Usage

if TYPE_CHECKING:
    from esckit.evaluate.recipe import EvaluateRecipe
    from esckit.metrics.rows import Measurement, MetricRow

_COMPAT_TOKENS = 32

_COMPAT_SUPPORTER = "supporter_ppdpp"


class DialogueSettings(Section):
    """The suite ``dialogue``: self-play from the scenarios of the split.

    Attributes:
        critics: Presets that score the same dialogues.
        max_turns: Exchanges after which a conversation ends unresolved.
        strategy: Whether the strategist names the strategy of every supporter turn; by default where there is one.
        readout: ``sampled`` answers of the critic, or the ``expected`` value from the levels' log-probabilities.
        samples: Answers asked for by ``readout: sampled``.
        samples_as: As in ``critic`` of a simulation: the ``choices`` of one request, or None.
        max_attempts: Rounds of ``samples`` in all until one round is readable.
        min_parsed: Answers of a round that must be readable.
        by: What ``expected`` reads: the levels' ``names``, or ``letters`` beside them in the prompt; None is names
            where the model can score them.
        expected_score: Log-probability of a level name as it is, or by token.
        ppdpp_compat: PPDPP's own prompts, clipping at 32 tokens and parsing; nothing readable counts as 0.
    """

    critics: tuple[Literal["rlff7", "ppdpp4"], ...] = Field(default=("rlff7",), min_length=1)
    max_turns: int = Field(default=8, ge=1, le=100)
    strategy: Literal["none", "predicted"] | None = None
    readout: Literal["sampled", "expected"] = "sampled"
    samples: PositiveInt = 10
    samples_as: Literal["choices"] | None = None
    max_attempts: PositiveInt = 2
    min_parsed: PositiveInt = 1
    by: Literal["names", "letters"] | None = None
    expected_score: Literal["sequence", "length_normalised"] = "sequence"
    ppdpp_compat: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.critics)) < len(self.critics):
            raise ValueError("critics must be different")
        if self.min_parsed > self.samples:
            raise ValueError(f"min_parsed ({self.min_parsed}) is more than samples ({self.samples})")
        return self


_CRITIC_FIELDS = frozenset(ResolutionCritic.model_fields) & frozenset(DialogueSettings.model_fields)


# ---------------------------------------------------------------- cases


class OutcomeExample(Record):
    """What one critic made of a dialogue: exact values turn by turn, and the turns of success."""

    values: tuple[str, ...] = ()
    strict: int | None = None
    lenient: int | None = None
    unscored: str | None = None


class DialogueExample(Record):
    """A line of ``examples/dialogue.jsonl``; the conversation itself is in ``episodes.jsonl``."""

    SCHEMA: ClassVar[str] = "esckit.example.dialogue/1"

    id: str
    dialogue_id: str
    turns: int
    outcomes: dict[str, OutcomeExample] = Field(default_factory=dict)


def _example(episode: Episode) -> DialogueExample:
    def shown(outcome: CriticOutcome | Unscored) -> OutcomeExample:
        if isinstance(outcome, Unscored):
            return OutcomeExample(unscored=outcome.reason)
        return OutcomeExample(values=tuple(map(str, outcome.values)), strict=outcome.strict, lenient=outcome.lenient)

    outcomes = {critic: shown(read_outcome(episode, critic)) for critic in episode.critics}
    return DialogueExample(id=episode.id, dialogue_id=episode.dialogue_id, turns=len(episode.turns), outcomes=outcomes)


def dialogue_work(material: Material) -> Work:
    """Return the cases of the suite.

    Raises:
        DataError: If a scenario has no situation, with which the seeker opens.
        ConfigError: If the supporter needs a strategy and gets none.
    """
    recipe, settings = material.recipe, material.recipe.settings.dialogue
    scenarios = [dialogue.scenario for dialogue in material.merged.dialogues]
    require_situations(scenarios)
    if settings.strategy == "none" and "transcript" in supporter_prompt(recipe).variables:
        raise ConfigError(
            f"prompt {recipe.prompts.supporter} with dialogue.strategy: none", expected="dialogue.strategy: predicted"
        )
    exchanges = len(scenarios) * settings.max_turns
    asked = 1 if settings.readout == "expected" or settings.samples_as == "choices" else settings.samples
    calls = {"supporter": exchanges, "seeker": exchanges, "critic": exchanges * asked * len(settings.critics)}
    calls |= {"strategist": exchanges} if settings.strategy == "predicted" else {}
    calls |= {"turn_judge": exchanges} if recipe.models.turn_judge is not None else {}

    units = tuple(Unit(scenario.id, scenario.id, scenario) for scenario in scenarios)
    return Work(units=units, calls=calls, roles=tuple(calls))


def dialogue_player(recipe: EvaluateRecipe, casting: Casting, given: None) -> Player:
    """Return what plays a dialogue."""
    settings, cast = recipe.settings.dialogue, self_play_cast(recipe, casting)

    async def play(unit: Unit) -> Episode:
        scenario: Scenario = unit.what
        played = await play_episode(scenario, cast=cast, max_turns=settings.max_turns, run_seed=recipe.seed)
        return Episode(
            id=scenario.id,
            dialogue_id=scenario.id,
            scenario=scenario,
            run_seed=recipe.seed,
            max_turns=settings.max_turns,
            critics=settings.critics,
            **played._asdict(),
        )

    return play


def self_play_cast(recipe: EvaluateRecipe, casting: Casting, supporter: Supporter | None = None) -> EpisodeCast:
    """Return who takes part in self-play; under the compatibility switch speakers are clipped at 32 tokens.

    Args:
        recipe: The recipe.
        casting: Builds the roles.
        supporter: Takes the place of the recipe's own; None takes that.
    """
    settings = recipe.settings.dialogue
    if settings.ppdpp_compat:
        clipped = {role: _clipped(casting.options(role)) for role in ("supporter", "seeker")}
        prompts = {**casting.prompts, "supporter": _COMPAT_SUPPORTER}
        casting = replace(casting, bindings={**casting.bindings, **clipped}, prompts=prompts)
    critics: dict[str, Critic] = {}
    for name in settings.critics:
        read = ResolutionCritic(preset=name, **settings.model_dump(include=set(_CRITIC_FIELDS)))
        preset = replace(load_preset(name), takes_first=settings.ppdpp_compat and name == "ppdpp4")
        critics[name] = casting.resolution_critic(read, preset)
    return EpisodeCast(
        supporter=supporter or casting.supporter(),
        seeker=casting.seeker(),
        critics=critics,
        strategist=casting.strategist() if settings.strategy == "predicted" else None,
        turn_judge=casting.turn_judge() if recipe.models.turn_judge is not None else None,
    )


def _clipped(binding: RoleOptions) -> RoleOptions:
    sampling = binding.sampling.model_copy(update={"max_tokens": _COMPAT_TOKENS})
    return binding.model_copy(update={"sampling": sampling, "on_length": "last_sentence"})


def supporter_prompt(recipe: EvaluateRecipe) -> Prompt:
    """Return the supporter's prompt in self-play: PPDPP's own under its compatibility switch."""
    compat = recipe.settings.dialogue.ppdpp_compat
    return role_prompt("supporter", _COMPAT_SUPPORTER if compat else recipe.prompts.supporter)


# ---------------------------------------------------------------- metrics

Turns = Sequence[EpisodeTurn]


def cut_short(episode: Episode) -> Unscored | None:
    """Return why play ended before its time; None for a dialogue that went to its end.

    A critic that fails ends play where no other one was still listening.
    """
    last = len(episode.turns)
    at_end = [one for one in episode.critic_failures.values() if one.turn == last < episode.max_turns]
    failure = episode.failure or next(iter(at_end), None)
    return Unscored(failure_reason(failure)) if failure else None


def _broken(episode: Episode, t: int | None) -> Unscored | None:
    """Return why play ended before its time; with ``t`` only if it broke off within that turn."""
    if t is None or (episode.failure is not None and episode.failure.turn == t):
        return cut_short(episode)
    return None


def turn_reward(*, t: int | None = None, stage: str | None = None) -> EpisodeMetric:
    """Return the mean over dialogues of the mean AFlow turn reward of each; of turn ``t`` or of a stage, if given.

    A dialogue counts with all four ratings of every chosen turn or not at all.
    """

    def collect(episode: Episode) -> Stats | Unscored | None:
        n = len(episode.turns)
        turns = [
            turn
            for index, turn in enumerate(episode.turns)
            if t in (None, turn.t) and stage in (None, stage_of(index, n))
        ]
        rewards = [turn.ratings.reward for turn in turns if turn.ratings is not None]
        return _broken(episode, t) or _unrated(turns) or ((sum(rewards) / len(rewards), 1.0) if rewards else None)

    facts = Facts("dialogue.turn_reward", unit="none", range=(0.2, 1.0), minimum="1 rated turn", test="sign_flip")
    return Metric(facts, collect, RATIO)


def _unrated(turns: Turns) -> Unscored | None:
    reason = next((turn.ratings_unscored for turn in turns if turn.ratings_unscored), None)
    return Unscored(reason) if reason else None


def turn_reward_jump() -> EpisodeMetric:
    """Return the mean |R_t − R_{t−1}| of a dialogue, averaged over dialogues."""

    def collect(episode: Episode) -> Stats | Unscored | None:
        rewards = [turn.ratings.reward for turn in episode.turns if turn.ratings is not None]
        jumps = [abs(second - first) for first, second in pairwise(rewards)]
        broken = cut_short(episode) or _unrated(episode.turns)
        return broken or ((sum(jumps) / len(jumps), 1.0) if jumps else None)

    facts = Facts(
        "dialogue.turn_reward_jump",
        unit="none",
        range=(0.0, 0.8),
        higher_is_better=False,
        minimum="2 rated turns in a row",
        test="sign_flip",
    )
    return Metric(facts, collect, RATIO)


def strategy_entropy(
    strategies: Sequence[str], *, t: int | None = None, normalised: bool = False, within: bool = False
) -> EpisodeMetric:
    """Return the entropy of chosen strategies.

    Args:
        strategies: The taxonomy's names.
        t: Take the strategies of this turn alone.
        normalised: Divide by the greatest entropy possible.
        within: Average the entropies of single dialogues, instead of one over all dialogues together.
    """
    import numpy as np

    from esckit.metrics.confusion import entropy_of

    log_size = float(np.log(len(strategies)))

    def entropy(counts: Array) -> Array:
        return entropy_of(counts) / (log_size if normalised else 1.0)

    def collect(episode: Episode) -> Stats | Unscored | None:
        chosen = [turn.strategy for turn in episode.turns if t is None or turn.t == t]
        counts = tuple(float(chosen.count(name)) for name in strategies)
        broken = _broken(episode, t)
        if not any(counts) or (broken and t is None):
            return broken
        return (float(entropy(np.asarray([counts]))[0]), 1.0) if within else counts

    facts = Facts(
        f"dialogue.strategy_entropy{'_dialogue' if within else ''}{'_normalised' if normalised else ''}",
        unit="share" if normalised else "nats",
        range=(0.0, 1.0 if normalised else log_size),
        higher_is_better=None,
        minimum="1 turn with a strategy",
    )
    return Metric(facts, collect, RATIO if within else Sums(entropy))


def _over_turns(facts: Facts, read: Callable[[EpisodeTurn], float]) -> EpisodeMetric:
    """Return the mean of a number over all supporter turns of dialogues that went to their end."""
    return Metric(
        facts, lambda episode: cut_short(episode) or (sum(map(read, episode.turns)), float(len(episode.turns))), RATIO
    )


def reply_words() -> EpisodeMetric:
    """Return the mean words of a supporter turn."""
    facts = Facts("dialogue.reply_words", unit="words", range=(0.0, None), higher_is_better=None, tokenizer=TOKENIZER)
    return _over_turns(facts, lambda turn: float(n_words(turn.supporter.response)))


def malformed_share(kind: str) -> EpisodeMetric:
    """Return the share of supporter outputs without the agreed form from which the reply was taken in one way."""
    facts = Facts("dialogue.malformed_share", higher_is_better=False, counts=("malformed", "outputs"))
    return _over_turns(facts, lambda turn: float(not turn.supporter.format_ok and turn.supporter.parse_kind == kind))


def usage(role: str, item: str) -> EpisodeMetric:
    """Return the sum of calls or tokens of a role; roles that were not called cost nothing, None is unknown."""
    facts = Facts("dialogue.usage", item, **not_estimated("a cost, no estimate", higher_is_better=False))

    def collect(episode: Episode) -> tuple[float] | Unscored:
        n = episode.usage.get(role, Usage()).facts()[item]
        return Unscored("usage_unknown") if n is None else (float(n),)

    return Metric(facts, collect, FIRST)


def shared_metrics(strategies: Sequence[str] = (), *, turn_judge: bool = True) -> tuple[EpisodeMetric, ...]:
    """Return the metrics of no critic that runs are gated and compared on."""
    rewards = (turn_reward(), turn_reward_jump()) if turn_judge else ()
    entropies = (strategy_entropy(strategies), strategy_entropy(strategies, within=True)) if strategies else ()
    return (*rewards, *entropies, reply_words())


def dialogue_rows(
    episodes: Sequence[Episode],
    critics: Sequence[CriticScale],
    measurement: Measurement,
    strategies: Sequence[str] = (),
) -> list[MetricRow]:
    """Return all rows of the suite.

    Args:
        episodes: One per scenario.
        critics: The presets that were asked.
        measurement: The suite's plan and settings.
        strategies: Taxonomy of the turns' strategies; empty without a strategist.
    """
    rows = [row for scale in critics for row in critic_rows(episodes, scale, measurement)]
    longest = max((turn.t for episode in episodes for turn in episode.turns), default=0)
    if any(turn.ratings or turn.ratings_unscored for episode in episodes for turn in episode.turns):
        rows += [measurement.row(metric, episodes) for metric in (turn_reward(), turn_reward_jump())]
        rows += [measurement.row(turn_reward(t=t), episodes, group={"turn": t}) for t in range(1, longest + 1)]
        rows += [measurement.row(turn_reward(stage=stage), episodes, group={"stage": stage}) for stage in STAGES]
    if strategies and any(turn.strategy for episode in episodes for turn in episode.turns):
        for normalised in (False, True):
            rows.append(measurement.row(strategy_entropy(strategies, normalised=normalised), episodes))
            rows.append(measurement.row(strategy_entropy(strategies, normalised=normalised, within=True), episodes))
            for t in range(1, longest + 1):
                metric = strategy_entropy(strategies, t=t, normalised=normalised)
                rows.append(measurement.row(metric, episodes, group={"turn": t}))
    rows.append(measurement.row(reply_words(), episodes))
    rows += [measurement.row(malformed_share(kind), episodes, group={"parse_kind": kind}) for kind in MALFORMED]
    for role in sorted({role for episode in episodes for role in episode.usage}):
        rows += [
            measurement.row(usage(role, item), episodes, group={"role": role, "item": item})
            for item in ("calls", "prompt_tokens", "completion_tokens")
        ]
    return rows


# ---------------------------------------------------------------- the suite


def _scales(recipe: EvaluateRecipe) -> list[CriticScale]:
    settings = recipe.settings.dialogue
    return [CriticScale(name, settings.max_turns, compat=settings.ppdpp_compat) for name in settings.critics]


def _chosen(recipe: EvaluateRecipe, strategies: Sequence[str]) -> Sequence[str]:
    """Return the strategies that the supporter may be given in self-play."""
    return strategies if recipe.settings.dialogue.strategy == "predicted" else ()


def _metrics(recipe: EvaluateRecipe, strategies: Sequence[str]) -> list[EpisodeMetric]:
    critics = [metric for scale in _scales(recipe) for metric in headline_metrics(scale)]
    is_judged = recipe.models.turn_judge is not None
    shared = shared_metrics(_chosen(recipe, strategies), turn_judge=is_judged)
    return [*critics, *shared, *world_metrics(recipe)]


def critic_prompts(recipe: EvaluateRecipe) -> dict[str, str]:
    """Return the identity of every critic's prompt."""
    settings, named = recipe.settings.dialogue, recipe.prompts.critic
    asked = {name: named or load_preset(name).prompt for name in settings.critics}
    return {name: load_prompt(prompt, "resolution critic").identity for name, prompt in asked.items()}


def _conditions(material: Material, cases: Mapping[str, str]) -> dict[str, Any]:
    recipe, prompts = material.recipe, material.recipe.prompts
    turn_judge: dict[str, Any] = {"model": None}
    if recipe.models.turn_judge is not None:
        turn_judge = {**prompted(recipe, "turn_judge", prompts.turn_judge), "rubric": load_rubric("aflow").digest}
    # Whether a strategist helps is part of the system under test. Earlier runs do not know fields that are null.
    settings = recipe.settings.dialogue
    left_out = {"strategy", *(name for name in ("by", "samples_as") if getattr(settings, name) is None)}
    return {
        "settings": recipe.settings.dialogue.model_dump(mode="json", exclude=left_out),
        "seeker": prompted(recipe, "seeker", prompts.seeker),
        "critic": {**played_by(recipe, "critic"), "prompts": critic_prompts(recipe)},
        "turn_judge": turn_judge,
        **cases,
    }


DIALOGUE = Suite(
    name="dialogue",
    roles=lambda recipe: (
        *(("strategist",) if recipe.settings.dialogue.strategy == "predicted" else ()),
        *("supporter", "seeker", "critic", "turn_judge"),
    ),
    files=(
        CaseFile(
            name="dialogue",
            kind=Episode,
            work=dialogue_work,
            prepare=dialogue_player,
            metrics=_metrics,
            rows=lambda recipe, strategies, cases, measurement: [
                *dialogue_rows(cases, _scales(recipe), measurement, _chosen(recipe, strategies)),
                *world_rows(recipe, cases, measurement),
            ],
            stands_in="episodes.jsonl",
            example=_example,
        ),
    ),
    conditions=_conditions,
    optional=("turn_judge",),
    judge="turn_judge",
)
