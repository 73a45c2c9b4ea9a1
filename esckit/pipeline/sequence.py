"""Running the stages of a pipeline, one after the other, as the commands that a user could type.

Each stage is a process of its own: models leave the memory when it ends, its exit code is that of the command, and what
is typed by hand and what the pipeline does are the same. Stages that are finished are not run again; whether one is
follows from the run folders, as with ``make``: it is complete, and nothing that it reads was written after it began.
The pipeline's folder holds a folder for each stage and ``pipeline.json``, which says how each ended. Not here: how a
process is started, and what is printed (:mod:`esckit.cli.pipeline`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from esckit.archive import inputs_of
from esckit.documents import read_json_object
from esckit.errors import ConfigError, DataError
from esckit.pipeline.page import Stage
from esckit.records import write_json
from esckit.registry import did_you_mean
from esckit.runs import LOCK, MANIFEST, PIPELINE, differing_fields, hold, read_manifest, require_own

SCHEMA = "esckit.pipeline/1"

_STATES = {0: "complete", 3: "stopped", 130: "stopped"}

Start = Callable[[Sequence[str]], int]
"""Runs a command of esckit, given its words, and returns its exit code."""


class PipelineFolder:
    """A pipeline's folder, held by one process at a time; use as a context manager."""

    def __init__(self, path: Path, facts: dict[str, Any], lock_fd: int) -> None:
        self.path = path
        self.facts = facts
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path, name: str) -> Self:
        """Make the folder of a pipeline, or open the one that it has.

        Raises:
            ConfigError: If the folder holds something else, or belongs to another pipeline.
            StorageError: If it cannot be written, or another process holds it.
        """
        require_own_folder(path, name)
        lock_fd = hold(path)
        try:
            facts = require_own_folder(path, name)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, {"schema": SCHEMA, "name": name, "stages": {}} | facts, lock_fd)

    def exit_code(self, stage: str) -> int | None:
        """Return how a stage ended the last time: 0 if that is not known; None if it did not end."""
        told = self.facts["stages"].get(stage, {"exit_code": 0})["exit_code"]
        return told if isinstance(told, int) else None

    def note(self, stage: Stage, **facts: Any) -> None:
        """Write facts about a stage."""
        known = self.facts["stages"].get(stage.name, {})
        own = {"command": stage.recipe.command, "recipe": stage.recipe_name, "changes": list(stage.changes)}
        self.facts["stages"][stage.name] = known | own | facts
        write_json(self.path / PIPELINE, self.facts)

    def __enter__(self) -> Self:
        """Return the folder."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Let the folder go."""
        os.close(self._lock_fd)


def require_own_folder(path: Path, name: str) -> dict[str, Any]:
    """Return what a pipeline's folder says, nothing of a new one.

    Raises:
        ConfigError: If the folder holds something else, or belongs to another pipeline.
    """
    choose = "Choose another folder with --out"
    if (path / PIPELINE).is_file():
        try:
            facts = read_json_object(path / PIPELINE)
        except DataError as error:
            raise ConfigError(f"{path / PIPELINE} cannot be read: {error.found}", hint=choose) from error
        if facts.get("schema") != SCHEMA or not isinstance(facts.get("stages"), dict):
            raise ConfigError(f"{path / PIPELINE} is of another kind", expected=f"schema {SCHEMA!r}", hint=choose)
        if facts.get("name") != name:
            raise ConfigError(f"{path} belongs to the pipeline {facts.get('name')}", hint=choose)
        return facts
    if (path / MANIFEST).is_file():
        raise ConfigError(f"{path} is a run folder", expected="the folder of a pipeline, or nothing", hint=choose)
    # The lock, or a first note that was not finished, is what a pipeline leaves that was killed at once.
    if path.is_dir() and any(not child.name.startswith((LOCK, f".{PIPELINE}.")) for child in path.iterdir()):
        raise ConfigError(f"{path} is not empty and is not the folder of a pipeline", hint=choose)
    return {}


