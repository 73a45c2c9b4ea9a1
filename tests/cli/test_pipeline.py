"""``esckit run`` as a user types it: a page of one's own end to end, plans, refusals, and signals."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.errors import EsckitError
from esckit.pipeline.sequence import SCHEMA
from esckit.records import write_json
from esckit.runs import PIPELINE, is_held

JUDGE = """\
command: evaluate
seed: 7
suites: [strategy]
data: {dataset: esconv, path: "sample:esconv", scheme: files, split: test, mapping: esconv_to_aflow}
taxonomy: aflow
predictions: runs/nowhere
statistics: {resamples: 100}
"""
PAGE = """\
command: run
stages:
  told: {recipe: smoke/predict_scripted, about: strategies and replies}
  judged: {recipe: judge.yaml, set: {predictions: stage:told}, show: {accuracy: strategy.accuracy, x: strategy.acuracy}}
"""
OWN = """\
command: run
stages:
  told:
    recipe: smoke/predict_scripted
    set: {data: {path: talks.csv}, taxonomy: tax.yaml, models.strategist: null, predict.strategy: gold}
"""
TALK = "dialogue_id,speaker,text,strategy\n1,seeker,I am sad.,\n1,supporter,Why is that?,Ask\n"
TAXONOMY = """\
name: mine
title: Two strategies
source: this test
stages: [talk]
strategies:
  - {name: Ask, abbr: A, stage: talk, definition: Ask something.}
  - {name: Tell, abbr: T, stage: talk, definition: Tell something.}
