"""Who plays a run: simulation, search, evaluation, prediction and online RL build their roles here.

A recipe binds each role to a model and names its prompt. :class:`Casting` makes the role of it: a prompted chat model,
or a checkpoint that was trained for the role. Models are loaded in :mod:`esckit.roles.pool`; how the roles act together
is defined where they are played.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from esckit.config import sections
from esckit.config.sections import (
    Binding,
    Checkpoint,
    EndpointBinding,
    RoleOptions,
    WorldBinding,
    WorldStrategist,
    WorldSupporter,
)
from esckit.errors import ConfigError
from esckit.models.budget import BudgetedPolicy
from esckit.models.checkpoint import kind_of
from esckit.practice.players import BaselineStrategist, Game, GrammarSupporter, WorldSeeker
from esckit.practice.world import solution
from esckit.prompts.prompt import Prompt, load_prompt
from esckit.protocols import Critic, Seeker, StrategyPolicy, Supporter
from esckit.roles.asking import Voice
from esckit.roles.critics import PairJudge, ReplyJudge, ResolutionCritic, RewardCritic, asks_by_letter
from esckit.roles.players import (
    AFlowSeeker,
    AFlowSupporter,
    FlowSupporter,
    PromptedSeeker,
    PromptedStrategist,
    PromptedSupporter,
)
from esckit.roles.pool import ModelPool, known_taxonomy, part_of, trained_run
from esckit.roles.practice import WorldResolutionCritic, WorldRubricCritic
from esckit.roles.rubric import RubricCritic
from esckit.roles.verdicts import Preset, load_preset
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Turn

log = logging.getLogger(__name__)

_PROMPT_KINDS = {"turn_judge": "rubric critic", "judge_pairwise": "pair judge", "judge_reply": "reply judge"}


def role_prompt(role: str, name: str | None, *, taxonomy: Taxonomy | None = None, kind: str | None = None) -> Prompt:
    """Return the prompt of a role.

    Args:
        role: The role, or the field of ``prompts:`` where a role has several.
        name: Name or file. A strategist's None or ``strategist`` is AFlow's own for AFlow's taxonomy, whose base scores
            it states, and one that fits any taxonomy elsewhere.
        taxonomy: The strategies that a strategist chooses from.
        kind: What the prompt is for; None takes it from the role. A supporter's prompt with a ``transcript`` is AFlow's
            then: one utterance under a given strategy. Any other reads the turns as chat.

    Raises:
        ConfigError: If there is no such prompt, or it lacks what the role fills in.
    """
    if role == "strategist" and name in (None, "strategist"):
        name = "strategist" if known_taxonomy(taxonomy).name == "aflow" else "strategist_any"
    prompt = load_prompt(str(name))
    if kind is None and role == "supporter":
        kind = "aflow supporter" if "transcript" in prompt.variables else "supporter"
    prompt.check(kind or _PROMPT_KINDS.get(role, role), str(name))
    return prompt


def prompt_ids(
    bindings: Mapping[str, Binding],
    prompts: Mapping[str, str | None],
    *,
    taxonomy: Taxonomy | None = None,
    kinds: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the identity of every role's prompt, for the manifest; what was trained to choose or score reads none.

    Args:
        bindings: The model of each role.
        prompts: Name or file by role.
        taxonomy: See :func:`role_prompt`.
        kinds: What a prompt must be for, by role, where the role does not say it.

    Raises:
        ConfigError: See :func:`role_prompt`.
    """
    return {
        role: role_prompt(role, prompts[role], taxonomy=taxonomy, kind=(kinds or {}).get(role)).identity
        for role, binding in bindings.items()
        if part_of(role, binding) in ("chat", "writer")
    }


def world_name(binding: WorldBinding) -> str:
    """Return how records and manifests call a player of the practice world, such as ``world:default/rule``."""
    policy = f"/{binding.policy}" if isinstance(binding, WorldStrategist) else ""
    return f"world:{binding.world}{policy}"


@cache
def _compare_prompts(run: str, prompt: str) -> None:
    """Warn if a supporter was trained to answer another prompt; once, however many suites it plays in."""
    trained = kind_of(Path(run)).prompt(Path(run))
    if trained not in (None, prompt):
        log.warning(
            "models.supporter: %s was trained with the prompt %s, and answers %s here (prompts.supporter)",
            run,
            trained,
            prompt,
        )


