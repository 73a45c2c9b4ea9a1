"""Dev contexts while a policy is trained: greedy replies, and what they are worth.

What is watched while a policy is trained: metrics, samples of its outputs, dev contexts, and the guard.

All of it hangs on the callbacks of the Hugging Face ``Trainer``; TRL's own logs, made at every step, are the source.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, fsum
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from esckit.errors import FailureRateError
from esckit.models.capabilities import generating
from esckit.processes import gathered, together
from esckit.records import JsonlAppender
from esckit.rl.rewards import MOMENTS, PARSE_KINDS, Completion, Judged, PairedRewards, correlation
from esckit.roles.asking import split_output
from esckit.training.harness import Diverged, not_finite
from esckit.training.monitor import finite_or_none, keep_rows
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
        rows: Rows as :func:`esckit.rl.rows.build_rows` makes them.
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


log = logging.getLogger(__name__)


Logs = Mapping[str, Any]


_NAMES = {
    "reward": "rl/reward/total",
    "reward_std": "rl/reward/total_std",
    "rewards/future_reward/mean": "rl/reward/future",
    "rewards/future_reward/std": "rl/reward/future_std",
    "rewards/format_reward/mean": "rl/reward/format",
    "rewards/format_reward/std": "rl/reward/format_std",
    "frac_reward_zero_std": "rl/reward/zero_std_share",
    "kl": "rl/kl",
    "entropy": "rl/entropy",
    "completions/mean_length": "rl/completion_tokens/mean",
    "completions/max_length": "rl/completion_tokens/max",
    "completions/clipped_ratio": "rl/completion_tokens/clipped_share",
    "unscored": "rl/unscored_share",
    "parse/blank": "rl/blank_share",
    "grad_norm": "rl/grad_norm",
    "loss": "rl/loss",
    "learning_rate": "rl/lr",
    "step_time": "rl/step_s",
    "rewards/accuracies": "rl/dpo/accuracy",
    "rewards/margins": "rl/dpo/margin",
    **{f"parse/{kind}": f"rl/parse/{kind}" for kind in PARSE_KINDS[:-1]},
}

_AS_TOLD = ("clip_ratio/", "sampling/")
"""Groups of TRL's numbers that keep their names: how often the ratio was clipped, and how far a generator's
log-probabilities are from the policy's."""

_MERGE = {"max": max, "min": min}

_FINITE = ("loss", "grad_norm", "kl", "entropy", "reward")

RATE_STEPS = 200

_ZERO_STD_STEPS = 100

_MALFORMED_AFTER = 1000


