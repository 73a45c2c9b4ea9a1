"""The recipe of ``esckit train-rl`` (RLFF-ESC, arXiv 2508.12935), and how many optimiser steps it comes to.

Defaults are the paper's where it states a value. Components take these frozen sections as they are. Nothing here
imports torch, so that a dry run stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from esckit.config.sections import (
    AlternatingData,
    Contexts,
    Device,
    DType,
    Executor,
    ModelRecipe,
    Names,
    ResolutionCritic,
    Rollout,
    RolloutCritic,
    RolloutSeeker,
    RolloutSupporter,
    Section,
    check_prices,
)
from esckit.config.training import Attention, FrozenWeights, Optim, PolicyLora, Precision
from esckit.errors import ConfigError, DataError
from esckit.training.run import StepPlan, share_batch

REWARD_KINDS = ("classifier", "ranker", "untrained", "online")


class Policy(FrozenWeights):
    """The model to train an adapter on.

    Attributes:
        backbone: A name of the backbone registry, a folder, or a hub id.
        checkpoint: A run of ``train-sft``, in place of a backbone: its adapter is merged into its backbone, and the
            policy before training, from which the KL term is measured, is its supporter.
        attention: How its attention is computed.
    """

    backbone: str | None = Field(default=None, min_length=1)
    checkpoint: str | None = Field(default=None, min_length=1)
    attention: Attention = "auto"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.backbone is None) == (self.checkpoint is None):
            raise ValueError("needs either backbone or checkpoint (a run of train-sft)")
        return self


class RewardSource(Section):
    """Where R_fut comes from: a run of ``train-reward``, or the backbone of an untrained one.

    Attributes:
        checkpoint: The run folder.
        backbone: A name of the backbone registry, a folder, or a hub id.
        max_length: Longest input of an untrained model, in tokens.
    """

    checkpoint: str | None = Field(default=None, min_length=1)
    backbone: str | None = Field(default=None, min_length=1)
    max_length: int = Field(default=2048, ge=64)
    dtype: DType = "auto"
    device: Device = "auto"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.checkpoint is None) == (self.backbone is None):
            raise ValueError("needs either checkpoint or backbone")
        return self


class TrainRlModels(Section):
    """The policy, and who judges it. Seeker, critic and supporter take part with ``reward.kind: online`` only.

    Attributes:
        supporter: Continues a future after the policy's reply; None takes the untrained policy.
    """

    policy: Policy
    reward: RewardSource | None = None
    seeker: RolloutSeeker | None = None
    critic: RolloutCritic | None = None
    supporter: RolloutSupporter | None = None


class RewardWeights(Section):
    """What the two components weigh in R."""

    future: NonNegativeFloat = 1.0
    format: NonNegativeFloat = 0.5

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        if self.future == self.format == 0:
            raise ValueError("at least one weight must be positive")
        return self


class RewardSection(Section):
    """What a reply is worth.

    Attributes:
        kind: A trained ``classifier`` or ``ranker``, an ``untrained`` model, the future played ``online``, or
            ``module:attr``, a function of (conversations, responses) that returns a number, or None, for each.
        value: The probability that a reward model gives, or 1 where it is above one half and 0 elsewhere. With
            ``online`` it is ``online.value`` that says so.
        prompt: Of an untrained reward model.
    """

    kind: str = "classifier"
    value: Literal["probability", "hard_label"] = "probability"
    weights: RewardWeights = RewardWeights()
    prompt: str = "reward_model"

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in REWARD_KINDS and ":" not in kind:
            raise ValueError(f"must be one of {', '.join(REWARD_KINDS)}, or module:attr")
        return kind


class OnlinePrompts(Section):
    """Prompt of each role; the critic's is its preset's own unless named."""

    supporter: str = "supporter_rlff"
    seeker: str = "seeker"
    critic: str | None = None


class Online(Rollout):
    """How futures are played while training; read with ``reward.kind: online`` only.

    Attributes:
        value: The reward ``scaled`` to [0, 1], as it is (``raw``), or 1 if the ``goal`` was reached and 0 otherwise.
    """

    value: Literal["scaled", "raw", "goal"] = "scaled"
    critic: ResolutionCritic = ResolutionCritic()
    prompts: OnlinePrompts = OnlinePrompts()


class Correction(Section):
    """Weights of tokens for the difference between the trainer's probabilities and those that vLLM sampled from.

    A token's weight is the ratio of the two. It needs ``top_k: 0`` and ``top_p: 1.0``: vLLM reports a probability among
    the tokens that may be drawn, the trainer one among all tokens. With ``top_k: 80`` that alone is a ratio of about
    exp(−0.1) for every token, and near 0 for a sequence.

    Attributes:
        mode: A ratio above ``clip_max`` counts as ``clip_max`` (``token_truncate``) or as 0 (``token_mask``).
        clip_max: Largest ratio.
        clip_min: Smallest ratio, clipped or masked in the same way; None sets none.
    """

    mode: Literal["token_truncate", "token_mask"] = "token_truncate"
    clip_max: PositiveFloat = 3.0
    clip_min: PositiveFloat | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.clip_min is not None and self.clip_min >= self.clip_max:
            raise ValueError(f"clip_min ({self.clip_min:g}) must be less than clip_max ({self.clip_max:g})")
        return self


class Vllm(Section):
    """How vLLM generates; read with ``grpo.engine: vllm`` only.

    Attributes:
        mode: ``colocate`` shares the training GPUs, ``server`` asks a running ``trl vllm-serve``.
        server_base_url: Of ``server``.
        gpu_memory_utilization: Share of a GPU's memory that a colocated engine may take.
        tensor_parallel_size: GPUs that share one colocated engine.
        sleep: Free the engine's memory between generations.
        correction: Importance weights of tokens; None gives every token the weight 1, as with the other engine.
    """

    mode: Literal["colocate", "server"] = "colocate"
    server_base_url: str = "http://127.0.0.1:8000"
    gpu_memory_utilization: float = Field(default=0.3, gt=0.0, lt=1.0)
    tensor_parallel_size: PositiveInt = 1
    sleep: bool = False
    correction: Correction | None = None


class Grpo(Section):
    """The objective and the sampling of GRPO.

    Attributes:
        n_generations: Outputs for each context, G.
        prompts_per_step: Contexts of one optimiser step, over all processes together.
        micro_batch: Outputs that one process takes in a forward pass at most; the accumulation follows from it.
        beta: Weight of the KL term to the policy before training.
        epsilon: Clip of the probability ratio; idle with one iteration.
        iterations: Updates made with one batch of outputs.
        loss_type: Mean over tokens and then over outputs (``grpo``), or a sum over a constant length (``dr_grpo``).
        max_prompt_tokens: Whole oldest turns are left out above it.
        max_completion_tokens: Longest output.
        engine: What generates.
    """

    n_generations: int = Field(default=4, ge=2)
    prompts_per_step: PositiveInt = 4
    micro_batch: PositiveInt = 4
    beta: NonNegativeFloat = 0.04
    epsilon: PositiveFloat = 0.2
    iterations: PositiveInt = 1
    loss_type: Literal["grpo", "dr_grpo"] = "grpo"
    temperature: PositiveFloat = 1.1
    top_k: NonNegativeInt = 80
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_prompt_tokens: PositiveInt = 2048
    max_completion_tokens: PositiveInt = 512
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: Vllm = Vllm()

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.engine == "vllm" and self.vllm.correction is not None and (self.top_k or self.top_p < 1.0):
            raise ValueError(
                f"vllm.correction with top_k {self.top_k} and top_p {self.top_p:g} compares probabilities among the "
                "tokens that may be drawn with those among all: set top_k: 0 and top_p: 1.0, or vllm.correction: null"
            )
        return self


class Dpo(Section):
    """The ablation that learns from pairs of simulated candidates; the paper gives no settings for it.

    Attributes:
        beta: How strongly the policy is held to where it began.
        batch_size: Pairs of one optimiser step, over all processes together.
        micro_batch: Pairs that one process takes in a forward pass at most.
        require_format: Both outputs of a pair must be well-formed.
        max_prompt_tokens: Whole oldest turns are left out above it.
        max_completion_tokens: Pairs with a longer output are left out.
    """

    beta: PositiveFloat = 0.1
    batch_size: PositiveInt = 16
    micro_batch: PositiveInt = 2
    require_format: bool = True
    max_prompt_tokens: PositiveInt = 2048
    max_completion_tokens: PositiveInt = 512


class RlOptim(Optim):
    """The optimiser: AdamW (0.9, 0.999).

    Attributes:
        epochs: Passes over the contexts (or pairs).
        max_steps: Make just so many optimiser steps, a multiple of ``grpo.iterations``, whether they are fewer or more
            than ``epochs`` come to; None makes all ``epochs``.
        warmup_share: Part of all steps during which the learning rate rises.
        select: Keep the last adapter, or the best on dev contexts.
        precision: ``auto`` is bfloat16 on a GPU and float32 on a processor.
        gradient_checkpointing: Compute activations again in the backward pass, to save memory.
    """

    lr: PositiveFloat = 1e-6
    epochs: PositiveInt = 2
    max_steps: PositiveInt | None = None
    warmup_share: float = Field(default=0.03, ge=0.0, lt=1.0)
    select: Literal["last", "best_dev"] = "last"
    precision: Precision = "auto"
    gradient_checkpointing: bool = True


class RlDev(Section):
    """The held-out dialogues, by the rule of ``train-reward``: with equal seed and share they are the same ones.

    Attributes:
        share: A dialogue is held out if its hash lies below.
        max_contexts: Contexts of them that are answered at each evaluation, the first in corpus order.
    """

    share: float = Field(default=0.1, ge=0.0, lt=1.0)
    max_contexts: PositiveInt = 64


class Monitor(Section):
    """What is written while training.

    Attributes:
        log_every: Steps between two rows of ``metrics.jsonl``.
        sample_every: Steps between two looks at outputs in ``samples.jsonl``; None writes none.
        samples: Outputs of one look.
        dev_every: Steps between two evaluations on dev contexts; None makes none.
    """

    log_every: PositiveInt = 10
    sample_every: PositiveInt | None = 200
    samples: PositiveInt = 8
    dev_every: PositiveInt | None = 500


class Saving(Section):
    """How often the state to resume from is written: in steps, rounded up to a multiple of ``grpo.iterations``.

    Operational.
    """

    save_every: PositiveInt = 100


class TrainRlRecipe(ModelRecipe):
    """All settings of ``esckit train-rl``."""

    command: Literal["train-rl"]
    algorithm: Literal["grpo", "dpo"] = "grpo"
    data: AlternatingData | None = None
    contexts: Contexts = Contexts()
    inputs: Names = ()
    models: TrainRlModels
    prompt: str = "supporter_rlff"
    lora: PolicyLora = PolicyLora()
    reward: RewardSection = RewardSection()
    online: Online = Online()
    grpo: Grpo = Grpo()
    dpo: Dpo = Dpo()
    optim: RlOptim = RlOptim()
    dev: RlDev = RlDev()
    monitor: Monitor = Monitor()
    logging: Saving = Saving()
    trackers: tuple[str, ...] = ()
    executor: Executor = Executor()
    max_failure_rate: float = Field(default=0.05, ge=0.0, le=1.0)

    @model_validator(mode="before")
    @classmethod
    def _dpo_rate(cls, data: Any) -> Any:
        """Give DPO a learning rate of its own."""
        if not isinstance(data, Mapping) or data.get("algorithm") != "dpo":
            return data
        optim = data.get("optim", {})
        return {**data, "optim": {"lr": 5e-6, **optim}} if isinstance(optim, Mapping) else data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.algorithm == "dpo":
            self._check_dpo()
        else:
            self._check_grpo()
        if self.optim.select == "best_dev" and (self.monitor.dev_every is None or self.dev.share == 0):
            raise ValueError("optim.select: best_dev needs monitor.dev_every and a positive dev.share")
        check_prices(self.budget, (self.models.seeker, self.models.critic, self.models.supporter))
        return self

    def _check_dpo(self) -> None:
        if not self.inputs or self.data is not None:
            raise ValueError("algorithm: dpo needs inputs (runs of simulate) and takes no data")
        if self.optim.select == "best_dev":
            raise ValueError("algorithm: dpo has no reward to select by: optim.select must be last")

    def _check_grpo(self) -> None:
        if self.grpo.engine == "vllm" and self.models.policy.quantisation is not None:
            raise ValueError("grpo.engine: vllm takes no models.policy.quantisation: set grpo.engine: transformers")
        if self.data is None or self.inputs:
            raise ValueError("algorithm: grpo needs data and takes no inputs")
        roles, kind = self.models, self.reward.kind
        if kind in ("classifier", "ranker") and (roles.reward is None or roles.reward.checkpoint is None):
            raise ValueError(f"reward.kind: {kind} needs models.reward with a checkpoint")
        if kind == "untrained" and (roles.reward is None or roles.reward.backbone is None):
            raise ValueError("reward.kind: untrained needs models.reward with a backbone")
        if kind == "online" and (roles.seeker is None or roles.critic is None):
            raise ValueError("reward.kind: online needs models.seeker and models.critic")
        if kind == "online" and self.reward.value == "hard_label":
            raise ValueError("reward.value: hard_label needs a reward model; reward.kind: online has online.value")


def plan_steps(recipe: TrainRlRecipe, *, n_rows: int, n_processes: int) -> StepPlan:
    """Return the steps over so many contexts (GRPO) or pairs (DPO); with few pairs, a step takes what there is.

    Raises:
        ConfigError: If processes cannot share a step evenly, or ``max_steps`` is no multiple of ``iterations``.
        DataError: If there are fewer rows than one step takes.
    """
    grpo, dpo, max_steps = recipe.grpo, recipe.dpo, recipe.optim.max_steps
    if recipe.algorithm == "dpo":
        what, at_most, iterations = "pairs (dpo.batch_size)", dpo.micro_batch, 1
        share_batch(dpo.batch_size, at_most=at_most, n_processes=n_processes, what=what)
        batch = n_items = min(dpo.batch_size, n_rows - n_rows % n_processes)
        if not batch:
            raise DataError(
                f"{n_rows} pairs to train on",
                expected=f"at least {n_processes}, one for each process",
                hint="Simulate more contexts or candidates, or see dpo.require_format and dpo.max_prompt_tokens",
            )
    else:
        what, at_most, iterations = "outputs (grpo.prompts_per_step · n_generations)", grpo.micro_batch, grpo.iterations
        batch, n_items = grpo.prompts_per_step, grpo.prompts_per_step * grpo.n_generations
        if max_steps is not None and max_steps % iterations:
            raise ConfigError(
                f"optim.max_steps {max_steps} with {iterations} updates for each batch of outputs",
                expected="a multiple of grpo.iterations",
            )
    micro_batch, accumulate = share_batch(n_items, at_most=at_most, n_processes=n_processes, what=what)
    if n_rows < batch:
        raise DataError(
            f"{n_rows} contexts to train on",
            expected=f"at least {batch}, those of one step (grpo.prompts_per_step)",
        )
    per_epoch = n_rows // batch * iterations
    steps = per_epoch * recipe.optim.epochs if max_steps is None else max_steps
    return StepPlan(batch, micro_batch, accumulate, steps // iterations, per_epoch, steps)
