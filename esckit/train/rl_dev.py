"""Dev contexts while a policy is trained: greedy replies, and what they are worth."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, fsum
from typing import Any

import torch
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from esckit.dialogue.output import split_output
from esckit.models.capabilities import generating
from esckit.train.rl_rewards import Completion, PairedRewards
from esckit.train.together import gathered, together
from esckit.types import Turn

DevMetrics = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class GreedyWriter:
    """Writes the policy's most likely outputs.

    Attributes:
        tokenizer: With the template of the training.
        eos_ids: Tokens that end an output.
        max_tokens: Longest output.
        batch_size: Outputs written together.
    """

    tokenizer: Any
    eos_ids: tuple[int, ...]
    max_tokens: int
    batch_size: int

    @torch.no_grad()
    def __call__(self, model: Any, prompts: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """Return one output for each prompt; the model's mode stays as it was.

        Where processes share a model, all of them write as many batches, an empty share included: a forward pass may
        need every process.
        """
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=list(self.eos_ids),
        )
        was_training = model.training
        model.eval()
        texts: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = self.tokenizer.apply_chat_template(
                list(prompts[start : start + self.batch_size]),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
            ).to(model.device)
            written = model.generate(**batch, generation_config=settings)
            texts += self.tokenizer.batch_decode(
                written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        model.train(was_training)
        return texts


@dataclass(frozen=True, slots=True)
class DevSet:
    """Held-out rows and how they are answered and judged.

    Attributes:
        rows: Rows as :func:`esckit.train.rl_rows.build_rows` makes them.
        write: Writes outputs.
        rewards: Judges them.
    """

    rows: tuple[dict[str, Any], ...]
    write: GreedyWriter
    rewards: PairedRewards

    def measure(self, model: Any, step: int, *, rank: int = 0, n_processes: int = 1) -> dict[str, float | None]:
        """Return mean R_fut (of those measured), share of well-formed outputs and share unmeasured.

        Each process answers its share of the rows, and all of them return the values of all rows.
        """
        own = self.rows[rank::n_processes]
        # Where a model is split, a forward pass takes all processes: a smaller share is filled up.
        filled = (*own, *self.rows)[: ceil(len(self.rows) / n_processes)]
        texts = self.write(model, [row["prompt"] for row in filled])
        completions = [
            Completion(
                row["context_id"], tuple(Turn(**turn) for turn in row["conversation"]), split_output(text), 0, step
            )
            for row, text in zip(own, texts, strict=False)
        ]
        shares = gathered(together(lambda: self.rewards.judge(completions)))
        judged = [each for share in shares for each in share]
        values = [each.future for each in judged if each.future is not None]
        n = len(judged)
        return {
            "dev/reward/future": fsum(values) / len(values) if values else None,
            "dev/format_share": sum(each.completion.generation.format_ok for each in judged) / n,
            "dev/unscored_share": 1 - len(values) / n,
        }


class DevEvaluation(TrainerCallback):
    """Measures dev before the first step, every so many steps, and at the end.

    Args:
        dev: The held-out rows.
        every: Steps between two evaluations.
        resumed_step: What was measured up to it is on disk already.
        measured: Called in every process with step and metrics.
        trainer: Returns the trainer.
    """

    def __init__(
        self,
        dev: DevSet,
        *,
        every: int,
        resumed_step: int,
        measured: Callable[[int, DevMetrics], None],
        trainer: Callable[[], Any],
    ) -> None:
        self._dev = dev
        self._every = every
        self._last = resumed_step
        self._measured = measured
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the untrained policy."""
        if self._last == 0:
            self._measure(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure every so many steps, and after the last."""
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        trainer = self._trainer()
        accelerator = trainer.accelerator
        # A user's own reward may draw numbers; the training's draws must not depend on how often dev is looked at.
        python, generator = random.getstate(), torch.get_rng_state()
        with generating(trainer) as model:
            metrics = self._dev.measure(
                model, state.global_step, rank=accelerator.process_index, n_processes=accelerator.num_processes
            )
        random.setstate(python)
        torch.set_rng_state(generator)
        self._measured(state.global_step, metrics)