"""
GATE = ("--set", "judged.gates={strategy.accuracy: 0.99}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.yaml").write_text(JUDGE, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(PAGE, encoding="utf-8")
    return tmp_path


def refused(*words: str) -> str:
    done = CliRunner().invoke(app, ["run", *words])
    assert isinstance(done.exception, EsckitError), done.output
    assert done.exception.exit_code == 2
    return str(done.exception)


def test_a_page_is_played_reported_and_resumed(here: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["run", "mine.yaml", "--quiet", *words])

    first = run("--until", "told")
    assert first.exit_code == 0, first.output
    command = "     $ esckit predict smoke/predict_scripted --out runs/mine/told\n"
    assert f"1/1  told: strategies and replies\n{command}" in first.stdout
    gated = run(*GATE)
    assert gated.exit_code == 1
    assert "(done before)" in gated.stdout
    assert "stage judged: a check found something (see runs/mine/printed/judged.txt)" in gated.stderr
    assert "strategy.accuracy" in (here / "runs/mine/printed/judged.txt").read_text(encoding="utf-8")
    assert "told" in (here / "runs/mine/report.md").read_text(encoding="utf-8")
    again = run("--json")
    assert again.exit_code == 0, again.output
    found = json.loads(again.stdout)
    assert [each["name"] for each in found["stages"]] == ["told", "judged"]
    accuracy, misspelt = found["stages"][1]["numbers"].values()
    assert misspelt is None
    assert "no number 'strategy.acuracy' in runs/mine/judged; did you mean 'strategy.accuracy'?" in again.stderr
    assert 0 <= accuracy["interval"]["low"] <= accuracy["value"] <= accuracy["interval"]["high"] <= 1
    assert accuracy["n"] > 0
    assert found["report"] == "runs/mine/report.html"


def test_a_finished_stage_is_refused_once_its_data_changed(here: Path) -> None:
    own = {"page.yaml": OWN, "talks.csv": TALK, "tax.yaml": TAXONOMY}
    for name, text in own.items():
        (here / name).write_text(text, encoding="utf-8")
    write_json(here / "runs/page" / PIPELINE, {"schema": SCHEMA, "name": "page", "stages": {}})
    plan = ("run", "page.yaml", "--dry-run")
    command = CliRunner().invoke(app, plan).stdout.splitlines()[0].partition(": esckit ")[2]
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, done.output
    assert "done before" in CliRunner().invoke(app, plan).stdout
    changes = {
        "talks.csv": (TALK.replace("Ask", "Tell"), "runs/page/told was begun with other inputs: data.files.talks.csv"),
        "tax.yaml": (TAXONOMY.replace("Ask something", "Ask anything"), "taxonomy differs"),
    }
    for name, (text, complaint) in changes.items():
        (here / name).write_text(text, encoding="utf-8")
        assert complaint in refused("page.yaml")
        (here / name).write_text(own[name], encoding="utf-8")
    (here / "talks.csv").rename(here / "away.csv")
    assert "talks.csv" in refused("page.yaml")


def test_a_dry_run_sums_what_can_be_known_and_says_what_cannot(here: Path) -> None:
    done = CliRunner().invoke(app, ["run", "smoke", "--dry-run", "--json", "--rate", "10"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    by_name = {each["name"]: each for each in found["stages"]}
    assert by_name["simulate"]["stands_in"] == ["strategist"]
    assert by_name["simulate"]["forecast"]["roles"]["strategist"]["calls"] > 0
    assert by_name["train_flow"]["plan"]["memory_per_device"]["total"] > 0
    assert found["sum"]["unknown"] == ["train_flow", "train_reward", "train_rl"]
    known = [each["forecast"]["calls"] for each in found["stages"] if each["forecast"]]
    assert found["sum"]["calls"] == sum(known) > 0
    assert found["sum"]["hours"] > 0
    text = CliRunner().invoke(app, ["run", "smoke", "--dry-run"]).stdout
    assert "not in the sum: train_flow, train_reward, train_rl" in text
    assert not (here / "runs").exists()


def test_what_would_fail_later_is_refused_before_anything_starts(here: Path) -> None:
    wrong = ("evaluate.data.path=gone", "simulate.data.mapping=null", "search.data.path=gone")
    message = refused("smoke", *(f"--set={change}" for change in wrong))
    assert "3 stages of 6 cannot run" in message
    assert "search: gone" in message
    assert "there is no" not in message  # what later stages read is not there since the earlier ones are wrong
    assert "simulate: a corpus labelled in taxonomy esconv" in message
    assert not (here / "runs").exists()


def test_a_stand_in_is_for_the_stage_that_writes_its_model(here: Path) -> None:
    scripted = "recipe: smoke/evaluate_scripted, set: {suites: [strategy]"
    (here / "mine.yaml").write_text(
        "command: run\nstages:\n"
        "  trees: {recipe: smoke/search_scripted}\n"
        "  bc: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:trees]}}\n"
        f"  before: {{{scripted}}}}}\n"
        f"  after: {{{scripted}, compare_to: stage:before, models.strategist: {{checkpoint: stage:bc}}}}}}\n",
        encoding="utf-8",
    )
    done = CliRunner().invoke(app, ["run", "mine.yaml", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "planned with a scripted strategist in place of what bc will write" in done.stdout


def test_a_command_in_a_message_can_be_typed(here: Path) -> None:
    (here / "mine.yaml").rename(here / "my page.yaml")
    done = CliRunner().invoke(app, ["predict", "my page.yaml"])
    assert "Run: esckit run 'my page.yaml'" in str(done.exception)


def test_a_later_stage_alone_asks_for_the_earlier_ones(here: Path) -> None:
    message = refused("smoke", "--from", "train_reward", "--until", "train_reward")
    assert "there is no runs/smoke/simulate" in message
    assert "Make it with: esckit run smoke --until simulate" in message


def test_what_a_stopped_stage_asks_for_is_told_in_the_pipelines_words(here: Path) -> None:
    (here / "mute.py").write_text("def supporter(messages, sampling, seed):\n    return ''\n", encoding="utf-8")
    words = ["run", "mine.yaml", "--until", "told", "--set", "told.models.supporter={scripted: 'mute:supporter'}"]
    done = subprocess.run(
        [sys.executable, "-m", "esckit", *words], cwd=here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "a --set that it asks for is here --set told.FIELD=VALUE" in done.stderr


def test_launcher_settings_are_for_trainings(here: Path) -> None:
    words = ["run", "smoke", "--dry-run", "--json", "--accelerate", "single", "--accelerate", "train_flow=zero7"]
    assert "unknown launcher settings 'zero7'" in refused(*words[1:])
    assert "stage search does not train" in refused("smoke", "--accelerate", "search=single")


LOADER = """\
import os, pathlib, time
from esckit.data.corpus import read_corpus

def load(path, *, sink):
    if pathlib.Path("runs/mine/pipeline.json").exists():  # a stage reads, not the plan before it
        pathlib.Path("pid").write_text(str(os.getpid()))
        os.rename("pid", "asleep")
        time.sleep(60)
    yield from read_corpus("sample:esconv", sink=sink).dialogues
"""


def test_a_signal_ends_the_stage_and_leaves_with_130(here: Path) -> None:
    (here / "slow.py").write_text(LOADER, encoding="utf-8")
    words = ["run", "mine.yaml", "--until", "told", "--set", "told.data={dataset: 'slow:load', path: slow.py}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "esckit", *words], cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (here / "asleep").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.endswith("what is done stays; the same command goes on from there\nInterrupted.\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int((here / "asleep").read_text(encoding="utf-8")), 0)
    told = json.loads((here / "runs/mine/pipeline.json").read_text(encoding="utf-8"))["stages"]["told"]
    assert (told["status"], told["exit_code"]) == ("stopped", None)
    assert not is_held(here / "runs/mine")
