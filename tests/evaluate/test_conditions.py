"""What must be equal for two runs to be compared: every condition that a value depends on has its part."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import esckit
from esckit.errors import ConfigError
from esckit.evaluate.recipe import SUITES, EvaluateRecipe
from esckit.evaluate.setup import set_up
from esckit.evaluate.suite import Material, model_fields
from esckit.strategies.taxonomy import load_taxonomy
from tests.evaluate.evalrecipes import evaluation
from tests.evaluate.evalruns import opponent, result

JUDGE = {"turn_judge": {"scripted": "critic_rubric"}}


def of(*suites: str, **sections: Any) -> dict[str, Any]:
    return set_up(evaluation(*suites, **sections)).conditions


@pytest.mark.parametrize(
    ("suite", "first", "second"),
    [
        ("dialogue", {}, {"settings": {"max_attempts": 5}}),
        ("dialogue", {"models": JUDGE}, {}),
        ("safety", {}, {"settings": {"max_attempts": 5}}),
        (
            "response",
            {"settings": {"response": {"strategy": "gold"}}},
            {
                "settings": {"response": {"strategy": "gold"}},
                "taxonomy": "aflow",
                "data": {"mapping": "esconv_to_aflow"},
            },
        ),
    ],
)
def test_what_a_value_depends_on_is_a_condition(suite: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    ours, theirs = of(suite, **first)[suite], of(suite, **second)[suite]
    cases = f"{suite}_cases"
    assert {**ours, cases: 0} != {**theirs, cases: 0}
    assert of(suite, **first)[suite] == ours


def test_rubric_and_prompt_of_the_turn_judge_are_conditions(tmp_path: Path) -> None:
    ours = of("dialogue", models=JUDGE)["dialogue"]["turn_judge"]
    assert ours["rubric"]
    shipped = (Path(esckit.__file__).parent / "prompts" / "critic_aflow.yaml").read_text()
    (tmp_path / "other.yaml").write_text(shipped.replace("You rate", "You judge"))
    asked = {"turn_judge": str(tmp_path / "other.yaml")}
    theirs = of("dialogue", models=JUDGE, prompts=asked)["dialogue"]["turn_judge"]
    assert ours["prompt"] != theirs["prompt"]


def test_pairs_told_gold_strategies_depend_on_their_taxonomy(tmp_path: Path) -> None:
    found = {}
    for strategy in ("none", "gold"):
        asked = {"response": {"strategy": strategy}, "pairwise": {"opponent": "elsewhere"}}
        found[strategy] = _bare(evaluation("pairwise", settings=asked), "pairwise")
    assert "taxonomy" not in found["none"]
    assert found["gold"]["taxonomy"] == load_taxonomy("esconv").digest
    assert "mapping" in found["gold"]


def test_an_opponent_is_known_by_its_replies_not_by_its_path(tmp_path: Path) -> None:
    def against(path: str) -> dict[str, Any]:
        return of("pairwise", settings={"pairwise": {"opponent": path}})["pairwise"]

    first = opponent(tmp_path)
    copy = tmp_path / "copy.jsonl"
    copy.write_text((Path(first) / "predictions.jsonl").read_text())
    assert against(first) == against(str(copy))
    copy.write_text(copy.read_text().replace("Tell me", "Show me"))
    assert against(first) != against(str(copy))
    assert "opponent" not in against(first)["settings"]


def test_an_opponent_that_changed_is_refused_on_the_same_folder(tmp_path: Path) -> None:
    theirs = opponent(tmp_path)
    sections = {"settings": {"pairwise": {"opponent": theirs}}}
    result(tmp_path, "pairwise", **sections)
    file = Path(theirs) / "predictions.jsonl"
    file.write_text(file.read_text().replace("Tell me", "Show me"))
    with pytest.raises(ConfigError, match="opponent-other_supporter"):
        result(tmp_path, "pairwise", **sections)


def test_rewards_are_compared_under_one_label_rule(tmp_path: Path) -> None:
    found = []
    for name, delta in (("a", "1/2"), ("b", "29/90"), ("c", "1/2"), ("d", None)):
        folder = tmp_path / name
        (folder / "checkpoint").mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "checkpoint" / "reward.json").write_text(json.dumps({"delta": delta}))
        asked = {"models": {"reward": {"checkpoint": str(folder)}}, "settings": {"reward": {"inputs": ["x"]}}}
        found.append(_bare(evaluation("reward", **asked), "reward", futures=SimpleNamespace(digests={})))
    assert [each["label"] for each in found] == ["1/2", "29/90", "1/2", "goal"]


def _bare(recipe: EvaluateRecipe, suite: str, **read: Any) -> dict[str, Any]:
    """Return a suite's conditions without those of its cases; ``read`` stands for what the files would hold."""
    material = Material(recipe)
    vars(material).update(read)
    (found,) = [one for one in SUITES if one.name == suite]
    return found.conditions(material, {})


def test_devices_and_ports_of_a_server_are_no_condition() -> None:
    server = {"serve": "vllm serve X --port {port}", "devices": "0", "ready_s": 5.0}
    one = model_fields({"endpoint": server, "model": "m", "checkpoint": None})
    assert one == model_fields({"endpoint": {**server, "devices": "1", "ready_s": 9.0}, "model": "m"})
    assert one == {"endpoint": {"serve": "vllm serve X --port {port}"}, "model": "m"}
