"""The recipe of ``esckit evaluate``: which suites, on which cases, with whom, and what must hold.

Defaults are those of the published protocols where they state a value (PPDPP-style self-play as RLFF-ESC, arXiv
2508.12935, runs it; pairwise judging as in AFlow, arXiv 2602.08826), ours elsewhere.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from esckit.config.sections import (
    AlternatingData,
    BackboneBinding,
    CheckpointBinding,
    ModelBinding,
    ModelRecipe,
    Resume,
    RoleOptions,
    Section,
    Strategist,
    check_prices,
    role_defaults,
)

Suite = Literal["strategy", "response", "dialogue", "pairwise", "reward", "safety"]

Preset = Literal["rlff7", "ppdpp4"]

Dimension = Literal["fluency", "identification", "comfort", "suggestion", "overall", "empathy"]


_GREEDY = {"temperature": 0.0}

_Strategist = Annotated[ModelBinding, role_defaults(sampling={**_GREEDY, "max_tokens": 256})]

_Supporter = Annotated[ModelBinding, role_defaults(sampling={**_GREEDY, "max_tokens": 512}, on_length="last_sentence")]

_Seeker = Annotated[ModelBinding, role_defaults(sampling={**_GREEDY, "max_tokens": 64}, on_length="last_sentence")]

_Critic = Annotated[ModelBinding, role_defaults(sampling={"temperature": 1.1, "max_tokens": 16})]

_Judge = Annotated[ModelBinding, role_defaults(sampling={**_GREEDY, "max_tokens": 256})]


class EvaluateModels(Section):
    """Who plays whom; roles that the chosen suites do not need are left out with a warning.

    Attributes:
        critic: Scores during self-play.
        judge: Scores for evaluation: pairs of replies, and replies to probes.
        turn_judge: Rates every turn of self-play by the AFlow rubric.
        scorer: A local language model for perplexity.
        reward: The reward model under test.
    """

    strategist: _Strategist | None = None
    supporter: _Supporter | None = None
    seeker: _Seeker | None = None
    critic: _Critic | None = None
    judge: _Judge | None = None
    turn_judge: _Judge | None = None
    scorer: BackboneBinding | None = None
    reward: CheckpointBinding | None = None

    def bindings(self) -> dict[str, RoleOptions]:
        """Return the models that are named, by role."""
        return {role: binding for role, binding in self if binding is not None}


class StrategySettings(Section):
    """The suite ``strategy``: next-strategy prediction.

    Attributes:
        unit: Merged supporter turns, or every supporter utterance with a turn before it.
        source: Labels of the corpus, or the main line of held-out search trees.
        trees: Run folders of ``esckit search`` for ``source: expanded``.
        include_openings: With ``utterance``: also supporter utterances without a turn before them.
        exclude: Gold labels that are left out.
        bias_pseudo_count: Added to every off-diagonal cell for B; flags it ``smoothed``.
    """

    unit: Literal["turn", "utterance"] = "turn"
    source: Literal["gold", "expanded"] = "gold"
    trees: tuple[str, ...] = ()
    include_openings: bool = False
    exclude: tuple[str, ...] = ()
    bias_pseudo_count: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.include_openings and self.unit != "utterance":
            raise ValueError("include_openings needs unit: utterance")
        if (self.source == "expanded") != bool(self.trees):
            raise ValueError("trees and source: expanded go together")
        return self


class ResponseSettings(Section):
    """The suite ``response``: one reply to each gold context.

    Attributes:
        strategy: Which strategy the supporter is told.
        per_dialogue: Seeded subsample of so many contexts of each dialogue; None uses all.
    """

    strategy: Literal["gold", "predicted", "none"] = "none"
    per_dialogue: PositiveInt | None = None


class DialogueSettings(Section):
    """The suite ``dialogue``: self-play from the scenarios of the split.

    Attributes:
        critics: Presets that score the same dialogues.
        strategy: Whether the strategist names the strategy of every supporter turn; by default where there is one.
        samples: Answers asked for by ``readout: sampled``.
        max_attempts: Rounds of ``samples`` in all until one round is readable.
        ppdpp_compat: PPDPP's own prompts, clipping at 32 tokens and parsing; nothing readable counts as 0.
    """

    critics: tuple[Preset, ...] = Field(default=("rlff7",), min_length=1)
    max_turns: int = Field(default=8, ge=1, le=100)
    strategy: Literal["none", "predicted"] | None = None
    readout: Literal["sampled", "expected"] = "sampled"
    samples: PositiveInt = 10
    max_attempts: PositiveInt = 2
    min_parsed: PositiveInt = 1
    expected_score: Literal["sequence", "length_normalised"] = "sequence"
    ppdpp_compat: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.critics)) < len(self.critics):
            raise ValueError("critics must be different")
        if self.min_parsed > self.samples:
            raise ValueError(f"min_parsed ({self.min_parsed}) is more than samples ({self.samples})")
        return self


class PairwiseSettings(Section):
    """The suite ``pairwise``: two systems' replies to one context.

    Attributes:
        opponent: A run folder of ``esckit evaluate`` or ``esckit predict``, or a predictions file.
        swap: Judge every pair in both orders; otherwise once in a drawn order.
        contexts: Sample size, one per dialogue while enough dialogues exist; None uses all contexts.
    """

    opponent: str | None = None
    dimensions: tuple[Dimension, ...] = Field(
        default=("fluency", "identification", "comfort", "suggestion", "overall"), min_length=1
    )
    swap: bool = True
    contexts: PositiveInt | None = 100


class RewardSettings(Section):
    """The suite ``reward``: a reward model on scored futures of held-out dialogues; ``inputs`` are simulate runs."""

    inputs: tuple[str, ...] = ()


class SafetySettings(Section):
    """The suite ``safety``: crisis probes and sycophancy probes, small screening sets.

    Attributes:
        resources: Names of local services that count as a referral as well.
    """

    crisis: bool = True
    sycophancy: bool = True
    resources: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.crisis or self.sycophancy):
            raise ValueError("neither crisis nor sycophancy probes")
        return self


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


class Statistics(Section):
    """How intervals, comparisons and gates are computed. Operational: changing them only recomputes.

    Attributes:
        min_coverage: Below this share of scored cases a row is flagged and gates on it fail.
        force_compare: Print both runs' values without tests where the runs are not comparable.
        gates_on: Gates look at the value, or at the worse end of its interval.
    """

    resamples: int = Field(default=10_000, ge=100, le=1_000_000)
    level: float = Field(default=0.95, gt=0.5, lt=1.0)
    min_coverage: float = Field(default=0.95, ge=0.0, le=1.0)
    force_compare: bool = False
    gates_on: Literal["value", "bound"] = "value"


class Reliability(Section):
    """Human labels that the automatic judge is compared with: JSON lines of case_id, rater, dimension, label."""

    labels: str


class EvaluatePrompts(Section):
    """Prompt of each role: the name of a shipped one, or a file.

    Attributes:
        strategist: None takes AFlow's own for its taxonomy, and one that fits any taxonomy elsewhere.
        supporter: One with a ``transcript`` is worded turn by turn under a strategy, as AFlow's supporter is.
        critic: None takes the preset's own.
    """

    strategist: str | None = None
    supporter: str = "supporter_rlff"
    seeker: str = "seeker"
    critic: str | None = None
    judge_pairwise: str = "judge_pairwise"
    judge_reply: str = "judge_reply"
    turn_judge: str = "critic_aflow"


class EvaluateConcurrency(Section):
    """How much is in flight at once; changes no result. Operational."""

    cases: PositiveInt = Field(default=16, le=1024)


class ReportSection(Section):
    """The page that is written at the end. Operational.

    Attributes:
        quotes: Show texts of dialogues also where their corpus may be for research use only.
    """

    quotes: bool = False


def _speakers(*, told: bool) -> tuple[str, ...]:
    """Return who makes a reply, a strategist included where the supporter is told a strategy."""
    return ("strategist", "supporter") if told else ("supporter",)


class EvaluateRecipe(ModelRecipe):
    """Everything that ``esckit evaluate`` can be told."""

    OPERATIONAL: ClassVar[tuple[str, ...]] = (
        *ModelRecipe.OPERATIONAL,
        "statistics",
        "compare_to",
        "gates",
        "reliability",
        "references",
    )

    command: Literal["evaluate"]
    suites: tuple[Suite, ...] = Field(min_length=1)
    data: AlternatingData | None = None
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
    concurrency: EvaluateConcurrency = EvaluateConcurrency()
    resume: Resume = Resume()
    report: ReportSection = ReportSection()
    max_failure_rate: float = Field(default=0.05, ge=0.0, le=1.0)

    @field_validator("suites")
    @classmethod
    def _once(cls, suites: tuple[Suite, ...]) -> tuple[Suite, ...]:
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
        missing = [f"suite {suite} needs {need}" for suite in self.suites for need in self._missing(suite)]
        if missing:
            raise ValueError("; ".join(missing))
        check_prices(self.budget, self.roles().values())
        return self

    def roles(self) -> dict[str, RoleOptions]:
        """Return the bindings that the chosen suites use, by role."""
        wanted = {role for suite in self.suites for role in self.roles_of(suite)}
        return {role: binding for role, binding in self.models.bindings().items() if role in wanted}

    def roles_of(self, suite: str) -> tuple[str, ...]:
        """Return the roles that take part in a suite, bound or not."""
        settings = self.settings
        replies = _speakers(told=settings.response.strategy == "predicted")
        plays = _speakers(told=settings.dialogue.strategy == "predicted")
        return {
            "strategy": ("strategist",),
            "response": (*replies, "scorer"),
            "dialogue": (*plays, "seeker", "critic", "turn_judge"),
            "pairwise": (*replies, "judge"),
            "reward": ("reward",),
            # A strategist speaks along on probes wherever it does in the other suites.
            "safety": (*max(replies, plays, key=len), "judge"),
        }[suite]

    def _missing(self, suite: Suite) -> list[str]:
        """Return what a suite lacks."""
        named, settings = self.models.bindings(), self.settings
        from_file = self.predictions is not None and suite in ("strategy", "response", "pairwise")
        optional = {"scorer", "turn_judge", *(("strategist", "supporter") if from_file else ())}
        needs = [f"models.{role}" for role in self.roles_of(suite) if role not in optional and role not in named]
        if suite == "pairwise" and settings.pairwise.opponent is None:
            needs.append("settings.pairwise.opponent")
        if suite == "reward" and not settings.reward.inputs:
            needs.append("settings.reward.inputs")
        on_corpus = suite in ("response", "dialogue", "pairwise") or (
            suite == "strategy" and settings.strategy.source == "gold"
        )
        if on_corpus and self.data is None:
            needs.append("data")
        return needs
