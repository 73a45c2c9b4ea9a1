"""The recipe of ``esckit train-flow``; defaults are those of the released code of AFlow (arXiv 2602.08826)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from esckit.config.data import CorpusSource, Ratios, Scheme, Split
from esckit.config.sections import Names, Recipe, Section, Threads, named_or_own
from esckit.config.training import Lora, Optim, Precision, TrainedModel

Negatives = Literal["visited", "low_prior", "visited_then_low_prior"]


class GoldData(CorpusSource):
    """Corpus dialogues whose own strategies are learnt, without any search.

    Attributes:
        scheme: How the corpus is split.
        seed: Seed of ``scheme: ratio``.
        ratios: Shares of train, valid and test in ``scheme: ratio``; they sum to 1.
        split: The part to train on.
        valid_split: The part that selects the checkpoint and ``logit_adjust``.
        test_split: The part evaluated once, at the end; None for none.
        unit: A decision before every supporter ``utterance``, openings included, or before every merged ``turn``.
        taxonomy: Name or file of the taxonomy of the labels, or of what they are mapped into; None takes the corpus's.
        mapping: Name or file of a strategy mapping into another taxonomy.
        limit: Number of dialogues of each part, in load order; None uses all.
    """

    scheme: Scheme
    seed: NonNegativeInt = 13
    ratios: Ratios = (0.8, 0.1, 0.1)
    split: Split = "train"
    valid_split: Split = "valid"
    test_split: Split | None = "test"
    unit: Literal["utterance", "turn"] = "utterance"
    taxonomy: str | None = None
    mapping: str | None = None
    limit: PositiveInt | None = None


class FlowData(Section):
    """What is learnt from: search trees, or a corpus.

    Attributes:
        trees: Run folders of ``esckit search``, or their ``trees.jsonl``.
        split: Split of the trees to train on.
        valid_split: Split of the trees that select the checkpoint; None goes without.
        min_actions: Least number of actions of a path.
        gold: Corpus dialogues instead of trees; needs ``objective.name: bc``.
    """

    trees: Names = ()
    split: Split = "train"
    valid_split: Split | None = "valid"
    min_actions: PositiveInt = 2
    gold: GoldData | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.trees) == (self.gold is not None):
            raise ValueError("needs either trees or gold")
        if self.valid_split == self.split:
            raise ValueError("valid_split must differ from split")
        return self


class FlowBackbone(TrainedModel):
    """The network to train.

    Attributes:
        init: Run of an earlier train-flow to continue from; None starts anew.
        trainable: A ``lora`` adapter, or the ``full`` backbone.
        frozen_layers: With ``full``, so many lowest layers and the embeddings stay as they are; 0 freezes nothing.
        precision: ``bfloat16`` autocast or ``float32``; ``auto`` is bfloat16 on a GPU, float32 on a processor. Heads
            and losses are float32 always.
        gradient_checkpointing: Compute activations again in the backward pass, to save memory.
    """

    init: str | None = None
    trainable: Literal["lora", "full"] = "lora"
    frozen_layers: NonNegativeInt = 0
    precision: Precision = "auto"
    gradient_checkpointing: bool = True

    @model_validator(mode="after")
    def _frozen(self) -> Self:
        self.check_frozen(is_trained=self.trainable == "full")
        return self


class FlowLora(Lora):
    """The LoRA adapter that is trained. With ``model.init`` it has the shape of that run's, not this one.

    Attributes:
        targets: Names of the modules that are adapted.
    """

    rank: PositiveInt = 32
    alpha: PositiveInt = 64
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "embed_tokens",
    )


class FlowEncoding(Section):
    """How prefixes become rows of tokens; all modes give the same hidden states.

    Attributes:
        mode: ``tree`` reads every turn once, ``path`` one row per path, ``prefix`` one row per state.
        attention: ``tree`` computes only what the tree allows; ``sdpa`` and ``eager`` take a dense mask, ``flex`` a
            block mask (CUDA). ``flash_attention_2`` (CUDA) takes none, so it needs mode ``path`` or ``prefix``.
        max_tokens: Tokens of one forward pass.
        max_path_tokens: Trees: a longer path is dropped. Gold: training cuts the end, evaluation the oldest exchanges.
        max_prefix_tokens: ``prefix`` only: whole oldest exchanges go above this length; None never cuts.
        max_paths_per_chunk: Upper limit of paths of one tree in an update's chunk; None for none.
        strategy_tags: Earlier supporter turns carry their strategy.
        situation: Scene and situation stand in the header.
    """

    mode: Literal["tree", "path", "prefix"] = "tree"
    attention: Literal["tree", "sdpa", "eager", "flex", "flash_attention_2"] = "sdpa"
    max_tokens: PositiveInt = 8192
    max_path_tokens: PositiveInt = 4096
    max_prefix_tokens: PositiveInt | None = None
    max_paths_per_chunk: PositiveInt | None = None
    strategy_tags: bool = False
    situation: bool = True

    @property
    def max_state_tokens(self) -> int:
        """Tokens of the longest state that is read; longer dialogues lose oldest exchanges when the policy is used."""
        in_prefixes = self.max_prefix_tokens if self.mode == "prefix" else None
        return in_prefixes or self.max_path_tokens


OBJECTIVES = ("subtb", "tb", "db", "dpo", "bc")


class FlowObjective(Section):
    """What is minimised; equations in :mod:`esckit.flow.objectives`.

    Attributes:
        name: Flow balance over subpaths, trajectories or single steps (``subtb``, ``tb``, ``db``); ``dpo`` and ``bc``
            stand in its place. Or ``module:attr``, a function of (log_pf, log_flow, mask), see
            :class:`esckit.protocols.Objective`.
        subtb_lambda: Geometric weight of longer subpaths.
        terminal_boundary: Whether the flow at the end of a path is the leaf's search value.
        flow_eps: Search values are clamped to it before the logarithm.
        state_value: V of the strategy taken, or the policy's mean over strategies.
        measure: F(s) sums over strategies (``counting``, as published), or averages over them under the recorded
            ``prior``, so that it does not grow with the depth of a path; None is ``counting``.
        weighting: Every path once, or every distinct pair and state once.
        class_weight: ``bc``: all decisions alike, or rare strategies more: by 1/n (``balanced``) or 1/√n (``sqrt``).
        logit_adjust: Gold data: values of τ tried on valid; τ·log(class share in training) is taken off the logits.
    """

    name: Annotated[str, named_or_own(OBJECTIVES)] = "subtb"
    subtb_lambda: float = Field(default=1.0, gt=0.0, le=1.0)
    terminal_boundary: bool = True
    flow_eps: PositiveFloat = 1e-3
    state_value: Literal["taken", "policy_mean"] = "taken"
    measure: Literal["counting", "prior"] | None = None
    weighting: Literal["paths", "unique"] = "paths"
    class_weight: Literal["none", "balanced", "sqrt"] = "none"
    logit_adjust: tuple[float, ...] = (0.0,)


class Rank(Section):
    """The ranking of learned values by search values ("process supervision").

    Attributes:
        weight: Weight of this term in the loss; 0 leaves it out.
        margin: γ of the hinge.
        negatives: Where pairs come from, see :func:`esckit.flow.objectives.rank_pairs`.
        min_gap: Least difference of search values of a visited pair.
    """

    weight: NonNegativeFloat = 1.0
    margin: PositiveFloat = 1.0
    negatives: Negatives = "visited_then_low_prior"
    min_gap: NonNegativeFloat = 0.0


class Kl(Section):
    """The pull towards a reference policy.

    Attributes:
        weight: Weight of this term in the loss; 0 leaves it out.
        form: Of each state, the log-ratio of the strategy that was ``taken``, or the divergence over all of them
            (``full``).
        reference: The ``prior`` recorded in the trees, which made the data, the ``uniform`` policy, or ``none``, which
            leaves the term out.
    """

    weight: NonNegativeFloat = 0.1
    form: Literal["taken", "full"] = "taken"
    reference: Literal["prior", "uniform", "none"] = "prior"


class FlowOptim(Optim):
    """The optimiser and how long it runs.

    Attributes:
        lr: Highest learning rate.
        head_lr: Highest learning rate of the two heads; None is ``lr``.
        paths_per_update: An update takes trees until it has so many paths (dialogues, with gold data).
        warmup_share: Share of all updates in which the rate rises.
        max_grad_norm: Longer gradients are shortened to this length; 0 never does.
        select: Keep the checkpoint that is best on valid, or the last. What ``model.init`` names may stay the best.
        validate_every: Measure valid after so many updates, too, and not only before the first update and at the end of
            every epoch; None does not.
        patience: End the training when so many measurements of valid in a row were not the best; None never does.
        average_from: Measure and keep the mean of the weights after this share of the updates, in place of the last
            weights (stochastic weight averaging, arXiv 1803.05407); None does not. An earlier state that was better on
            valid is kept as it is. Not with DeepSpeed.
    """

    lr: PositiveFloat = 2e-5
    head_lr: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 0.01
    epochs: PositiveInt = 3
    paths_per_update: PositiveInt = 32
    max_grad_norm: NonNegativeFloat = 1.0
    select: Literal["best_valid", "last"] = "best_valid"
    validate_every: PositiveInt | None = None
    patience: PositiveInt | None = None
    average_from: float | None = Field(default=None, ge=0.0, lt=1.0)


class Checkpoints(Section):
    """When the state of training is written, beside the end of every epoch. Operational.

    Attributes:
        every: Also after so many updates; None only at the end of an epoch.
    """

    every: PositiveInt | None = None


class TrainFlowRecipe(Recipe):
    """All settings of ``esckit train-flow``.

    Attributes:
        response_weight: Weight of the supporter's own words in the loss, so that the policy can also write replies; 0
            trains the choice of strategies alone.
    """

    OPERATIONAL: ClassVar[tuple[str, ...]] = (*Recipe.OPERATIONAL, "checkpoints")

    command: Literal["train-flow"]
    data: FlowData
    model: FlowBackbone
    lora: FlowLora = FlowLora()
    encoding: FlowEncoding = FlowEncoding()
    objective: FlowObjective = FlowObjective()
    rank: Rank = Rank()
    kl: Kl = Kl()
    response_weight: NonNegativeFloat = 0.0
    optim: FlowOptim = FlowOptim()
    executor: Threads = Threads()
    checkpoints: Checkpoints = Checkpoints()
    trackers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.data.gold is not None and self.objective.name != "bc":
            raise ValueError("data.gold needs objective.name: bc: a corpus has no search values")
        if self.objective.class_weight != "none" and self.objective.name != "bc":
            raise ValueError("objective.class_weight needs objective.name: bc")
        if any(self.objective.logit_adjust) and self.data.gold is None:
            raise ValueError("objective.logit_adjust needs data.gold")
        if self.response_weight > 0 and not (self.encoding.strategy_tags and self.encoding.mode == "tree"):
            raise ValueError("response_weight needs encoding.strategy_tags: true and encoding.mode: tree")
        if self.encoding.attention in ("tree", "flex") and self.encoding.mode != "tree":
            raise ValueError(f"encoding.attention: {self.encoding.attention} needs encoding.mode: tree")
        if self.encoding.attention == "flash_attention_2" and self.encoding.mode == "tree":
            raise ValueError("encoding.attention: flash_attention_2 needs encoding.mode: path or prefix")
        if self.optim.select == "best_valid" and self.data.gold is None and self.data.valid_split is None:
            raise ValueError("optim.select: best_valid needs data.valid_split")
        if self.optim.patience is not None and self.optim.select != "best_valid":
            raise ValueError("optim.patience needs optim.select: best_valid: without it there is no best")
        _check_balance(self.objective, self.data)
        if self.model.frozen_layers and self.model.trainable != "full":
            raise ValueError("model.frozen_layers needs model.trainable: full")
        return self


def _check_balance(objective: FlowObjective, data: FlowData) -> None:
    """Refuse flow objectives that would pass over paths: without the boundary a path ends in its last state."""
    if ":" in objective.name and objective.weighting == "unique":
        raise ValueError("objective.weighting: unique needs an objective that ships: it counts terms, not paths")
    if objective.name not in ("subtb", "tb", "db") or objective.terminal_boundary:
        return
    if data.min_actions < 2:
        raise ValueError(
            "objective.terminal_boundary: false leaves a path of one action with a single state and nothing to "
            "balance; set data.min_actions to 2 or more, or objective.terminal_boundary: true"
        )
    if (objective.name, objective.weighting, objective.state_value) == ("tb", "unique", "policy_mean"):
        raise ValueError(
            "objective.name: tb with weighting: unique and state_value: policy_mean counts a path by its last node, "
            "but with terminal_boundary: false that is a state which other paths share, and such paths would be lost; "
            "set objective.terminal_boundary: true, or weighting: paths, or state_value: taken"
        )
