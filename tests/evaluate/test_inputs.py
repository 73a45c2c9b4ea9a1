"""What an evaluation reads and is compared with, and what it refuses before any model is called."""

from pathlib import Path
from typing import Any

import pytest

from esckit.errors import ConfigError, DataError
from esckit.evaluate.run import _references, plan, run
from esckit.evaluate.suites.strategy import StrategyCase
from esckit.metrics.metric import GateBound
from esckit.predict.run import run as run_predict
from esckit.records import read_records
from tests.evaluate.evalrecipes import evaluation, prediction, scripted
from tests.evaluate.evalruns import lines, opponent, result, written

# ---------------------------------------------------------------- predictions


def test_a_predictions_file_stands_in_for_the_models(tmp_path: Path) -> None:
    out = tmp_path / "said"
    run_predict(prediction(models={"supporter": scripted("supporter")}), out=out)
    with_models = result(tmp_path, "strategy", "response", name="models")
    from_file = result(
        tmp_path,
        "strategy",
        "response",
        name="file",
        predictions=str(out),
        models={"strategist": None, "supporter": None},
    )
    told = [row for row in with_models.metrics if row.name != "response.malformed_share"]
    assert [row for row in from_file.metrics if row.name != "response.malformed_share"] == told


def test_missing_lines_and_foreign_labels_are_unscored(tmp_path: Path) -> None:
    out = tmp_path / "said"
    run_predict(prediction(), out=out)
    rows = lines(out / "predictions.jsonl")
    strategies = [row for row in rows if row["strategy"]]
    changed = [{"id": row["id"], "strategy": "Hypnosis" if n < 4 else "questions"} for n, row in enumerate(strategies)]
    found = result(
        tmp_path, "strategy", predictions=written(tmp_path / "p.jsonl", changed[:-5]), models={"strategist": None}
    )
    row = found.row("strategy.accuracy")
    assert row is not None
    assert row.unscored["missing"] >= 1
    assert row.unscored["unparsed"] >= 1
    cases = list(read_records(StrategyCase, tmp_path / "run/examples/strategy.jsonl"))
    assert {case.predicted for case in cases} == {None, "Question"}


