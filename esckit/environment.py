"""The seeker, the critic and the rules of an evaluation as an environment of the library ``verifiers`` (v1).

Any recipe of ``esckit evaluate`` that can play dialogues is such an environment. The model that the other library
trains or evaluates takes the place of the recipe's supporter; seekers, critic, prompts, seeds and the end of a dialogue
are those of esckit (:func:`esckit.play.rollout.play_episode`), so a policy meets here the dialogue that it meets there.

The library imports the module that an id names, and takes what its ``__all__`` names: the id is ``esckit``, and the
package passes these names on. It needs ``esckit[verifiers]``, in an environment of its own (docs/environment.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import verifiers.v1 as vf
from openai import AsyncOpenAI
from pydantic import Field, model_validator
from verifiers.v1.dialects.chat import message_to_wire

from esckit.config.load import load_recipe
from esckit.config.sections import RoleOptions
from esckit.errors import BACKEND_KINDS, BackendError, ConfigError, EsckitError, ModelError
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.suite import Material
from esckit.evaluate.suites.dialogue import DIALOGUE, self_play_cast, supporter_prompt
from esckit.ledger import Ledger, Scope, derive_seed
from esckit.models.chat import make_reply
from esckit.play.rollout import SUCCESS, Played, play_episode
from esckit.prompts.prompt import Prompt
from esckit.roles.cast import Casting
from esckit.roles.players import read_supporter
from esckit.roles.pool import ModelPool, look_up
from esckit.types import Generation, Scenario, StopReason, Turn, Usage

__all__ = ["ChatHarness", "DialogueEnv", "DialogueTaskset"]

WORST = -1.0
"""The lowest value of a critic: what a dialogue is worth that the policy ends by saying nothing usable."""


# ---------------------------------------------------------------- data


class DialogueTasksetConfig(vf.TasksetConfig):
    """Which dialogues are played, and what they are rewarded for.

    Attributes:
        recipe: Name or file of a recipe of ``esckit evaluate`` that can play dialogues; its supporter is not used.
        changes: Changes to single fields of it, ``a.b=c`` each, as ``--set`` takes them: ``data.path``, ``data.limit``,
            ``models.seeker``, ``models.critic``, ``settings.dialogue.max_turns`` …
        profile: Profile of the practice world that seekers and critic are of; None leaves the recipe's.
        reward: ``success`` is 1 if the critic saw the seeker's problem solved and 0 if not; ``progress`` is the
            critic's value at the end less its value at the beginning, in [-2, 2].
    """

    recipe: str = "practice/evaluate_rl"
    changes: list[str] = Field(default_factory=list)
    profile: str | None = None
    reward: Literal["success", "progress"] = "success"

    def loaded(self) -> EvaluateRecipe:
        """Return the recipe that is played.

        Raises:
            EsckitError: If it is wrong, or cannot be played by a policy from outside.
        """
        fixed = ["suites=[dialogue]", "models.turn_judge=null"]
        if self.profile is not None:
            seekers = f"{{world: {self.profile}}}"
            fixed += [f"models.seeker={seekers}", f"models.critic={seekers}", f"data.path=world:{self.profile}/1200"]
        recipe = load_recipe(self.recipe, EvaluateRecipe, overrides=[*fixed, *self.changes]).recipe
        if recipe.settings.dialogue.strategy != "none":
            raise ConfigError(
                f"recipe {self.recipe} has a strategist, which no policy from outside listens to",
                expected="settings.dialogue.strategy: none, and a prompt that needs no strategy",
            )
        if recipe.settings.dialogue.ppdpp_compat:
            raise ConfigError(
                f"recipe {self.recipe} has settings.dialogue.ppdpp_compat, which clips what a supporter writes",
                expected="ppdpp_compat: false",
            )
        look_up([recipe.models.seeker, recipe.models.critic])
        return recipe

    @model_validator(mode="after")
    def _can_be_played(self) -> Self:
        try:
            self.loaded()
        except EsckitError as error:
            raise ValueError(str(error)) from error
        return self


class DialogueData(vf.TaskData):
    """A seeker to be supported; the policy reads none of it but what the seeker says."""

    scenario: Scenario


class DialogueTask(vf.Task[DialogueData]):
    """A dialogue with one seeker."""

    @property
    def key(self) -> str:
        """The scenario's id."""
        return self.data.scenario.id


class DialogueTaskset(vf.Taskset[DialogueTask, DialogueTasksetConfig]):
    """The seekers of a recipe's corpus, in its order."""

    def load(self) -> Iterator[DialogueTask]:
        """Yield one task a seeker.

        Raises:
            EsckitError: If the corpus is not there or wrong, or a seeker has no situation to open with.
        """
        recipe = self.config.loaded()
        told = _system_prompt(supporter_prompt(recipe))
        for unit in DIALOGUE.files[0].work(Material(recipe)).units:
            yield DialogueTask(DialogueData(name=unit.id, system_prompt=told, scenario=unit.what), self.config.task)


def _system_prompt(prompt: Prompt) -> str:
    messages = prompt.render(strategy=None)
    if any(message.role != "system" for message in messages):
        raise ConfigError(f"prompt {prompt.name} speaks as a user", expected="a supporter's prompt of system messages")
    return "\n\n".join(message.content for message in messages)


# ---------------------------------------------------------------- the policy


class ChatHarnessConfig(vf.HarnessConfig):
    """Settings of :class:`ChatHarness`: none of its own."""


