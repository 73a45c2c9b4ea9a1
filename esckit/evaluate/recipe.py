"""The recipe of ``esckit evaluate``: which suites, on which cases, with whom, and what must hold.

Defaults are those of the published protocols where they state a value (PPDPP-style self-play as RLFF-ESC, arXiv
2508.12935, runs it; pairwise judging as in AFlow, arXiv 2602.08826), ours elsewhere.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from esckit.config.data import AlternatingData
from esckit.config.sections import (
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
from esckit.evaluate.suites.injection import INJECTION
from esckit.evaluate.suites.pairwise import PAIRWISE, PairwiseSettings
from esckit.evaluate.suites.response import RESPONSE, ResponseSettings
from esckit.evaluate.suites.reward import REWARD, RewardSettings
from esckit.evaluate.suites.safety import SAFETY, SafetySettings
from esckit.evaluate.suites.strategy import STRATEGY, StrategySettings
from esckit.metrics.metric import Statistics
from esckit.predict.run import PredictConcurrency, PredictModels, PredictPrompts

SUITES = (STRATEGY, RESPONSE, DIALOGUE, PAIRWISE, REWARD, SAFETY, INJECTION)
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
    """Which dialogues to evaluate on; turns of one speaker are merged, since contexts alternate between speakers.

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
    """Human labels that the automatic judge is compared with.

    Attributes:
        labels: File of JSON lines, each with case_id, rater, dimension and label.
    """

    labels: str


class EvaluatePrompts(PredictPrompts):
    """Prompt of each role: the name of a shipped one, or a file.

    Attributes:
        judge_pairwise: Prompt of the judge of two replies, by name or as a file.
        judge_reply: Prompt of the judge of replies to probes, by name or as a file.
        turn_judge: Prompt of the judge of single turns, by name or as a file.
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


OwnMetric = Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]


class EvaluateRecipe(ModelRecipe):
    """The recipe of ``esckit evaluate``.

    Attributes:
        suites: What is measured, in any order; each suite has its settings in ``settings``.
        data: Which dialogues to evaluate on; None for suites that read no corpus.
        taxonomy: Name or file of the taxonomy of strategies; None takes the corpus's own.
        predictions: File of predictions, or the run folder of ``esckit predict``, that answers in place of the models.
        compare_to: Run folder of another evaluation to compare with, case by case; None compares with none.
            Operational.
        gates: Bound of each metric, such as ``{dialogue.rlff7.sr_strict: 0.5}``; a value on its bad side ends the
            command with exit code 1. Operational.
        references: Published tables to print beside the results, by id; None takes those of the suites where the corpus
            is a real one, ``[]`` prints none. Operational.
        metrics: Metrics of your own, as ``module:attr``, by the file of cases that they are computed over
            (``response``, ``dialogue`` …). Operational.
    """

    OPERATIONAL: ClassVar[tuple[str, ...]] = (
        *(path for path in ModelRecipe.OPERATIONAL if not path.startswith("data.")),
        "statistics",
        "metrics",
        "compare_to",
        "gates",
        "reliability",
        "references",
    )

    command: Literal["evaluate"]
    suites: tuple[Literal["strategy", "response", "dialogue", "pairwise", "reward", "safety", "injection"], ...] = (
        Field(min_length=1)
    )
    data: EvaluateData | None = None
    taxonomy: str | None = None
    models: EvaluateModels = EvaluateModels()
    settings: EvaluateSettings = Field(default=EvaluateSettings(), validate_default=True)
    strategist: Strategist = Strategist()
    predictions: str | None = None
    prompts: EvaluatePrompts = EvaluatePrompts()
    statistics: Statistics = Statistics()
    metrics: dict[str, tuple[OwnMetric, ...]] = Field(default_factory=dict)
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
        files = [file.name for suite in self.chosen for file in suite.files if file.is_wanted(self)]
        unknown = [name for name in self.metrics if name not in files]
        if unknown:
            raise ValueError(f"metrics.{unknown[0]}: not a file of cases here; expected one of {', '.join(files)}")
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
