"""The recipe of ``esckit train-rl`` (RLFF-ESC, arXiv 2508.12935), and how many optimiser steps it comes to.

Defaults are the paper's where it states a value. Components take these frozen sections as they are. Nothing here
imports torch, so that a dry run stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from esckit.config.data import AlternatingData
from esckit.config.sections import (
    Contexts,
    Device,
    DType,
    Executor,
    ModelRecipe,
    Names,
    Prompts,
    ResolutionCritic,
    Rollout,
    RolloutCritic,
    RolloutSeeker,
    RolloutSupporter,
    Section,
    check_prices,
    check_worlds,
    named_or_own,
)
from esckit.config.training import Attention, FrozenWeights, PolicyLora, PolicyOptim, Saving
from esckit.errors import ConfigError, DataError
from esckit.training.run import StepPlan, share_batch

REWARD_KINDS = ("classifier", "ranker", "untrained", "online")


class Policy(FrozenWeights):
    """The model to train an adapter on.

    Attributes:
        backbone: A name of the backbone registry, a folder, or a hub id.
        checkpoint: A run of ``train-sft``, in place of a backbone: its adapter is merged into its backbone, and the
            policy before training, from which the KL term is measured, is its supporter.
        attention: How its attention is computed; ``auto`` is what transformers takes for it.
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
        checkpoint: Run folder of ``train-reward``.
        backbone: A name of the backbone registry, a folder, or a hub id.
        max_length: Longest input of an untrained model, in tokens.
        dtype: Number type of the weights; ``auto`` is bfloat16 where the device computes in it, else float32.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is the GPU if there is one.
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
        policy: The model that is trained.
        reward: The reward model, a run of ``train-reward`` or an untrained backbone; None with other rewards.
        seeker: Speaks as the person in distress in online futures.
        critic: Scores online futures.
        supporter: Continues a future after the policy's reply; None takes the untrained policy.
    """

    policy: Policy
    reward: RewardSource | None = None
    seeker: RolloutSeeker | None = None
    critic: RolloutCritic | None = None
    supporter: RolloutSupporter | None = None


class RewardWeights(Section):
    """What the two components weigh in R.

    Attributes:
        future: Weight of R_fut, what the reward says of the reply.
        format: Weight of the agreed form, which is 1 for a well-formed output and 0 for another.
    """

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
            ``module:attr``, a function of (conversations, responses) that returns a number, or ``None``, for each.
        shuffled: A control that nothing can be learnt from: the outputs of a group get one another's R_fut, by seeded
            draws. What they get for their form stays.
        value: The probability that a reward model gives, or 1 where it is above one half and 0 elsewhere. With
            ``online`` it is ``online.value`` that says so.
        prompt: Prompt of an untrained reward model: the name of a shipped one, or a file.
    """

    kind: Annotated[str, named_or_own(REWARD_KINDS)] = "classifier"
    value: Literal["probability", "hard_label"] = "probability"
    weights: RewardWeights = RewardWeights()
    shuffled: bool = False
    prompt: str = "reward_model"


class OnlinePrompts(Prompts):
    """Prompt of each role; the critic's is its preset's own unless named."""

    supporter: str = "supporter_rlff"
    seeker: str = "seeker"
    critic: str | None = None


class Online(Rollout):
    """How futures, or dialogues, are played while training; read with ``reward.kind: online`` only.

    Of futures alone speak ``value``, ``horizon`` and ``score_first_exchange``.

    Attributes:
        value: The reward ``scaled`` to [0, 1], as it is (``raw``), or 1 if the ``goal`` was reached and 0 otherwise.
    """

    value: Literal["scaled", "raw", "goal"] = "scaled"
    critic: ResolutionCritic = ResolutionCritic()
    prompts: OnlinePrompts = OnlinePrompts()


class Dialogue(Section):
    """How whole dialogues are played while training; read with ``episode: dialogue`` only.

    A dialogue begins with the seeker's situation, as in self-play. Who answers, and how, is said in ``models`` and
    ``online``.

    Attributes:
        max_turns: Turns of the policy in one dialogue, at most.
        blank_value: What a dialogue is worth, on the critic's scale, that ends because the policy says nothing.
    """

    max_turns: PositiveInt = 8
    blank_value: float = Field(default=-1.0, ge=-1.0, le=1.0)


