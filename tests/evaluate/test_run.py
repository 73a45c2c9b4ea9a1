"""`evaluate` as a pipeline: failures that stay failures, files that say everything, runs that can be compared."""

import json
from pathlib import Path

import pytest

from esckit.errors import BudgetError, ConfigError, FailureRateError, StorageError
from esckit.evaluate.run import plan, run
from esckit.evaluate.suites.critics import Episode
from esckit.evaluate.suites.strategy import StrategyCase
from esckit.metrics.rows import MetricsFile
from esckit.records import read_records
from tests.evaluate.evalrecipes import evaluation, scripted
from tests.evaluate.evalruns import lines, opponent, result, values

CASE_FILES = ("episodes.jsonl", "examples/strategy.jsonl", "examples/response.jsonl", "examples/safety.jsonl")

# ---------------------------------------------------------------- schedule, resume, recompute

ALL = ("strategy", "response", "dialogue", "safety")


def test_any_concurrency_writes_the_same_cases(tmp_path: Path) -> None:
    for n in (1, 64):
        result(tmp_path, *ALL, name=str(n), concurrency={"cases": n})
    for name in (*CASE_FILES, "failures.jsonl", "examples/dialogue.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "64" / name).read_bytes()


@pytest.mark.parametrize("cut", [0, 1, 2_000])
def test_a_run_cut_anywhere_and_resumed_equals_an_unbroken_one(tmp_path: Path, cut: int) -> None:
    whole = result(tmp_path, "response", "dialogue", name="whole")
    result(tmp_path, "response", "dialogue", name="cut")
    for name in ("examples/response.jsonl", "episodes.jsonl"):
        path = tmp_path / "cut" / name
        path.write_bytes(path.read_bytes()[:cut])
    assert result(tmp_path, "response", "dialogue", name="cut").metrics == whole.metrics
    for name in ("examples/response.jsonl", "episodes.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_metrics_recomputed_from_examples_equal_metrics_json(tmp_path: Path) -> None:
    first = result(tmp_path, *ALL)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    # With every case there, no model is called: this recipe's models would all fail.
    (tmp_path / "run/metrics.json").unlink()
    again = result(tmp_path, *ALL, budget={"max_calls": 1})
    assert again.metrics == first.metrics
    assert json.loads((tmp_path / "run/manifest.json").read_text())["spent"] == manifest["spent"]


def test_only_statistics_and_gates_may_change_on_a_folder(tmp_path: Path) -> None:
    result(tmp_path, "response")
    again = result(tmp_path, "response", statistics={"level": 0.9}, gates={"response.bleu_2": 99.0})
    assert {row.interval.level for row in again.metrics if row.interval} == {0.9}
    assert [gate.holds for gate in again.gates] == [False]
    with pytest.raises(ConfigError, match=r"models\.supporter"):
        result(tmp_path, "response", models={"supporter": scripted("other_supporter")})


def test_a_prediction_file_that_changed_is_refused(tmp_path: Path) -> None:
    theirs = Path(opponent(tmp_path))
    sections = {"predictions": str(theirs / "predictions.jsonl")}
    result(tmp_path, "response", **sections)
    text = (theirs / "predictions.jsonl").read_text()
    (theirs / "predictions.jsonl").write_text(text.replace("Tell me", "Show me"))
    with pytest.raises(ConfigError, match=r"predictions\.jsonl"):
        result(tmp_path, "response", **sections)


def test_metrics_json_says_that_a_run_is_finished(tmp_path: Path) -> None:
    result(tmp_path, "response")
    with pytest.raises(BudgetError):
        result(tmp_path, "response", "dialogue", name="other", budget={"max_calls": 70}, concurrency={"cases": 1})
    assert not (tmp_path / "other/metrics.json").exists()
    assert len(lines(tmp_path / "other/examples/response.jsonl")) == 66
    assert (tmp_path / "other/episodes.jsonl").exists() or (tmp_path / "other/failures.jsonl").exists()
    finished = result(tmp_path, "response", "dialogue", name="other")
    assert finished.row("response.words") == MetricsFile.model_validate(finished).row("response.words")


def test_metrics_json_is_there_only_with_its_report(tmp_path: Path) -> None:
    result(tmp_path, "response")
    page = tmp_path / "run/report.html"
    assert page.stat().st_mtime_ns <= (tmp_path / "run/metrics.json").stat().st_mtime_ns
    assert "bleu_2" in page.with_suffix(".md").read_text()
    page.unlink()
    page.mkdir()
    with pytest.raises(StorageError, match=r"report\.html"):
        result(tmp_path, "response")
    assert not (tmp_path / "run/metrics.json").exists()


# ---------------------------------------------------------------- failures


def test_a_nonsense_critic_changes_n_and_never_a_value(tmp_path: Path) -> None:
    spoilt = result(tmp_path, "dialogue", models={"critic": scripted("critic_with_nonsense")})
    row = spoilt.row("dialogue.rlff7.sr_strict")
    assert row is not None
    assert 0 < row.n_unscored < 6
    assert row.unscored == {"unscored_critic": row.n_unscored}
    fine = {
        case.id: case for case in read_records(Episode, tmp_path / "run/episodes.jsonl") if not case.critic_failures
    }
    assert len(fine) == row.n
    result(tmp_path, "dialogue", name="whole")
    whole = {case.id: case for case in read_records(Episode, tmp_path / "whole/episodes.jsonl")}
    for name, case in fine.items():
        assert case == whole[name]
    assert "low_coverage" in row.flags


def test_a_critic_that_only_answers_nonsense_leaves_no_value(tmp_path: Path) -> None:
    spoilt = result(tmp_path, "dialogue", models={"critic": scripted("nonsense")})
    row = spoilt.row("dialogue.rlff7.sr_strict")
    assert row is not None
    assert (row.value, row.n, row.n_unscored, row.coverage) == (None, 0, 6, 0.0)
    assert row.reason
    bounds = [spoilt.row("dialogue.rlff7.sr_bounds", bound=end) for end in ("low", "high")]
    assert [bound.value for bound in bounds if bound] == [0.0, 1.0]


def test_a_nonsense_judge_changes_n_and_never_a_verdict(tmp_path: Path) -> None:
    other = opponent(tmp_path)
    pairs = {"settings": {"pairwise": {"opponent": other}}}
    result(tmp_path, "pairwise", name="whole", **pairs)
    spoilt = result(tmp_path, "pairwise", name="spoilt", models={"judge": scripted("judge_with_nonsense")}, **pairs)
    row = spoilt.row("pairwise.overall.win")
    assert row is not None
    assert 0 < row.n_unscored < 12
    assert set(row.unscored) == {"unparsed"}
    whole = {case["id"]: case for case in lines(tmp_path / "whole/examples/pairwise.jsonl")}
    for case in lines(tmp_path / "spoilt/examples/pairwise.jsonl"):
        if not any(one["unscored"] for one in case["judgements"]):
            assert case == whole[case["id"]]


def test_unscored_cases_count_against_the_allowed_rate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blank = evaluation("response", models={"supporter": scripted("sometimes_blank")}, max_failure_rate=0.05)
    found = run(blank, out=tmp_path / "blank")
    assert 0 < found.rate.n_failed < found.rate.n == 66
    assert f"response: {found.rate.n_failed} of 66 cases are unscored, in whole or in part (blank" in caplog.text
    with pytest.raises(FailureRateError, match="of 66 cases failed or are unscored"):
        found.rate.judge()
    assert (tmp_path / "blank/metrics.json").exists()
    assert json.loads((tmp_path / "blank/manifest.json").read_text())["status"] == "stopped"
    again = run(blank.model_copy(update={"max_failure_rate": 1.0}), out=tmp_path / "blank")
    again.rate.judge()
    assert again.metrics == found.metrics


def test_dialogues_on_mostly_unreadable_answers_count_too(tmp_path: Path) -> None:
    critic = {"critic": {"scripted": "tests.evaluate.talk:mostly_nonsense"}}
    found = run(evaluation("dialogue", models=critic), out=tmp_path / "run")
    kinds = {(line["stage"], line["kind"]) for line in lines(tmp_path / "run/failures.jsonl")}
    assert ("critic", "mostly_unparsed") in kinds
    assert found.rate.n_failed > found.rate.n / 2
    assert found.metrics.row("dialogue.rlff7.sr_strict").n > 0


def test_cases_that_a_predictions_file_lacks_are_no_failures(tmp_path: Path) -> None:
    known = lines(Path(opponent(tmp_path)) / "predictions.jsonl")[:30]
    predictions = tmp_path / "some.jsonl"
    predictions.write_text("".join(json.dumps(line) + "\n" for line in known))
    found = run(evaluation("response", predictions=str(predictions), max_failure_rate=0.0), out=tmp_path / "run")
    assert found.rate.n_failed == 0
    assert found.metrics.row("response.words").unscored == {"missing": 36}


def test_a_hopeless_run_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(FailureRateError):
        result(tmp_path, "response", name="down", models={"supporter": scripted("down")}, max_failure_rate=0.5)
    assert not (tmp_path / "down/metrics.json").exists()
    assert {line["kind"] for line in lines(tmp_path / "down/failures.jsonl")} == {"backend"}


def test_failed_cases_can_be_asked_again(tmp_path: Path) -> None:
    spoilt = {"models": {"supporter": scripted("sometimes_down")}}
    first = result(tmp_path, "response", **spoilt)
    row = first.row("response.words")
    assert row is not None
    assert row.unscored["backend"] > 0
    again = result(tmp_path, "response", resume={"retry_failed": True}, **spoilt)
    assert again.metrics == first.metrics
    ids = [line["id"] for line in lines(tmp_path / "run/examples/response.jsonl")]
    assert len(ids) == len(set(ids)) == 66


def test_cases_that_are_all_unscored_give_rows_without_values(tmp_path: Path) -> None:
    found = result(tmp_path, "response", models={"supporter": scripted("down")})
    for row in found.metrics:
        assert row.value is None
        assert row.reason


def test_sure_cases_alone_cannot_raise_correct_of_all(tmp_path: Path) -> None:
    whole = values(result(tmp_path, "strategy", name="whole"))
    sure = values(result(tmp_path, "strategy", name="sure", models={"strategist": scripted("sure_strategist")}))
    assert sure["strategy.correct_of_all"] is not None
    assert whole["strategy.correct_of_all"] is not None
    assert sure["strategy.correct_of_all"] <= whole["strategy.correct_of_all"]
    assert whole["strategy.correct_of_all"] == whole["strategy.accuracy"]


# ---------------------------------------------------------------- dialogue


def test_a_critic_gives_the_same_outcome_beside_another(tmp_path: Path) -> None:
    alone = result(tmp_path, "dialogue", name="alone", settings={"dialogue": {"critics": ["rlff7"]}})
    both = result(tmp_path, "dialogue", name="both", settings={"dialogue": {"critics": ["rlff7", "ppdpp4"]}})
    mine = [row for row in alone.metrics if row.name.startswith("dialogue.rlff7.")]
    assert len(mine) > 20
    assert [row for row in both.metrics if row.name.startswith("dialogue.rlff7.")] == mine
    assert both.row("dialogue.ppdpp4.sr_strict") is not None


def test_lenient_success_is_never_rarer_or_later(tmp_path: Path) -> None:
    found = values(result(tmp_path, "dialogue", settings={"dialogue": {"critics": ["rlff7", "ppdpp4"]}}))
    for critic in ("rlff7", "ppdpp4"):
        assert found[f"dialogue.{critic}.sr_lenient"] >= found[f"dialogue.{critic}.sr_strict"]  # type: ignore[operator]
        assert found[f"dialogue.{critic}.at_lenient"] <= found[f"dialogue.{critic}.at_strict"]  # type: ignore[operator]


def test_ppdpp_compat_counts_nonsense_as_zero_and_says_so(tmp_path: Path) -> None:
    compat = {"dialogue": {"critics": ["ppdpp4"], "ppdpp_compat": True}}
    found = result(tmp_path, "dialogue", settings=compat, models={"critic": scripted("nonsense")})
    row = found.row("dialogue.ppdpp4.sr_strict")
    assert row is not None
    assert (row.value, row.n) == (0.0, 6)
    episodes = list(read_records(Episode, tmp_path / "run/episodes.jsonl"))
    assert all(turn.readings["ppdpp4"].compat_zero for episode in episodes for turn in episode.turns)
    zeros = found.row("dialogue.ppdpp4.compat_zeros")
    assert zeros is not None
    assert (zeros.value, zeros.counts["readings"]) == (24, 24)


def test_plain_text_is_well_formed_where_it_is_asked_for(tmp_path: Path) -> None:
    plain = {"models": {"supporter": scripted("seeker")}}
    for name, compat, share in (("compat", True, 0.0), ("tags", False, 1.0)):
        settings = {"dialogue": {"critics": ["ppdpp4"], "ppdpp_compat": compat}}
        found = result(tmp_path, "dialogue", name=name, settings=settings, **plain)
        row = found.row("dialogue.malformed_share", parse_kind="untagged")
        assert row is not None
        assert row.value == share
    found = result(tmp_path, "response", name="replies", prompts={"supporter": "supporter_ppdpp"}, **plain)
    row = found.row("response.malformed_share", parse_kind="untagged")
    assert row is not None
    assert row.value == 0.0


def test_strategist_and_turn_judge_take_part_if_the_recipe_says(tmp_path: Path) -> None:
    models = {"turn_judge": {"scripted": "critic_rubric"}}
    found = result(tmp_path, "dialogue", settings={"dialogue": {"strategy": "predicted"}}, models=models)
    assert found.row("dialogue.turn_reward") is not None
    assert found.row("dialogue.strategy_entropy") is not None
    episodes = list(read_records(Episode, tmp_path / "run/episodes.jsonl"))
    assert all(turn.strategy for episode in episodes for turn in episode.turns)
    assert {role for episode in episodes for role in episode.usage} == {
        "critic",
        "seeker",
        "strategist",
        "supporter",
        "turn_judge",
    }


# ---------------------------------------------------------------- pairwise


def test_a_judge_that_always_takes_the_first_decides_nothing(tmp_path: Path) -> None:
    other = opponent(tmp_path)
    found = result(
        tmp_path, "pairwise", models={"judge": scripted("always_first")}, settings={"pairwise": {"opponent": other}}
    )
    wanted = {"win": 0.0, "lose": 0.0, "tie": 1.0, "position_consistency": 0.0, "first_share": 1.0}
    for dimension in ("fluency", "overall"):
        assert {name: values(found)[f"pairwise.{dimension}.{name}"] for name in wanted} == wanted
    row = found.row("pairwise.overall.win")
    assert row is not None
    assert "position_bias" in row.flags


def test_swapping_the_systems_swaps_win_and_lose(tmp_path: Path) -> None:
    theirs, ours = opponent(tmp_path), opponent(tmp_path, "supporter")
    first = values(result(tmp_path, "pairwise", name="a", settings={"pairwise": {"opponent": theirs}}))
    swapped = values(
        result(
            tmp_path,
            "pairwise",
            name="b",
            models={"supporter": scripted("other_supporter")},
            settings={"pairwise": {"opponent": ours}},
        )
    )
    assert first["pairwise.overall.win"] == swapped["pairwise.overall.lose"] == 1.0
    assert first["pairwise.overall.lose"] == swapped["pairwise.overall.win"]
    assert first["pairwise.overall.longer_share"] == swapped["pairwise.overall.longer_share"] == 0.0


def test_replies_of_the_response_suite_are_judged_and_used_again(tmp_path: Path) -> None:
    other = opponent(tmp_path)
    result(tmp_path, "response", "pairwise", settings={"pairwise": {"opponent": other}})
    replies = {case["id"]: case["reply"] for case in lines(tmp_path / "run/examples/response.jsonl")}
    pairs = lines(tmp_path / "run/examples/pairwise.jsonl")
    assert len(pairs) == 12
    assert {pair["dialogue_id"] for pair in pairs} == {pair["dialogue_id"] for pair in pairs}
    assert all(pair["reply_a"] == replies[pair["context_id"]] for pair in pairs)
    spent = json.loads((tmp_path / "run/manifest.json").read_text())["spent"]
    assert spent["calls"] == 66 + 2 * 12


def test_an_earlier_evaluation_can_be_the_opponent(tmp_path: Path) -> None:
    result(tmp_path, "response", name="theirs", models={"supporter": scripted("other_supporter")})
    found = result(tmp_path, "pairwise", settings={"pairwise": {"opponent": str(tmp_path / "theirs"), "swap": False}})
    assert values(found)["pairwise.overall.win"] == 1.0
    assert found.row("pairwise.overall.position_consistency") is None


# ---------------------------------------------------------------- strategy


def test_units_of_the_suite_strategy() -> None:
    turn = plan(evaluation("strategy")).cases["strategy"]
    utterance = plan(evaluation("strategy", settings={"strategy": {"unit": "utterance"}})).cases["strategy"]
    openings = {"strategy": {"unit": "utterance", "include_openings": True}}
    assert turn < utterance < plan(evaluation("strategy", settings=openings)).cases["strategy"]
    excluded = plan(evaluation("strategy", settings={"strategy": {"exclude": ["Others"]}}))
    assert excluded.cases["strategy"] + excluded.left_out["strategy: excluded"] == turn


def test_gold_is_the_first_label_and_any_counts_all_of_them(tmp_path: Path) -> None:
    found = values(result(tmp_path, "strategy"))
    cases = list(read_records(StrategyCase, tmp_path / "run/examples/strategy.jsonl"))
    assert all(case.gold == case.gold_all[0] for case in cases)
    assert any(len(case.gold_all) > 1 for case in cases)
    assert found["strategy.accuracy_any"] >= found["strategy.accuracy"]  # type: ignore[operator]
    assert all(case.turn < case.n_turns for case in cases)
    assert all(case.probabilities is not None and sum(case.probabilities) == 1.0 for case in cases)


def test_another_taxonomy_needs_a_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="esconv_to_aflow"):
        plan(evaluation("strategy", taxonomy="aflow"))
    mapped = plan(evaluation("strategy", taxonomy="aflow", data={"mapping": "esconv_to_aflow"}))
    assert mapped.left_out["strategy: unlabelled"] > 0