def chosen(stages: Sequence[Stage], first: str | None, last: str | None) -> tuple[Stage, ...]:
    """Return the stages from one to another.

    Args:
        stages: All.
        first: Name of the first (``--from``); None begins at the beginning.
        last: Name of the last (``--until``); None goes to the end.

    Raises:
        ConfigError: If there is no such stage, or the last one is before the first.
    """
    names = [stage.name for stage in stages]
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in names:
            hint = did_you_mean(name, names).capitalize() or None
            raise ConfigError(f"{option} {name}: no such stage", expected=f"one of {', '.join(names)}", hint=hint)
    begin = names.index(first) if first is not None else 0
    end = names.index(last) + 1 if last is not None else len(names)
    if end <= begin:
        raise ConfigError(f"--from {first} --until {last}: nothing to run", expected="stages in the page's order")
    return tuple(stages[begin:end])


def require_own_stage(stage: Stage, inputs: Mapping[str, Any] | None = None) -> None:
    """Refuse a run folder that is not the stage's, as its command would.

    Args:
        stage: The stage.
        inputs: What its run is known by beside the recipe; None leaves that out.

    Raises:
        ConfigError: If the folder belongs to another command, recipe or inputs.
    """
    recipe = stage.recipe
    require_own(
        stage.out,
        command=recipe.command,
        recipe=recipe.resolved(),
        operational=recipe.OPERATIONAL,
        inputs=inputs,
    )


def is_complete(stage: Stage) -> bool:
    """Return whether a stage's run folder holds its finished run.

    Raises:
        ConfigError: If the folder belongs to another command or recipe.
    """
    require_own_stage(stage)
    return (stage.out / MANIFEST).is_file() and read_manifest(stage.out).get("status") == "complete"


def is_done(stage: Stage, folder: PipelineFolder) -> bool:
    """Return whether a stage need not run.

    It is complete under this very recipe (gates and ``retry_failed`` included, which may change between attempts), its
    checks held, and nothing that it reads was written since.
    """
    if not is_complete(stage) or folder.exit_code(stage.name) != 0:
        return False
    manifest = read_manifest(stage.out)
    if differing_fields(stage.recipe.resolved(), manifest["recipe"]):
        return False
    return all(read.state != "changed" for read in inputs_of(manifest))


def is_checked(stage: Stage, code: int) -> bool:
    """Return whether an exit code says that a check of a finished evaluation failed; from a bug, 1 says nothing."""
    return code == 1 and stage.recipe.command == "evaluate" and is_complete(stage)


def run_stages(
    stages: Iterable[Stage],
    folder: PipelineFolder,
    start: Start,
    *,
    more: Callable[[Stage], Sequence[str]] = lambda stage: (),
    begins: Callable[[Stage, bool], None],
    ended: Callable[[Stage, float | None], None],
) -> tuple[int, Stage | None]:
    """Run stages in order until one does not succeed.

    Args:
        stages: The stages.
        folder: The pipeline's folder.
        start: Runs a command.
        more: Returns options for a stage's command that are no part of the page.
        begins: Called with each stage before it runs, and whether it is done already.
        ended: Called with each stage that is done, and the seconds that it took; None if it was done before.

    Returns:
        The exit code, and the stage that it is from; None if all are done.
    """
    for stage in stages:
        done = is_done(stage, folder)
        begins(stage, done)
        if done:
            ended(stage, None)
            continue
        began_s = time.monotonic()
        told = {"began": _now(), "ended": None, "exit_code": None}
        folder.note(stage, status="running", **told)
        try:
            code = start(stage.words(*more(stage)))
        except KeyboardInterrupt:
            folder.note(stage, status="stopped", ended=_now())
            raise
        status = "check failed" if is_checked(stage, code) else _STATES.get(code, "failed")
        folder.note(stage, status=status, ended=_now(), exit_code=code)
        if code:
            return code, stage
        ended(stage, time.monotonic() - began_s)
    return 0, None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
