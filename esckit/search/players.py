"""Who plays a search: the roles that a recipe binds to models, and what the records say about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from esckit.config.sections import CheckpointBinding, RoleOptions
from esckit.errors import ConfigError
from esckit.models.checkpoint import kind_of
from esckit.prompts.prompt import load_prompt
from esckit.protocols import Critic, StrategyPolicy, Supporter
from esckit.roles.asking import UtteranceRules
from esckit.roles.environment import Environment
from esckit.roles.pool import ModelPool, is_strategy_policy
from esckit.roles.rubric import RubricCritic, load_rubric
from esckit.roles.seekers import AFlowSeeker
from esckit.roles.strategist import PromptedStrategist
from esckit.roles.supporters import AFlowSupporter
from esckit.search.mcts import Players, Provenance
from esckit.search.recipe import SearchRecipe
from esckit.strategies.taxonomy import Taxonomy, load_taxonomy
from esckit.types import Turn

_PROMPTED = {
    "seeker": "aflow seeker",
    "supporter": "aflow supporter",
    "critic": "rubric critic",
    "strategist": "strategist",
}


def build_players(
    recipe: SearchRecipe, pool: ModelPool, taxonomy: Taxonomy, memories: Mapping[str, Sequence[Turn]]
) -> Players:
    """Return the roles that the recipe binds to models.

    Args:
        recipe: The recipe.
        pool: The run's models.
        taxonomy: The strategies.
        memories: Scenario id to the turns of its seed dialogue, which only the seeker knows.

    Raises:
        ConfigError: If a model cannot do what its role needs.
    """
    roles, names, attempts = recipe.models, recipe.prompts, recipe.search.max_attempts
    if roles.seeker is None or roles.supporter is None:
        raise ConfigError("a search without a seeker or a supporter", expected="models.seeker and models.supporter")
    seeker = pool.voice(roles.seeker, max_attempts=attempts)
    return Players(
        Environment(
            seeker=AFlowSeeker(
                seeker,
                load_prompt(names.seeker, _PROMPTED["seeker"]),
                UtteranceRules(taxonomy, seeker.max_words, seeker.on_length),
                memories,
                recipe.seeker.memory_guard,
                pool.window(roles.seeker),
            ),
            supporter=_build_supporter(recipe, pool, taxonomy, roles.supporter),
            critic=build_critic(recipe, pool),
        ),
        build_strategist(recipe, pool, taxonomy),
    )


def _build_supporter(recipe: SearchRecipe, pool: ModelPool, taxonomy: Taxonomy, binding: RoleOptions) -> Supporter:
    """Return the supporter of a recipe: a prompted one, or a flow checkpoint that writes."""
    if written := pool.flow_supporter(binding, taxonomy, max_attempts=recipe.search.max_attempts):
        return written
    voice = pool.voice(binding, max_attempts=recipe.search.max_attempts)
    rules = UtteranceRules(taxonomy, voice.max_words, voice.on_length)
    return AFlowSupporter(
        voice, load_prompt(recipe.prompts.supporter, _PROMPTED["supporter"]), rules, pool.window(binding)
    )


def build_critic(recipe: SearchRecipe, pool: ModelPool) -> Critic:
    """Return the critic of a recipe: a prompted one, or a trained reward model."""
    settings, binding = recipe.critic, recipe.models.critic
    if settings.readout == "reward_model":
        assert isinstance(binding, CheckpointBinding), "the recipe class holds the two together"
        return pool.reward_critic(binding)
    return RubricCritic(
        pool.voice(binding, max_attempts=recipe.search.max_attempts),
        load_prompt(recipe.prompts.critic, _PROMPTED["critic"]),
        load_rubric(settings.rubric),
        weights=settings.weights,
        readout=settings.readout,
        show_strategy=settings.show_strategy,
        min_label_mass=settings.min_label_mass,
        window=pool.window(binding),
    )


def build_strategist(recipe: SearchRecipe, pool: ModelPool, taxonomy: Taxonomy) -> StrategyPolicy:
    """Return the strategist of a recipe."""
    binding = recipe.models.strategist
    if is_strategy_policy(binding):
        return pool.policy(binding, taxonomy)
    return PromptedStrategist(
        pool.voice(binding, max_attempts=recipe.search.max_attempts),
        load_prompt(recipe.prompts.strategist, _PROMPTED["strategist"]),
        taxonomy,
        recipe.strategist.readout,
        pool.window(binding),
    )


def prompt_ids(recipe: SearchRecipe) -> dict[str, str]:
    """Return the identity of every prompted role's prompt."""
    names = recipe.prompts.model_dump()
    return {
        role: load_prompt(names[role], _PROMPTED[role]).identity
        for role, binding in recipe.models.bindings().items()
        if not isinstance(binding, CheckpointBinding)
    }


def provenance_of(recipe: SearchRecipe) -> Provenance:
    """Return what every tree of a run says about where it came from."""
    prompts, strategist = prompt_ids(recipe), recipe.models.strategist
    trained = strategist.checkpoint if isinstance(strategist, CheckpointBinding) else None
    return Provenance(
        run_seed=recipe.seed,
        taxonomy=load_taxonomy(recipe.taxonomy),
        round=recipe.search.round,
        prior_source=prompts["strategist"] if trained is None else kind_of(Path(trained)).identity(Path(trained)),
        readout=recipe.critic.readout,
        prompts=prompts,
    )