class Watch(TrainerCallback):
    """The guard and the metrics: stops a run that diverged, and writes means of the logs every so many steps.

    Args:
        folder: The run folder.
        every: Steps between two rows of ``metrics.jsonl``.
        resumed_step: Rows beyond it are of an earlier go and are dropped.
        steps_per_epoch: Steps of one pass; to the Trainer all passes, laid out one after another, are a single epoch.
        diverged: Ends a run that diverged.
        max_unscored: Allowed share of unmeasured outputs over 200 steps.
        writes: False in all processes but one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        resumed_step: int,
        steps_per_epoch: int,
        diverged: Diverged,
        max_unscored: float,
        writes: bool = True,
    ) -> None:
        self._folder = folder
        self._every = every
        self._steps_per_epoch = steps_per_epoch
        self._diverged = diverged
        self._max_unscored = max_unscored
        self._window: list[Logs] = []
        self._unscored: deque[float] = deque(maxlen=RATE_STEPS)
        self._zero_std: deque[float] = deque(maxlen=_ZERO_STD_STEPS)
        self._warned: set[str] = set()
        self._writes = writes
        if writes:
            keep_rows(folder / "metrics.jsonl", resumed_step)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look back at the steps of earlier goes: shares over many steps must not depend on where a run was stopped."""
        for logs in state.log_history:
            if "loss" in logs:
                self._look_back(logs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at one step's logs."""
        if logs is None or "loss" not in logs:
            return
        self._diverged.note(state.global_step, logs)
        watched = [name for name in _FINITE if name != "reward" or logs.get("unscored") != 1.0]
        if found := not_finite(logs, watched):
            self._diverged.stop(state.global_step, found)
        self._look_back(logs)
        if len(self._unscored) == RATE_STEPS:
            self._judge_rate()
        self._window.append(logs)
        self._warn(logs, state.global_step)
        if state.global_step % self._every == 0:
            self._write(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write what there is, so that a resumed run writes the same rows."""
        if self._window:
            self._write(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left, and judge a short run's failures too."""
        if self._window:
            self._write(state.global_step)
        self._judge_rate()

    def row(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append one row to ``metrics.jsonl``."""
        if self._writes:
            with JsonlAppender(self._folder / "metrics.jsonl") as file:
                file.append({"step": step, "epoch": round(step / self._steps_per_epoch, 4), **finite_or_none(values)})

    def _look_back(self, logs: Logs) -> None:
        """Take a step into the windows; one that goes on learning from an earlier batch tells nothing new."""
        if "unscored" in logs:
            self._unscored.append(float(logs["unscored"]))
        if logs.get("frac_reward_zero_std") is not None:
            self._zero_std.append(float(logs["frac_reward_zero_std"]))

    def _judge_rate(self) -> None:
        share = sum(self._unscored) / max(1, len(self._unscored))
        if share > self._max_unscored:
            raise FailureRateError(
                f"{share:.1%} of the outputs of the last {len(self._unscored)} steps could not be measured",
                expected=f"at most {self._max_unscored:.1%} (max_failure_rate)",
                hint="What is done is kept. Mend the cause and run the same command again, or anew with another --out",
            )

    def _warn(self, logs: Logs, step: int) -> None:
        idle = sum(self._zero_std) / _ZERO_STD_STEPS
        malformed = 1.0 - float(logs.get("parse/ok", 1.0))
        kl, entropy = logs.get("kl"), logs.get("entropy")
        found = {
            "kl": (kl is not None and kl > 10.0, f"the KL term is {kl}"),
            "entropy": (entropy is not None and entropy < 0.1, f"the entropy is {entropy}"),
            "idle": (idle > 0.8, f"{idle:.0%} of the groups of the last {_ZERO_STD_STEPS} steps had equal rewards"),
            "malformed": (step > _MALFORMED_AFTER and malformed > 0.5, f"{malformed:.0%} of the outputs are malformed"),
        }
        for name, (holds, text) in found.items():
            if holds and name not in self._warned:
                self._warned.add(name)
                log.warning("step %d: %s", step, text)

    def _write(self, step: int) -> None:
        window, self._window = self._window, []
        self.row(step, means(window))


def means(window: Sequence[Logs]) -> dict[str, float | None]:
    """Return the means of a window of logs under the names of ``metrics.jsonl``; of maxima and minima the outermost."""
    row: dict[str, float | None] = {}
    as_told = {name: f"rl/{name}" for logs in window for name in sorted(logs) if name.startswith(_AS_TOLD)}
    for source, name in {**_NAMES, **as_told}.items():
        given = [logs[source] for logs in window if source in logs]
        values = [float(value) for value in given if value is not None]
        if given:
            merged = _MERGE.get(name.rpartition("/")[2].rpartition("_")[2], fmean)
            row[name] = merged(values) if values else None
    if "rl/parse/ok" in row:
        ok = row["rl/parse/ok"]
        row["rl/malformed_share"] = None if ok is None else 1.0 - ok
        told = [logs for logs in window if "moment/n" in logs]  # TRL tells of rewards where it writes outputs only
        sums = {name: sum(float(logs[f"moment/{name}"]) for logs in told) for name in MOMENTS}
        row["rl/reward_length_corr"] = correlation(sums)
    return row


class Samples(TrainerCallback):
    """Writes some outputs of a step with all components to ``samples.jsonl``.

    Args:
        path: The file.
        every: Steps between two looks.
        n: Outputs of one look.
        weights: Of R_fut and R_fmt.
        rewards: Holds this process's outputs of the last batch.
        resumed_step: Rows beyond it are of an earlier go and are dropped.
        writes: False in all processes but one; the outputs of all are looked at.
    """

    def __init__(
        self,
        path: Path,
        *,
        every: int,
        n: int,
        weights: tuple[float, float],
        rewards: PairedRewards,
        resumed_step: int,
        writes: bool,
    ) -> None:
        self._path = path
        self._every = every
        self._n = n
        self._weights = weights
        self._rewards = rewards
        self._writes = writes
        if writes:
            keep_rows(path, resumed_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write outputs from all over the step's batch."""
        if state.global_step % self._every:
            return
        outputs = [output for share in gathered(self._rewards.last) for output in share]
        n = min(self._n, len(outputs))
        if self._writes:
            with JsonlAppender(self._path) as file:
                for judged in (outputs[index * len(outputs) // n] for index in range(n)):
                    file.append(sample_row(state.global_step, judged, self._weights))


def sample_row(step: int, judged: Judged, weights: tuple[float, float]) -> dict[str, Any]:
    """Return one output for reading; only ``reply`` is what a seeker would see."""
    said = judged.completion.generation
    future, form = judged.future, judged.format
    return {
        "step": step,
        "context_id": judged.completion.context_id,
        "reply": said.response,
        "reasoning": said.reasoning,
        "raw": said.raw,
        "parse_kind": said.parse_kind,
        "future": future,
        "format": form,
        "reward": None if future is None or form is None else weights[0] * future + weights[1] * form,
    }
