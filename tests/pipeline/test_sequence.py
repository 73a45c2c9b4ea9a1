"""Which stages of a pipeline run, what their exit codes mean, and whose folder is whose."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from esckit.errors import ConfigError, StorageError
from esckit.pipeline.page import Stage, load_pipeline
from esckit.pipeline.sequence import PipelineFolder, chosen, run_stages
from esckit.runs import PIPELINE, RunFolder, read_manifest
from tests.fakes import aged

PAGE = """\
command: run
stages:
  a: {recipe: smoke/search_scripted}
  b: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:a]}}
  c: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:a], model.init: stage:b}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(PAGE, encoding="utf-8")
    return tmp_path


def stages(*changes: str) -> tuple[Stage, ...]:
    return load_pipeline("mine.yaml", changes=changes).stages


class Commands:
    """Writes the run folder of each command that is started; some end with an exit code instead."""

    def __init__(self, among: Sequence[Stage], **codes: int | BaseException) -> None:
        self.among = {stage.words(): stage for stage in among}
        self.codes = codes
        self.started: list[str] = []

    def __call__(self, words: Sequence[str]) -> int:
        stage = self.among[tuple(words)]
        self.started.append(stage.name)
        code = self.codes.get(stage.name, 0)
        recipe = stage.recipe
        facts = {"command": recipe.command, "recipe": recipe.resolved(), "operational": recipe.OPERATIONAL}
        with RunFolder.open(stage.out, **facts) as run:
            if isinstance(code, BaseException):
                raise code
            run.close("complete" if code in (0, 1) else "stopped")
        return code


def play(among: Sequence[Stage], **codes: int | BaseException) -> tuple[list[str], int]:
    start = Commands(among, **codes)
    with PipelineFolder.open(Path("runs/mine"), "mine") as folder:
        code, _ = run_stages(among, folder, start, begins=lambda *told: None, ended=lambda *told: None)
    return start.started, code


def told(stage: str) -> dict[str, object]:
    return dict(json.loads(Path("runs/mine", PIPELINE).read_text(encoding="utf-8"))["stages"][stage])


def test_what_is_done_is_not_run_again() -> None:
    assert play(stages()) == (["a", "b", "c"], 0)
    assert play(stages()) == ([], 0)
    assert told("b")["status"] == "complete"


def test_a_pipeline_killed_at_its_first_note_begins_anew() -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine", f".{PIPELINE}.abc.tmp").write_text("{", encoding="utf-8")
    assert play(stages(), b=3) == (["a", "b"], 3)
    assert [*Path("runs/mine").glob("*.tmp")] == []


@pytest.mark.parametrize("code", [2, 3, 130, 137])
def test_a_stage_that_stops_ends_the_pipeline_and_is_resumed(code: int) -> None:
    assert play(stages(), b=code) == (["a", "b"], code)
    assert told("b")["exit_code"] == code
    assert play(stages()) == (["b", "c"], 0)


def test_a_stage_that_left_with_1_is_not_taken_for_done() -> None:
    assert play(stages(), b=1) == (["a", "b"], 1)
    assert read_manifest(Path("runs/mine/b"))["status"] == "complete"
    assert told("b")["status"] == "failed"  # a training checks nothing: 1 is how Python leaves after a bug
    assert play(stages(), b=1) == (["b"], 1)
    assert play(chosen(stages(), "c", None)) == (["c"], 0)


def test_an_interrupt_is_noted_and_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        play(stages(), b=KeyboardInterrupt())
    assert (told("b")["status"], told("b")["exit_code"]) == ("stopped", None)
    assert play(stages()) == (["b", "c"], 0)


def test_what_reads_a_stage_that_was_made_anew_runs_again() -> None:
    play(stages())
    for name in "abc":
        aged(Path("runs/mine", name), hours=1)
    play(stages())
    recipe = stages()[1].recipe
    facts = {"command": recipe.command, "recipe": recipe.resolved(), "operational": recipe.OPERATIONAL}
    with RunFolder.open(Path("runs/mine/b"), **facts) as run:
        run.begin_attempt()
    assert play(stages()) == (["c"], 0)


def test_a_field_that_may_change_makes_a_stage_look_again() -> None:
    play(stages())
    assert play(stages("a.max_failure_rate=0.5"))[0] == ["a"]


def test_a_changed_field_is_refused_by_name() -> None:
    play(stages())
    with pytest.raises(ConfigError, match=r"runs/mine/a belongs to another recipe: mcts\.max_depth differs"):
        play(stages("a.mcts.max_depth=3"))


def test_a_folder_belongs_to_one_pipeline_and_one_process(here: Path) -> None:
    with PipelineFolder.open(here / "p", "mine") as folder:
        folder.note(stages()[0], status="running", exit_code=None)
        with pytest.raises(StorageError, match="in use by another esckit process"):
            PipelineFolder.open(here / "p", "mine")
    with pytest.raises(ConfigError, match="belongs to the pipeline mine"):
        PipelineFolder.open(here / "p", "other")
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and is not the folder of a pipeline"):
        PipelineFolder.open(here / "full", "mine")
    with RunFolder.open(here / "run", command="search", recipe={}):
        pass
    with pytest.raises(ConfigError, match="is a run folder"):
        PipelineFolder.open(here / "run", "mine")
    (here / "p" / PIPELINE).write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        PipelineFolder.open(here / "p", "mine")


CHOICES: list[tuple[str | None, str | None, str]] = [
    (None, None, "abc"),
    ("b", None, "bc"),
    (None, "b", "ab"),
    ("b", "b", "b"),
]


@pytest.mark.parametrize(("first", "last", "names"), CHOICES)
def test_stages_are_chosen_by_their_names(first: str | None, last: str | None, names: str) -> None:
    assert [stage.name for stage in chosen(stages(), first, last)] == list(names)


@pytest.mark.parametrize(
    ("first", "last", "words"), [("d", None, "--from d: no such stage"), ("c", "a", "nothing to run")]
)
def test_a_wrong_choice_of_stages_is_refused(first: str, last: str | None, words: str) -> None:
    among = stages()
    with pytest.raises(ConfigError, match=words):
        chosen(among, first, last)
