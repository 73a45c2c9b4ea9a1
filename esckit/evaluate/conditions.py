"""Under what conditions a suite was run: everything but the system under test, equal in two runs that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esckit.config.sections import RoleOptions
from esckit.documents import read_json_object
from esckit.evaluate.lineage import run_of
from esckit.evaluate.probes import crisis_probes, sycophancy_probes
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.suites.suite import Work
from esckit.prompts.prompt import load_prompt
from esckit.records import digest
from esckit.roles.judges import CONTROL_QUESTION, CRISIS_QUESTIONS, DIMENSIONS, SYCOPHANCY_QUESTIONS
from esckit.roles.rubric import load_rubric
from esckit.roles.verdicts import load_preset

TOKENISATION = "esckit.tokens/1"

_MODEL_FIELDS = frozenset({"backbone", "endpoint", "model", "checkpoint", "scripted"})


def conditions(
    recipe: EvaluateRecipe,
    works: Sequence[Work],
    *,
    gold: Mapping[str, str | None],
    predicted: Mapping[str, str | None],
    futures: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Return the conditions of every suite.

    Args:
        recipe: The recipe.
        works: Its files of cases.
        gold: Taxonomy and mapping of the strategies that a supporter is told by the corpus.
        predicted: The same of the suite ``strategy``.
        futures: Digest per input of the suite ``reward``.
    """
    found: dict[str, dict[str, Any]] = {}
    for work in works:
        of_suite = found.setdefault(work.suite, _of_suite(recipe, work.suite))
        of_suite |= {f"{work.file}_cases": digest([unit.id for unit in work.units]), **work.conditions}
    if "strategy" in found:
        found["strategy"] |= predicted
    if recipe.settings.response.strategy == "gold":
        for suite in {"response", "pairwise"} & set(found):
            found[suite] |= {"told": "gold", **gold}
    if "reward" in found:
        found["reward"] |= {"futures": dict(futures), "label": _label_rule(recipe)}
    return found


def _of_suite(recipe: EvaluateRecipe, suite: str) -> dict[str, Any]:
    settings, prompts = recipe.settings, recipe.prompts
    match suite:
        case "strategy":
            return {"settings": settings.strategy.model_dump(mode="json", exclude={"bias_pseudo_count"})}
        case "response":
            shown = settings.response.model_dump(mode="json")
            return {"settings": shown, "tokenisation": TOKENISATION, "scorer": _played_by(recipe, "scorer")}
        case "dialogue":
            return {
                # Whether a strategist helps is part of the system under test.
                "settings": settings.dialogue.model_dump(mode="json", exclude={"strategy"}),
                "seeker": _prompted(recipe, "seeker", prompts.seeker),
                "critic": {**_played_by(recipe, "critic"), "prompts": critic_prompts(recipe)},
                "turn_judge": _turn_judge(recipe),
            }
        case "pairwise":
            compared: dict[str, str] = {name: DIMENSIONS[name] for name in settings.pairwise.dimensions}
            judge = _judge(recipe, prompts.judge_pairwise, compared)
            return {"settings": settings.pairwise.model_dump(mode="json", exclude={"opponent"}), "judge": judge}
        case "safety":
            asked = {**CRISIS_QUESTIONS, **CONTROL_QUESTION, **SYCOPHANCY_QUESTIONS}
            return {
                "settings": settings.safety.model_dump(mode="json"),
                "probes": digest([crisis_probes().model_dump(), sycophancy_probes().model_dump()]),
                "judge": _judge(recipe, prompts.judge_reply, asked),
            }
        case _:
            return {}


def _played_by(recipe: EvaluateRecipe, role: str) -> dict[str, Any]:
    binding = recipe.models.bindings().get(role)
    if binding is None:
        return {"model": None}
    given = binding.model_dump(mode="json", exclude={"prices"})
    return {"model": model_fields(given), "sampling": given["sampling"], "on_length": given["on_length"]}


def _prompted(recipe: EvaluateRecipe, role: str, prompt: str) -> dict[str, Any]:
    tries = recipe.settings.max_attempts
    return {**_played_by(recipe, role), "prompt": load_prompt(prompt).identity, "max_attempts": tries}


def _judge(recipe: EvaluateRecipe, prompt: str, asked: Mapping[str, str]) -> dict[str, Any]:
    return {**_prompted(recipe, "judge", prompt), "asked": digest(dict(asked))}


def _turn_judge(recipe: EvaluateRecipe) -> dict[str, Any]:
    if recipe.models.turn_judge is None:
        return {"model": None}
    rubric = load_rubric("aflow").digest
    return {**_prompted(recipe, "turn_judge", recipe.prompts.turn_judge), "rubric": rubric}


def _label_rule(recipe: EvaluateRecipe) -> str | None:
    """Return what makes a future good: δ as a fraction, or the goal; None where the model is not trained yet."""
    assert recipe.models.reward is not None
    metadata = run_of(recipe.models.reward.checkpoint) / "checkpoint" / "reward.json"
    # Read as plain JSON: the class of this file comes with torch, which nothing needs before a model is called.
    return str(read_json_object(metadata).get("delta") or "goal") if metadata.is_file() else None


def critic_prompts(recipe: EvaluateRecipe) -> dict[str, str]:
    """Return the identity of every critic's prompt."""
    settings, named = recipe.settings.dialogue, recipe.prompts.critic
    asked = {name: named or load_preset(name).prompt for name in settings.critics}
    return {name: load_prompt(prompt, "resolution critic").identity for name, prompt in asked.items()}


def model_of(binding: RoleOptions) -> str:
    """Return a digest of which model a binding names, however it is sampled."""
    return digest(model_fields(binding.model_dump(mode="json")))


def model_fields(binding: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a binding that say which model it is."""
    return {name: value for name, value in binding.items() if name in _MODEL_FIELDS}
