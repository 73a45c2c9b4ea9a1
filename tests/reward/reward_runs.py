"""Small runs of simulate and train-reward for the tests of what comes after them."""

from pathlib import Path
from typing import Any

from esckit.reward.recipe import TrainRewardRecipe
from esckit.simulate.run import SimulateRecipe
from esckit.simulate.run import run as run_simulate


def simulated(out: Path, **sections: Any) -> Path:
    """Play scripted futures of ten contexts, three candidates each."""
    base: dict[str, Any] = {
        "command": "simulate",
        "seed": 7,
        "data": {"dataset": "esconv", "path": "sample:esconv", "scheme": "files", "split": "train", "merge": True},
        "contexts": {"per_dialogue": 1},
        "models": {role: {"scripted": role} for role in ("supporter", "seeker", "critic")},
        "critic": {"samples": 3},
        "simulation": {"candidates": 3, "horizon": 3},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    run_simulate(SimulateRecipe.model_validate(base), out=out)
    return out


def reward_recipe(*inputs: Path, **sections: Any) -> TrainRewardRecipe:
    base: dict[str, Any] = {
        "command": "train-reward",
        "seed": 2,
        "inputs": [str(each) for each in inputs],
        "label": {"rule": "quantile", "q": "0.5"},
        "model": {"backbone": "tiny-random", "max_length": 512},
        "optim": {"lr": 1e-3, "epochs": 2, "accumulate": 4},
        "dev": {"share": 0.3},
        "logging": {"every": 2},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) and name != "label" else section
    return TrainRewardRecipe.model_validate(base)
