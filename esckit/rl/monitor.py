"""What is watched while a policy is trained: metrics, failures, samples of its outputs, and dev contexts.

:class:`esckit.training.monitor.Monitor` stops a run that diverged and writes ``metrics.jsonl``; here stand the names of
its numbers, and what only a policy has. TRL's own logs, made at every step, are the source.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, fsum
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from esckit.errors import FailureRateError
from esckit.models.loading import generating
from esckit.records import JsonlAppender
from esckit.rl.recipe import RewardWeights
from esckit.rl.rewards import MOMENTS, PARSE_KINDS, Completion, Judged, PairedRewards, correlation
from esckit.roles.asking import read_output
from esckit.training.learner import write_outputs
from esckit.training.monitor import Logs, keep_rows
from esckit.training.run import TrainingRun, gathered, together
from esckit.types import Sampling, Turn

log = logging.getLogger(__name__)

# ---------------------------------------------------------------- metrics and failures

_NAMES = {
    "reward": "rl/reward/total",
    "reward_std": "rl/reward/total_std",
    "rewards/future_reward/mean": "rl/reward/future",
    "rewards/future_reward/std": "rl/reward/future_std",
    "rewards/format_reward/mean": "rl/reward/format",
    "rewards/format_reward/std": "rl/reward/format_std",
    "frac_reward_zero_std": "rl/reward/zero_std_share",
    # Of whole dialogues, where TRL counts rows that no dialogue reaches too.
    "no_signal": "rl/reward/zero_std_share",
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

_UNCHANGED = ("clip_ratio/", "sampling/", "episode/")
"""Groups of numbers that keep their names: how often the ratio was clipped, how far a generator's log-probabilities are
from the policy's, and how whole dialogues went."""

_MERGE = {"max": max, "min": min}

_FINITE = ("loss", "grad_norm", "kl", "entropy", "reward")

RATE_STEPS = 200

_ZERO_STD_STEPS = 100

_MALFORMED_AFTER = 1000


def watched(logs: Logs) -> tuple[str, ...]:
    """Return which numbers of a step's logs must be finite; the reward need not where no output could be measured."""
    if "loss" not in logs:
        return ()
    return tuple(name for name in _FINITE if name != "reward" or logs.get("unscored") != 1.0)


