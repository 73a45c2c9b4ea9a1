"""Tiny policies, talks and rewards for the tests of RL training."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TrainerCallback

from esckit.prompts.prompt import load_prompt
from esckit.rl.rewards import PairedRewards, ReplyMeasure
from esckit.rl.rows import build_rows
from esckit.rl.trainer import quiet_warnings
from esckit.training.harness import Diverged, fit
from esckit.training.learner import Learner, learner_of
from esckit.training.policy import PolicyPrompt
from esckit.training.run import TrainingRun, last_state
from esckit.types import Context, Scenario, Turn
from tests.tiny import TinyFamily, tiny_random

WELL_FORMED = "<think>They sound tired.</think> <response>That sounds hard.</response>"
SCORE: Callable[..., list[float | None]] = lambda turns, replies: [float("e" in text) for text in replies]  # noqa: E731


def learner(family: TinyFamily = "qwen2") -> Learner:
    return learner_of(*tiny_random(family))


def contexts(n: int = 8, n_turns: int = 1) -> list[Context]:
    return [
        Context(
            id=f"d{number}#m{n_turns}",
            dialogue_id=f"d{number}",
            scenario=Scenario(id=f"d{number}", situation="My boss is unfair.", emotion_type="anger"),
            turns=tuple(
                Turn(speaker="supporter" if turn % 2 else "seeker", text=f"turn {turn} of talk {number}")
                for turn in range(n_turns)
            ),
        )
        for number in range(n)
    ]


def rows(policy: Learner, n: int = 8, max_tokens: int = 2048) -> tuple[dict[str, Any], ...]:
    return build_rows(contexts(n), PolicyPrompt(load_prompt("supporter_rlff"), policy.chat, max_tokens)).rows


def paired(score: Callable[..., Sequence[float | None]] = SCORE, *, n_generations: int = 4) -> PairedRewards:
    return PairedRewards(ReplyMeasure(score), n_generations=n_generations)


def columns(n: int, *, step: int = 0, context_ids: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what TRL hands a reward beside prompts and completions."""
    return {
        "context_id": list(context_ids or [f"c{index}" for index in range(n)]),
        "conversation": [[{"speaker": "seeker", "text": "I feel low."}]] * n,
        "trainer_state": SimpleNamespace(global_step=step),
        "log_metric": lambda name, value: None,
    }


def said(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def optim(**changes: Any) -> dict[str, Any]:
    settings = {"lr": 1e-2, "epochs": 1, "max_steps": None, "schedule": "constant", "warmup_share": 0.0}
    return settings | changes


def resumed(folder: Path) -> TrainingRun:
    """Return a run that goes on from its newest state."""
    return TrainingRun(folder, state=last_state(folder / "states"))


def trained(trainer: Any, run: TrainingRun, diverged: Diverged | None = None) -> dict[str, torch.Tensor]:
    """Train, and return what was trained."""
    with quiet_warnings():
        fit(trainer, run, diverged or Diverged(run, list))
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


class Poison(TrainerCallback):
    """Makes a gradient NaN from some step on."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            parameter = next(p for p in kwargs["model"].parameters() if p.requires_grad)
            parameter.register_hook(lambda gradient: gradient * math.nan)


class Stop(TrainerCallback):
    """Ends the process's part of a run, as an interrupt would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            raise KeyboardInterrupt
