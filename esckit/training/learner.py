"""A causal language model as TRL trains it to be a supporter: what it begins with, and which of its states is kept.

``train-sft`` and ``train-rl`` share all of it. This module imports torch; what is stored of a trained supporter, and
how it is loaded again, stands in :mod:`esckit.training.policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TrainingArguments

from esckit.config.training import PolicyOptim
from esckit.errors import NotFiniteError, TrainingError
from esckit.models.chat import ChatFormat
from esckit.models.checkpoint import FOLDER, CheckpointMetadata, read_metadata
from esckit.models.engine import Settings, draw, uniforms
from esckit.models.loading import checkpointing_arguments
from esckit.prompts.prompt import Prompt
from esckit.training.checkpoint import save_checkpoint
from esckit.training.harness import Diverged, fit, trainer_arguments
from esckit.training.monitor import METRICS, read_rows
from esckit.training.policy import PolicyMetadata, SftMetadata, training_format
from esckit.training.run import StepPlan, TrainingRun, gathered
from esckit.training.sharding import gathered_state
from esckit.types import Sampling

A = TypeVar("A", bound=TrainingArguments)


@dataclass(frozen=True, slots=True)
class Learner:
    """The supporter before training.

    Attributes:
        model: The causal language model without adapter; its generation settings name all ends of an output.
        tokenizer: With the template of the training.
        chat: That template, and how messages come into it.
    """

    model: Any
    tokenizer: Any
    chat: ChatFormat


def learner_of(model: Any, tokenizer: Any) -> Learner:
    """Return a model as a supporter to train: chat template, ends of an output, and no sampling habits of its own.

    Raises:
        ConfigError: If its chat template lacks what training needs and none of ours fits.
    """
    eos = model.generation_config.eos_token_id
    chat = training_format(tokenizer, [] if eos is None else [eos] if isinstance(eos, int) else list(eos))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config = GenerationConfig(
        eos_token_id=sorted(chat.stop_ids), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    return Learner(model, tokenizer, chat)


class _SeededDraw(LogitsProcessor):
    """Leaves one token of each row, drawn as the local engine draws it, by the numbers of the row's own seed.

    Attributes:
        settings: Decoding settings of the rows.
        uniforms: float64 (B, T), one number for each token that may be written.
    """

    def __init__(self, settings: Settings, uniforms: Tensor) -> None:
        self.settings, self.uniforms, self._n_written = settings, uniforms, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits (B, V) that are minus infinity but for the drawn tokens.

        Raises:
            NotFiniteError: If the model's logits are not finite.
        """
        if not scores.amax(dim=-1).isfinite().all():
            raise NotFiniteError("a probability of the policy", float("nan"))
        tokens = draw(scores.float(), self.settings, self.uniforms[:, self._n_written])
        self._n_written += 1
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)


