"""The recipe of ``esckit simulate`` (RLFF-ESC, arXiv 2508.12935); defaults are the paper's where it states a value."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from esckit.config.data import AlternatingData
from esckit.config.models import ModelBinding, check_prices, role_defaults
from esckit.config.recipe import DecimalText, ModelRecipe, Section
from esckit.config.search import Strategist

_Supporter = Annotated[
    ModelBinding,
    role_defaults(sampling={"temperature": 1.1, "top_k": 80, "max_tokens": 512}, on_length="last_sentence"),
]
_Seeker = Annotated[
    ModelBinding, role_defaults(sampling={"temperature": 0.7, "max_tokens": 64}, on_length="last_sentence")
]
_Critic = Annotated[ModelBinding, role_defaults(sampling={"temperature": 1.1, "max_tokens": 16})]
_Strategist = Annotated[ModelBinding, role_defaults(sampling={"temperature": 0.7, "top_p": 0.9, "max_tokens": 256})]


class Contexts(Section):
    """Which prefixes of a dialogue are used, and how they are cut.

    Attributes:
        supporter_opening: What becomes of a supporter turn that opens the conversation.
        situation_first: Insert the situation as the first seeker turn.
        per_dialogue: Seeded subsample of so many contexts of each dialogue; None uses all.
    """

    supporter_opening: Literal["drop", "keep"] = "drop"
    situation_first: bool = False
    per_dialogue: PositiveInt | None = None


class SimulateModels(Section):
    """Who plays whom. A strategist takes part only with ``simulation.strategy: predicted``."""

    supporter: _Supporter
    seeker: _Seeker
    critic: _Critic
    strategist: _Strategist | None = None


class ResolutionCritic(Section):
    """How the resolution critic is asked and read.

    Attributes:
        preset: The levels and their values.
        readout: ``sampled`` answers, or the ``expected`` value from the levels' log-probabilities.
        samples: Answers asked for by ``sampled``.
        threshold: The mean must lie strictly above it; a decimal, compared exactly.
        max_attempts: Rounds of ``samples`` in all until one round is readable.
        min_parsed: Answers of a round that must be readable.
        expected_score: Log-probability of a level name as it is, or by token.
        ppdpp_compat: Count an unreadable round as 0, as PPDPP's code does; counted in the summary.
    """

    preset: Literal["rlff7", "ppdpp4"] = "rlff7"
    readout: Literal["sampled", "expected"] = "sampled"
    samples: PositiveInt = 10
    threshold: DecimalText = "0.5"
    max_attempts: PositiveInt = 2
    min_parsed: PositiveInt = 1
    expected_score: Literal["sequence", "length_normalised"] = "sequence"
    ppdpp_compat: bool = False

    @field_validator("threshold")
    @classmethod
    def _in_range(cls, threshold: str) -> str:
        if abs(Fraction(threshold)) > 1:
            raise ValueError("must lie in [-1, 1], where the critic's values lie")
        return threshold

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.min_parsed > self.samples:
            raise ValueError(f"min_parsed ({self.min_parsed}) is more than samples ({self.samples})")
        return self


class Simulation(Section):
    """What is simulated.

    Attributes:
        candidates: Replies to each context, each valued by one future.
        horizon: Exchanges after the candidate's own, at most.
        score_first_exchange: Ask the critic after the candidate's own exchange too, and perhaps stop there.
        max_attempts: Tries in all for one reply.
        retry_failed: On resuming, play failed futures again. Operational.
        strategy: Whether a strategist names the strategy of every supporter turn.
    """

    candidates: PositiveInt = 4
    horizon: PositiveInt = 8
    score_first_exchange: bool = False
    max_attempts: int = Field(default=3, ge=1, le=10)
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
        roles = self.models
        if self.simulation.strategy == "predicted" and roles.strategist is None:
            raise ValueError("simulation.strategy: predicted needs models.strategist")
        check_prices(self.budget, (roles.supporter, roles.seeker, roles.critic, roles.strategist))
        return self
