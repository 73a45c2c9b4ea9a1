"""The suite ``dialogue``: self-play from the scenarios of the split, one case a scenario."""

from __future__ import annotations

from dataclasses import replace

from esckit.config.sections import ResolutionCritic, RoleOptions
from esckit.errors import ConfigError, DataError
from esckit.evaluate.cases import Episode, EpisodeTurn, TurnRatings
from esckit.evaluate.recipe import DialogueSettings, EvaluateRecipe
from esckit.evaluate.suites.suite import Done, Material, Player, Unit, Work
from esckit.play.episode import EpisodeCast, Played, PlayedTurn, play_episode
from esckit.prompts.prompt import Prompt
from esckit.protocols import Critic
from esckit.roles.cast import Casting, role_prompt
from esckit.roles.verdicts import load_preset
from esckit.types import Scenario

_COMPAT_TOKENS = 32

_COMPAT_SUPPORTER = "supporter_ppdpp"

_CRITIC_FIELDS = frozenset(ResolutionCritic.model_fields) & frozenset(DialogueSettings.model_fields)

_RATED_AS = {"empathy": "empathy", "information": "information", "naturalness": "humanlikeness"} | {
    "strategy": "strategic"
}


def dialogue_work(recipe: EvaluateRecipe, material: Material) -> Work:
    """Return the cases of the suite.

    Raises:
        DataError: If a scenario has no situation, with which the seeker opens.
        ConfigError: If the supporter needs a strategy and gets none.
    """
    settings = recipe.settings.dialogue
    scenarios = [dialogue.scenario for dialogue in material.merged.dialogues]
    silent = [scenario.id for scenario in scenarios if not scenario.situation.strip()]
    if silent:
        raise DataError(
            f"{len(silent)} scenarios without a situation, such as {', '.join(silent[:3])}",
            expected="a situation in each: the seeker opens with it",
        )
    if settings.strategy == "none" and "transcript" in supporter_prompt(recipe).variables:
        raise ConfigError(
            f"prompt {recipe.prompts.supporter} with dialogue.strategy: none", expected="dialogue.strategy: predicted"
        )
    exchanges = len(scenarios) * settings.max_turns
    asked = 1 if settings.readout == "expected" else settings.samples
    calls = {"supporter": exchanges, "seeker": exchanges, "critic": exchanges * asked * len(settings.critics)}
    calls |= {"strategist": exchanges} if settings.strategy == "predicted" else {}
    calls |= {"turn_judge": exchanges} if recipe.models.turn_judge is not None else {}

    def prepare(casting: Casting, done: Done) -> Player:
        cast = self_play_cast(recipe, casting)

        async def play(unit: Unit) -> Episode:
            scenario: Scenario = unit.what
            played = await play_episode(scenario, cast=cast, max_turns=settings.max_turns, run_seed=recipe.seed)
            return episode_of(
                scenario, played, critics=settings.critics, max_turns=settings.max_turns, run_seed=recipe.seed
            )

        return play

    return Work(
        suite="dialogue",
        file="dialogue",
        kind=Episode,
        units=tuple(Unit(scenario.id, scenario.id, scenario) for scenario in scenarios),
        calls=calls,
        prepare=prepare,
        roles=tuple(calls),
    )


def self_play_cast(recipe: EvaluateRecipe, casting: Casting) -> EpisodeCast:
    """Return who takes part in self-play; under the compatibility switch speakers are clipped at 32 tokens."""
    settings = recipe.settings.dialogue
    if settings.ppdpp_compat:
        clipped = {role: _clipped(casting.bindings[role]) for role in ("supporter", "seeker")}
        prompts = {**casting.prompts, "supporter": _COMPAT_SUPPORTER}
        casting = replace(casting, bindings={**casting.bindings, **clipped}, prompts=prompts)
    critics: dict[str, Critic] = {}
    for name in settings.critics:
        read = ResolutionCritic(preset=name, **settings.model_dump(include=set(_CRITIC_FIELDS)))
        preset = replace(load_preset(name), takes_first=settings.ppdpp_compat and name == "ppdpp4")
        critics[name] = casting.resolution_critic(read, preset)
    return EpisodeCast(
        supporter=casting.supporter(),
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


def episode_of(
    scenario: Scenario, played: Played, *, critics: tuple[str, ...], max_turns: int, run_seed: int
) -> Episode:
    """Return what was played as a case."""
    return Episode(
        id=scenario.id,
        dialogue_id=scenario.id,
        scenario=scenario,
        run_seed=run_seed,
        max_turns=max_turns,
        critics=critics,
        turns=tuple(_turn(turn, critics) for turn in played.turns),
        failure=played.failure,
        # Critics are asked at the same time: their order is the recipe's, not that of their answers.
        critic_failures={name: played.critic_failures[name] for name in critics if name in played.critic_failures},
        usage=played.usage,
        reasoning=played.reasoning,
    )


def _turn(turn: PlayedTurn, critics: tuple[str, ...]) -> EpisodeTurn:
    ratings = turn.ratings and TurnRatings(**{_RATED_AS[name]: rating for name, rating in turn.ratings.items()})
    return EpisodeTurn(
        t=turn.t,
        supporter=turn.supporter,
        strategy=turn.strategy,
        seeker=turn.seeker,
        readings={name: turn.readings[name] for name in critics if name in turn.readings},
        ratings=ratings or None,
        ratings_unscored=turn.ratings_unscored,
    )