@dataclass(eq=False)
class Watch(TrainerCallback):
    """Stops a run of whose outputs too many cannot be measured, and warns once of what usually goes wrong.

    Attributes:
        max_unscored: Allowed share of unmeasured outputs over 200 steps.
        step: Steps that were taken before the current one began.
    """

    max_unscored: float
    step: int = field(default=0, init=False)
    _unscored: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_STEPS), init=False)
    _zero_std: deque[float] = field(default_factory=lambda: deque(maxlen=_ZERO_STD_STEPS), init=False)
    _warned: set[str] = field(default_factory=set, init=False)

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Look back at the steps of earlier goes: shares over many steps must not depend on where a run was stopped."""
        for logs in state.log_history:
            self._add(logs)

    def on_step_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Remember which step begins."""
        self.step = state.global_step

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs | None = None, **_: Any) -> None:
        """Look at one step's logs.

        Raises:
            FailureRateError: If too many outputs of the last steps could not be measured.
        """
        if logs is None or "loss" not in logs:
            return
        self._add(logs)
        if len(self._unscored) == RATE_STEPS:
            self._judge_rate()
        self._warn(logs, state.global_step)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Judge a short run's failures too.

        Raises:
            FailureRateError: If too many outputs could not be measured.
        """
        self._judge_rate()

    def _add(self, logs: Logs) -> None:
        """Add a step to the rolling shares; one that learns again from an earlier batch has none."""
        if "unscored" in logs:
            self._unscored.append(float(logs["unscored"]))
        if (share := logs.get("no_signal", logs.get("frac_reward_zero_std"))) is not None:
            self._zero_std.append(float(share))

    def _judge_rate(self) -> None:
        share = sum(self._unscored) / max(1, len(self._unscored))
        if share > self.max_unscored:
            raise FailureRateError(
                f"{share:.1%} of the outputs of the last {len(self._unscored)} steps could not be measured",
                expected=f"at most {self.max_unscored:.1%} (max_failure_rate)",
                hint="What is done is kept. Fix the cause and run the same command again, or anew with another --out",
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


def means(window: Sequence[Logs]) -> dict[str, float | None]:
    """Return the means of a window of logs under the names of ``metrics.jsonl``; of maxima and minima the outermost."""
    row: dict[str, float | None] = {}
    unchanged = {name: f"rl/{name}" for logs in window for name in sorted(logs) if name.startswith(_UNCHANGED)}
    for source, name in {**_NAMES, **unchanged}.items():
        given = [logs[source] for logs in window if source in logs]
        values = [float(value) for value in given if value is not None]
        if given:
            merged = _MERGE.get(name.rpartition("/")[2].rpartition("_")[2], fmean)
            row[name] = merged(values) if values else None
    if "rl/parse/ok" in row:
        ok = row["rl/parse/ok"]
        row["rl/malformed_share"] = None if ok is None else 1.0 - ok
        # TRL logs rewards only for steps that write outputs.
        rewarded = [logs for logs in window if "moment/n" in logs]
        sums = {name: sum(float(logs[f"moment/{name}"]) for logs in rewarded) for name in MOMENTS}
        row["rl/reward_length_corr"] = correlation(sums)
    if reached := row.get("rl/episode/reached"):
        # TRL counts a row for every turn that a dialogue may have; those that it did not reach are empty.
        for name in ("rl/completion_tokens/mean", "rl/completion_tokens/clipped_share"):
            mean = row.get(name)
            row[name] = None if mean is None else mean / reached
    return row


# ---------------------------------------------------------------- samples

SAMPLES = "samples.jsonl"


@dataclass(eq=False)
class Samples(TrainerCallback):
    """Writes some outputs of a step with all components to ``samples.jsonl``.

    Attributes:
        run: The run; rows after the step that it resumes from are removed first.
        every: Steps between two looks.
        n: Outputs of one look.
        rows: Returns this process's outputs of the last batch, see :func:`sample_row`; those of all processes are
            looked at.
    """

    run: TrainingRun
    every: int
    n: int
    rows: Callable[[], Sequence[Mapping[str, Any]]]

    def __post_init__(self) -> None:
        if self.run.process.is_main:
            keep_rows(self.run.out / SAMPLES, self.run.resumed_step)

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Write outputs from all over the step's batch."""
        if state.global_step % self.every:
            return
        outputs = [output for share in gathered(self.rows()) for output in share]
        n = min(self.n, len(outputs))
        if self.run.process.is_main:
            with JsonlAppender(self.run.out / SAMPLES) as file:
                for row in (outputs[index * len(outputs) // n] for index in range(n)):
                    file.append({"step": state.global_step, **row})


def sample_row(judged: Judged, weights: RewardWeights) -> dict[str, Any]:
    """Return one output for reading; only ``reply`` is what a seeker would see."""
    output = judged.completion.generation
    return {
        "context_id": judged.completion.context_id,
        "reply": output.response,
        "reasoning": output.reasoning,
        "raw": output.raw,
        "parse_kind": output.parse_kind,
        "future": judged.future,
        "format": judged.format,
        "reward": judged.reward(weights),
    }


# ---------------------------------------------------------------- dev contexts


@dataclass(frozen=True, slots=True)
class DevSet:
    """Held-out contexts, how the policy answers them, and how the answers are judged.

    Attributes:
        rows: Rows as :func:`esckit.rl.rows.build_rows` makes them.
        rewards: Judges the outputs.
        tokenizer: With the template of the training.
        eos_ids: Tokens that end an output.
        max_tokens: Longest output.
        batch_size: Outputs written together.
    """

    rows: Sequence[dict[str, Any]]
    rewards: PairedRewards
    tokenizer: Any
    eos_ids: Sequence[int]
    max_tokens: int
    batch_size: int

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
                row["context_id"], tuple(Turn(**turn) for turn in row["conversation"]), read_output(text), 0, step
            )
            for row, text in zip(own, texts, strict=False)
        ]
        judged = [each for share in gathered(together(lambda: self.rewards.judge(completions))) for each in share]
        values = [each.future for each in judged if each.future is not None]
        n = len(judged)
        return {
            "dev/reward/future": fsum(values) / len(values) if values else None,
            "dev/format_share": sum(each.completion.generation.format_ok for each in judged) / n,
            "dev/unscored_share": 1 - len(values) / n,
        }

    def write(self, model: Any, prompts: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """Return the most likely output for each prompt, see :func:`esckit.training.learner.write_outputs`."""
        greedy = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        texts: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            ids = [
                self.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
                for prompt in prompts[start : start + self.batch_size]
            ]
            written = write_outputs(model, self.tokenizer, ids, stop_ids=self.eos_ids, sampling=greedy)
            texts += self.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return texts


@dataclass(eq=False)
class DevEvaluation(TrainerCallback):
    """Measures dev before the first step, every so many steps, and at the end.

    Attributes:
        dev: The held-out rows.
        every: Steps between two evaluations.
        resumed_step: What was measured up to it is on disk already.
        measured: Called in every process with step and metrics.
        trainer: Returns the trainer.
    """

    dev: DevSet
    every: int
    resumed_step: int
    measured: Callable[[int, dict[str, float | None]], None]
    trainer: Callable[[], Any]

    def on_train_begin(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Measure the untrained policy."""
        if self.resumed_step == 0:
            self._measure(state)

    def on_step_end(self, args: Any, state: TrainerState, *_: Any, **__: Any) -> None:
        """Measure every so many steps, and after the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        trainer = self.trainer()
        accelerator = trainer.accelerator
        # A user's own reward may draw numbers; the training's draws must not depend on how often dev is looked at.
        python, generator = random.getstate(), torch.get_rng_state()
        with generating(trainer) as model:
            metrics = self.dev.measure(
                model, state.global_step, rank=accelerator.process_index, n_processes=accelerator.num_processes
            )
        random.setstate(python)
        torch.set_rng_state(generator)
        self.measured(state.global_step, metrics)
