"""Run folders of 0.1.0 report; finished ones are done or refused by their recipe, half-finished ones go on.

README.md says how they were made. Nothing here knows more of esckit than its command line.
"""

from pathlib import Path

import pytest

from tests.old_runs.old import HERE, Esckit, digests, ran, refused, rows, status

COMMANDS = {line.split()[3]: line for line in (HERE / "commands.txt").read_text().splitlines()}
KILLED = [run for run in COMMANDS if run.endswith("-killed")]
DONE = [run for run in COMMANDS if run not in KILLED]
TRAININGS = ["runs/reward-killed", "runs/flow-killed", "runs/rl-killed"]
MADE = (
    "contexts.jsonl", "futures.jsonl", "trees.jsonl", "predictions.jsonl", "episodes.jsonl", "samples.jsonl",
    "dev_predictions.jsonl", "examples/", "checkpoint/",
)  # fmt: skip
"""What a run made; the other files say how it went."""


# ---------------------------------------------------------------- reports


@pytest.mark.parametrize("run", COMMANDS)
def test_an_old_run_reports(here: Path, esckit: Esckit, run: str) -> None:
    before = digests(here / run)
    ran(esckit(f"report {run} --out pages/page.html"))
    assert "0.1.0" in Path("pages/page.html").read_text()
    assert Path("pages/page.md").read_text().startswith("# ")
    assert digests(here / run) == before


def test_old_runs_report_side_by_side(esckit: Esckit) -> None:
    ran(esckit(f"report {' '.join(COMMANDS)} --out page.html"))
    page = Path("page.html").read_text()
    assert all(Path(run).name in page for run in COMMANDS)


# ---------------------------------------------------------------- the same command again

REFUSED = {"runs/evaluate": "inputs.runs/predict differs"}
"""Finished runs that are refused, and why: an opponent is known by its replies since 0.1.0."""


@pytest.mark.parametrize("run", [run for run in DONE if run not in REFUSED])
def test_a_finished_old_run_is_done(here: Path, esckit: Esckit, run: str) -> None:
    before = digests(here / run)
    said = ran(esckit(COMMANDS[run]))
    after = digests(here / run)
    assert run in said
    assert status(run) == "complete"
    assert {name: found for name, found in after.items() if name.startswith(MADE)} == {
        name: found for name, found in before.items() if name.startswith(MADE)
    }


@pytest.mark.parametrize("run", REFUSED)
def test_a_finished_old_run_that_is_refused_stays(here: Path, esckit: Esckit, run: str) -> None:
    before = digests(here / run)
    said = refused(esckit(COMMANDS[run]))
    assert REFUSED[run] in said
    assert "--out" in said
    assert digests(here / run) == before


@pytest.mark.parametrize(
    ("run", "made", "n_before", "n_after"),
    [
        ("runs/simulate-killed", "futures.jsonl", 6, 16),
        ("runs/search-killed", "trees.jsonl", 3, 8),
        ("runs/predict-killed", "predictions.jsonl", None, 66),
        ("runs/evaluate-killed", "examples/response.jsonl", 3, 6),
        ("runs/rl-killed", "samples.jsonl", 8, 16),
    ],
)
def test_a_half_finished_old_run_goes_on(
    esckit: Esckit, run: str, made: str, n_before: int | None, n_after: int
) -> None:
    before = rows(Path(run, made))
    assert n_before in (None, len(before))
    ran(esckit(COMMANDS[run]))
    after = rows(Path(run, made))
    assert status(run) == "complete"
    assert after[: len(before)] == before
    assert len(after) == n_after > len(before)


@pytest.mark.parametrize("run", TRAININGS)
def test_a_half_finished_old_training_ends(esckit: Esckit, run: str) -> None:
    before = rows(Path(run, "metrics.jsonl"))
    ran(esckit(COMMANDS[run]))
    after = rows(Path(run, "metrics.jsonl"))
    assert status(run) == "complete"
    assert after[0] == before[0]
    assert len(after) > len(before)
    assert Path(run, "checkpoint").is_dir()
    assert not Path(run, "states").exists()