class ChatHarness(vf.Harness[ChatHarnessConfig]):
    """Asks the policy for one turn in this process; a talk needs no program, no tools and no sandbox."""

    APPENDS_SYSTEM_PROMPT: ClassVar[bool] = True
    SUPPORTS_RESUME: ClassVar[bool] = True
    EXECUTES_CODE: ClassVar[bool] = False
    NEEDS_CONTAINER: ClassVar[bool] = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Ask for the next message of the conversation; the library records request and answer."""
        system, prompt = self.resolve_prompt(data)
        assert isinstance(prompt, list), "the seeker opens the conversation"
        told = [vf.SystemMessage(content=system)] if system else []
        async with AsyncOpenAI(base_url=endpoint, api_key=secret) as client:
            messages = [message_to_wire(message) for message in (*told, *prompt)]
            await client.chat.completions.create(model=ctx.model, messages=messages)
        return vf.ProgramResult(0, "", "")


@dataclass(frozen=True, slots=True)
class Policy:
    """The model that the other library asks, as a supporter.

    Attributes:
        talk: The library's side of the dialogue; None before one has begun.
        options: What a valid turn is, as the recipe says of its supporter; how it is sampled is the library's affair.
        prompt: The supporter's prompt.
    """

    talk: vf.Interaction | None
    options: RoleOptions
    prompt: Prompt

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn. The library keeps the conversation, with what the policy wrote as it wrote it.

        Raises:
            ParseError: If the turn is blank, cut or too long, as the recipe understands it.
            BackendError: If the library ended the rollout in place of a turn.
        """
        assert self.talk is not None
        segment = await self.talk.turn(turns[-1].text)
        if segment.terminated:
            raise BackendError("the policy gave no turn")
        call, said = self.talk.trace.calls[-1], segment.messages[-1]
        reason = StopReason.LENGTH if call.finish_reason == "length" else StopReason.STOP
        text, thought = said.content or "", said.reasoning_content or ""
        whole = make_reply(text, reason, Usage(calls=1), max_tokens=len(text + thought), reasoning=thought or None)
        return read_supporter(whole, self.options, self.prompt)


# ---------------------------------------------------------------- the environment


class DialogueEnvConfig(vf.EnvConfig):
    """Who plays: the policy as supporter. Seeker and critic are esckit's and no agents of the library."""

    supporter: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class DialogueEnv(vf.Env[DialogueEnvConfig]):
    """Dialogues between esckit's seekers and a policy, rewarded by esckit's critic."""

    def __init__(self, config: DialogueEnvConfig) -> None:
        super().__init__(config)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Load the seeker and the critic.

        Raises:
            EsckitError: If one of them cannot be had, or cannot do what its role needs.
        """
        self._taskset: DialogueTasksetConfig = self.config.taskset
        self._recipe = recipe = self._taskset.loaded()
        self._n_played = Counter[str]()
        bindings = {"seeker": recipe.models.seeker, "critic": recipe.models.critic}
        pool = await self._stack.enter_async_context(ModelPool(recipe.executor, recipe.budget, recipe.cache))
        await pool.prepare(bindings)
        casting = Casting(pool, bindings, recipe.prompts.model_dump(), recipe.settings.max_attempts)
        self._policy = Policy(None, recipe.models.supporter, supporter_prompt(recipe))
        everybody = self_play_cast(recipe, casting, self._policy)
        # One critic gives the reward; without the others it hears the same dialogue.
        self._critic = recipe.settings.dialogue.critics[0]
        self._cast = replace(everybody, critics={self._critic: everybody.critics[self._critic]})

    async def stop(self) -> None:
        """Release the models."""
        await self._stack.aclose()

    async def run(self, task: DialogueTask, agents: vf.Agents) -> None:
        """Play one dialogue and record its reward on the supporter's trace.

        The first dialogue with a seeker has the draws of ``esckit evaluate``; every further one has its own.

        Raises:
            ModelError: If seeker or critic failed: the rollout has failed, and has no reward.
        """
        recipe, scenario = self._recipe, task.data.scenario
        again = self._n_played[scenario.id]
        self._n_played[scenario.id] += 1
        seed = derive_seed("again", recipe.seed, again) if again else recipe.seed
        async with agents.supporter.interaction(task) as talk:
            cast = replace(self._cast, supporter=replace(self._policy, talk=talk))
            played = await play_episode(
                scenario, cast=cast, max_turns=recipe.settings.dialogue.max_turns, run_seed=seed
            )
            _require_measured(played)
            if talk.trace.errors:
                return  # the call to the policy failed, which the library has recorded
            readings = [turn.readings[self._critic] for turn in played.turns if turn.readings]
            talk.trace.record_metric("turns", len(played.turns))
            if self._taskset.reward == "success":
                reward = float(bool(readings) and readings[-1].fraction > SUCCESS)
            else:
                start = await self._opening_value(scenario, seed)
                end = WORST if _says_nothing(played) else readings[-1].value if readings else start
                reward = end - start
            talk.trace.record_reward(self._taskset.reward, reward)

    async def _opening_value(self, scenario: Scenario, seed: int) -> float:
        """Return the critic's value of a conversation in which only the seeker has spoken, in [-1, 1]."""
        opening = (Turn(speaker="seeker", text=scenario.situation),)
        scope = Ledger(seed, scenario.id).at(0, self._critic)
        return (await self._cast.critics[self._critic].score(scenario, opening, scope)).reward


def _require_measured(played: Played) -> None:
    """Refuse a dialogue in which seeker or critic failed.

    Raises:
        ModelError: If one of them did.
    """
    for failure in (played.failure, *played.critic_failures.values()):
        if failure is not None and failure.stage != "supporter":
            raise ModelError(f"the {failure.stage} failed at turn {failure.turn}: {failure.message}", kind=failure.kind)


def _says_nothing(played: Played) -> bool:
    """Return whether the policy ended the dialogue with a turn that cannot be used, not a limit of the library."""
    return played.failure is not None and played.failure.kind not in BACKEND_KINDS
