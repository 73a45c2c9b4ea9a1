"""The recipe of ``esckit train-sft``, and how many optimiser steps it comes to.

It trains the supporter that later recipes begin with: a small policy that never meets the agreed form gives GRPO
nothing to compare. The paper of RLFF-ESC names no settings for it. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from esckit.config.data import AlternatingData
from esckit.config.sections import Contexts, DecimalText, Names, Recipe, Section, Threads
from esckit.config.training import Attention, Label, PolicyLora, PolicyOptim, Saving, TrainedModel
from esckit.errors import DataError
from esckit.training.run import StepPlan, share_batch

Source = Literal["corpus", "futures", "trees"]

Strategy = Literal["none", "tag", "prompt"]


class FutureSource(Section):
    """Which replies of simulated futures are learnt.

    Attributes:
        keep: Learn from futures that are good by this rule.
        exchanges: The reply that the future is of, or ``all`` supporter turns of it.
    """

    keep: Label
    exchanges: Literal["first", "all"] = "first"


class TreeSource(Section):
    """Which replies of search trees are learnt: those of one root-to-leaf path of each tree.

    Attributes:
        path: The path to the leaf of highest search ``value``, or along the most ``visits``.
        min_value: Learn from a path only if the search value of its leaf is at least this; None takes all.
    """

    path: Literal["value", "visits"] = "value"
    min_value: DecimalText | None = None


class Form(Section):
    """What is written before a reply. Nothing is made up: what the source lacks is refused, or left out and counted.

    Attributes:
        reasoning: The source's own reasoning: what a model wrote in ``<think>`` before its reply in a future, or what a
            turn of the practice world's supporter rests on. A corpus has none.
        strategy: ``tag`` names the reply's strategy at the end of ``<think>``, where no seeker sees it; ``prompt``
            names it in the prompt, for a supporter that is led by a strategist.
    """

    reasoning: bool = False
    strategy: Strategy = "none"

    @property
    def is_tagged(self) -> bool:
        """Whether replies have the agreed form, ``<think>A</think> <response>B</response>``."""
        return self.reasoning or self.strategy == "tag"


class SftModel(TrainedModel):
    """The model to train.

    Attributes:
        attention: How its attention is computed; ``auto`` is what transformers takes for it.
        trainable: An adapter, or the whole model.
    """

    attention: Attention = "auto"
    trainable: Literal["lora", "full"] = "lora"

    @model_validator(mode="after")
    def _frozen(self) -> Self:
        self.check_frozen(is_trained=self.trainable == "full")
        return self


class Encoding(Section):
    """How long an example may be, in tokens.

    Attributes:
        max_prompt_tokens: Longest prompt; whole oldest turns are left out above it.
        max_completion_tokens: Longest reply; examples with a longer one are left out.
    """

    max_prompt_tokens: PositiveInt = 2048
    max_completion_tokens: PositiveInt = 512


class SftOptim(PolicyOptim):
    """The optimiser: AdamW (0.9, 0.999) with a warm-up.

    The loss is the mean over all tokens of the replies of a step; the best state has the lowest.

    Attributes:
        batch_size: Examples of one step, over all processes together.
        micro_batch: Examples that one process takes in a forward pass at most.
    """

    lr: PositiveFloat = 1e-4
    batch_size: PositiveInt = 16
    micro_batch: PositiveInt = 2


class SftDev(Section):
    """The held-out dialogues, by the rule of ``train-reward``: with equal seed and share they are the same ones.

    Attributes:
        share: A dialogue is held out if its hash lies below.
        max_examples: Examples of them that are measured, the first in order.
    """

    share: float = Field(default=0.1, ge=0.0, lt=1.0)
    max_examples: PositiveInt = 256


class SftMonitor(Section):
    """What is written while training.

    Attributes:
        log_every: Steps between two rows of ``metrics.jsonl``.
        dev_every: Steps between two measurements on dev, besides those before the first step and after each epoch.
    """

    log_every: PositiveInt = 10
    dev_every: PositiveInt | None = None


class ReplySource(Section):
    """Which replies are learnt, and what stands before them; ``esckit data convert`` writes the same ones to a file.

    Attributes:
        seed: Of the contexts of a corpus, and of what is held out.
        source: Where replies come from: a ``corpus`` (``data``), or ``futures`` of ``simulate`` or ``trees`` of
            ``search`` (``inputs``).
        data: Which dialogues of which corpus ``source: corpus`` reads; None with other sources.
        inputs: Run folders that ``source: futures`` or ``trees`` reads, one or several.
        taxonomy: Taxonomy of a corpus's strategies; None takes its own.
        prompt: Prompt of the supporter: the name of a shipped one, or a file.
    """

    seed: int = Field(ge=0, lt=2**63)
    source: Source
    data: AlternatingData | None = None
    contexts: Contexts = Contexts()
    taxonomy: str | None = None
    inputs: Names = ()
    futures: FutureSource | None = None
    trees: TreeSource = TreeSource()
    form: Form = Form()
    dev: SftDev = SftDev()

    @model_validator(mode="after")
    def _has_its_source(self) -> Self:
        if self.source == "corpus" and (self.data is None or self.inputs):
            raise ValueError("source: corpus needs data and takes no inputs")
        if self.source != "corpus" and (not self.inputs or self.data is not None):
            maker = {"futures": "simulate", "trees": "search"}[self.source]
            raise ValueError(f"source: {self.source} needs inputs (runs of {maker}) and takes no data")
        if self.source == "futures" and self.futures is None:
            raise ValueError(
                "source: futures needs futures.keep, such as {rule: goal} or {rule: threshold, delta: 0.5}"
            )
        return self


class TrainSftRecipe(ReplySource, Recipe):
    """All settings of ``esckit train-sft``."""

    command: Literal["train-sft"]
    prompt: str = "supporter_rlff"
    model: SftModel
    lora: PolicyLora = PolicyLora()
    encoding: Encoding = Encoding()
    optim: SftOptim = SftOptim()
    monitor: SftMonitor = SftMonitor()
    executor: Threads = Threads()
    logging: Saving = Saving()
    trackers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.optim.select == "best_dev" and self.dev.share == 0:
            raise ValueError("optim.select: best_dev needs a positive dev.share")
        return self


def plan_steps(recipe: TrainSftRecipe, *, n_rows: int, n_processes: int) -> StepPlan:
    """Return the steps over so many examples; with few of them, a step takes what there is.

    Raises:
        ConfigError: If processes cannot share a step evenly.
        DataError: If there are fewer examples than processes.
    """
    optim, what = recipe.optim, "examples (optim.batch_size)"
    share_batch(optim.batch_size, at_most=optim.micro_batch, n_processes=n_processes, what=what)
    batch = min(optim.batch_size, n_rows - n_rows % n_processes)
    if not batch:
        raise DataError(f"{n_rows} examples to train on", expected=f"at least {n_processes}, one for each process")
    micro_batch, accumulate = share_batch(batch, at_most=optim.micro_batch, n_processes=n_processes, what=what)
    per_epoch = n_rows // batch
    steps = per_epoch * optim.epochs if optim.max_steps is None else optim.max_steps
    return StepPlan(batch, micro_batch, accumulate, steps, per_epoch, steps)
