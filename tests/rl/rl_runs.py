"""Small runs of train-rl, and rewards that do as they are told."""

from pathlib import Path
from typing import Any

from esckit.errors import NotFiniteError
from esckit.play.runner import NoProgress
from esckit.rl.recipe import TrainRlRecipe
from esckit.simulate.run import SimulateRecipe


def no_reward(conversations: Any, responses: Any) -> list[None]:
    return [None] * len(responses)


def bad_reward(conversations: Any, responses: Any) -> list[float]:
    return [float("nan")] * len(responses)


def broken_model(conversations: Any, responses: Any) -> list[float]:
    raise NotFiniteError("p of the reward model", float("nan"))


FAILING_CALLS = [0]


def failing_reward(conversations: Any, responses: Any) -> list[float | None]:
    FAILING_CALLS[0] -= 1
    return [None if FAILING_CALLS[0] >= 0 else 0.5] * len(responses)


def letter_reward(conversations: Any, responses: Any) -> list[float]:
    return [float("e" in text) for text in responses]


def recipe(**sections: Any) -> TrainRlRecipe:
    base: dict[str, Any] = {
        "command": "train-rl",
        "seed": 7,
        "data": {"dataset": "esconv", "path": "sample:esconv", "scheme": "files", "split": "train", "limit": 6},
        "contexts": {"per_dialogue": 1},
        "models": {"policy": {"backbone": "tiny-random"}},
        "reward": {"kind": "tests.rl.rl_runs:letter_reward"},
        "grpo": {"prompts_per_step": 2, "max_prompt_tokens": 1600, "max_completion_tokens": 8},
        "optim": {"lr": 1e-2, "max_steps": 3, "gradient_checkpointing": False},
        "dev": {"share": 0.3, "max_contexts": 2},
        "monitor": {"log_every": 1, "sample_every": 1, "samples": 2, "dev_every": 2},
        "logging": {"save_every": 1},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return TrainRlRecipe.model_validate({name: section for name, section in base.items() if section is not None})


class StopAt(NoProgress):
    """Interrupts a run after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, n: int = 1, **counts: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def simulated_recipe(policy: Path, **models: Any) -> SimulateRecipe:
    return SimulateRecipe.model_validate(
        {
            "command": "simulate",
            "seed": 7,
            "data": {"dataset": "esconv", "path": "sample:esconv", "scheme": "files", "split": "valid", "limit": 1},
            "contexts": {"per_dialogue": 1},
            "models": {
                "supporter": {"checkpoint": str(policy), "sampling": {"max_tokens": 8}},
                "seeker": {"scripted": "seeker"},
                "critic": {"scripted": "critic"},
                **models,
            },
            "critic": {"samples": 2},
            "simulation": {"candidates": 1, "horizon": 1},
            "max_failure_rate": 1.0,
        }
    )