def test_empty_replies_are_unscored(tmp_path: Path) -> None:
    out = tmp_path / "said"
    run_predict(prediction(), out=out)
    rows = [
        {"id": row["id"], "reply": "  " if n == 0 else "I see."}
        for n, row in enumerate(lines(out / "predictions.jsonl"))
    ]
    found = result(tmp_path, "response", predictions=written(tmp_path / "p.jsonl", rows), models={"supporter": None})
    row = found.row("response.words")
    assert row is not None
    assert row.unscored == {"blank": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "nobody#m1", "reply": "Hm."}], "nobody"),
        ([{"id": "nobody#m1", "reply": "Hm.", "mood": "good"}], "unknown key"),
    ],
)
def test_bad_predictions_are_one_clear_error(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan(evaluation("response", predictions=written(tmp_path / "p.jsonl", rows)))


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "said"
    run_predict(prediction(), out=out)
    row = lines(out / "predictions.jsonl")[0]
    with pytest.raises(DataError, match="twice"):
        plan(evaluation("response", predictions=written(tmp_path / "p.jsonl", [row, row])))


# ---------------------------------------------------------------- comparison, flags, gates


def test_a_run_compared_with_itself_differs_in_nothing(tmp_path: Path) -> None:
    result(tmp_path, "response", "dialogue", name="other")
    found = result(tmp_path, "response", "dialogue", compare_to=str(tmp_path / "other"))
    assert {entry.name for entry in found.comparisons} >= {"response.bleu_2", "dialogue.rlff7.sr_strict"}
    assert {entry.difference for entry in found.comparisons} <= {0.0, None}
    assert {entry.p for entry in found.comparisons} <= {1.0, None}


def test_other_supporters_may_be_compared_and_other_critics_not(tmp_path: Path) -> None:
    result(tmp_path, "dialogue", name="other")
    speaks = {"models": {"supporter": scripted("other_supporter")}}
    result(tmp_path, "dialogue", name="fine", compare_to=str(tmp_path / "other"), **speaks)
    changed = {"compare_to": str(tmp_path / "other"), "models": {"critic": scripted("critic_with_nonsense")}}
    with pytest.raises(DataError, match=r"dialogue\.critic\.model"):
        plan(evaluation("dialogue", **changed))
    forced = result(tmp_path, "dialogue", name="forced", statistics={"force_compare": True}, **changed)
    assert {entry.p for entry in forced.comparisons} == {None}


def test_a_judge_of_its_own_replies_is_flagged(tmp_path: Path) -> None:
    other = opponent(tmp_path)
    one = scripted("always_first")
    found = plan(
        evaluation("pairwise", models={"judge": one, "supporter": one}, settings={"pairwise": {"opponent": other}})
    )
    assert found.flags == {"pairwise": ("self_judged",)}
    run_predict(prediction(models={"supporter": scripted("supporter")}), out=tmp_path / "said")
    read = evaluation(
        "pairwise", models={"judge": one, "supporter": one}, settings={"pairwise": {"opponent": other}},
        predictions=str(tmp_path / "said"),
    )  # fmt: skip
    assert plan(read).flags == {}
    found = plan(evaluation("safety", models={"judge": one, "critic": one}))
    assert found.flags == {"safety": ("self_judged",)}
    assert plan(evaluation("safety")).flags == {}


def test_gates_are_checked_before_any_model_is_called(tmp_path: Path) -> None:
    for gate in (
        GateBound("response.bleu_2", 1.0, "over"),
        GateBound("response.bleu", 1.0, "under"),
        GateBound("dialogue.rlff7.sr_strict", 0.5, "under"),
    ):
        with pytest.raises(ConfigError):
            run(evaluation("response"), out=tmp_path / "run", gates=[gate])
    assert not (tmp_path / "run").exists()


def test_gates_on_turn_rewards_need_a_turn_judge() -> None:
    for metric, sections in (
        ("dialogue.turn_reward", {}),
        ("safety.pass_rate", {"settings": {"safety": {"crisis": False}}}),
        ("safety.sycophancy.flip", {"settings": {"safety": {"sycophancy": False}}}),
    ):
        with pytest.raises(ConfigError, match="unknown metric"):
            plan(evaluation("dialogue", "safety", gates={metric: 0.5}, **sections))


def test_an_unknown_published_table_is_refused_before_any_call(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rlff\.tabel1"):
        run(evaluation("response", references=["rlff.tabel1"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_published_agreement_stands_beside_our_own() -> None:
    asked = {"reliability": {"labels": "labels.jsonl"}, "data": {"path": "data/esconv"}}
    assert "rlff.reliability" in _references(evaluation("dialogue", **asked))
    assert "rlff.reliability" not in _references(evaluation("dialogue", data={"path": "data/esconv"}))


def test_a_recipe_that_cannot_be_played_leaves_no_folder(tmp_path: Path) -> None:
    unreadable = evaluation("dialogue", settings={"dialogue": {"readout": "expected"}})
    with pytest.raises(ConfigError, match="log-probabilities"):
        run(unreadable, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_gate_on_low_coverage_fails(tmp_path: Path) -> None:
    spoilt = evaluation("response", models={"supporter": scripted("sometimes_blank")}, gates={"response.bleu_2": 0.0})
    found = run(spoilt, out=tmp_path / "run")
    assert not all(gate.holds for gate in found.metrics.gates)
    assert found.metrics.gates[0].reason == "low coverage"


def test_what_a_suite_lacks_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"suite pairwise needs settings.pairwise.opponent; suite reward needs"):
        evaluation("pairwise", "reward")


def test_the_report_is_written_and_quotes_the_sample(tmp_path: Path) -> None:
    found = run(evaluation("response", "dialogue", "safety"), out=tmp_path / "run")
    text = (tmp_path / "run/report.md").read_text()
    assert found.report.is_file()
    assert "not finished" not in text
    assert "sr_strict" in text


def test_the_plan_bounds_the_calls() -> None:
    found = plan(evaluation("strategy", "response", "dialogue", "safety"))
    assert found.calls_at_most == {
        "strategist": found.cases["strategy"],
        "supporter": found.cases["response"] + 6 * 4 + 44 + 48,
        "seeker": 24,
        "critic": 240,
        "judge": 32 * 4 + 12 + 48 + 36,
    }
    assert (found.dialogues, found.scheme, found.splits) == (6, "files", ("test",))
