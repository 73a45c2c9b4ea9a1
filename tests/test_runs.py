import errno
import json
import os
import subprocess
import sys
import textwrap

import pytest

from esckit.errors import ConfigError, DataError, StorageError
from esckit.runs import RunFolder, attempts_of, differing_fields, read_manifest, require_own, stated, without

RECIPE = {
    "command": "simulate",
    "seed": 7,
    "simulation": {"horizon": 8, "retry_failed": False},
    "concurrency": {"futures": 64},
}
OPERATIONAL = ("concurrency", "*.retry_failed")


def opened(path, recipe=RECIPE, command="simulate"):
    return RunFolder.open(path, command=command, recipe=recipe, operational=OPERATIONAL)


def changed(**sections):
    return {**RECIPE, **sections}


def test_operational_paths_are_left_out():
    assert without(RECIPE, OPERATIONAL) == {"command": "simulate", "seed": 7, "simulation": {"horizon": 8}}
    assert without(RECIPE, ["simulation.horizon"])["simulation"] == {"retry_failed": False}
    assert RECIPE["simulation"] == {"horizon": 8, "retry_failed": False}


@pytest.mark.parametrize(("new", "differ"), [(None, []), ("auto", []), ("nf4", ["model.dtype"])])
def test_a_field_that_an_older_version_lacked_differs_if_set(new: object, differ: list[str]) -> None:
    ours, theirs = {"model": {"backbone": "a", "dtype": new}}, {"model": {"backbone": "a"}}
    assert differing_fields(ours, theirs) == differing_fields(theirs, ours) == differ
    assert differing_fields({"model": {"dtype": "auto"}}, {"model": {"dtype": "float32"}}) == ["model.dtype"]


def test_differing_fields_are_dotted_and_sorted():
    assert differing_fields(RECIPE, changed(seed=8, simulation={"horizon": 2}, extra=1)) == [
        "extra",
        "seed",
        "simulation.horizon",
        "simulation.retry_failed",
    ]


def test_the_manifest_says_what_made_the_folder(tmp_path):
    with opened(tmp_path / "run") as run:
        assert read_manifest(run.path)["status"] == "running"
        run.book({"calls": 3})
    manifest = read_manifest(tmp_path / "run")
    assert manifest["status"] == "complete"
    assert (manifest["command"], manifest["recipe"], manifest["spent"]) == ("simulate", RECIPE, {"calls": 3})
    assert manifest["recipe_digest"] == run.id
    assert {"esckit", "python"} <= set(manifest["versions"])


def test_a_manifest_of_010_is_read_as_one_attempt(tmp_path):
    with opened(tmp_path) as run:
        run.book({"calls": 3, "cost": None, "hours": 0.5})
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    old = {name: value for name, value in manifest.items() if name != "attempts"} | {"versions": {"esckit": "0.1.0"}}
    path.write_text(json.dumps(old))
    with opened(tmp_path):
        pass
    assert json.loads(path.read_text()) == old
    with opened(tmp_path) as run:
        run.begin_attempt()
        run.book({"calls": 4, "cost": 1.0, "hours": 0.25})
    first, second = attempts_of(read_manifest(tmp_path))
    assert (first["versions"], first["spent"]["calls"], first["began"]) == (old["versions"], 3, old["created"])
    assert (second["status"], second["spent"]["calls"]) == ("complete", 4)
    assert run.manifest["spent"] == {"calls": 7, "cost": None, "hours": 0.75}


def test_an_attempt_that_was_killed_is_told_from_one_that_runs(tmp_path):
    killed = opened(tmp_path)
    os.close(killed._lock_fd)
    with opened(tmp_path):
        assert [attempt["status"] for attempt in read_manifest(tmp_path)["attempts"]] == ["killed", "running"]


