"""The recipe of `evaluate`: defaults, what a suite needs, and what only recomputes."""

from functools import reduce

import pytest
from pydantic import ValidationError

from esckit.config.load import load_recipe
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.report.metric_rows import load_references
from esckit.runs import without

MODELS = {role: {"scripted": role} for role in ("strategist", "supporter", "seeker", "critic", "judge")}
DATA = {"dataset": "esconv", "path": "somewhere"}


def recipe(*suites: str, **sections: object) -> EvaluateRecipe:
    base = {"command": "evaluate", "seed": 7, "suites": suites, "data": DATA, "models": MODELS}
    return EvaluateRecipe.model_validate({**base, **sections})


def test_the_defaults_are_the_protocols() -> None:
    found = recipe("dialogue")
    dialogue, statistics = found.settings.dialogue, found.statistics
    assert (dialogue.critics, dialogue.max_turns, dialogue.samples) == (("rlff7",), 8, 10)
    assert (statistics.resamples, statistics.level, statistics.min_coverage) == (10_000, 0.95, 0.95)
    assert (found.settings.pairwise.contexts, found.settings.pairwise.swap) == (100, True)
    assert found.settings.strategy.unit == "turn"
    models = found.models
    assert models.supporter is not None
    assert models.seeker is not None
    assert models.critic is not None
    assert (models.supporter.sampling.temperature, models.supporter.sampling.max_tokens) == (0.0, 512)
    assert (models.seeker.sampling.temperature, models.seeker.sampling.max_tokens) == (0.0, 64)
    assert (models.critic.sampling.temperature, models.critic.sampling.max_tokens) == (1.1, 16)


@pytest.mark.parametrize(
    ("suite", "role"),
    [("strategy", "strategist"), ("response", "supporter"), ("dialogue", "critic"), ("safety", "judge")],
)
def test_a_suite_names_what_it_lacks(suite: str, role: str) -> None:
    models = {name: binding for name, binding in MODELS.items() if name != role}
    with pytest.raises(ValidationError, match=rf"suite {suite} needs models\.{role}"):
        recipe(suite, models=models)


def test_a_predictions_file_replaces_speakers_but_not_judges() -> None:
    said = {"predictions": "said.jsonl", "models": {}}
    assert recipe("strategy", "response", **said).roles() == {}
    with pytest.raises(ValidationError, match=r"models\.judge"):
        recipe("pairwise", settings={"pairwise": {"opponent": "x"}}, **said)
    with pytest.raises(ValidationError, match=r"models\.supporter"):
        recipe("dialogue", **said)


def test_a_strategist_leads_self_play_where_there_is_one() -> None:
    alone = {name: binding for name, binding in MODELS.items() if name != "strategist"}
    assert recipe("dialogue").settings.dialogue.strategy == "predicted"
    assert "strategist" in recipe("dialogue").roles()
    assert recipe("dialogue", models=alone).settings.dialogue.strategy == "none"
    assert recipe("strategy", "response").settings.dialogue.strategy == "none"
    silent = recipe("dialogue", settings={"dialogue": {"strategy": "none"}})
    assert "strategist" not in silent.roles()
    assert recipe(*silent.suites, **{"settings": silent.settings.model_dump()}) == silent


def test_probes_and_reward_models_need_no_corpus() -> None:
    recipe("safety", data=None)
    recipe("reward", data=None, models={"reward": {"checkpoint": "x"}}, settings={"reward": {"inputs": ["y"]}})
    with pytest.raises(ValidationError, match="suite dialogue needs data"):
        recipe("dialogue", data=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": {"include_openings": True}}, "unit: utterance"),
        ({"strategy": {"source": "expanded"}}, "go together"),
        ({"dialogue": {"critics": ["rlff7", "rlff7"]}}, "different"),
        ({"safety": {"crisis": False, "sycophancy": False}}, "neither"),
        ({"dialogue": {"samples": 3, "min_parsed": 4}}, "min_parsed"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe("strategy", settings=settings)


def test_statistics_gates_and_comparisons_keep_the_same_run() -> None:
    first = recipe("response")
    second = recipe(
        "response", statistics={"level": 0.9}, gates={"response.bleu_2": 1.0}, compare_to="x", report={"quotes": True}
    )
    assert without(first.resolved(), first.OPERATIONAL) == without(second.resolved(), first.OPERATIONAL)
    other = recipe("response", settings={"response": {"strategy": "gold"}})
    assert without(first.resolved(), first.OPERATIONAL) != without(other.resolved(), first.OPERATIONAL)


def test_the_recipes_for_the_papers_state_their_protocols() -> None:
    play = load_recipe("evaluate/selfplay", EvaluateRecipe).recipe
    assert play.data is not None
    assert (play.data.scheme, play.data.allow_cross_family) == ("ppdpp", True)
    assert play.settings.dialogue.critics == ("rlff7", "ppdpp4")
    gold = load_recipe("evaluate/strategy_gold", EvaluateRecipe).recipe
    assert (gold.settings.strategy.unit, gold.settings.strategy.include_openings) == ("utterance", True)


def test_the_gold_recipe_uses_the_test_of_the_published_marks() -> None:
    resolved = load_recipe("evaluate/strategy_gold", EvaluateRecipe).recipe.resolved()
    for path, value in load_references().table("gold.hub").same.items():
        *sections, name = path.split(".")
        assert reduce(dict.__getitem__, sections, resolved)[name] == value, path
