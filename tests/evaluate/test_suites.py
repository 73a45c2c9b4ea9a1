"""Suites that need something beside scripted talk: search trees, a reward model, a perplexity scorer, human labels."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from esckit.data.contexts import contexts
from esckit.errors import BackendError, DataError
from esckit.evaluate.run import plan, run
from esckit.evaluate.suite import Material
from esckit.evaluate.suites.critics import Episode
from esckit.evaluate.suites.pairwise import PairCase
from esckit.evaluate.suites.response import ResponseCase
from esckit.evaluate.suites.reward import FutureBatches, Reading, RewardCase, RewardTask
from esckit.evaluate.suites.strategy import StrategyCase
from esckit.play.futures import read_inputs
from esckit.records import read_records
from esckit.reward.run import RewardKind
from esckit.search.recipe import SearchRecipe
from esckit.search.run import run as run_search
from esckit.simulate.run import SimulateRecipe
from esckit.simulate.run import run as run_simulate
from esckit.types import Future, Generation, Outcome, SearchTree, Turn
from tests.evaluate.evalrecipes import DATA, evaluation


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def search(out: Path) -> Path:
    roles = ("seeker", "supporter", "critic", "strategist")
    recipe = {
        "command": "search",
        "seed": 7,
        "data": {**DATA, "limit": 3},
        "models": {role: {"scripted": f"tests.evaluate.players:{role}"} for role in roles},
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


def test_perplexity_of_a_local_backbone_joins_the_overlap(tmp_path: Path) -> None:
    recipe = evaluation("response", data={"limit": 1}, models={"scorer": {"backbone": "tiny-random"}})
    found = run(recipe, out=tmp_path / "run").metrics
    row = found.row("response.ppl")
    assert row is not None
    assert row.value is not None
    assert row.value > 1
    cases = list(read_records(ResponseCase, tmp_path / "run/examples/response.jsonl"))
    assert all(case.nll is not None and case.nll > 0 and case.n_scorer_tokens > 0 for case in cases)


def test_a_scorer_that_fails_is_counted_and_the_reply_stands(tmp_path: Path) -> None:
    ids = [context.id for context in Material(evaluation("response", data={"limit": 1})).reply_contexts()]
    rows = [{"id": name, "reply": "word " * (5000 if n == 0 else 5)} for n, name in enumerate(ids)]
    replies = written(tmp_path / "replies.jsonl", rows)
    asked = {"predictions": str(replies), "models": {"scorer": {"backbone": "tiny-random"}}}
    recipe = evaluation("response", data={"limit": 1}, **asked)
    assert plan(recipe).calls_at_most == {"scorer": len(ids)}
    found = run(recipe, out=tmp_path / "run").metrics
    ppl, words = found.row("response.ppl"), found.row("response.words")
    assert ppl is not None
    assert words is not None
    assert (ppl.n, ppl.unscored, words.n) == (len(ids) - 1, {"too_long": 1}, len(ids))
    failed = [json.loads(line) for line in (tmp_path / "run/failures.jsonl").read_text().splitlines()]
    assert failed == [{"suite": "response", "id": ids[0], "stage": "scorer", "kind": "too_long"}]


def test_predictions_without_replies_say_who_writes_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = next(Material(evaluation("response")).reply_contexts()).id
    predictions = written(tmp_path / "p.jsonl", [{"id": name, "strategy": "Question"}])
    plan(evaluation("response", predictions=str(predictions)))
    assert "p.jsonl: models.supporter writes the replies" in caplog.text


def test_predictions_without_strategies_say_who_picks_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = next(Material(evaluation("response")).reply_contexts()).id
    predictions = written(tmp_path / "p.jsonl", [{"id": name, "reply": "I hear you."}])
    plan(evaluation("strategy", predictions=str(predictions)))
    assert "p.jsonl: models.strategist picks the strategies" in caplog.text


def test_whoever_and_whatever_nothing_asks_for_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = next(Material(evaluation("response")).reply_contexts()).id
    file = str(written(tmp_path / "p.jsonl", [{"id": name, "strategy": "Question", "reply": "I hear you."}]))
    plan(evaluation("strategy", "response", predictions=file))
    idle = "models.critic, models.judge, models.seeker, models.strategist, models.supporter"
    assert f"{idle}: no part in the suites strategy, response" in caplog.text
    plan(evaluation("dialogue", predictions=file))
    assert "models.judge, models.strategist, predictions: no part in the suites dialogue" in caplog.text


def test_an_opponent_that_says_nothing_is_refused(tmp_path: Path) -> None:
    ids = [context.id for context in Material(evaluation("response")).reply_contexts()]
    for reply in (None, " "):
        file = written(tmp_path / "p.jsonl", [{"id": name, "strategy": "Question", "reply": reply} for name in ids])
        with pytest.raises(DataError, match="no reply of the opponent"):
            plan(evaluation("pairwise", settings={"pairwise": {"opponent": str(file)}}))


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


def test_human_labels_meet_the_judges_of_pairs_and_of_turns(tmp_path: Path) -> None:
    rows = [
        {"id": context.id, "reply": f"Tell me more, will you ({len(context.turns)})?"}
        for dialogue in Material(evaluation("response")).merged.dialogues
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


def test_a_reward_model_is_judged_on_futures_it_has_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from esckit.config.load import load_recipe
    from esckit.reward.recipe import TrainRewardRecipe
    from esckit.reward.run import run as train

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
    _scored_as_one_by_one_and_read_once()


def _scored_as_one_by_one_and_read_once() -> None:
    model = RewardKind().load(Path("runs/reward"), "scorer", {})
    inputs = read_inputs(["runs/test"])
    scored = [future for future in inputs.futures if future.outcome is not Outcome.FAILED]
    units = [RewardTask(future, inputs.contexts[future.context_id].turns) for future in scored]
    said = asyncio.run(read_all(FutureBatches([model]), units))
    together, model.states.n_read = model.states.n_read, 0
    cases = {case.id: case for case in read_records(RewardCase, Path("runs/evaluation/examples/reward.jsonl"))}
    for unit, found in zip(units, said, strict=True):
        turns, reply = unit.turns, unit.future.exchanges[0].supporter.response
        assert [cases[unit.future.id].p] == found
        assert found == pytest.approx(model.score([turns], [reply]), abs=1e-6)
    texts = {model.text.encode(unit.turns, unit.future.exchanges[0].supporter.response).ids for unit in units}
    prefixes = {ids[:n] for ids in texts for n in range(1, len(ids) + 1)}
    assert together == len(prefixes) < model.states.n_read


async def read_all(batches: FutureBatches, units: Sequence[RewardTask]) -> list[Reading]:
    return await asyncio.gather(*map(batches.read, units))


class Scorer:
    """Scores a reply by its length; refuses the word "long"."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def score(self, conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
        self.batches.append([turns[0].text for turns in conversations])
        if "long" in responses:
            raise BackendError("too many tokens", kind="too_long")
        return [len(response) / 100 for response in responses]