@torch.no_grad()
def write_outputs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Iterable[int],
    sampling: Sampling,
    seeds: Sequence[int] = (),
) -> list[list[int]]:
    """Return an output for each prompt, as tokens, the one that ended it included; the model's mode stays as it was.

    A row's draws depend on its own seed, not on the rows beside it. Where processes share a model, all of them write as
    many batches: a forward pass may need every process.

    Args:
        model: Ready to generate, see :func:`esckit.models.loading.generating`.
        tokenizer: Pads on the left.
        prompts: Token ids, none empty.
        stop_ids: Tokens that end an output.
        sampling: Decoding settings; temperature 0 takes the likeliest tokens.
        seeds: One for each prompt; none are needed at temperature 0.

    Raises:
        NotFiniteError: If the model's logits are not finite.
    """
    ends = sorted(stop_ids)
    batch = tokenizer.pad({"input_ids": [list(prompt) for prompt in prompts]}, return_tensors="pt").to(model.device)
    drawn = []
    if sampling.temperature:
        numbers = torch.stack([uniforms(seed, sampling.max_tokens) for seed in seeds]).to(model.device)
        drawn.append(_SeededDraw(Settings.of([sampling] * len(prompts), model.device), numbers))
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=sampling.max_tokens, pad_token_id=tokenizer.pad_token_id, eos_token_id=ends
    )
    was_training = model.training
    model.eval()
    written = model.generate(**batch, generation_config=settings, logits_processor=LogitsProcessorList(drawn))
    model.train(was_training)
    rows = written[:, batch["input_ids"].shape[1] :].tolist()
    length = [next((at + 1 for at, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:n] for row, n in zip(rows, length, strict=True)]


def trl_arguments(
    kind: type[A],
    optim: PolicyOptim,
    plan: StepPlan,
    run: TrainingRun,
    *,
    seed: int,
    trackers: Sequence[str],
    save_steps: int,
    **own: Any,
) -> A:
    """Return the arguments of one of TRL's trainers: what all of them share, and its own."""
    return trainer_arguments(
        kind,
        optim,
        run=run,
        seed=seed,
        n_steps=plan.steps,
        precision=optim.precision,
        trackers=trackers,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulate,
        save_strategy="steps",
        save_steps=save_steps,
        **checkpointing_arguments(TrainingArguments, wanted=optim.gradient_checkpointing),
        **own,
    )


def train_in_float32(model: Any) -> None:
    """Give all weights that are trained float32; on a quantised base TRL's bfloat16 would lose small updates."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@dataclass(slots=True)
class DevRecord:
    """What was measured on dev, and how good the best state is so far.

    Attributes:
        score: The metric to select by.
        lower_is_better: Whether less of it is better.
        rows: Dev metrics before and after training.
        best: The best score so far.
    """

    score: str
    lower_is_better: bool
    rows: dict[str, Mapping[str, float | None]] = field(default_factory=dict)
    best: float | None = None

    def note(self, step: int, row: Mapping[str, Any]) -> bool:
        """Remember a measurement; return whether it is the best so far (the untrained model is none to keep)."""
        metrics = {name: value for name, value in row.items() if name.startswith("dev/")}
        self.rows |= {"before training" if step == 0 else "after training": metrics}
        score = metrics[self.score]
        if step == 0 or score is None:
            return False
        if self.best is not None and (score >= self.best if self.lower_is_better else score <= self.best):
            return False
        self.best = score
        return True

    def restore(self, run: TrainingRun) -> None:
        """Remember what was measured up to the step from which a run resumes."""
        for row in read_rows(run.out / METRICS):
            if self.score in row and row["step"] <= run.resumed_step:
                self.note(row["step"], row)

    @property
    def last(self) -> Mapping[str, float | None]:
        """The latest metrics of a trained state."""
        return self.rows.get("after training", {})


def write_supporter(
    learner: Learner,
    trainer: Any,
    run: TrainingRun,
    metadata: Callable[[], CheckpointMetadata],
    *,
    diverged: bool,
    prompt: Prompt,
    start: Path | None = None,
) -> None:
    """Write the model as it is; after a divergence only if all its weights are finite. Called in all processes."""
    state = gathered_state(trainer, trained_only=True)
    if not run.process.is_main or (diverged and not all(bool(t.isfinite().all()) for t in state.values())):
        return
    folder, made = run.out / FOLDER, metadata()
    save_checkpoint(
        folder,
        made,
        backbone=trainer.model,
        tokenizer=learner.tokenizer,
        state=state,
        start=start,
        prompt=prompt,
    )


def fit_and_keep(
    trainer: Any,
    run: TrainingRun,
    diverged: Diverged,
    *,
    kind: type[PolicyMetadata] | type[SftMetadata],
    optim: PolicyOptim,
    dev: DevRecord,
    keep: Callable[..., None],
) -> None:
    """Train, and keep the last state, unless a better one is kept already.

    Args:
        trainer: TRL's trainer.
        run: The run.
        diverged: Notices a divergence.
        kind: The metadata of what is kept.
        optim: Says which state is kept.
        dev: What is measured on dev.
        keep: Keeps the state as it is, given the step, its dev metrics, and ``diverged=True`` after a divergence.

    Raises:
        TrainingError: If training diverged; the last finite state is kept.
    """

    def is_kept() -> bool:
        """Return whether a state is kept, not counting one that an earlier go left when it diverged."""
        return gathered([(run.out / FOLDER).is_dir() and not read_metadata(kind, run.out).diverged])[0][0]

    try:
        fit(trainer, run, diverged)
    except TrainingError:
        if not is_kept():
            keep(trainer.state.global_step, {}, diverged=True)
        raise
    if optim.select == "last" or not is_kept():
        keep(trainer.state.global_step, dev.last)
