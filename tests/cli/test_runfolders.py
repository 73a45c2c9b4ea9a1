"""``esckit runs``: what is listed, shown and compared, and what `rm` refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from esckit.archive import entry, inputs_of, run_folders
from esckit.cli.app import app
from esckit.config.load import load_any_recipe
from esckit.errors import BudgetError, DataError, EsckitError, FailureRateError
from esckit.records import write_json
from esckit.runs import MANIFEST, PIPELINE, RunFolder, read_manifest
from tests.fakes import aged


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(path: str, name: str, *changes: str, **numbers: Any) -> Path:
    """Write a run folder as a command leaves it."""
    recipe = load_any_recipe(name, overrides=changes).recipe
    out = Path(path)
    with RunFolder.open(out, command=recipe.command, recipe=recipe.resolved(), operational=recipe.OPERATIONAL) as run:
        run.book({"calls": 4, "cost": numbers.pop("cost", None)})
        write_json(run.file("summary.json"), {"schema": "esckit.any/1", **numbers})
    return out


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["runs", *words])


def listed(*words: str) -> dict[str, dict[str, Any]]:
    done = call("list", *words, "--json")
    assert done.exit_code == 0, done.output
    return {each["path"]: each for each in json.loads(done.stdout)}


def refused(*words: str) -> str:
    done = call(*words)
    assert isinstance(done.exception, EsckitError), done.output
    assert done.exception.exit_code == 2
    return str(done.exception)


def test_the_list_tells_what_each_run_is(here: Path) -> None:
    make("runs/search-smoke-scripted", "smoke/search_scripted", cost=1.5)
    make("runs/mine/deep/er", "smoke/train_flow_tiny", "seed=9")
    make("runs/train-flow-smoke-tiny", "smoke/train_flow_tiny", "seed=9")
    (here / "runs/link").symlink_to(here / "runs/mine")
    (here / "runs/.hidden").mkdir()
    found = listed()
    first = found["runs/search-smoke-scripted"]
    assert (first["command"], first["recipe"], first["status"]) == ("search", "smoke/search_scripted", "complete")
    assert first["cost"] == 1.5
    assert 0.0 <= first["seconds"] < 60.0
    assert first["n_bytes"] == sum(file.stat().st_size for file in Path(first["path"]).iterdir())
    assert found["runs/mine/deep/er"]["recipe"] is None
    assert found["runs/mine/deep/er"]["inputs"] == ["runs/search-smoke-scripted"]
    assert found["runs/train-flow-smoke-tiny"]["recipe"] == "smoke/train_flow_tiny (changed)"
    assert len(found) == 3
    lines = call("list").stdout.splitlines()
    assert lines[0].split() == ["run", "command", "recipe", "status", "begun", "time", "cost", "size", "reads"]
    assert "–" in lines[1]
    assert listed("runs/mine").keys() == {"runs/mine/deep/er"}


def test_a_clock_that_was_set_does_not_change_how_long_a_run_took(here: Path) -> None:
    make("runs/one", "smoke/search_scripted")
    manifest = read_manifest(Path("runs/one"))
    (attempt,) = manifest["attempts"]
    attempt["began"] = "2999-01-01T00:00:00+00:00"
    write_json(Path("runs/one") / MANIFEST, manifest)
    assert 0.0 <= listed()["runs/one"]["seconds"] < 60.0
    del attempt["seconds"]  # as earlier versions left it
    write_json(Path("runs/one") / MANIFEST, manifest)
    assert listed()["runs/one"]["seconds"] is None


def test_a_run_is_told_by_who_holds_it_and_how_it_ended(here: Path) -> None:
    make("runs/whole", "smoke/search_scripted")
    killed = read_manifest(Path("runs/whole")) | {"status": "running"}
    killed["attempts"][-1] |= {"status": "running", "ended": None}
    write_json(here / "runs/killed" / MANIFEST, killed)
    write_json(here / "runs/broken" / MANIFEST, {"schema": "esckit.manifest/1", "command": "search"})
    with RunFolder.open(here / "runs/stopped", command="search", recipe={}) as run:
        assert entry(run.path).status == "running"
        run.close("stopped")
    found = listed()
    assert {path: each["status"] for path, each in found.items()} == {
        "runs/broken": "broken",
        "runs/killed": "killed",
        "runs/stopped": "stopped",
        "runs/whole": "complete",
    }
    assert "a manifest without recipe, recipe_digest" in found["runs/broken"]["trouble"]
    done = call("list")
    assert done.exit_code == 0
    assert "broken: runs/broken/manifest.json" in done.stderr


def stop(path: str, error: BaseException) -> None:
    with RunFolder.open(Path(path), command="search", recipe={}):
        raise error


STOPS = [
    (KeyboardInterrupt(), "interrupted"),
    (FailureRateError("9 of 9 trees failed"), "failures"),
    (BudgetError("1 of 1 calls"), "budget"),
    (DataError("a gap"), "error"),
]


@pytest.mark.parametrize(("error", "reason"), STOPS)
def test_a_stopped_run_says_why(error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)):
        stop("runs/a", error)
    assert (listed()["runs/a"]["status"], listed()["runs/a"]["reason"]) == ("stopped", reason)
    assert f"stopped ({reason})" in call("list").stdout
    assert call("show", "runs/a").stdout.count(f"stopped ({reason})") == 2


def test_a_pipelines_folder_is_no_run_and_names_its_runs(here: Path) -> None:
    make("runs/my page/bc", "smoke/search_scripted")
    make("runs/my page/after", "smoke/search_scripted")
    write_json(here / "runs/my page" / PIPELINE, {"stages": {}})
    for words in (("runs", "show"), ("table",)):
        error = CliRunner().invoke(app, [*words, "runs/my page"]).exception
        assert isinstance(error, DataError)
        assert "the folder of a pipeline" in str(error)
        assert "one of its runs (runs/my page/after, runs/my page/bc)" in str(error)
        assert "Did you mean" not in str(error)


def test_lineage_is_shown_in_both_directions(here: Path) -> None:
    search = make("runs/search-smoke-scripted", "smoke/search_scripted")
    aged(search, hours=1)
    policy = make("runs/policy", "smoke/train_flow_tiny")
    make("elsewhere/reader", "smoke/search_scripted", "models.strategist={checkpoint: runs/policy}")
    shown = json.loads(call("show", "runs/policy", "--among", "elsewhere", "--json").stdout)
    assert shown["inputs"] == [{"field": "data.trees", "path": str(search), "state": "unchanged"}]
    assert shown["readers"] == ["elsewhere/reader"]
    assert shown["attempts"][0]["status"] == "complete"
    text = call("show", "runs/policy").stdout
    assert "data.trees: runs/search-smoke-scripted  unchanged" in text
    assert "read by no other run" in text
    aged(policy, hours=2)
    assert [read.state for read in inputs_of(read_manifest(policy))] == ["changed"]
    search.rename("runs/away")
    assert [read.state for read in inputs_of(read_manifest(policy))] == ["gone"]


def test_roles_and_suites_without_a_part_read_nothing() -> None:
    run = make("runs/judged", "smoke/evaluate_scripted", "suites=[strategy]")
    assert entry(run).inputs == ("runs/train-reward-smoke-scripted",)
    write_json(run / MANIFEST, read_manifest(run) | {"roles": ["strategist"]})
    assert entry(run).inputs == ()


def test_two_runs_are_compared_by_fields_and_numbers() -> None:
    make("runs/a", "smoke/search_scripted", trees=8)
    make("runs/b", "smoke/search_scripted", "mcts.max_depth=3", trees=9)
    found = json.loads(call("diff", "runs/a", "runs/b", "--json").stdout)
    assert found["recipe"] == {"mcts.max_depth": [4, 3]}
    assert found["versions"] == {}
    assert found["numbers"] == {"trees": [{"value": 8, "unit": None}, {"value": 9, "unit": None}]}
    lines = [line.split() for line in call("diff", "runs/a", "runs/b").stdout.splitlines()]
    assert ["mcts.max_depth", "4", "3"] in lines
    assert ["trees", "8", "9"] in lines
    # Of a training also what was measured on held-out data, all of it together.
    test = {"f1": 0.5, "by_class": {"A": {"f1": 0.25}}}
    make("runs/trained", "smoke/train_flow_tiny", valid={"loss": 2.5}, test=test)
    found = json.loads(call("diff", "runs/trained", "runs/trained", "--json").stdout)
    assert found["numbers"].keys() == {"valid.loss", "test.f1"}
    # What a run read is compared by its digests.
    for name, sha in (("a", "11"), ("b", "22")):
        path = Path("runs", name, MANIFEST)
        write_json(path, read_manifest(path.parent) | {"data": {"files": {"corpus.csv": sha}, "ids": [name]}})
    inputs = json.loads(call("diff", "runs/a", "runs/b", "--json").stdout)["inputs"]
    assert inputs["data.files.corpus.csv"] == ["11", "22"]
    make("runs/c", "smoke/simulate_scripted")
    assert "runs of search and simulate" in refused("diff", "runs/a", "runs/c")


def test_rm_removes_a_run_and_what_a_killed_removal_left(here: Path) -> None:
    make("runs/a", "smoke/search_scripted")
    (here / "runs/.b.esckit-removed").mkdir()
    assert "there is no terminal to ask on" in refused("rm", "runs/a")
    assert call("rm", "runs/a", "--yes").stdout == "removed runs/a\n"
    assert list((here / "runs").iterdir()) == []


def test_rm_refuses_what_others_read_or_hold(here: Path) -> None:
    make("runs/search-smoke-scripted", "smoke/search_scripted")
    make("runs/policy", "smoke/train_flow_tiny")
    assert "runs/search-smoke-scripted is read by runs/policy" in refused("rm", "runs/search-smoke-scripted", "--yes")
    with RunFolder.open(Path("runs/held"), command="search", recipe={}):
        assert "in use by another esckit process" in refused("rm", "runs/held", "--yes", "--force")
    assert call("rm", "runs/search-smoke-scripted", "runs/policy", "--yes").exit_code == 0
    assert {path.name for path in run_folders(here)} == {"held"}


def test_rm_takes_a_pipeline_with_all_its_runs(here: Path) -> None:
    make("runs/mine/search", "smoke/search_scripted")
    make("runs/mine/policy", "smoke/train_flow_tiny", "data.trees=[runs/mine/search]")
    write_json(here / "runs/mine/pipeline.json", {"stages": {"policy": {"recipe": "own.yaml"}}})
    assert listed()["runs/mine/policy"]["recipe"] == "own.yaml"
    reader = make("runs/reader", "smoke/search_scripted", "models.strategist={checkpoint: runs/mine/policy}")
    assert "runs/mine/policy is read by runs/reader" in refused("rm", "runs/mine", "--yes")
    (here / "runs/mine/notes.txt").write_text("mine")
    assert "but for files that are not esckit's" in call("rm", "runs/mine", "--yes", "--force").stdout
    assert [path.name for path in (here / "runs/mine").iterdir()] == ["notes.txt"]
    assert reader.is_dir()


def test_rm_removes_run_folders_only(here: Path) -> None:
    make("runs/a", "smoke/search_scripted")
    (here / "link").symlink_to(here / "runs/a")
    (here / "site").mkdir()
    (here / "site" / MANIFEST).write_text('{"name": "an app"}', encoding="utf-8")
    assert "link is a link" in refused("rm", "link", "--yes", "--force")
    assert "another kind of manifest" in refused("rm", "site", "--yes", "--force")
    assert "no run folder (it holds no manifest.json)" in refused("rm", "runs", "--yes", "--force")
    assert "nothing is there" in refused("rm", "gone", "--yes")
    (here / "runs/a" / MANIFEST).write_text("{", encoding="utf-8")
    assert "--force removes it all the same" in refused("rm", "runs/a", "--yes")
    assert call("rm", "runs/a", "--yes", "--force").exit_code == 0


def test_a_run_that_is_not_there_is_told_with_what_makes_it(here: Path) -> None:
    assert "Make it with: esckit search aflow/search" in refused("show", "runs/search-aflow")
    assert "Make it with: esckit run rlff --until train_rl" in refused("show", "runs/rlff/train_rl")
    make("runs/mine", "smoke/search_scripted")
    assert "Did you mean runs/mine?" in refused("show", "runs/mne")
    (here / "runs/notes").mkdir()
    assert "Did you mean" not in refused("show", "runs/notes")
    assert "no such folder" in refused("list", "elsewhere")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("runs show", "runs/"),
        ("runs diff", "runs/"),
        ("runs diff a", "runs/"),
        ("runs rm a", "runs/"),
        ("report", "runs/"),
        ("report a --against", "runs/"),
        ("export", "runs/"),
        ("export --evaluation", "runs/"),
        ("table a", "x=runs/"),
        ("study make", "x=runs/"),
        ("chat", "runs/"),
        ("chat --resume", "runs/"),
        ("serve", "runs/"),
        ("evaluate r --against", "runs/"),
    ],
)
def test_run_folders_complete_the_words_that_name_them(words: str, shown: str, here: Path) -> None:
    for run in ("runs/mine", "runs/mixed/search", "runs/other", "elsewhere/runs/mine"):
        write_json(here / run / MANIFEST, {})
    typed = f"esckit {words} {shown}mi"
    completing = {"_ESCKIT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words.split()) + 1)}
    done = CliRunner().invoke(app, [], prog_name="esckit", env=completing)
    assert done.stdout.split() == [f"{shown}mine", f"{shown}mixed/search"], done.output
