"""The recipe of ``esckit predict``: what a strategist and a supporter say at the turns of some dialogues."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from esckit.config.sections import (
    AlternatingData,
    ModelBinding,
    ModelRecipe,
    Resume,
    Roles,
    Section,
    Strategist,
    check_prices,
    role_defaults,
)

_Strategist = Annotated[ModelBinding, role_defaults(sampling={"temperature": 0.0, "max_tokens": 256})]

_Supporter = Annotated[
    ModelBinding, role_defaults(sampling={"temperature": 0.0, "max_tokens": 512}, on_length="last_sentence")
]


class PredictModels(Roles):
    """Who speaks: a strategist, a supporter or both."""

    strategist: _Strategist | None = None
    supporter: _Supporter | None = None


class Predict(Section):
    """What is predicted.

    Attributes:
        at: Every supporter turn of the dialogues, or what comes after their last turn.
        strategy: Which strategy the supporter is given: the strategist's, the corpus's own, or none.
        max_attempts: Tries in all for one answer.
    """

    at: Literal["turns", "end"] = "turns"
    strategy: Literal["predicted", "gold", "none"] = "none"
    max_attempts: int = Field(default=3, ge=1, le=10)


class PredictPrompts(Section):
    """Prompt of each role: the name of a shipped one, or a file; see ``esckit evaluate``."""

    strategist: str | None = None
    supporter: str = "supporter_rlff"


class PredictConcurrency(Section):
    """How much is in flight at once; changes no result. Operational."""

    cases: PositiveInt = Field(default=16, le=1024)


class PredictRecipe(ModelRecipe):
    """Everything that ``esckit predict`` can be told."""

    command: Literal["predict"]
    data: AlternatingData
    taxonomy: str | None = None
    models: PredictModels
    predict: Predict = Predict()
    strategist: Strategist = Strategist()
    prompts: PredictPrompts = PredictPrompts()
    concurrency: PredictConcurrency = PredictConcurrency()
    resume: Resume = Resume()
    max_failure_rate: float = Field(default=0.05, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named = self.models.bindings()
        if not named:
            raise ValueError("models names nobody: a strategist, a supporter or both")
        if self.predict.strategy == "predicted" and len(named) < len(PredictModels.model_fields):
            raise ValueError("predict.strategy: predicted needs models.strategist and models.supporter")
        if self.predict.strategy == "gold" and self.predict.at == "end":
            raise ValueError("predict.strategy: gold needs at: turns, since nobody knows what comes next")
        check_prices(self.budget, named.values())
        return self
