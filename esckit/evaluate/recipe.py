"""The recipe of ``esckit evaluate``: which suites, on which cases, with whom, and what must hold.

Defaults are those of the published protocols where they state a value (PPDPP-style self-play as RLFF-ESC, arXiv
2508.12935, runs it; pairwise judging as in AFlow, arXiv 2602.08826), ours elsewhere.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from esckit.config.sections import (
    AlternatingData,
    BackboneBinding,
    Binding,
    Checkpoint,
    ModelBinding,
    ModelRecipe,
    Resume,
    Section,
    Strategist,
    check_prices,
    check_worlds,
    role_defaults,
)
from esckit.evaluate.suite import Suite
from esckit.evaluate.suites.dialogue import DIALOGUE, DialogueSettings
from esckit.evaluate.suites.pairwise import PAIRWISE, PairwiseSettings
from esckit.evaluate.suites.response import RESPONSE, ResponseSettings
from esckit.evaluate.suites.reward import REWARD, RewardSettings
from esckit.evaluate.suites.safety import SAFETY, SafetySettings
from esckit.evaluate.suites.strategy import STRATEGY, StrategySettings
from esckit.metrics.metric import Statistics
from esckit.predict.run import PredictConcurrency, PredictModels, PredictPrompts

SUITES = (STRATEGY, RESPONSE, DIALOGUE, PAIRWISE, REWARD, SAFETY)
"""In the order in which they are played: replies come before the pairs that are made of them."""


_GREEDY = {"temperature": 0.0}

_Seeker = Annotated[ModelBinding, role_defaults(sampling={**_GREEDY, "max_tokens": 64}, on_length="last_sentence")]

_Critic = Annotated[ModelBinding, role_defaults(sampling={"temperature": 1.1, "max_tokens": 16})]

_Judge = Annotated[ModelBinding, role_defaults(sampling={**_GREEDY, "max_tokens": 256})]


class EvaluateModels(PredictModels):
    """Who plays whom; roles that the chosen suites do not need are left out with a warning.

    Attributes:
        critic: Scores during self-play.
        judge: Scores for evaluation: pairs of replies, and replies to probes.
        turn_judge: Rates every turn of self-play by the AFlow rubric.
        scorer: A local language model for perplexity.
        reward: The reward model under test.
    """

    seeker: _Seeker | None = None
    critic: _Critic | None = None
    judge: _Judge | None = None
    turn_judge: _Judge | None = None
    scorer: BackboneBinding | None = None
    reward: Checkpoint | None = None


class EvaluateData(AlternatingData):
    """``data:`` of an evaluation.

    Attributes:
        allow_overlap: Evaluate on dialogues that a model was trained on, and flag every row.
        allow_cross_family: Evaluate under a split scheme of another family than that of training, and flag every row.
    """

    allow_overlap: bool = False
    allow_cross_family: bool = False


class EvaluateSettings(Section):
    """The switches of the suites, and what they share.

    Attributes:
        max_attempts: Tries in all for one reply, prediction or verdict.
    """

    strategy: StrategySettings = StrategySettings()
    response: ResponseSettings = ResponseSettings()
    dialogue: DialogueSettings = DialogueSettings()
    pairwise: PairwiseSettings = PairwiseSettings()
    reward: RewardSettings = RewardSettings()
    safety: SafetySettings = SafetySettings()
    max_attempts: int = Field(default=3, ge=1, le=10)


class Reliability(Section):
    """Human labels that the automatic judge is compared with: JSON lines of case_id, rater, dimension, label."""

    labels: str


class EvaluatePrompts(PredictPrompts):
    """Prompt of each role: the name of a shipped one, or a file.

    Attributes:
        strategist: None takes AFlow's own for its taxonomy, and one that fits any taxonomy elsewhere.
        supporter: One with a ``transcript`` is worded turn by turn under a strategy, as AFlow's supporter is.
        critic: None takes the preset's own.
    """

    seeker: str = "seeker"
    critic: str | None = None
    judge_pairwise: str = "judge_pairwise"
    judge_reply: str = "judge_reply"
    turn_judge: str = "critic_aflow"


class ReportSection(Section):
    """The page that is written at the end. Operational.

    Attributes:
        quotes: Show texts of dialogues also where their corpus may be for research use only.
    """

    quotes: bool = False


class EvaluateRecipe(ModelRecipe):
    """The recipe of ``esckit evaluate``."""

    OPERATIONAL: ClassVar[tuple[str, ...]] = (
        *(path for path in ModelRecipe.OPERATIONAL if not path.startswith("data.")),
        "statistics",
        "compare_to",
        "gates",
        "reliability",
        "references",
    )

    command: Literal["evaluate"]
    suites: tuple[Literal["strategy", "response", "dialogue", "pairwise", "reward", "safety"], ...] = Field(
        min_length=1
    )
    data: EvaluateData | None = None
    taxonomy: str | None = None
    models: EvaluateModels = EvaluateModels()
    settings: EvaluateSettings = Field(default=EvaluateSettings(), validate_default=True)
    strategist: Strategist = Strategist()
    predictions: str | None = None
    prompts: EvaluatePrompts = EvaluatePrompts()
    statistics: Statistics = Statistics()
    compare_to: str | None = None
    gates: dict[str, float] = Field(default_factory=dict)
    reliability: Reliability | None = None
    references: tuple[str, ...] | None = None
    concurrency: PredictConcurrency = PredictConcurrency()
    resume: Resume = Resume()
    report: ReportSection = ReportSection()
    max_failure_rate: float = Field(default=0.05, ge=0.0, le=1.0)

    @field_validator("suites")
    @classmethod
    def _once(cls, suites: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(suites)) < len(suites):
            raise ValueError("must be different")
        return suites

    @field_validator("settings")
    @classmethod
    def _strategist_speaks(cls, settings: EvaluateSettings, info: ValidationInfo) -> EvaluateSettings:
        """Write out whether a strategist leads self-play: it does where one is given."""
        if settings.dialogue.strategy is not None:
            return settings
        models = info.data.get("models", EvaluateModels())
        leads = models.strategist is not None and "dialogue" in info.data.get("suites", ())
        dialogue = settings.dialogue.model_copy(update={"strategy": "predicted" if leads else "none"})
        return settings.model_copy(update={"dialogue": dialogue})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        missing = [
            f"suite {suite.name} needs {field}"
            for suite in self.chosen
            for field in suite.needs(self)
            if not attrgetter(field)(self)
        ]
        if missing:
            raise ValueError("; ".join(missing))
        check_prices(self.budget, self.roles().values())
        check_worlds(self.roles(), is_guided="strategist" in self.roles())
        return self

    @property
    def chosen(self) -> tuple[Suite, ...]:
        """The suites, in the order in which they are played."""
        return tuple(suite for suite in SUITES if suite.name in self.suites)

    def roles(self) -> dict[str, Binding]:
        """Return the bindings that the chosen suites use, by role."""
        wanted = {role for suite in self.chosen for role in suite.roles(self)}
        return {role: binding for role, binding in self.models.bindings().items() if role in wanted}
