"""Suites that need something beside scripted talk: search trees, a reward model, a perplexity scorer, human labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from esckit.config.search import SearchRecipe
from esckit.config.simulate import SimulateRecipe
from esckit.datasets.contexts import contexts
from esckit.errors import DataError
from esckit.evaluate.cases import Episode, PairCase, ResponseCase, StrategyCase
from esckit.pipelines.evaluate import plan, run
from esckit.pipelines.evaluate_suites.material import Material
from esckit.pipelines.search import run as run_search
from esckit.pipelines.simulate import run as run_simulate
from esckit.records import read_records
from esckit.types import SearchTree
from tests.pipelines.evalrecipes import DATA, evaluation


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def search(out: Path) -> Path:
    roles = ("seeker", "supporter", "critic", "strategist")
    recipe = {
        "command": "search",
        "seed": 7,
        "data": {**DATA, "limit": 3},
        "models": {role: {"scripted": f"tests.pipelines.players:{role}"} for role in roles},
        "mcts": {"n_simulations": 8, "max_depth": 4, "rollout_turns": 1},
        "max_failure_rate": 1.0,
    }
    run_search(SearchRecipe.model_validate(recipe), out=out)
    return out


def test_the_main_line_of_trees_is_gold_under_names_of_its_own(tmp_path: Path) -> None:
    trees = search(tmp_path / "search")
    expanded = {"strategy": {"source": "expanded", "trees": [str(trees)]}}
    found = run(evaluation("strategy", data=None, taxonomy="aflow", settings=expanded), out=tmp_path / "run").metrics
    assert {row.name.partition(".")[0] for row in found.metrics} == {"strategy_expanded"}
    cases = list(read_records(StrategyCase, tmp_path / "run/examples/strategy.jsonl"))
    by_id = {tree.id: tree for tree in read_records(SearchTree, trees / "trees.jsonl")}
    for case in cases:
        tree_id, _, node_id = case.id.partition("@")
        below = [node for node in by_id[tree_id].nodes if node.parent == node_id]
        best = max(below, key=lambda node: (node.visits, node.value))
        assert case.gold == best.strategy
    with pytest.raises(DataError, match="taxonomy aflow"):
        plan(evaluation("strategy", data=None, taxonomy="esconv", settings=expanded))


def test_perplexity_of_a_local_backbone_stands_beside_the_overlap(tmp_path: Path) -> None:
    recipe = evaluation("response", data={"limit": 1}, models={"scorer": {"backbone": "tiny-random"}})
    found = run(recipe, out=tmp_path / "run").metrics
    row = found.row("response.ppl")
    assert row is not None
    assert row.value is not None
    assert row.value > 1
    cases = list(read_records(ResponseCase, tmp_path / "run/examples/response.jsonl"))
    assert all(case.nll is not None and case.nll > 0 and case.n_scorer_tokens > 0 for case in cases)


def test_human_labels_are_compared_with_the_critic(tmp_path: Path) -> None:
    recipe = evaluation("dialogue", data={"scheme": None, "split": None})
    run(recipe, out=tmp_path / "run")
    episodes = list(read_records(Episode, tmp_path / "run/episodes.jsonl"))
    rows = [
        {"case_id": episode.id, "rater": rater, "dimension": "rlff7", "label": level}
        for n, episode in enumerate(episodes)
        for rater, level in (("a", "Same"), ("b", "Same" if n % 2 else "Slightly Better"))
    ]
    labels = written(tmp_path / "labels.jsonl", rows)
    asked = {"reliability": {"labels": str(labels)}, "data": {"scheme": None, "split": None}}
    found = run(evaluation("dialogue", **asked), out=tmp_path / "run").metrics
    humans, judge = (found.row(f"reliability.rlff7.{name}") for name in ("alpha_humans", "agreement_judge"))
    assert humans is not None
    assert humans.value is not None
    assert judge is not None
    assert judge.n == 20
    labels.write_text(json.dumps({**rows[0], "dimension": "mood"}) + "\n")
    with pytest.raises(DataError, match="mood"):
        run(evaluation("dialogue", **asked), out=tmp_path / "run")


def test_human_labels_are_compared_with_the_judges_of_pairs_and_of_turns(tmp_path: Path) -> None:
    rows = [
        {"id": context.id, "reply": f"Tell me more, will you ({len(context.turns)})?"}
        for dialogue in Material.of(evaluation("response")).merged.dialogues
        for context in contexts(dialogue, merged=True)
    ]
    opponent = written(tmp_path / "opponent.jsonl", rows)
    asked = {
        "models": {"turn_judge": {"scripted": "critic_rubric"}},
        "settings": {"pairwise": {"opponent": str(opponent)}, "dialogue": {"max_turns": 4}},
    }
    first = run(evaluation("pairwise", "dialogue", **asked), out=tmp_path / "run").metrics
    pairs = list(read_records(PairCase, tmp_path / "run/examples/pairwise.jsonl"))
    rated = [
        f"{episode.id}@{turn.t}"
        for episode in read_records(Episode, tmp_path / "run/episodes.jsonl")
        for turn in episode.turns
        if turn.ratings is not None
    ]
    labels = written(
        tmp_path / "labels.jsonl",
        [
            {"case_id": name, "rater": rater, "dimension": dimension, "label": scale[(n + shift) % len(scale)]}
            for dimension, names, scale in (
                ("comfort", [pair.id for pair in pairs], ("win", "tie", "lose")),
                ("empathy", rated, (2, 3, 4)),
            )
            for n, name in enumerate(names)
            for rater, shift in (("a", 0), ("b", 0), ("c", n % 2))
        ],
    )
    found = run(evaluation("pairwise", "dialogue", reliability={"labels": str(labels)}, **asked), out=tmp_path / "run")
    assert found.metrics.metrics[: len(first.metrics)] == first.metrics
    for dimension, n in (("comfort", len(pairs)), ("empathy", len(rated))):
        humans, judge = (
            found.metrics.row(f"reliability.{dimension}.{name}") for name in ("alpha_humans", "agreement_judge")
        )
        assert humans is not None
        assert (humans.n, humans.value is not None, humans.interval is not None) == (n, True, True)
        assert judge is not None
        cells = [row for row in found.metrics.metrics if row.name == f"reliability.{dimension}.confusion"]
        assert sum(cell.value or 0 for cell in cells) == judge.n > 10
        agreed = sum(cell.value or 0 for cell in cells if cell.group and cell.group["human"] == cell.group["judge"])
        assert judge.value == pytest.approx(agreed / judge.n)
    assert found.metrics.row("reliability.comfort.spearman_judge") is None
    assert found.metrics.row("reliability.empathy.spearman_judge") is not None


def test_a_reward_model_is_judged_on_futures_that_it_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esckit.config.load import load_recipe
    from esckit.config.train_reward import TrainRewardRecipe
    from esckit.pipelines.train_reward import run as train

    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        loaded = load_recipe("smoke/simulate_scripted", SimulateRecipe, overrides=[f"data.split={split}"])
        run_simulate(loaded.recipe, out=Path(f"runs/{split}"))
    trained = load_recipe("smoke/train_reward_scripted", TrainRewardRecipe, overrides=["inputs=[runs/train]"])
    train(trained.recipe, out=Path("runs/reward"))
    asked = {"models": {"reward": {"checkpoint": "runs/reward"}}, "data": None}
    found = run(
        evaluation("reward", settings={"reward": {"inputs": ["runs/test"]}}, **asked), out=Path("runs/evaluation")
    ).metrics
    auc, beside = found.row("reward.auc"), found.row("reward.untrained_auc")
    assert auc is not None
    assert auc.n == 16
    assert beside is not None
    assert beside.n == 16
    with pytest.raises(DataError, match="in both training"):
        plan(evaluation("reward", settings={"reward": {"inputs": ["runs/train"]}}, **asked))


def test_a_trained_policy_is_a_strategist_and_what_it_was_trained_on_is_known(tmp_path: Path) -> None:
    from esckit.pipelines.train_flow import run as train
    from tests.pipelines.flow_runs import recipe as flow_recipe

    gold = {"dataset": "esconv", "path": "sample:esconv", "scheme": "files", "split": "train", "valid_split": "valid"}
    trained = flow_recipe(None, data={"gold": {**gold, "unit": "turn"}}, objective={"name": "bc"})
    train(trained, out=tmp_path / "policy")
    models = {"strategist": {"checkpoint": str(tmp_path / "policy")}}
    found = run(evaluation("strategy", models=models), out=tmp_path / "run").metrics
    row = found.row("strategy.accuracy")
    assert row is not None
    assert (row.n, row.coverage, row.flags) == (66, 1.0, ("small_sample",))
    cases = list(read_records(StrategyCase, tmp_path / "run/examples/strategy.jsonl"))
    assert all(case.probabilities and abs(sum(case.probabilities) - 1) < 1e-9 for case in cases)
    with pytest.raises(DataError, match="10 dialogues in both"):
        plan(evaluation("strategy", models=models, data={"split": "train"}))
    with pytest.raises(DataError, match="made with scheme files"):
        plan(evaluation("strategy", models=models, data={"scheme": None, "split": None, "allow_overlap": True}))