def test_what_a_killed_attempt_spent_is_in_the_sum(tmp_path):
    for n_calls in (12, 3):
        killed = opened(tmp_path)
        killed.note_spent({"calls": 100 * n_calls, "cost": None})
        killed.note_spent({"calls": n_calls, "cost": 0.5})
        os.close(killed._lock_fd)
    assert read_manifest(tmp_path)["spent"] == {"calls": 12, "cost": 0.5}
    os.close(opened(tmp_path)._lock_fd)  # killed before it asked any model
    with opened(tmp_path) as run:
        run.book({"calls": 1, "cost": 0.25})
    assert read_manifest(tmp_path)["spent"] == {"calls": 16, "cost": 1.25}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json"]


def test_the_same_recipe_resumes_whatever_is_operational(tmp_path):
    run = opened(tmp_path)
    with pytest.raises(KeyError), run, run.appender("x.jsonl") as lines:
        raise KeyError(lines.append({"a": 1}))
    assert read_manifest(tmp_path)["status"] == "stopped"
    other = changed(concurrency={"futures": 1}, simulation={"horizon": 8, "retry_failed": True})
    with opened(tmp_path, other) as again:
        assert again.id == run.id
        assert again.manifest["created"] == run.manifest["created"]
        assert again.manifest["recipe"] == other
        assert again.file("x.jsonl").read_text() == '{"a": 1}\n'


def test_a_new_field_that_is_null_is_no_other_recipe(tmp_path):
    with opened(tmp_path):
        pass
    with opened(tmp_path, changed(simulation={**RECIPE["simulation"], "taxonomy": None})) as run:
        assert run.manifest["recipe"]["simulation"]["taxonomy"] is None
    with pytest.raises(ConfigError, match=r"simulation\.taxonomy differs"):
        opened(tmp_path, changed(simulation={**RECIPE["simulation"], "taxonomy": "aflow"}))


def test_another_recipe_is_refused_with_the_names_of_the_fields(tmp_path):
    opened(tmp_path).close("complete")
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, changed(seed=8, simulation={"horizon": 2, "retry_failed": False}))
    assert "belongs to another recipe: seed, simulation.horizon differ" in caught.value.headline
    with pytest.raises(ConfigError, match="another recipe: seed differs"):
        opened(tmp_path, changed(seed=8))
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_another_command_is_refused(tmp_path):
    opened(tmp_path).close("complete")
    with pytest.raises(ConfigError, match="belongs to a run of 'simulate'"):
        opened(tmp_path, command="search")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty and is not a run folder"):
        opened(tmp_path)
    assert [child.name for child in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="is a file"):
        opened(tmp_path / "thesis.txt")


def test_a_folder_that_died_before_its_manifest_can_be_used(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".manifest.json.abc123").write_text("{")
    opened(tmp_path).close("complete")


def test_a_disk_that_is_full_at_the_start_lets_the_folder_go(tmp_path, monkeypatch):
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            opened(tmp_path)
    opened(tmp_path).close("complete")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": "esckit.manifest/9"}', '{"schema": "esckit.manifest/1"}']
)
def test_a_broken_manifest_is_a_data_error(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"recipe": []}, "recipe"),
        ({"recipe": {"models": []}}, "recipe.models"),
        ({"recipe": {"models": {"supporter": "x"}}}, "recipe.models.supporter"),
        ({"recipe": {"dev": {"share": "half"}}}, "recipe.dev.share"),
        ({"recipe": {"data": "x"}}, "recipe.data"),
        ({"data": ["x"]}, "data"),
        ({"data": {"ids": [1]}}, "data.ids[0]"),
        ({"prompts": 3}, "prompts"),
        ({"roles": "all"}, "roles.list[str]"),
        ({"command": None}, "command"),
    ],
)
def test_a_manifest_of_odd_types_is_a_data_error(tmp_path, changes, field):
    opened(tmp_path).close("complete")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path)
    assert caught.value.field == field
    assert str(caught.value).startswith(str(manifest))


