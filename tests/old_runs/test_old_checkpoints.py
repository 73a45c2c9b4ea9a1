"""Checkpoints and records of 0.1.0 in new runs: they are loaded with their weights, play, train, and are compared with.

The recipes are the shipped ones, so these tests follow whatever recipes become; the runs are those of README.md.
"""

import json
from pathlib import Path

import pytest

from tests.old_runs.old import Esckit, ran, refused, rows, rows_by_id, status


def share_equal(field: str, ours: str, theirs: str) -> float:
    new, old = rows_by_id(ours), rows_by_id(theirs)
    assert new.keys() == old.keys()
    return sum(new[name][field] == old[name][field] for name in new) / len(new)


def require_close(field: str, ours: str, theirs: str) -> None:
    new, old = rows_by_id(ours), rows_by_id(theirs)
    assert new.keys() == old.keys()
    for name, row in new.items():
        assert row[field] == pytest.approx(old[name][field], abs=1e-4)


# ---------------------------------------------------------------- they play as they did

EVALUATE = "evaluate smoke/evaluate_scripted --out new"
PLAYED = (
    f"{EVALUATE} --set suites=[strategy,response,dialogue] --set data.allow_cross_family=true"
    " --set settings.response.per_dialogue=1 --set settings.dialogue.max_turns=2"
    " --set 'models.strategist={checkpoint: runs/flow}'"
    " --set 'models.supporter={checkpoint: runs/rl-grpo, sampling: {max_tokens: 12}}'"
)


def test_old_flow_and_grpo_checkpoints_play_as_they_did(esckit: Esckit) -> None:
    ran(esckit(PLAYED))
    require_close("probabilities", "new/examples/strategy.jsonl", "runs/evaluate-played/examples/strategy.jsonl")
    # Rounding may turn a reply of random weights; without the adapter two in six are the same.
    assert share_equal("reply", "new/examples/response.jsonl", "runs/evaluate-played/examples/response.jsonl") > 0.5


def test_a_cloned_strategist_and_a_dpo_policy_predict(esckit: Esckit) -> None:
    words = (
        "predict smoke/predict_scripted --out new --set data.limit=2 --set taxonomy=esconv"
        " --set 'models.strategist={checkpoint: runs/flow-bc}'"
        " --set 'models.supporter={checkpoint: runs/rl-dpo, sampling: {max_tokens: 12}}'"
    )
    ran(esckit(words))
    require_close("probabilities", "new/predictions.jsonl", "runs/predict-played/predictions.jsonl")
    # 0.1.0 rounded the rotary frequencies of a policy in bfloat16, which turned a third of these replies.
    assert share_equal("reply", "new/predictions.jsonl", "runs/predict-played/predictions.jsonl") > 0.6


def test_an_old_policy_answers_the_safety_probes(esckit: Esckit) -> None:
    words = f"{EVALUATE} --set suites=[safety] --set 'models.supporter={{checkpoint: runs/rl-grpo}}'"
    ran(esckit(f"{words} --set models.supporter.sampling.max_tokens=8"))
    assert rows("new/examples/safety.jsonl")


@pytest.mark.parametrize("kind", ["classifier", "pairwise", "rrhf"])
def test_an_old_reward_model_is_evaluated(esckit: Esckit, kind: str) -> None:
    changes = f"--set suites=[reward] --set models.reward.checkpoint=runs/reward-{kind}"
    ran(esckit(f"{EVALUATE} {changes} --set settings.reward.inputs=[runs/simulate-test]"))
    if kind == "classifier":
        require_close("p", "new/examples/reward.jsonl", "runs/evaluate/examples/reward.jsonl")
    else:
        assert all(0 < row["p"] < 1 for row in rows("new/examples/reward.jsonl"))


def test_a_search_takes_an_old_policy_and_reward_model(esckit: Esckit) -> None:
    words = (
        "search smoke/search_scripted --out new --set data.limit=2 --set mcts.n_simulations=6"
        " --set mcts.rollout_turns=1 --set search.round=1 --set 'models.strategist={checkpoint: runs/flow}'"
        " --set 'models.critic={checkpoint: runs/reward-classifier}' --set 'critic={readout: reward_model}'"
    )
    ran(esckit(words))
    new, old = rows_by_id("new/trees.jsonl"), rows_by_id("runs/search-played/trees.jsonl")
    assert new.keys() == old.keys()
    for name, tree in new.items():
        assert tree["nodes"][0]["prior"] == pytest.approx(old[name]["nodes"][0]["prior"], abs=1e-4)
        assert tree["nodes"][0]["value"] == pytest.approx(old[name]["nodes"][0]["value"], abs=1e-2)


