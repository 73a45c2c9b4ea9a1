"""What a checkpoint has seen, through everything it was made from, and what evaluation makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from esckit.errors import DataError
from esckit.evaluate.run import plan
from esckit.evaluate.setup import corpora_of, leakage_flags, lost_inputs, seen_by
from esckit.evaluate.suite import Material, family_of, run_of
from esckit.predict.run import run as run_predict
from esckit.records import dump_line
from esckit.training.policy import PolicyMetadata
from tests.evaluate.evalrecipes import DATA, evaluation, prediction, scripted

A, B, C = (f"esconv-{letter * 12}" for letter in "abc")
HUB = {"path": "data/esconv", "scheme": "hub", "split": ["train"]}
PPDPP = {"path": "data/esconv", "scheme": "ppdpp", "split": ["train"]}


def made(folder: Path, command: str, *, recipe: dict[str, Any], data: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    manifest = {
        "schema": "esckit.manifest/1",
        "command": command,
        "recipe": {"command": command, **recipe},
        "recipe_digest": "0" * 16,
        "created": "2026-01-01T00:00:00+00:00",
    }
    if data is not None:
        manifest["data"] = data
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def searched(folder: Path, ids: list[str], data: dict[str, Any] = HUB) -> Path:
    return made(folder, "search", recipe={"data": data}, data={"scheme": data["scheme"], "ids": ids})


def test_a_policy_inherits_what_its_trees_were_grown_from(tmp_path: Path) -> None:
    search = searched(tmp_path / "search", [A, B])
    policy = made(tmp_path / "policy", "train-flow", recipe={"data": {"trees": [str(search / "trees.jsonl")]}})
    again = made(
        tmp_path / "round1",
        "search",
        recipe={"data": HUB, "models": {"strategist": {"checkpoint": str(policy)}}},
        data={"scheme": "hub", "ids": [C]},
    )
    seen = list(seen_by("strategist", again))
    assert {dialogue for one in seen for dialogue in one.ids} == {A, B, C}
    assert {(one.corpus, one.scheme) for one in seen} == {("esconv-", "hub")}


def test_a_part_for_testing_alone_was_not_trained_on(tmp_path: Path) -> None:
    data = {"train": {"ids": [A]}, "valid": {"ids": [B]}, "test": {"ids": [C]}}
    policy = made(tmp_path / "policy", "train-flow", recipe={"data": {"gold": HUB}}, data=data)
    assert {dialogue for one in seen_by("strategist", policy) for dialogue in one.ids} == {A, B}


def test_a_reward_model_passes_its_dialogues_on_to_a_policy(tmp_path: Path) -> None:
    simulated = made(tmp_path / "futures", "simulate", recipe={"data": HUB}, data={"scheme": "hub", "ids": [A]})
    reward = made(
        tmp_path / "reward", "train-reward", recipe={"inputs": [str(simulated)]}, data={"scheme": "hub", "ids": [A]}
    )
    policy = made(
        tmp_path / "policy",
        "train-rl",
        recipe={"data": HUB, "models": {"reward": {"checkpoint": str(reward)}}},
        data={"scheme": "hub", "ids": [B]},
    )
    assert {dialogue for one in seen_by("supporter", policy) for dialogue in one.ids} == {A, B}
    with pytest.raises(DataError, match="1 dialogues in both"):
        leakage_flags([A], "hub", {"supporter": policy})


def test_an_evaluation_has_seen_its_inputs_not_its_own_cases(tmp_path: Path) -> None:
    search = searched(tmp_path / "search", [A])
    other = made(
        tmp_path / "other",
        "evaluate",
        recipe={"data": HUB, "models": {"supporter": {"checkpoint": str(search)}}},
        data={"scheme": "hub", "ids": [C]},
    )
    assert {dialogue for one in seen_by("opponent", other) for dialogue in one.ids} == {A}


def test_a_run_that_does_not_say_what_it_used_is_refused(tmp_path: Path) -> None:
    silent = made(tmp_path / "silent", "train-flow", recipe={"data": {}})
    with pytest.raises(DataError, match="does not say which dialogues"):
        list(seen_by("strategist", silent))


def test_rule_1_and_its_switch(tmp_path: Path) -> None:
    run = searched(tmp_path / "search", [A, B])
    with pytest.raises(DataError, match="scheme hub"):
        leakage_flags([B, C], "hub", {"strategist": run})
    assert leakage_flags([B, C], "hub", {"strategist": run}, allow_overlap=True) == ("overlap",)
    assert leakage_flags([C], "hub", {"strategist": run}) == ()


def test_rule_2_and_its_switch(tmp_path: Path) -> None:
    run = searched(tmp_path / "search", [A], PPDPP)
    with pytest.raises(DataError, match="ppdpp"):
        leakage_flags([C], "hub", {"strategist": run})
    assert leakage_flags([C], "hub", {"strategist": run}, allow_cross_family=True) == ("cross_family",)
    # Schemes of two corpora are not compared.
    assert leakage_flags([f"extes-{'d' * 12}"], "ratio", {"strategist": run}) == ()


def test_ratio_splits_are_one_family_if_seed_and_ratios_agree() -> None:
    first = {"scheme": "ratio", "seed": 13, "ratios": [0.8, 0.1, 0.1]}
    assert family_of(first) == family_of({**first, "ratios": (0.8, 0.1, 0.1)})
    assert family_of(first) != family_of({**first, "seed": 14})
    assert family_of({"scheme": None}) != family_of({"scheme": "hub"})
    assert corpora_of([A, "extes-0123456789ab", "mine"]) == {"esconv-", "extes-", ""}


def test_a_checkpoint_inside_a_run_leads_to_the_run(tmp_path: Path) -> None:
    run = searched(tmp_path / "search", [A])
    (run / "policy").mkdir()
    assert run_of(str(run / "policy")) == run
    with pytest.raises(DataError, match="no run folder"):
        run_of(str(tmp_path / "nowhere"))


def test_evaluating_on_training_data_is_refused_or_flagged(tmp_path: Path) -> None:
    evaluated = plan(evaluation("response"))
    assert evaluated.flags == {}
    from esckit.evaluate.setup import set_up

    ids = list(set_up(evaluation("response")).material.merged.ids)
    data = {"path": "sample:esconv", "scheme": "files"}
    run = made(tmp_path / "rl", "train-rl", recipe={"data": data}, data={"scheme": "files", "ids": ids[:2]})
    policy = PolicyMetadata(
        backbone="tiny-random", algorithm="grpo", prompt="supporter/0", reward={}, dialogue_ids=tuple(ids[:2]),
        dev_ids=(), selected_by="last", step=1,
    )  # fmt: skip
    (run / "checkpoint").mkdir()
    (run / "checkpoint/policy.json").write_text(dump_line(policy))
    models = {"supporter": {"checkpoint": str(run)}, "strategist": None}
    recipe = evaluation("response").model_copy()
    with pytest.raises(DataError, match="2 dialogues in both"):
        plan(recipe.model_validate({**recipe.model_dump(mode="json"), "models": models}))
    switched = {**recipe.model_dump(mode="json"), "models": models}
    switched["data"]["allow_overlap"] = True
    assert plan(recipe.model_validate(switched)).flags == {"response": ("overlap",)}


@pytest.mark.parametrize("name", ["predicted", "predicted/predictions.jsonl"])
@pytest.mark.parametrize("suite", ["strategy", "response", "pairwise"])
def test_predictions_tell_what_their_system_was_trained_on(tmp_path: Path, suite: str, name: str) -> None:
    said = tmp_path / name
    run_predict(prediction(), out=tmp_path / "predicted")
    ids = sorted({case_id.partition("#")[0] for case_id in _ids(tmp_path / "predicted/predictions.jsonl")})
    policy = made(tmp_path / "policy", "train-flow", recipe={"data": DATA}, data={"scheme": "files", "ids": ids[:2]})
    manifest = tmp_path / "predicted/manifest.json"
    changed = json.loads(manifest.read_text())
    changed["recipe"]["models"]["strategist"] = {"checkpoint": str(policy)}
    manifest.write_text(json.dumps(changed))
    asked = {"predictions": str(said)} if suite != "pairwise" else {"settings": {"pairwise": {"opponent": str(said)}}}
    with pytest.raises(DataError, match="2 dialogues in both"):
        plan(evaluation(suite, **asked))
    assert plan(evaluation(suite, data={"allow_overlap": True}, **asked)).flags == {suite: ("overlap",)}


def test_an_evaluation_inherits_from_the_predictions_it_read(tmp_path: Path) -> None:
    search = searched(tmp_path / "search", [A])
    said = made(tmp_path / "said", "predict", recipe={"models": {"strategist": {"checkpoint": str(search)}}})
    other = made(tmp_path / "other", "evaluate", recipe={"predictions": str(said / "predictions.jsonl")})
    assert {dialogue for one in seen_by("opponent", other) for dialogue in one.ids} == {A}


@pytest.mark.parametrize("role", ["predictions", "opponent"])
def test_a_judge_of_its_own_replies_of_another_run_is_flagged(tmp_path: Path, role: str) -> None:
    run_predict(prediction(models={"supporter": scripted("judge")}), out=tmp_path / "own")
    run_predict(prediction(), out=tmp_path / "other")
    files = {name: str(tmp_path / name / "predictions.jsonl") for name in ("own", "other")}
    named = {"predictions": files["other"], "opponent": files["other"], role: files["own"]}
    asked = {"predictions": named["predictions"], "settings": {"pairwise": {"opponent": named["opponent"]}}}
    assert plan(evaluation("pairwise", **asked)).flags == {"pairwise": ("self_judged",)}
    fine = {"predictions": files["other"], "settings": {"pairwise": {"opponent": files["other"]}}}
    assert plan(evaluation("pairwise", **fine)).flags == {}


def test_a_writer_is_found_behind_an_evaluation_of_its_replies(tmp_path: Path) -> None:
    said = made(tmp_path / "said", "predict", recipe={"models": {"supporter": scripted("judge")}})
    read = made(tmp_path / "read", "evaluate", recipe={"models": {"supporter": None}, "predictions": str(said)})
    contexts = Material(evaluation("response")).reply_contexts()
    replies = [{"id": context.id, "reply": "I see."} for context in contexts]
    opponent = read / "predictions.jsonl"
    opponent.write_text("".join(json.dumps(row) + "\n" for row in replies))
    found = plan(evaluation("pairwise", settings={"pairwise": {"opponent": str(opponent)}}))
    assert found.flags == {"pairwise": ("self_judged",)}


def _ids(predictions: Path) -> list[str]:
    return [json.loads(line)["id"] for line in predictions.read_text().splitlines()]


def test_an_input_that_is_gone_is_named_and_flags_every_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = tmp_path / "policy"
    said = made(tmp_path / "said", "predict", recipe={"models": {"strategist": {"checkpoint": str(gone)}}})
    assert leakage_flags([A], "hub", {"predictions": said}) == ("lost_input",)
    assert f"the predictions ({said}): made from {gone}, not there any more" in caplog.text


def test_what_an_evaluation_tested_on_is_no_origin(tmp_path: Path) -> None:
    recipe = {"models": {"reward": {"checkpoint": "gone"}}, "settings": {"reward": {"inputs": ["gone, too"]}}}
    other = made(tmp_path / "other", "evaluate", recipe=recipe)
    assert lost_inputs(other) == ["gone"]
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "roles": ["supporter"]}))
    assert lost_inputs(other) == []
