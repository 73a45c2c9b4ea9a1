"""What the practice world knows of self-played dialogues: the truth, and how its baselines and the optimum do.

These rows exist only where the seeker is of the practice world. The hidden state is read from the transcript, so they
do not depend on any critic. Baselines play the same seekers under the same seeds, worded by the world's supporter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from esckit.config.sections import WorldBinding
from esckit.errors import DataError
from esckit.evaluate.suites.critics import Episode, EpisodeMetric, failure_reason
from esckit.ledger import derive_seed
from esckit.metrics.metric import RATIO, Facts, Metric, Stats, Unscored, counted
from esckit.practice.players import POLICIES, BaselineStrategist, Game, Move, PolicyName, play
from esckit.practice.world import NEEDS, Need, solution
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import EpisodeTurn, Generation, Turn

if TYPE_CHECKING:
    from esckit.evaluate.recipe import EvaluateRecipe
    from esckit.metrics.rows import Measurement, MetricRow

_RATE: dict[str, Any] = {"interval": "wilson", "test": "mcnemar", "counts": ("resolved", "cases")}

_ANY_TAXONOMY = "aflow"


def game_of(recipe: EvaluateRecipe) -> Game | None:
    """Return the practice world that an evaluation is played in; None where the seeker is a model."""
    seeker = recipe.roles().get("seeker")
    if not isinstance(seeker, WorldBinding):
        return None
    return Game.of(seeker.world, load_taxonomy(recipe.taxonomy) if recipe.taxonomy else None)


def _turns(episode: Episode) -> list[Turn]:
    """Return the dialogue as the seeker saw it."""
    turns = [Turn(speaker="seeker", text=episode.scenario.situation)]
    for turn in episode.turns:
        turns.append(Turn(speaker="supporter", text=turn.supporter.response, strategy=turn.strategy))
        if turn.seeker is not None:
            turns.append(Turn(speaker="seeker", text=turn.seeker))
    return turns


def _moves(game: Game, episode: Episode) -> list[Move] | Unscored:
    """Return what every supporter turn did; a dialogue that failed and was not resolved before is unscored."""
    moves = game.moves(episode.scenario, _turns(episode))
    is_resolved = bool(moves) and moves[-1].after.intensity == 0
    if episode.failure is not None and not is_resolved:
        return Unscored(failure_reason(episode.failure))
    return moves


def _resolved_at(moves: Sequence[Move]) -> int | None:
    """Return the 1-based turn at which the seeker was well, None if it never was."""
    return next((t for t, move in enumerate(moves, start=1) if move.after.intensity == 0), None)


def success(game: Game) -> EpisodeMetric:
    """Return the share of seekers whose intensity came to 0 within the dialogue."""

    def collect(episode: Episode) -> Stats | Unscored:
        moves = _moves(game, episode)
        return moves if isinstance(moves, Unscored) else counted(_resolved_at(moves) is not None)

    return Metric(Facts("practice.success", minimum="1 scored dialogue", **_RATE), collect, RATIO)


def turns_needed(game: Game, max_turns: int) -> EpisodeMetric:
    """Return the mean turn at which the intensity came to 0; dialogues in which it did not count as all turns."""

    def collect(episode: Episode) -> Stats | Unscored:
        moves = _moves(game, episode)
        return moves if isinstance(moves, Unscored) else counted(_resolved_at(moves) or max_turns)

    facts = Facts(
        "practice.turns",
        unit="turns",
        range=(1.0, float(max_turns)),
        higher_is_better=False,
        minimum="1 scored dialogue",
        test="sign_flip",
        counts=("turns", "cases"),
    )
    return Metric(facts, collect, RATIO)


def regret(game: Game, max_turns: int, need: Need | None = None) -> EpisodeMetric:
    """Return how much probability of success a supporter turn gives away, on average.

    Args:
        game: The rules.
        max_turns: Turns of a dialogue.
        need: Count only turns that met this need; None counts all.
    """
    best = solution(game.profile.name)

    def collect(episode: Episode) -> Stats | Unscored | None:
        moves = _moves(game, episode)
        if isinstance(moves, Unscored):
            return moves
        lost = [
            best.regret(move.before, move.function, max_turns - t)
            for t, move in enumerate(moves)
            if not move.before.is_over and need in (None, move.before.need)
        ]
        return (sum(lost), float(len(lost))) if lost else None

    facts = Facts(
        "practice.regret", unit="none", range=(0.0, 1.0), higher_is_better=False, minimum="1 turn", test="sign_flip"
    )
    return Metric(facts, collect, RATIO)


def world_metrics(recipe: EvaluateRecipe) -> list[EpisodeMetric]:
    """Return the metrics of the practice world over all dialogues; none elsewhere."""
    game, max_turns = game_of(recipe), recipe.settings.dialogue.max_turns
    return [] if game is None else [success(game), turns_needed(game, max_turns), regret(game, max_turns)]


def world_rows(recipe: EvaluateRecipe, episodes: Sequence[Episode], measurement: Measurement) -> list[MetricRow]:
    """Return the rows of the practice world: the system's, its regret by need, and those of the baselines."""
    game, max_turns = game_of(recipe), recipe.settings.dialogue.max_turns
    if game is None:
        return []
    rows = [measurement.row(metric, episodes) for metric in world_metrics(recipe)]
    rows += [measurement.row(regret(game, max_turns, need), episodes, group={"need": need}) for need in NEEDS]
    for policy in POLICIES:
        played = policy_episodes(recipe, policy, episodes)
        rows += [measurement.row(metric, played, group={"policy": policy}) for metric in world_metrics(recipe)]
    return rows


def policy_episodes(recipe: EvaluateRecipe, policy: str, episodes: Sequence[Episode]) -> list[Episode]:
    """Return the dialogues of a baseline with the seekers of some episodes; they are played again, without a model.

    Raises:
        DataError: If the recipe is not played in the practice world, or the policy is unknown.
    """
    game = game_of(recipe)
    known = next((name for name in POLICIES if name == policy), None)
    if game is None or known is None:
        raise DataError(f"a policy {policy!r}", expected=f"the practice world, and one of {', '.join(POLICIES)}")
    return [baseline_episode(game, known, episode) for episode in episodes]


def baseline_episode(game: Game, policy: PolicyName, episode: Episode) -> Episode:
    """Return the dialogue of a baseline with the seeker of an episode."""
    scenario, names = episode.scenario, load_taxonomy(_ANY_TAXONOMY).names
    strategist = BaselineStrategist(game, policy, names, solution(game.profile.name), episode.max_turns)
    seeds = (derive_seed(episode.run_seed, scenario.id, policy, t) for t in range(1, episode.max_turns + 1))
    said = play(game, strategist, scenario, seeds, spoken_in="supporter")[1:]
    played = [
        EpisodeTurn(
            t=t,
            supporter=Generation(
                raw=spoken.text, reasoning=None, response=spoken.text, format_ok=True, parse_kind="untagged"
            ),
            strategy=spoken.strategy,
            seeker=answer.text,
        )
        for t, (spoken, answer) in enumerate(zip(said[::2], said[1::2], strict=True), start=1)
    ]
    return episode.model_copy(
        update={"turns": tuple(played), "failure": None, "critic_failures": {}, "usage": {}, "reasoning": ()}
    )