@pytest.mark.parametrize("supporter", ["rl-grpo", "rl-online", "rl-dpo", "flow"])
def test_an_old_checkpoint_speaks_in_simulated_futures(esckit: Esckit, supporter: str) -> None:
    words = (
        "simulate smoke/simulate_scripted --out new --set data.split=test --set data.limit=1"
        " --set contexts.per_dialogue=1 --set simulation.horizon=2"
        f" --set 'models.supporter={{checkpoint: runs/{supporter}, sampling: {{max_tokens: 8}}}}'"
    )
    ran(esckit(words))
    assert len(rows("new/futures.jsonl")) == 2


# ---------------------------------------------------------------- they are material

REWARD = "train-reward smoke/train_reward_scripted --set optim.epochs=1"
FLOW = "train-flow smoke/train_flow_tiny --set optim.epochs=1"
RL = "train-rl smoke/train_rl_scripted --set optim.max_steps=1"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(f"{REWARD} --set inputs=[runs/simulate]", id="reward-on-futures"),
        pytest.param(f"{REWARD} --set inputs=[runs/simulate,runs/simulate-test]", id="reward-on-two-runs"),
        pytest.param(f"{FLOW} --set data.trees=[runs/search]", id="flow-on-trees"),
        pytest.param(f"{RL} --set models.reward.checkpoint=runs/reward-classifier", id="grpo-with-classifier"),
        pytest.param(
            f"{RL} --set models.reward.checkpoint=runs/reward-pairwise --set reward.kind=ranker",
            id="grpo-with-ranker",
        ),
        pytest.param("train-rl smoke/train_rl_dpo --set inputs=[runs/simulate]", id="dpo-on-futures"),
    ],
)
def test_old_runs_are_trained_on(esckit: Esckit, words: str) -> None:
    ran(esckit(f"{words} --out new"))
    assert Path("new/checkpoint").is_dir()
    assert status("new") == "complete"


def test_trees_of_two_critics_are_not_mixed(esckit: Esckit) -> None:
    said = refused(esckit(f"{FLOW} --set data.trees=[runs/search,runs/search-played] --out new"))
    assert "trees of different read-outs: reward_model; sampled" in said


# ---------------------------------------------------------------- evaluations know them


def test_old_predictions_are_evaluated_against_an_old_opponent(esckit: Esckit) -> None:
    words = (
        f"{EVALUATE} --set suites=[strategy,response,pairwise] --set predictions=runs/predict"
        " --set settings.pairwise.opponent=runs/evaluate --set settings.pairwise.contexts=3"
    )
    ran(esckit(words))
    assert (
        rows_by_id("new/examples/strategy.jsonl").keys() == rows_by_id("runs/evaluate/examples/strategy.jsonl").keys()
    )
    assert len(rows("new/examples/pairwise.jsonl")) == 3


def test_an_old_evaluation_is_compared_with(esckit: Esckit) -> None:
    ran(esckit(f"{PLAYED} --set compare_to=runs/evaluate-played"))
    assert "evaluate-played" in Path("new/report.html").read_text()
    compared = json.loads(Path("new/metrics.json").read_text())
    assert "evaluate-played" in json.dumps(compared)


def test_held_out_old_trees_are_strategy_cases(esckit: Esckit) -> None:
    words = (
        f"{EVALUATE} --set suites=[strategy] --set settings.strategy.source=expanded"
        " --set settings.strategy.trees=[runs/search]"
    )
    ran(esckit(words))
    assert rows("new/examples/strategy.jsonl")


def test_an_old_policy_is_not_tested_on_its_own_trees(esckit: Esckit) -> None:
    words = (
        f"{EVALUATE} --set suites=[strategy] --set settings.strategy.source=expanded"
        " --set settings.strategy.trees=[runs/search] --set 'models.strategist={checkpoint: runs/flow}'"
    )
    assert "8 dialogues in both training" in refused(esckit(words))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (f"{RL} --set models.reward.checkpoint=runs/flow", "the flow model in runs/flow cannot be used as"),
        (f"{RL} --set models.reward.checkpoint=runs/simulate", "runs/simulate holds no checkpoint"),
        (f"{RL} --set models.reward.checkpoint=runs/reward-pairwise", "reward.kind"),
        (f"{FLOW} --set data.trees=[runs/simulate]", "runs/simulate"),
        (f"{REWARD} --set inputs=[runs/search]", "runs/search"),
    ],
    ids=["flow-as-reward", "futures-as-reward", "ranker-as-classifier", "futures-as-trees", "trees-as-futures"],
)
def test_an_old_run_of_another_kind_is_refused(esckit: Esckit, words: str, named: str) -> None:
    assert named in refused(esckit(f"{words} --out new"))
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "gone", ["rl-grpo/checkpoint/adapter/adapter_model.safetensors", "flow/checkpoint/heads.safetensors"]
)
def test_an_old_checkpoint_without_its_weights_is_refused(esckit: Esckit, gone: str) -> None:
    Path("runs", gone).unlink()
    assert Path(gone).parts[0] in refused(esckit(PLAYED))
