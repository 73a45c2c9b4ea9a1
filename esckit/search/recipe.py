"""The recipe of ``esckit search`` (AFlow, arXiv 2602.08826).

Defaults are the paper's or the released code's where they state a value, ours elsewhere.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from esckit.config import sections
from esckit.config.data import AlternatingData

_SAMPLING = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 128}

_Seeker = Annotated[sections.ModelBinding, sections.role_defaults(sampling=_SAMPLING, max_words=60)]

_Supporter = Annotated[sections.SupporterBinding, sections.role_defaults(sampling=_SAMPLING, max_words=75)]

_Critic = Annotated[sections.ModelBinding, sections.role_defaults(sampling=_SAMPLING)]

# Eight numbers as JSON can be longer than 128 tokens.
_Strategist = Annotated[sections.StrategistBinding, sections.role_defaults(sampling=_SAMPLING | {"max_tokens": 256})]


class SearchModels(sections.Roles):
    """Who plays whom; seeker and supporter have no part in ``search.mode: linear``."""

    seeker: _Seeker | None = None
    supporter: _Supporter | None = None
    critic: _Critic
    strategist: _Strategist


class SearchOptions(sections.Section):
    """What is grown.

    Attributes:
        mode: Search with ``mcts``, or take the corpus dialogues as they are (``linear``, the ablation without search).
        root_turns: Seeker turns of the seed dialogue in the root; fewer where the supporter answers fewer.
        root_turns_to: Draw for each tree how many seeker turns its root has, from ``root_turns`` up to this; None
            takes ``root_turns``.
        max_attempts: Calls in all for one answer.
        round: 0 for the first search, r if the strategist was trained on the trees of round r - 1.
        retry_failed: On resuming, grow failed trees again. Operational.
    """

    mode: Literal["mcts", "linear"] = "mcts"
    root_turns: int = Field(default=1, ge=1, le=5)
    root_turns_to: int | None = Field(default=None, ge=1, le=10)
    max_attempts: int = Field(default=3, ge=1, le=10)
    round: NonNegativeInt = 0
    retry_failed: bool = False

    @model_validator(mode="after")
    def _root_turns_in_order(self) -> Self:
        if self.root_turns_to is not None and self.root_turns_to < self.root_turns:
            raise ValueError("root_turns_to is less than root_turns")
        return self


class AFlowSeeker(sections.Section):
    """The seeker's own rules.

    Attributes:
        memory_guard: Refuse replies that quote eight words in a row from the seed dialogue.
    """

    memory_guard: bool = True


class Mcts(sections.Section):
    """The knobs of the search; equations in :mod:`esckit.search.expansion`.

    Attributes:
        n_simulations: Simulations per tree, failed ones and those that end at a known terminal included.
        max_depth: Depth at which a conversation ends.
        rollout_turns: Most supporter turns of a rollout, L; 0 values a leaf by its own turn.
        exploration: λ of the prior term.
        uniform_kappa: κ of the uniform part; 0 leaves it out.
        selection_temperature: τ of the softmax over scores; the paper's softmax has none, which is 1.
        prior_smoothing: Uniform part e mixed into every prior.
        leaf_parallelism: Leaves expanded at once; 1 is exact sequential search.
        virtual_value: Return of a virtual visit while a leaf is being expanded.
        trees_per_scenario: Trees grown from each seed dialogue.
        max_failed_simulations: More failures than this fail a tree; None is the larger of 3 and a tenth.
        keep_rollouts: Write the rollouts' turns and scores to ``rollouts.jsonl``.
    """

    n_simulations: int = Field(default=60, ge=1, le=100_000)
    max_depth: int = Field(default=10, ge=1, le=50)
    rollout_turns: int = Field(default=3, ge=0, le=20)
    exploration: float = Field(default=1.0, ge=0.0, le=100.0)
    uniform_kappa: float = Field(default=0.1, ge=0.0, le=10.0)
    selection_temperature: float = Field(default=0.1, gt=0.0, le=10.0)
    prior_smoothing: float = Field(default=0.01, ge=0.001, le=1.0)
    leaf_parallelism: int = Field(default=1, ge=1, le=64)
    virtual_value: float = Field(default=0.0, ge=0.0, le=1.0)
    trees_per_scenario: int = Field(default=1, ge=1, le=100)
    max_failed_simulations: NonNegativeInt | None = None
    keep_rollouts: bool = False

    @model_validator(mode="after")
    def _failures_within_budget(self) -> Self:
        if self.max_failed_simulations is not None and self.max_failed_simulations > self.n_simulations:
            raise ValueError("max_failed_simulations is more than n_simulations")
        return self

    @property
    def allowed_failures(self) -> int:
        """Failed simulations that a tree may have."""
        if self.max_failed_simulations is not None:
            return self.max_failed_simulations
        return max(3, self.n_simulations // 10)


class SearchPrompts(sections.Prompts):
    """Prompt of each role: the name of a shipped one, or a file."""

    seeker: str = "seeker_aflow"
    supporter: str = "supporter_aflow"
    critic: str = "critic_aflow"
    strategist: str = "strategist"


class Concurrency(sections.Section):
    """How much is in flight at once; changes no result. Operational.

    Attributes:
        trees: Trees that grow at the same time.
    """

    trees: PositiveInt = Field(default=8, le=1024)


class SearchRecipe(sections.ModelRecipe):
    """The recipe of ``esckit search``.

    Attributes:
        taxonomy: The strategies to search over, by the name of a taxonomy or as a file.
        strategist: How the strategist's prior over strategies is read.
    """

    command: Literal["search"]
    data: AlternatingData
    taxonomy: str = "aflow"
    models: SearchModels
    search: SearchOptions = SearchOptions()
    seeker: AFlowSeeker = AFlowSeeker()
    critic: sections.RubricCritic = sections.RubricCritic()
    strategist: sections.Strategist = sections.Strategist()
    mcts: Mcts = Mcts()
    prompts: SearchPrompts = SearchPrompts()
    concurrency: Concurrency = Concurrency()
    max_failure_rate: float = Field(default=0.05, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named = self.models.bindings()
        if self.search.mode == "mcts" and len(named) < len(SearchModels.model_fields):
            raise ValueError("search.mode: mcts needs models.seeker and models.supporter")
        if (self.critic.readout == "reward_model") != isinstance(self.models.critic, sections.Checkpoint):
            raise ValueError("critic.readout: reward_model and models.critic: {checkpoint: RUN} belong together")
        sections.check_prices(self.budget, named.values())
        sections.check_worlds(named, is_guided=True)
        return self
