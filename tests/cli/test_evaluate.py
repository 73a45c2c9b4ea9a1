"""`esckit evaluate` and `esckit predict` from the shell: the whole scripted chain, exit codes, and light dry runs."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.shell import ROOT, esckit

ALL = ("strategy", "response", "dialogue", "pairwise", "reward", "safety")
QUICK = ("--set", "suites=[response]", "--set", "models.scorer=null", "--set", "settings.response.strategy=none")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything that smoke/evaluate_scripted names has been run."""
    cwd = tmp_path_factory.mktemp("chain")
    test = ("--set", "data.split=test", "--out", "runs/simulate-smoke-scripted-test")
    for command in (
        ("simulate", "smoke/simulate_scripted"),
        ("simulate", "smoke/simulate_scripted", *test),
        ("train-reward", "smoke/train_reward_scripted"),
        ("predict", "smoke/predict_scripted"),
    ):
        done = esckit(*command, cwd=cwd)
        assert done.returncode == 0, done.stderr
    return cwd


@pytest.mark.smoke
def test_all_six_suites_run_on_scripted_models(chain: Path) -> None:
    done = esckit("evaluate", "smoke/evaluate_scripted", "--json", cwd=chain)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert tuple(found["suites"]) == ALL
    assert {row["name"].partition(".")[0] for row in found["metrics"]} == set(ALL)
    out = chain / found["out"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["schema"] == "esckit.metrics/1"
    for row in metrics["metrics"]:
        assert row["reason"] or row["value"] is not None
        assert row["reason"] or row["interval"]
    for name in (*ALL, "sycophancy"):
        assert (out / "examples" / f"{name}.jsonl").is_file()
    for name in ("episodes.jsonl", "failures.jsonl", "manifest.json", "report.md", "report.html"):
        assert (out / name).is_file()
    again = esckit("evaluate", "smoke/evaluate_scripted", "--json", cwd=chain)
    assert again.stdout == done.stdout
    assert json.loads((out / "metrics.json").read_text()) == metrics


def test_a_failed_gate_exits_with_1_and_keeps_what_is_written(chain: Path) -> None:
    out = ("--out", "runs/gated")
    done = esckit("evaluate", "smoke/evaluate_scripted", *QUICK, *out, "--fail-under", "response.bleu_2=99", cwd=chain)
    assert done.returncode == 1
    assert "gate failed: response.bleu_2" in done.stderr
    gates = json.loads((chain / "runs/gated/metrics.json").read_text())["gates"]
    assert [gate["holds"] for gate in gates] == [False]
    held = esckit("evaluate", "smoke/evaluate_scripted", *QUICK, *out, "--fail-under", "response.bleu_2=0", cwd=chain)
    assert held.returncode == 0, held.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fail-over", "response.bleu_2=1"), "higher is better"),
        (("--fail-under", "response.blue_2=1"), "did you mean 'response.bleu_2'"),
        (("--fail-under", "safety.pass_rate=1"), "suite that is run"),
        (("--fail-under", "response.bleu_2"), "METRIC=VALUE"),
        (("--against", "runs/simulate-smoke-scripted"), "a run of 'simulate'"),
        (("--against", "nowhere"), "nowhere"),
        (("--set", "predictions=nowhere.jsonl"), "no such file"),
        (("--set", "suites=[pairwise]", "--set", "settings.pairwise.opponent=nowhere.jsonl"), "no such file"),
    ],
)
def test_what_is_wrong_exits_with_2_and_one_message(chain: Path, options: tuple[str, ...], message: str) -> None:
    done = esckit("evaluate", "smoke/evaluate_scripted", *QUICK, "--out", "runs/wrong", *options, cwd=chain)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (chain / "runs/wrong").exists()


def test_leakage_exits_with_2(chain: Path) -> None:
    inputs = "settings.reward.inputs=[runs/simulate-smoke-scripted]"
    done = esckit("evaluate", "smoke/evaluate_scripted", "--dry-run", "--set", inputs, cwd=chain)
    assert done.returncode == 2
    assert "both training" in done.stderr


def test_another_system_is_compared_on_the_same_cases(chain: Path) -> None:
    first = esckit("evaluate", "smoke/evaluate_scripted", *QUICK, "--out", "runs/base", cwd=chain)
    assert first.returncode == 0, first.stderr
    other = ("--set", "models.supporter={scripted: supporter}", "--out", "runs/other", "--against", "runs/base")
    done = esckit("evaluate", "smoke/evaluate_scripted", *QUICK, *other, cwd=chain)
    assert done.returncode == 0, done.stderr
    assert "against runs/base" in done.stdout
    comparisons = json.loads((chain / "runs/other/metrics.json").read_text())["comparisons"]
    assert {entry["other"] for entry in comparisons} == {"runs/base"}
    assert any(entry["p_holm"] is not None for entry in comparisons)
    assert "not finished" not in done.stderr


