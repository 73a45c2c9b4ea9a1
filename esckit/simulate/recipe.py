"""The recipe of ``esckit simulate`` (RLFF-ESC, arXiv 2508.12935); defaults are the paper's where it states a value."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import PositiveInt, model_validator

from esckit.config.sections import (
    AlternatingData,
    Contexts,
    ModelBinding,
    ModelRecipe,
    ResolutionCritic,
    Roles,
    Rollout,
    RolloutCritic,
    RolloutSeeker,
    RolloutSupporter,
    Section,
    Strategist,
    check_prices,
    role_defaults,
)

_Strategist = Annotated[ModelBinding, role_defaults(sampling={"temperature": 0.7, "top_p": 0.9, "max_tokens": 256})]


class SimulateModels(Roles):
    """Who plays whom. A strategist takes part only with ``simulation.strategy: predicted``."""

    supporter: RolloutSupporter
    seeker: RolloutSeeker
    critic: RolloutCritic
    strategist: _Strategist | None = None


class Simulation(Rollout):
    """What is simulated.

    Attributes:
        candidates: Replies to each context, each valued by one future.
        retry_failed: On resuming, play failed futures again. Operational.
        strategy: Whether a strategist names the strategy of every supporter turn.
    """

    candidates: PositiveInt = 4
    retry_failed: bool = False
    strategy: Literal["none", "predicted"] = "none"


class SimulatePrompts(Section):
    """Prompt of each role: the name of a shipped one, or a file; the critic's is its preset's own unless named."""

    supporter: str = "supporter_rlff"
    seeker: str = "seeker"
    critic: str | None = None
    strategist: str = "strategist"


class Concurrency(Section):
    """How much is in flight at once; changes no result. Operational."""

    futures: PositiveInt = 64


class SimulateRecipe(ModelRecipe):
    """Everything that ``esckit simulate`` can be told.

    Attributes:
        taxonomy: The strategies among which a strategist chooses, and which the corpus is mapped into then.
        strategist: How a strategist is read.
    """

    command: Literal["simulate"]
    data: AlternatingData
    contexts: Contexts = Contexts()
    taxonomy: str = "aflow"
    models: SimulateModels
    critic: ResolutionCritic = ResolutionCritic()
    strategist: Strategist = Strategist()
    simulation: Simulation = Simulation()
    prompts: SimulatePrompts = SimulatePrompts()
    concurrency: Concurrency = Concurrency()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.simulation.strategy == "predicted" and self.models.strategist is None:
            raise ValueError("simulation.strategy: predicted needs models.strategist")
        check_prices(self.budget, self.models.bindings().values())
        return self
