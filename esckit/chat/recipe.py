"""The recipe of ``esckit chat`` and ``esckit serve``: who answers the user, who names strategies, who reads along.

A chat is a dialogue whose seeker is the user. The other roles are those that a run plays with, bound and prompted as
there, so that one talks to what is measured.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from esckit.config import sections
from esckit.types import Limits

_Supporter = Annotated[
    sections.SupporterBinding,
    sections.role_defaults(sampling={"temperature": 0.0, "max_tokens": 512}, on_length="last_sentence"),
]

_Strategist = Annotated[
    sections.StrategistBinding, sections.role_defaults(sampling={"temperature": 0.0, "max_tokens": 256})
]

_Critic = Annotated[sections.ModelBinding, sections.role_defaults(sampling={"temperature": 1.1, "max_tokens": 16})]


class ChatModels(sections.Roles):
    """Who takes part.

    Attributes:
        strategist: Names the strategy of every reply.
        critic: Reads the conversation where the user asks for it; no reply depends on it.
    """

    supporter: _Supporter
    strategist: _Strategist | None = None
    critic: _Critic | None = None


class Chat(sections.Section):
    """How replies are made.

    Attributes:
        strategy: Whether the strategist names the strategy of every reply; by default where there is one.
        max_attempts: Tries in all for one answer.
    """

    strategy: Literal["none", "predicted"] | None = None
    max_attempts: int = Field(default=3, ge=1, le=10)


class ChatScenario(sections.Section):
    """What is known of the user beforehand; a policy that was trained with situations reads it, and a critic.

    Attributes:
        situation: The user's situation in a few sentences; empty says nothing.
        emotion_type: What the user feels, such as anxiety; None says nothing.
        problem_type: What the user's problem is about, such as work; None says nothing.
    """

    situation: str = ""
    emotion_type: str | None = None
    problem_type: str | None = None


class ChatPrompts(sections.Prompts):
    """Prompt of each role: the name of a shipped one, or a file.

    Attributes:
        strategist: None takes AFlow's own for its taxonomy, and one that fits any taxonomy elsewhere.
    """

    supporter: str = "supporter_rlff"
    strategist: str | None = None
    critic: str | None = None


class ChatRecipe(sections.Recipe):
    """The recipe of ``esckit chat``.

    Attributes:
        taxonomy: Name or file of the taxonomy of strategies; None takes those of a trained strategist.
        critic: How the critic is asked whether the user's problem is solved.
        rubric: With it the critic rates the last reply instead, by AFlow's rubric or as a reward model.
        cache: File with the answers of servers, which are asked for once; None takes the environment variable
            ``ESCKIT_CACHE``, or no cache. Operational.
    """

    command: Literal["chat"]
    taxonomy: str | None = None
    models: ChatModels
    chat: Chat = Chat()
    scenario: ChatScenario = ChatScenario()
    strategist: sections.Strategist = sections.Strategist()
    critic: sections.ResolutionCritic = sections.ResolutionCritic()
    rubric: sections.RubricCritic | None = None
    prompts: ChatPrompts = ChatPrompts()
    budget: Limits = Limits()
    cache: str | None = Field(default=None, min_length=1)
    executor: sections.LocalModels = sections.LocalModels()

    @property
    def is_guided(self) -> bool:
        """Whether a strategist names the strategy of every reply."""
        return self.models.strategist is not None and self.chat.strategy != "none"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.chat.strategy == "predicted" and self.models.strategist is None:
            raise ValueError("chat.strategy: predicted needs models.strategist")
        sections.check_prices(self.budget, self.models.bindings().values())
        sections.check_worlds(self.models.bindings(), is_guided=self.is_guided)
        return self