def test_what_a_manifest_does_not_say_is_named(tmp_path):
    manifest = {"recipe": {"objective": {"kind": "rrhf"}, "prompt": None}}
    assert stated(manifest, "recipe.objective.kind", path=tmp_path) == "rrhf"
    for field in ("recipe.prompt", "recipe.dev.share", "recipe.objective.kind.name"):
        with pytest.raises(DataError, match=field):
            stated(manifest, field, path=tmp_path)


def test_a_run_folder_that_is_a_link_is_named_by_what_it_points_to(tmp_path):
    opened(tmp_path / "real").close("stopped")
    (tmp_path / "run").symlink_to(tmp_path / "real")
    for use in (opened, read_manifest):
        with pytest.raises(DataError, match=f"a symbolic link.*{tmp_path}/real"):
            use(tmp_path / "run")


@pytest.mark.parametrize("name", [".lock", "manifest.json", "futures.jsonl", "checkpoint", "examples/response.jsonl"])
def test_a_link_in_a_run_folder_is_not_followed(tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("{}")
    run = tmp_path / "run"
    opened(run).close("stopped")
    (run / "examples").mkdir()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    with pytest.raises(DataError, match="a symbolic link"):
        opened(run)
    if name != "manifest.json":
        with pytest.raises(DataError, match="a symbolic link"):
            read_manifest(run)
    assert outside.read_text() == "{}"


def test_what_a_killed_run_left_is_gone_when_it_goes_on(tmp_path):
    opened(tmp_path).close("stopped")
    (tmp_path / ".summary.json.abc.tmp").write_text("{")
    (tmp_path / ".checkpoint.new").mkdir()
    opened(tmp_path).close("complete")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json"]


def test_a_folder_without_manifest_is_no_run_folder(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        read_manifest(tmp_path)


def test_a_second_process_is_refused_while_the_first_writes(tmp_path):
    code = textwrap.dedent(f"""
        import json, sys
        from esckit.errors import StorageError
        from esckit.runs import RunFolder
        from pathlib import Path
        try:
            RunFolder.open(Path(sys.argv[1]), command="simulate", recipe=json.loads(sys.argv[2]),
                           operational={OPERATIONAL!r}).close("complete")
        except StorageError as error:
            print(error)
            raise SystemExit(2)
    """)
    arguments = [sys.executable, "-c", code, str(tmp_path / "run"), json.dumps(RECIPE)]
    with opened(tmp_path / "run"):
        second = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 2, second.stderr
        assert "in use by another esckit process" in second.stdout
    third = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert third.returncode == 0, third.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission to write"):
        opened(tmp_path / "run")


def test_closing_twice_is_harmless_and_keeps_the_first_status(tmp_path):
    run = opened(tmp_path)
    run.close("complete")
    run.close("stopped")
    assert read_manifest(tmp_path)["status"] == "complete"


def test_a_run_is_not_resumed_on_other_inputs(tmp_path):
    inputs = {"data": {"files": {"train.txt": "abc"}}, "prompts": {"critic": "x/1"}}
    args = {"command": "simulate", "recipe": RECIPE, "operational": OPERATIONAL}
    for _ in range(2):
        with RunFolder.open(tmp_path, inputs=inputs, **args) as run:
            assert run.manifest["data"] == inputs["data"]
    with pytest.raises(ConfigError, match=r"data\.files\.train\.txt differs"):
        RunFolder.open(tmp_path, inputs={**inputs, "data": {"files": {"train.txt": "abd"}}}, **args)
    assert read_manifest(tmp_path)["status"] == "complete"


def test_a_file_above_the_folder_is_refused_before_a_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file"):
        require_own(tmp_path / "file" / "a" / "run", command="simulate", recipe=RECIPE)
    require_own(tmp_path / "new" / "a" / "run", command="simulate", recipe=RECIPE)
    assert not (tmp_path / "new").exists()
