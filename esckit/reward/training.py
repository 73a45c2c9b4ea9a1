"""What ``train-reward`` does between its inputs and its report: net, examples, training, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from esckit.errors import DataError
from esckit.models.backbones import quiet_off_terminal
from esckit.play.executor import Progress
from esckit.play.futures import RewardInputs
from esckit.processes import Process
from esckit.records import write_records
from esckit.reward.examples import Parts, build_examples
from esckit.reward.models import reward_template
from esckit.reward.quality import dev_metrics
from esckit.reward.recipe import TrainRewardRecipe
from esckit.reward.text import RewardText
from esckit.training.harness import OptimSettings, last_state
from esckit.types import Record

if TYPE_CHECKING:
    from torch import Tensor

    from esckit.reward.checkpoint import RewardMetadata
    from esckit.reward.network import RewardNet
    from esckit.reward.trainer import Encoded, Evaluation, Item, Run


PREDICTIONS = "dev_predictions.jsonl"


class DevPrediction(Record):
    """A line of ``dev_predictions.jsonl``; ``step`` is that of the checkpoint that gave p."""

    SCHEMA: ClassVar[str] = "esckit.dev_prediction/1"

    id: str
    dialogue_id: str
    p: float
    label: bool
    reward_num: int
    reward_den: int
    step: int


def optim_settings(recipe: TrainRewardRecipe) -> OptimSettings:
    """Return the optimiser's settings as the training code wants them."""
    optim = recipe.optim
    return OptimSettings(
        seed=recipe.seed,
        lr=optim.lr,
        epochs=optim.epochs,
        batch_size=optim.batch_size,
        accumulate=optim.accumulate,
        schedule=optim.schedule,
        warmup_share=optim.warmup_share,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        precision=optim.precision,
        save_every=recipe.logging.save_every,
        trackers=recipe.trackers,
    )


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that training and its report need."""

    recipe: TrainRewardRecipe
    inputs: RewardInputs
    parts: Parts
    out: Path
    process: Process
    net: RewardNet
    tokenizer: Any
    train: Encoded
    dev: Encoded
    items: list[Item]
    n_without_pairs: int


def prepare(recipe: TrainRewardRecipe, inputs: RewardInputs, parts: Parts, out: Path, process: Process) -> Session:
    """Seed the generators, then build the net and the examples."""
    import torch
    from transformers import set_seed
    from transformers.utils import logging as transformers_logging

    from esckit.reward.network import Lora, build_net
    from esckit.reward.trainer import encode_examples, group_items, single_items

    transformers_logging.set_verbosity_error()
    quiet_off_terminal()
    if recipe.executor.threads is not None:
        torch.set_num_threads(recipe.executor.threads)
    set_seed(recipe.seed % 2**32)
    model = recipe.model
    net, tokenizer = build_net(
        model.backbone,
        recipe.objective.kind,
        trainable=model.trainable,
        pooling=model.pooling,
        lora=Lora(model.lora.rank, model.lora.alpha, model.lora.dropout, model.lora.targets),
        gradient_checkpointing=recipe.optim.gradient_checkpointing,
    )
    text = RewardText(tokenizer, reward_template(recipe.prompt), max_length=model.max_length)
    train = encode_examples(build_examples(parts.train, inputs.contexts), text)
    dev = encode_examples(build_examples(parts.dev, inputs.contexts), text)
    n_without_pairs = 0
    if recipe.objective.kind == "classifier":
        items = single_items(train)
    else:
        items, n_without_pairs = group_items(train, margin=Fraction(recipe.objective.margin))
    for name, part in (("training", train), ("dev", dev)):
        if part.n_too_long and len({example.label for example in part.examples}) < 2:
            raise DataError(
                f"one class only in the {name} part, once {part.n_too_long} responses that are too long are left out",
                expected="both classes",
                hint="Raise model.max_length",
            )
    if not items or not dev.examples:
        raise DataError(
            "nothing to train or to select on is left",
            expected="responses that fit, and for rankers contexts whose candidates differ",
            hint="See model.max_length and objective.margin, and simulate more candidates or dialogues",
        )
    return Session(recipe, inputs, parts, out, process, net, tokenizer, train, dev, items, n_without_pairs)


def train_session(session: Session, progress: Progress) -> None:
    """Train, keeping the best state so far in the run folder; a stopped run goes on from its last state."""
    from esckit.reward.trainer import RewardTask, single_items, train_reward

    try:
        train_reward(
            RewardTask(session.net, class_weight=_class_weight(session)),
            session.items,
            single_items(session.dev),
            settings=optim_settings(session.recipe),
            select_by=session.recipe.dev.select_by,
            judge=lambda p: dev_metrics(p, session.dev.examples),
            keep=lambda evaluation, state: _keep(session, evaluation, state),
            run=_run_state(session, progress),
        )
    finally:
        progress.close()


def _run_state(session: Session, progress: Progress) -> Run:
    """Return where training goes on: from the last whole state, beside the checkpoint selected by then."""
    from esckit.models.checkpoint import FOLDER
    from esckit.reward.checkpoint import METADATA, read_metadata
    from esckit.reward.trainer import STATES, Run

    state = last_state(session.out / STATES)
    best = None
    if state is not None and (session.out / FOLDER / METADATA).is_file():
        metadata = read_metadata(session.out)
        best = (metadata.step, metadata.metrics)
    return Run(
        folder=session.out,
        state=state,
        best=best,
        rank=session.process.rank,
        n_processes=session.process.count,
        log_every=session.recipe.logging.every,
        start=progress.start,
        advance=progress.advance,
    )


def _class_weight(session: Session) -> Tensor | None:
    """Return N / (2 N_c) of each class where the recipe asks for it."""
    import torch

    if session.recipe.objective.class_weight == "none":
        return None
    n = len(session.train.examples)
    n_positive = sum(example.label for example in session.train.examples)
    return torch.tensor([n / (2 * (n - n_positive)), n / (2 * n_positive)])


def _keep(session: Session, evaluation: Evaluation, state: Mapping[str, Tensor]) -> None:
    """Write the best state so far, and what it says about dev."""
    from esckit.models.checkpoint import FOLDER
    from esckit.reward.checkpoint import save_checkpoint

    write_records(
        session.out / PREDICTIONS,
        [
            DevPrediction(
                id=example.id,
                dialogue_id=example.dialogue_id,
                p=p,
                label=example.label,
                reward_num=example.reward.numerator,
                reward_den=example.reward.denominator,
                step=evaluation.step,
            )
            for example, p in zip(session.dev.examples, evaluation.p, strict=True)
        ],
    )
    # Last: what a crash leaves out is done again as long as the checkpoint is the older one.
    metadata = _metadata(session, evaluation)
    save_checkpoint(session.net, state, session.tokenizer, metadata, session.out / FOLDER)


def _metadata(session: Session, evaluation: Evaluation) -> RewardMetadata:
    from esckit.reward.checkpoint import RewardMetadata

    recipe, delta = session.recipe, session.parts.train.labelling.delta
    return RewardMetadata(
        backbone=recipe.model.backbone,
        kind=recipe.objective.kind,
        trainable=recipe.model.trainable,
        pooling=recipe.model.pooling,
        max_length=recipe.model.max_length,
        template=reward_template(recipe.prompt),
        label={name: str(value) for name, value in recipe.label.model_dump().items()},
        delta=None if delta is None else str(delta),
        simulation=session.inputs.simulation,
        inputs=session.inputs.digests,
        dialogue_ids=session.inputs.dialogue_ids,
        dev_ids=tuple(dict.fromkeys(example.dialogue_id for example in session.dev.examples)),
        selected_by=recipe.dev.select_by,
        step=evaluation.step,
        metrics=dict(evaluation.metrics),
    )
