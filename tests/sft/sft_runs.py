"""Small runs of train-sft."""

from typing import Any

from esckit.sft.recipe import TrainSftRecipe


def recipe(**sections: Any) -> TrainSftRecipe:
    """Return a recipe on the tiny backbone; ``section={...}`` changes fields of a section, None leaves it out."""
    base: dict[str, Any] = {
        "command": "train-sft",
        "seed": 7,
        "source": "corpus",
        "data": {"dataset": "esconv", "path": "sample:esconv", "scheme": "files", "split": "train", "limit": 6},
        "contexts": {"per_dialogue": 1},
        "form": {"strategy": "tag"},
        "model": {"backbone": "tiny-random"},
        "lora": {"targets": ["q_proj", "v_proj"]},
        "encoding": {"max_prompt_tokens": 1600, "max_completion_tokens": 400},
        "optim": {"lr": 1e-2, "max_steps": 3, "batch_size": 2, "gradient_checkpointing": False},
        "dev": {"share": 0.3, "max_examples": 2},
        "monitor": {"log_every": 1, "dev_every": 2},
        "logging": {"save_every": 1},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return TrainSftRecipe.model_validate({name: section for name, section in base.items() if section is not None})


def world_recipe(path: str = "world:default/12/rule", **sections: Any) -> TrainSftRecipe:
    """Return a recipe on turns of the practice world's supporter."""
    data = {"dataset": "practice", "path": path, "scheme": None, "split": None, "limit": None}
    given: dict[str, Any] = {"form": {"reasoning": True, "strategy": "none"}}
    given["contexts"] = {"per_dialogue": None}
    return recipe(**{"data": data, **given, **sections})