@dataclass(frozen=True, slots=True)
class Casting:
    """Builds the roles of one run; a :class:`~esckit.errors.ConfigError` says which model cannot play its role.

    Attributes:
        pool: The run's models.
        bindings: The model of each role.
        prompts: Name or file of each prompt, as ``prompts:`` of a recipe holds them.
        max_attempts: Calls in all for one answer, at least 1.
        taxonomy: The strategies; None where none is named.
        readout: How a prompted strategist is read.
    """

    pool: ModelPool
    bindings: Mapping[str, Binding]
    prompts: Mapping[str, str | None]
    max_attempts: int
    taxonomy: Taxonomy | None = None
    readout: Literal["json", "choices"] = "json"

    def labels(self) -> dict[str, str]:
        """Return the name of what plays each role, for the manifest."""
        return {
            role: binding.checkpoint
            if isinstance(binding, Checkpoint)
            else (world_name(binding) if isinstance(binding, WorldBinding) else self.pool.model(binding, role).name)
            for role, binding in self.bindings.items()
        }

    def game(self, role: str) -> Game | None:
        """Return the practice world that plays a role; None if a model does."""
        binding = self.bindings[role]
        if not isinstance(binding, WorldBinding):
            return None
        return Game.of(binding.world, self.taxonomy)

    def options(self, role: str) -> RoleOptions:
        """Return the binding of a role that writes or rates text."""
        binding = self.bindings[role]
        assert isinstance(binding, RoleOptions), f"{role} is bound as what is measured"
        return binding

    def seeker(self) -> Seeker:
        """Return the seeker of simulations and self-play."""
        if game := self.game("seeker"):
            return WorldSeeker(game)
        return PromptedSeeker(*self._prompted("seeker"))

    def aflow_seeker(self, memories: Mapping[str, Sequence[Turn]], *, memory_guard: bool) -> Seeker:
        """Return the seeker of a search; see :class:`~esckit.roles.players.AFlowSeeker`."""
        if game := self.game("seeker"):
            return WorldSeeker(game)
        spoken = self._prompted("seeker", "aflow seeker")
        return AFlowSeeker(*spoken, known_taxonomy(self.taxonomy), memories, memory_guard)

    def supporter(self) -> Supporter:
        """Return a flow checkpoint that writes, or a supporter of the kind that its prompt is for."""
        binding, taxonomy = self.options("supporter"), self.taxonomy
        if isinstance(binding, WorldSupporter) and (game := self.game("supporter")):
            return GrammarSupporter(game, binding.slips)
        if part_of("supporter", binding) == "writer":
            writer = self.pool.trained(binding, "writer", known_taxonomy(taxonomy)).model
            return FlowSupporter(writer, binding, self.pool.budget, self.max_attempts)
        voice, prompt = self._prompted("supporter")
        if run := trained_run(binding):
            _compare_prompts(run, prompt.identity)
        if "transcript" in prompt.variables:
            return AFlowSupporter(voice, prompt, known_taxonomy(taxonomy))
        definitions = {strategy.name: strategy.definition for strategy in taxonomy.strategies} if taxonomy else {}
        return PromptedSupporter(voice, prompt, definitions)

    def strategist(self) -> StrategyPolicy:
        """Return a trained policy, or a prompted strategist."""
        binding, taxonomy = self.bindings["strategist"], known_taxonomy(self.taxonomy)
        if part_of("strategist", binding) == "strategist":
            trained = self.pool.trained(binding, "strategist", taxonomy)
            return BudgetedPolicy(trained.model, self.pool.budget, "strategist", trained.name)
        if isinstance(binding, WorldStrategist) and (game := self.game("strategist")):
            return BaselineStrategist(game, binding.policy, taxonomy.names, solution(binding.world))
        return PromptedStrategist(*self._prompted("strategist"), taxonomy, self.readout)

    def resolution_critic(
        self, settings: sections.ResolutionCritic, preset: Preset | None = None
    ) -> ResolutionCritic | WorldResolutionCritic:
        """Return the critic of simulations and self-play; the preset has a prompt of its own."""
        binding, preset = self.options("critic"), preset or load_preset(settings.preset)
        if settings.samples_as == "choices" and not isinstance(binding, EndpointBinding):
            raise ConfigError("critic.samples_as: choices without an endpoint", expected="samples_as: null")
        if game := self.game("critic"):
            return WorldResolutionCritic(game, preset, settings)
        voice = self.pool.voice(binding, "critic", max_attempts=1)
        by_letter = asks_by_letter(voice, settings)
        name = self.prompts.get("critic") or preset.prompt + ("_letters" if by_letter else "")
        return ResolutionCritic(
            voice,
            load_prompt(name, "resolution critic"),
            preset,
            settings,
        )

    def rubric_critic(self, settings: sections.RubricCritic) -> Critic:
        """Return the critic of a search: a prompted one, or a trained reward model."""
        if settings.readout == "reward_model":
            trained = self.pool.trained(self.bindings["critic"], "scorer")
            return RewardCritic(trained.model, trained.name, self.pool.budget)
        return self._rater("critic", settings)

    def pair_judge(self, dimensions: tuple[str, ...]) -> PairJudge:
        """Return the judge of pairs of replies."""
        return PairJudge(*self._prompted("judge", prompt="judge_pairwise"), dimensions)

    def reply_judge(self) -> ReplyJudge:
        """Return the judge of single replies."""
        return ReplyJudge(*self._prompted("judge", prompt="judge_reply"))

    def turn_judge(self) -> Critic:
        """Return the judge of supporter turns in self-play, which rates by AFlow's rubric."""
        return self._rater("turn_judge", sections.RubricCritic())

    def _prompted(self, role: str, kind: str | None = None, *, prompt: str | None = None) -> tuple[Voice, Prompt]:
        """Return a chat model in a role, and its prompt."""
        name = prompt or role
        voice = self.pool.voice(self.options(role), role, max_attempts=self.max_attempts)
        return voice, role_prompt(name, self.prompts[name], taxonomy=self.taxonomy, kind=kind)

    def _rater(self, role: str, settings: sections.RubricCritic) -> Critic:
        if game := self.game(role):
            return WorldRubricCritic(game, settings)
        return RubricCritic(*self._prompted(role, "rubric critic"), settings)
