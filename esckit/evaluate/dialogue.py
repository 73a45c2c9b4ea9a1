"""Metrics of self-played dialogues that belong to no critic: turn rewards, strategies, words, cost.

The critics' own metrics are in :mod:`esckit.evaluate.selfplay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from esckit.evaluate.cases import MALFORMED, Episode, EpisodeTurn
from esckit.evaluate.selfplay import CriticScale, EpisodeMetric, critic_rows, failure_reason
from esckit.evaluate.strategy import STAGES, Stage, stage_of
from esckit.metrics.confusion import entropy_of
from esckit.metrics.measure import Measurement
from esckit.metrics.metric import RATIO, Array, Facts, Metric, Stats, Sums, Unscored
from esckit.metrics.rows import MetricRow
from esckit.text import TOKENIZER, n_words
from esckit.types import ParseKind, Usage

Turns = Sequence[EpisodeTurn]


def cut_short(episode: Episode) -> Unscored | None:
    """Return why play ended before its time; None for a dialogue that went to its end.

    A critic that fails ends play where no other one was still listening.
    """
    last = len(episode.turns)
    at_end = [one for one in episode.critic_failures.values() if one.turn == last < episode.max_turns]
    failure = episode.failure or next(iter(at_end), None)
    return Unscored(failure_reason(failure)) if failure else None


def _failed_at(episode: Episode, t: int) -> Unscored | None:
    """Return why play broke off within turn ``t``."""
    return cut_short(episode) if episode.failure is not None and episode.failure.turn == t else None


def _turn_reward(
    choose: Callable[[Episode], Turns], broken: Callable[[Episode], Unscored | None] = cut_short
) -> EpisodeMetric:
    """Return the mean over dialogues of the mean AFlow turn reward of some turns of each.

    A dialogue counts with all four ratings of every chosen turn or not at all.
    """

    def collect(episode: Episode) -> Stats | Unscored | None:
        turns = choose(episode)
        rewards = [turn.ratings.reward for turn in turns if turn.ratings is not None]
        return broken(episode) or _unrated(turns) or ((sum(rewards) / len(rewards), 1.0) if rewards else None)

    facts = Facts(
        "dialogue.turn_reward",
        unit="none",
        range=(0.2, 1.0),
        minimum="1 rated turn",
        test="sign_flip",
        needs=frozenset({"episode", "judge"}),
    )
    return Metric(facts, collect, RATIO)


def _unrated(turns: Turns) -> Unscored | None:
    reason = next((turn.ratings_unscored for turn in turns if turn.ratings_unscored), None)
    return Unscored(reason) if reason else None


def turn_reward() -> EpisodeMetric:
    """Return the mean AFlow turn reward of a dialogue, averaged over dialogues."""
    return _turn_reward(lambda episode: episode.turns)


def turn_reward_at(t: int) -> EpisodeMetric:
    """Return the mean turn reward of turn ``t``."""
    return _turn_reward(
        lambda episode: [turn for turn in episode.turns if turn.t == t], lambda episode: _failed_at(episode, t)
    )


def turn_reward_in(stage: Stage) -> EpisodeMetric:
    """Return the mean turn reward of the turns of a stage."""

    def choose(episode: Episode) -> Turns:
        n = len(episode.turns)
        return [turn for index, turn in enumerate(episode.turns) if stage_of(index, n) == stage]

    return _turn_reward(choose)


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
        needs=frozenset({"episode", "judge"}),
    )
    return Metric(facts, collect, RATIO)


# ---------------------------------------------------------------- strategies


def _entropy_facts(name: str, size: int, *, normalised: bool) -> Facts:
    return Facts(
        f"dialogue.{name}_normalised" if normalised else f"dialogue.{name}",
        unit="share" if normalised else "nats",
        range=(0.0, 1.0 if normalised else float(np.log(size))),
        higher_is_better=None,
        minimum="1 turn with a strategy",
        needs=frozenset({"episode", "strategy"}),
    )


def _strategy_counts(episode: Episode, strategies: Sequence[str], t: int | None = None) -> list[float]:
    chosen = [turn.strategy for turn in episode.turns if t is None or turn.t == t]
    return [float(chosen.count(name)) for name in strategies]


def strategy_entropy(strategies: Sequence[str], *, t: int | None = None, normalised: bool = False) -> EpisodeMetric:
    """Return the entropy of all chosen strategies, or of those of turn ``t``."""

    def collect(episode: Episode) -> Stats | Unscored | None:
        counts = _strategy_counts(episode, strategies, t)
        if t is not None:
            return tuple(counts) if any(counts) else _failed_at(episode, t)
        return cut_short(episode) or (tuple(counts) if any(counts) else None)

    def value(sums: Array) -> Array:
        return entropy_of(sums) / (float(np.log(len(strategies))) if normalised else 1.0)

    return Metric(_entropy_facts("strategy_entropy", len(strategies), normalised=normalised), collect, Sums(value))


def dialogue_entropy(strategies: Sequence[str], *, normalised: bool = False) -> EpisodeMetric:
    """Return the entropy of the strategies within a dialogue, averaged over dialogues."""

    def collect(episode: Episode) -> Stats | Unscored | None:
        counts = np.asarray([_strategy_counts(episode, strategies)])
        broken = cut_short(episode)
        if broken or not counts.any():
            return broken
        return (float(entropy_of(counts)[0]) / (float(np.log(len(strategies))) if normalised else 1.0), 1.0)

    facts = _entropy_facts("strategy_entropy_dialogue", len(strategies), normalised=normalised)
    return Metric(facts, collect, RATIO)


# ---------------------------------------------------------------- words, forms, cost


def _over_turns(facts: Facts, read: Callable[[EpisodeTurn], float]) -> EpisodeMetric:
    """Return the mean of a number over all supporter turns of dialogues that went to their end."""

    def collect(episode: Episode) -> Stats | Unscored:
        said = (sum(read(turn) for turn in episode.turns), float(len(episode.turns)))
        return cut_short(episode) or said

    return Metric(facts, collect, RATIO)


def reply_words() -> EpisodeMetric:
    """Return the mean words of a supporter turn."""
    facts = Facts(
        "dialogue.reply_words",
        unit="words",
        range=(0.0, None),
        higher_is_better=None,
        needs=frozenset({"episode"}),
        tokenizer=TOKENIZER,
    )
    return _over_turns(facts, lambda turn: float(n_words(turn.supporter.response)))


def malformed_share(kind: ParseKind) -> EpisodeMetric:
    """Return the share of supporter outputs without the agreed form that were taken apart in one way."""
    facts = Facts(
        "dialogue.malformed_share",
        higher_is_better=False,
        needs=frozenset({"episode"}),
        counts=("malformed", "outputs"),
    )
    return _over_turns(facts, lambda turn: float(not turn.supporter.format_ok and turn.supporter.parse_kind == kind))


def usage(role: str, item: str) -> EpisodeMetric:
    """Return the sum of calls or tokens of a role; roles that were not called cost nothing, None is unknown."""
    facts = Facts(
        "dialogue.usage",
        unit=item,
        range=(0.0, None),
        higher_is_better=False,
        interval="none",
        no_interval="a cost, no estimate",
        test="none",
        needs=frozenset({"episode"}),
    )

    def collect(episode: Episode) -> tuple[float] | Unscored:
        n = episode.usage.get(role, Usage()).facts()[item]
        return Unscored("usage_unknown") if n is None else (float(n),)

    return Metric(facts, collect, Sums(lambda sums: sums[:, 0]))


def shared_metrics(strategies: Sequence[str] = ()) -> tuple[EpisodeMetric, ...]:
    """Return the metrics of no critic that two runs are compared on."""
    entropies = (strategy_entropy(strategies), dialogue_entropy(strategies)) if strategies else ()
    return (turn_reward(), turn_reward_jump(), *entropies, reply_words())


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
    if any(turn.ratings or turn.ratings_unscored for episode in episodes for turn in episode.turns):
        rows += _reward_rows(episodes, measurement)
    if strategies and any(turn.strategy for episode in episodes for turn in episode.turns):
        rows += _entropy_rows(episodes, measurement, strategies)
    rows.append(measurement.row(reply_words(), episodes))
    rows += [measurement.row(malformed_share(kind), episodes, group={"parse_kind": kind}) for kind in MALFORMED]
    for role in sorted({role for episode in episodes for role in episode.usage}):
        rows += [
            measurement.row(usage(role, item), episodes, group={"role": role, "item": item})
            for item in ("calls", "prompt_tokens", "completion_tokens")
        ]
    return rows


def _longest(episodes: Sequence[Episode]) -> int:
    return max((turn.t for episode in episodes for turn in episode.turns), default=0)


def _reward_rows(episodes: Sequence[Episode], measurement: Measurement) -> list[MetricRow]:
    rows = [measurement.row(metric, episodes) for metric in (turn_reward(), turn_reward_jump())]
    for t in range(1, _longest(episodes) + 1):
        rows.append(measurement.row(turn_reward_at(t), episodes, group={"turn": t}))
    rows += [measurement.row(turn_reward_in(stage), episodes, group={"stage": stage}) for stage in STAGES]
    return rows


def _entropy_rows(episodes: Sequence[Episode], measurement: Measurement, strategies: Sequence[str]) -> list[MetricRow]:
    rows = []
    for normalised in (False, True):
        rows.append(measurement.row(strategy_entropy(strategies, normalised=normalised), episodes))
        rows.append(measurement.row(dialogue_entropy(strategies, normalised=normalised), episodes))
        for t in range(1, _longest(episodes) + 1):
            metric = strategy_entropy(strategies, t=t, normalised=normalised)
            rows.append(measurement.row(metric, episodes, group={"turn": t}))
    return rows
