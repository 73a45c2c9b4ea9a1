"""`predict` as a pipeline: one line a place, whatever the schedule, and nothing put where nothing was said."""

import json
from pathlib import Path
from typing import Any

import pytest

from esckit.errors import ConfigError, DataError, FailureRateError
from esckit.flow.run import run as train_flow
from esckit.predict.run import plan, run
from tests.evaluate.evalrecipes import prediction, scripted
from tests.flow.flow_runs import AFLOW, sparse_tree, write_trees
from tests.flow.flow_runs import recipe as flow_recipe


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_supporter_turn_has_strategy_odds_and_a_reply(tmp_path: Path) -> None:
    summary = run(prediction(), out=tmp_path / "run").summary
    rows = lines(tmp_path / "run/predictions.jsonl")
    assert summary["places"] == summary["strategies"] == summary["replies"] == len(rows) == 66
    assert all(set(row) >= {"schema", "id", "strategy", "probabilities", "reply"} for row in rows)
    assert all(len(row["probabilities"]) == 8 and sum(row["probabilities"]) == 1.0 for row in rows)
    assert len({row["id"] for row in rows}) == 66


def test_any_concurrency_and_any_crash_write_the_same_bytes(tmp_path: Path) -> None:
    for n in (1, 32):
        run(prediction(concurrency={"cases": n}), out=tmp_path / str(n))
    first, second = (tmp_path / name / "predictions.jsonl" for name in ("1", "32"))
    whole = first.read_bytes()
    assert second.read_bytes() == whole
    second.write_bytes(whole[:5000])
    run(prediction(), out=tmp_path / "32")
    assert second.read_bytes() == whole


def test_what_failed_has_no_reply_and_says_why_elsewhere(tmp_path: Path) -> None:
    spoilt = prediction(models={"supporter": scripted("sometimes_blank")}, max_failure_rate=1.0)
    summary = run(spoilt, out=tmp_path / "run").summary
    rows, failures = (lines(tmp_path / "run" / name) for name in ("predictions.jsonl", "failures.jsonl"))
    assert 0 < len(failures) == summary["failed"] == sum(row["reply"] is None for row in rows)
    assert {(one["stage"], one["kind"]) for one in failures} == {("supporter", "blank")}
    assert all(row["strategy"] for row in rows)
    with pytest.raises(FailureRateError, match="of 66 places failed"):
        run(spoilt.model_copy(update={"max_failure_rate": 0.05}), out=tmp_path / "run")
    assert lines(tmp_path / "run/predictions.jsonl") == rows


def test_a_backend_that_is_down_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(FailureRateError):
        run(prediction(models={"supporter": scripted("down")}), out=tmp_path / "run")


def test_a_trained_strategist_brings_its_own_taxonomy(tmp_path: Path) -> None:
    train_flow(flow_recipe(write_trees(tmp_path, [sparse_tree("s0", "train", 0)]), data={"valid_split": None},
                           optim={"epochs": 1, "select": "last"}),
               out=tmp_path / "policy")  # fmt: skip
    models = {"strategist": {"checkpoint": str(tmp_path / "policy")}, "supporter": None}
    run(prediction(taxonomy=None, models=models), out=tmp_path / "run")
    assert {row["strategy"] for row in lines(tmp_path / "run/predictions.jsonl")} <= set(AFLOW.names)


def test_a_supporter_alone_speaks_to_dialogues_of_any_layout(tmp_path: Path) -> None:
    talk = {
        "schema": "esckit.dialogue/1",
        "scenario": {"id": "mine-1", "situation": "Lost the job."},
        "turns": [
            {"speaker": "supporter", "text": "Hello."},
            {"speaker": "seeker", "text": "I lost my job."},
        ],
    }
    (tmp_path / "own.jsonl").write_text(json.dumps(talk) + "\n")
    data = {"dataset": "auto", "path": str(tmp_path / "own.jsonl"), "scheme": None, "split": None}
    recipe = prediction(data=data, taxonomy=None, models={"strategist": None}, predict={"at": "end"})
    summary = run(recipe, out=tmp_path / "run").summary
    assert [repr(summary[name]) for name in ("places", "strategies", "replies")] == ["1", "0", "1"]
    (row,) = lines(tmp_path / "run/predictions.jsonl")
    assert (row["id"], row["strategy"]) == ("mine-1#m2", None)
    assert row["reply"]
    with pytest.raises(DataError, match="no place to predict at"):
        plan(prediction(data=data, taxonomy=None, models={"strategist": None}))
    with pytest.raises(ConfigError, match="without a taxonomy"):
        run(prediction(data=data, taxonomy=None, predict={"at": "end"}), out=tmp_path / "other")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"models": {"strategist": None, "supporter": None}}, "models is empty"),
        ({"models": {"strategist": None}, "predict": {"strategy": "predicted"}}, "needs models.strategist"),
        ({"predict": {"strategy": "gold", "at": "end"}}, "the corpus ends there"),
    ],
)
def test_what_does_not_fit_together_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prediction(**sections)


def test_the_plan_counts_places() -> None:
    assert plan(prediction()).facts() == {
        "dialogues": 6,
        "places": 66,
        "calls_at_most": {"strategist": 66, "supporter": 66},
        "calls_at_most_in_all": 132,
    }
