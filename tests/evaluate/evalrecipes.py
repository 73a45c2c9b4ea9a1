"""Small recipes for evaluation tests."""

from typing import Any

from esckit.evaluate.recipe import SUITES, EvaluateRecipe
from esckit.predict.run import PredictRecipe

DATA = {"dataset": "esconv", "path": "sample:esconv", "scheme": "files", "split": "test"}
ROLES = ("strategist", "supporter", "seeker", "critic", "judge")


def scripted(name: str) -> dict[str, Any]:
    return {"scripted": f"tests.evaluate.verdicts:{name}"}


def evaluation(*suites: str, **sections: Any) -> EvaluateRecipe:
    """Return a recipe; nested sections are merged into the small defaults."""
    base: dict[str, Any] = {
        "command": "evaluate",
        "seed": 7,
        "suites": suites,
        "data": DATA,
        "taxonomy": "esconv",
        "models": {role: scripted(role) for role in ROLES},
        "settings": {"dialogue": {"max_turns": 4, "strategy": "none"}, "pairwise": {"contexts": 12}},
        "statistics": {"resamples": 200},
        "max_failure_rate": 1.0,
    }
    return EvaluateRecipe.model_validate(merged(base, sections))


def everything(**sections: Any) -> EvaluateRecipe:
    """Return a recipe of all suites, whose inputs need not be there."""
    base: dict[str, Any] = {
        "models": {"turn_judge": scripted("judge"), "reward": {"checkpoint": "runs/reward"}},
        "settings": {"pairwise": {"opponent": "runs/other"}, "reward": {"inputs": ["runs/futures"]}},
    }
    return evaluation(*(suite.name for suite in SUITES), **merged(base, sections))


def prediction(**sections: Any) -> PredictRecipe:
    base: dict[str, Any] = {
        "command": "predict",
        "seed": 7,
        "data": DATA,
        "taxonomy": "esconv",
        "models": {"strategist": scripted("strategist"), "supporter": scripted("other_supporter")},
    }
    return PredictRecipe.model_validate(merged(base, sections))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict) and name not in ("gates",)
        found[name] = merged(found[name], value) if both and not {"scripted", "checkpoint"} & set(value) else value
    return found