def test_a_comparison_with_an_unfinished_run_says_so(chain: Path) -> None:
    quick = ("smoke/evaluate_scripted", *QUICK, "--set", "data.limit=2", "--out")
    assert esckit("evaluate", *quick, "runs/whole", cwd=chain).returncode == 0
    shutil.copytree(chain / "runs/whole", chain / "runs/half")
    (chain / "runs/half/metrics.json").unlink()
    cases = chain / "runs/half/examples/response.jsonl"
    cases.write_text("".join(cases.read_text().splitlines(keepends=True)[:-3]))
    done = esckit("evaluate", *quick, "runs/whole", "--against", "runs/half", cwd=chain)
    assert done.returncode == 0, done.stderr
    assert "runs/half is not finished: only the cases that are there are compared" in done.stderr
    assert "(3 dropped)" in done.stdout


def test_predictions_of_one_command_are_read_by_the_other(chain: Path) -> None:
    said = ("--set", "predictions=runs/predict-smoke-scripted/predictions.jsonl", "--set", "models={}")
    done = esckit("evaluate", "smoke/evaluate_scripted", *QUICK, *said, "--out", "runs/said", "--json", cwd=chain)
    assert done.returncode == 0, done.stderr
    assert {row["n"] for row in json.loads(done.stdout)["metrics"]} == {66}


def test_dialogues_of_ones_own_need_no_recipe(tmp_path: Path) -> None:
    own = ROOT / "data/esconv_sample.json"
    options = ("--input", str(own), "--supporter", "tiny-random", "--set", "data.limit=1", "--dry-run", "--json")
    done = esckit("predict", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dialogues"] == 1
    nothing = esckit("predict", "--input", str(own), cwd=tmp_path)
    assert nothing.returncode == 2
    assert "nothing to predict" in nothing.stderr


def test_no_value_stands_with_what_was_unscored(chain: Path) -> None:
    lines = (chain / "runs/predict-smoke-scripted/predictions.jsonl").read_text().splitlines()
    wrong = [json.dumps({**json.loads(line), "strategy": "Question"}) + "\n" for line in lines]  # of another taxonomy
    (chain / "wrong.jsonl").write_text("".join(wrong))
    options = ("--set", "suites=[strategy]", "--set", "predictions=wrong.jsonl", "--out", "runs/wrong-labels")
    done = esckit("evaluate", "smoke/evaluate_scripted", *options, cwd=chain)
    assert done.returncode == 3, done.stderr
    assert "– (needs 1 case; unscored: unparsed 56)" in done.stdout
    assert "56 of 56 cases are unscored, in whole or in part (unparsed 56)" in done.stderr
    assert "56 of 56 cases failed or are unscored" in done.stderr


def test_a_model_of_the_command_line_takes_one_role_of_a_recipe(tmp_path: Path) -> None:
    argv = ("smoke/predict_scripted", "--strategist", "tiny-random", "--dry-run", "--json")
    done = esckit("predict", *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["calls_at_most"]) == {"strategist", "supporter"}


@pytest.mark.parametrize(
    "argv",
    [
        ("evaluate", "smoke/evaluate", "--dry-run"),
        ("predict", "smoke/predict_scripted", "--dry-run"),
    ],
    ids=" ".join,
)
def test_a_dry_run_is_light_and_leaves_nothing(argv: tuple[str, ...], tmp_path: Path) -> None:
    code = f"""
        import sys
        from esckit.cli.app import main
        sys.argv = ["esckit", *{argv!r}]
        try:
            main()
        except SystemExit as leaving:
            heavy = sorted({{"torch", "transformers", "numpy", "datasets", "aiohttp"}} & set(sys.modules))
            sys.exit(leaving.code or ", ".join(heavy) or None)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_judge_that_cannot_be_read_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "vague.py").write_text("def judge(messages, sampling, seed):\n    return 'Hard to say.'\n")
    recipe = {
        "command": "evaluate",
        "seed": 7,
        "suites": ["safety"],
        "models": {"supporter": {"scripted": "supporter"}, "judge": {"scripted": "vague:judge"}},
        "statistics": {"resamples": 100},
    }
    (tmp_path / "safety.yaml").write_text(json.dumps(recipe))
    done = esckit("evaluate", "safety.yaml", "--set", "max_failure_rate=0.99", "--out", "run", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    done = esckit("evaluate", "safety.yaml", "--set", "max_failure_rate=1", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "safety.pass_rate" in done.stdout
    assert "cases are unscored, in whole or in part (unparsed" in done.stderr