class Correction(Section):
    """Weights of tokens for the difference between the trainer's probabilities and those that vLLM sampled from.

    A token's weight is the ratio of the two. It needs ``top_k: 0`` and ``top_p: 1.0``: vLLM reports a probability among
    the tokens that may be drawn, the trainer one among all tokens. With ``top_k: 80`` that alone is a ratio of about
    exp(−0.1) for every token, and near 0 for a sequence.

    Attributes:
        mode: A ratio above ``clip_max`` counts as ``clip_max`` (``token_truncate``) or as 0 (``token_mask``).
        clip_max: Largest ratio that counts as it is.
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
        server_base_url: Address of the server that ``mode: server`` asks.
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
        micro_batch: Outputs (of dialogues: turns) that one process takes in a forward pass at most; the accumulation
            follows from it.
        beta: Weight of the KL term to the policy before training.
        epsilon: Clip of the probability ratio; idle with one iteration.
        iterations: Updates made with one batch of outputs.
        temperature: Divides the logits before a token is drawn.
        top_k: Draw from so many likeliest tokens; 0 keeps all.
        top_p: Draw from the fewest likeliest tokens whose probabilities sum to this; 1 keeps all.
        loss_type: Mean over tokens and then over outputs (``grpo``), or a sum over a constant length (``dr_grpo``).
        max_prompt_tokens: Longest prompt in tokens; whole oldest turns are left out above it.
        max_completion_tokens: Longest output, in tokens.
        engine: The library that generates outputs; ``vllm`` is an extra and needs a GPU.
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
        max_prompt_tokens: Longest prompt in tokens; whole oldest turns are left out above it.
        max_completion_tokens: Longest output in tokens; pairs with a longer one are left out.
    """

    beta: PositiveFloat = 0.1
    batch_size: PositiveInt = 16
    micro_batch: PositiveInt = 2
    require_format: bool = True
    max_prompt_tokens: PositiveInt = 2048
    max_completion_tokens: PositiveInt = 512


class RlOptim(PolicyOptim):
    """The optimiser: AdamW (0.9, 0.999) with a warm-up.

    Attributes:
        max_steps: Make just so many steps, whether they are fewer or more than ``epochs`` come to; None makes all. With
            GRPO it is a multiple of ``grpo.iterations``.
    """

    lr: PositiveFloat = 1e-6


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


class TrainRlRecipe(ModelRecipe):
    """All settings of ``esckit train-rl``.

    Attributes:
        algorithm: Train by ``grpo`` against a reward, or by ``dpo`` on pairs of simulated candidates (the ablation).
        episode: What is rewarded: one ``reply`` to a context (the paper), or each turn of a whole ``dialogue`` with the
            seeker, by what the critic says at its end less what it said before the turn.
        executor: How the training uses the machine. Operational.
        max_failure_rate: Largest share of outputs of the last 200 steps that may go unmeasured; beyond it the training
            stops with exit code 3. Operational.
        data: Which dialogues GRPO takes its contexts from; None with ``algorithm: dpo``.
        inputs: DPO: run folders of ``esckit simulate`` whose candidates are compared, one or several.
        prompt: Prompt of the policy: the name of a shipped one, or a file.
    """

    command: Literal["train-rl"]
    algorithm: Literal["grpo", "dpo"] = "grpo"
    episode: Literal["reply", "dialogue"] = "reply"
    data: AlternatingData | None = None
    contexts: Contexts = Contexts()
    inputs: Names = ()
    models: TrainRlModels
    prompt: str = "supporter_rlff"
    lora: PolicyLora = PolicyLora()
    reward: RewardSection = RewardSection()
    online: Online = Online()
    dialogue: Dialogue = Dialogue()
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

    @property
    def turns_per_output(self) -> int:
        """Rows of one output of a group: the turns of a dialogue at most, or the reply alone."""
        return self.dialogue.max_turns if self.episode == "dialogue" else 1

    def _check_dpo(self) -> None:
        if self.episode == "dialogue":
            raise ValueError("algorithm: dpo learns from single replies: episode must be reply")
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
        if kind == "online":
            check_worlds({name: getattr(roles, name) for name in ("seeker", "critic", "supporter")}, is_guided=False)
        if self.episode == "dialogue":
            self._check_dialogue()

    def _check_dialogue(self) -> None:
        if self.reward.kind != "online":
            raise ValueError("episode: dialogue needs reward.kind: online, with models.seeker and models.critic")
        if self.models.supporter is not None:
            raise ValueError("episode: dialogue takes no models.supporter: the policy itself speaks in every turn")
        if self.contexts != Contexts():
            raise ValueError("episode: dialogue takes no contexts: a dialogue begins with the seeker's situation")
        if self.grpo.engine == "vllm":
            raise ValueError(
                "episode: dialogue draws each turn with a seed of its own, which TRL's vLLM engine does not take: "
                "set grpo.engine: transformers"
            )


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
        if recipe.episode == "dialogue":
            what = "turns (grpo.prompts_per_step · n_generations · dialogue.max_turns)"
        batch = grpo.prompts_per_step
        n_items = batch * grpo.n_generations * recipe.turns_per_output
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