def future(dialogue: str, number: int, reply: str) -> Future:
    said = Generation(raw=reply, reasoning=None, response=reply, format_ok=True, parse_kind="ok")
    return Future.model_validate(
        {
            "id": f"{dialogue}/{number}",
            "context_id": f"{dialogue}#1",
            "dialogue_id": dialogue,
            "candidate": number,
            "run_seed": 7,
            "outcome": "MAX_TURNS",
            "k": 0,
            "exchanges": [{"k": 0, "supporter": said}],
        }
    )


def test_candidates_are_scored_together_and_fail_alone() -> None:
    dialogues = [f"d{n}" for n in range(5)]
    # One candidate of each dialogue after the other, as several inputs give them.
    replies = {(d, n): "long" if (d, n) == ("d4", 3) else "a" * (n + 1) for n in range(30) for d in dialogues}
    units = [RewardTask(future(d, n, reply), (Turn(speaker="seeker", text=d),)) for (d, n), reply in replies.items()]
    first, second = Scorer(), Scorer()
    said = asyncio.run(read_all(FutureBatches([first, second]), units))
    for unit, found in zip(units, said, strict=True):
        if unit.future.id == "d4/3":
            assert isinstance(found, BackendError)
        else:
            assert found == [len(unit.future.exchanges[0].supporter.response) / 100] * 2
    whole = [batch for batch in first.batches if len(batch) > 1]
    assert [sorted(set(batch)) for batch in whole] == [["d0", "d1", "d2"], ["d3", "d4"]]
    assert len(first.batches) == 2 + len(whole[1])


@pytest.mark.slow
def test_a_trained_policy_is_a_strategist_of_known_training_data(tmp_path: Path) -> None:
    from esckit.flow.run import run as train
    from tests.flow.flow_runs import recipe as flow_recipe

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


def test_the_published_test_of_esconv_has_2895_decisions(corpora: Path) -> None:
    data = {"path": str(corpora / "esconv"), "scheme": "hub"}
    wide = {"strategy": {"unit": "utterance", "include_openings": True}}
    found = plan(evaluation("strategy", data=data, settings=wide))
    assert (found.cases["strategy"], found.dialogues, found.left_out) == (2895, 195, {})


@pytest.mark.parametrize(("scheme", "n"), [("hub", 195), ("ppdpp", 130)])
def test_self_play_has_one_case_a_dialogue(corpora: Path, scheme: str, n: int) -> None:
    data = {"path": str(corpora / "esconv"), "scheme": scheme}
    found = plan(evaluation("dialogue", data=data, settings={"dialogue": {"max_turns": 8}}))
    assert found.cases == {"dialogue": n}
    assert found.calls_at_most == {"supporter": 8 * n, "seeker": 8 * n, "critic": 80 * n}


def test_extes_opens_with_its_description() -> None:
    data = {"dataset": "extes", "path": "sample:extes", "scheme": None, "split": None}
    found = plan(evaluation("dialogue", data=data, taxonomy=None))
    assert found.cases == {"dialogue": 8}
