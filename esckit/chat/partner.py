"""Who answers a user: the roles of a chat, built as every other run builds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esckit.chat.recipe import ChatRecipe
from esckit.chat.talk import Entry, Talk
from esckit.chat.unfinished import Settled, settled_of
from esckit.config.sections import Checkpoint
from esckit.data.contexts import after_opening
from esckit.errors import ConfigError, ModelError
from esckit.ledger import Ledger, Scope
from esckit.lineage import require_runs
from esckit.models.streaming import listening
from esckit.play.rollout import failure_of
from esckit.protocols import Critic, StrategyPolicy, Supporter
from esckit.registry import did_you_mean
from esckit.roles.cast import Casting, prompt_ids, role_prompt
from esckit.roles.pool import ModelPool, look_up, part_of, policy_taxonomy, require_checkpoints
from esckit.strategies.taxonomy import Taxonomy, load_taxonomy
from esckit.types import FailureStage, Score

_RUBRIC_PROMPT = "critic_aflow"

Hear = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Partner:
    """The roles of a chat.

    Attributes:
        supporter: Answers.
        strategist: Names the strategy of a reply, unless the user does; None without one.
        critic: Reads the conversation; None without one.
        taxonomy: The strategies; None where none are named.
        seed: Of the recipe.
        settled: See :func:`esckit.chat.unfinished.settled_of`.
        name: Of the supporter, for people.
    """

    supporter: Supporter
    strategist: StrategyPolicy | None
    critic: Critic | None
    taxonomy: Taxonomy | None
    seed: int
    settled: Settled | None
    name: str

    async def answer(self, talk: Talk, *, strategy: str | None = None, hear: Hear | None = None) -> Entry:
        """Return the latest entry with the reply to it, or with the failure in its place.

        The draws have the seeds that an episode of an evaluation has at the same exchange.

        Args:
            talk: Ends with what the user said.
            strategy: The strategy that the user wants; None leaves it to the strategist.
            hear: Takes what the supporter's model has written so far, again and again.

        Raises:
            ConfigError: If the supporter needs a strategy and has none.
            EsckitError: If the budget is used up, or a server is gone.
        """
        last = talk.entries[-1]
        ledger = Ledger(self.seed, talk.scenario.id)
        scope = ledger.at(last.t) if not last.draw else ledger.at(last.t, "again", last.draw)
        found: dict[str, Any] = {}
        stage: FailureStage = "strategist"
        turns = after_opening(talk.turns())
        try:
            if self.strategist is not None:
                decision = await self.strategist.decide(talk.scenario, turns, scope)
                found = {"probabilities": decision.probabilities, "values": decision.values}
                found["strategy"] = decision.strategy
            if strategy is not None:
                found |= {"strategy": strategy, "is_forced": True}
            stage = "supporter"
            with listening(hear):
                found["supporter"] = await self.supporter.reply(turns, scope, strategy=found.get("strategy"))
        except ModelError as error:
            found["failure"] = failure_of(error, stage, last.t)
        found |= {"usage": dict(sorted(ledger.usage.items())), "end": ledger.ends.get("supporter")}
        return last.model_copy(update=found)

    async def read(self, talk: Talk) -> Score:
        """Return the critic's reading of the conversation as it stands.

        Raises:
            ConfigError: If there is no critic.
            ModelError: If it gave no readable answer.
        """
        if self.critic is None:
            raise ConfigError("no critic takes part in this chat", hint="Start it with --critic MODEL")
        return await self.critic.score(talk.scenario, talk.turns(), _critic_scope(self.seed, talk))

    def strategy_named(self, label: str) -> str:
        """Return the name of the strategy that a label means.

        Raises:
            ConfigError: If no strategies are named in this chat, or it means none of them.
        """
        if self.taxonomy is None:
            raise ConfigError("this chat knows no strategies", hint="Start it with --set taxonomy=NAME, such as esconv")
        found = self.taxonomy.find(label)
        if found is None:
            raise ConfigError(
                f"taxonomy {self.taxonomy.name} has no strategy {label!r}",
                expected=f"one of {', '.join(self.taxonomy.names)}",
                hint=did_you_mean(label, self.taxonomy.names) or None,
            )
        return found.name


def _critic_scope(seed: int, talk: Talk) -> Scope:
    last = talk.last
    return Ledger(seed, talk.scenario.id).at(last.t if last else 0, "critic")


def taxonomy_of(recipe: ChatRecipe) -> Taxonomy | None:
    """Return the strategies of a chat: those that the recipe names, or a trained strategist's own.

    Raises:
        EsckitError: If there are no such strategies, or there is a strategist and none are named.
    """
    if recipe.taxonomy is not None:
        return load_taxonomy(recipe.taxonomy)
    strategist = recipe.models.strategist
    if isinstance(strategist, Checkpoint) and part_of("strategist", strategist) == "strategist":
        return policy_taxonomy(Path(strategist.checkpoint))
    if strategist is not None and recipe.is_guided:
        raise ConfigError("a strategist without a taxonomy", expected="taxonomy: NAME or FILE.yaml")
    return None


def check(recipe: ChatRecipe) -> dict[str, Any]:
    """Check all that can be checked before models are loaded; return who takes part, with their prompts.

    Raises:
        EsckitError: If something that the recipe names is not there, or cannot do what its role needs.
    """
    require_runs(recipe)
    bindings = recipe.models.bindings()
    look_up(bindings.values())
    taxonomy = taxonomy_of(recipe)
    prompts = recipe.prompts.model_dump()
    spoken = {role: binding for role, binding in bindings.items() if role != "critic"}
    ids = prompt_ids(spoken, prompts, taxonomy=taxonomy)
    require_checkpoints(bindings, taxonomy)
    if not recipe.is_guided and _needs_strategy(recipe):
        raise ConfigError(
            "this supporter carries out a strategy, and nobody names one",
            expected="a strategist beside it",
            hint="Name one: --strategist MODEL, or take another prompt: --set prompts.supporter=supporter_rlff",
        )
    return {"taxonomy": taxonomy.name if taxonomy else None, "prompts": ids}


def _needs_strategy(recipe: ChatRecipe) -> bool:
    part = part_of("supporter", recipe.models.supporter)
    if part == "writer":
        return True
    return part == "chat" and "transcript" in role_prompt("supporter", recipe.prompts.supporter).variables


async def seated(pool: ModelPool, recipe: ChatRecipe) -> Partner:
    """Load the models of a chat and return its roles.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what its role needs.
    """
    bindings = recipe.models.bindings()
    await pool.prepare(bindings)
    taxonomy = taxonomy_of(recipe)
    prompts = recipe.prompts.model_dump()
    if recipe.rubric is not None:
        prompts["critic"] = prompts["critic"] or _RUBRIC_PROMPT
    casting = Casting(pool, bindings, prompts, recipe.chat.max_attempts, taxonomy, recipe.strategist.readout)
    supporter = casting.supporter()
    return Partner(
        supporter=supporter,
        strategist=casting.strategist() if recipe.is_guided else None,
        critic=_critic(casting, recipe) if "critic" in bindings else None,
        taxonomy=taxonomy,
        seed=recipe.seed,
        settled=settled_of(supporter),
        name=casting.labels()["supporter"],
    )


def _critic(casting: Casting, recipe: ChatRecipe) -> Critic:
    if recipe.rubric is not None:
        return casting.rubric_critic(recipe.rubric)
    return casting.resolution_critic(recipe.critic)
