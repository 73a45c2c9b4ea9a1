"""The run folders below a folder: what each is, what it took, what it reads, who reads it; and how one is removed.

Everything is read from manifests, so that a list loads nothing heavy; a manifest that cannot be read is an entry of its
own. Not here: how run folders are written (:mod:`esckit.runs`) and what stands in their files (:mod:`esckit.report`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from esckit.config.load import default_out, load_any_recipe, shipped_recipes
from esckit.config.sections import Recipe
from esckit.documents import read_json_object, strings_in
from esckit.errors import ConfigError, DataError, EsckitError, StorageError
from esckit.lineage import NamedRun, named_runs
from esckit.records import digest
from esckit.runs import LOCK, MANIFEST, PIPELINE, attempts_of, differing_fields, hold, is_held, read_manifest, without
from esckit.storage import storage_error

PRINTED = "printed"
"""In the folder of a pipeline: what its stages' commands print on stdout, a file for each."""

_REMOVED = ".esckit-removed"

Status = Literal["complete", "running", "stopped", "killed", "begun", "broken"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A run folder.

    Attributes:
        command: The command that made it; None if its manifest is broken, as with everything below.
        recipe: Name of the recipe, with ``(changed)`` if fields of it were; None if unknown.
        status: ``running`` while a process holds it; ``killed`` if the process that wrote it is gone; ``begun`` before
            the first attempt.
        created: When it was begun, ISO 8601 in UTC.
        seconds: How long all attempts took together; None if unknown, as after a kill.
        reason: Why a stopped one ended: ``interrupted``, ``failures``, ``outage``, ``budget`` or ``error``; None if
            unknown.
        cost: In the currency of the recipe's prices; None if unknown.
        n_bytes: Size of all files.
        inputs: Runs that its recipe names.
        trouble: Why a broken manifest cannot be read.
    """

    path: Path
    command: str | None
    recipe: str | None
    status: Status
    created: str | None
    seconds: float | None
    cost: float | None
    n_bytes: int
    inputs: tuple[str, ...]
    trouble: str | None = None
    reason: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "path": str(self.path),
            "inputs": list(self.inputs),
        }


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the run folders in and below a folder, sorted; links are not followed, hidden folders left out.

    Raises:
        DataError: If there is no such folder.
    """
    if not folder.is_dir():
        raise DataError("no such folder", path=str(folder), expected="a folder with runs in it")
    for place, below, files in os.walk(folder):
        if MANIFEST in files:
            below.clear()
            yield Path(place)
        below[:] = sorted(name for name in below if not name.startswith("."))


def entry(path: Path) -> Entry:
    """Return what a run folder is; a broken manifest is told, not raised."""
    try:
        manifest = read_manifest(path)
    except EsckitError as error:
        return Entry(path, None, None, "broken", None, None, None, size(path), (), trouble=str(error))
    status = status_of(path, manifest)
    return Entry(
        path=path,
        command=str(manifest["command"]),
        recipe=recipe_name(path, manifest),
        status=status,
        reason=attempts_of(manifest)[-1].get("reason") if status == "stopped" else None,
        created=manifest.get("created"),
        seconds=_seconds(manifest),
        cost=(manifest.get("spent") or {}).get("cost"),
        n_bytes=size(path),
        inputs=tuple(dict.fromkeys(run.path for run in _read_runs(manifest))),
    )


def status_of(path: Path, manifest: Mapping[str, Any]) -> Status:
    """Return how a run stands."""
    if is_held(path):
        return "running"
    told = manifest.get("status")
    if told == "running":
        return "killed"
    return told if told in ("complete", "stopped") else "begun"


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder, without what links point to."""
    n_bytes = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                n_bytes += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # removed meanwhile: a running training drops its old states
                continue
    return n_bytes


def recipe_name(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """Return the name of a run's recipe: of its pipeline's stage, or of the shipped one that says the same.

    A folder that has the name of a shipped recipe, and other values, is that recipe with changes.
    """
    told = _stages(path.parent).get(path.name, {}).get("recipe")
    if isinstance(told, str):
        return told
    shipped = _shipped(str(manifest["command"]))
    if manifest["recipe_digest"] in shipped:
        return shipped[manifest["recipe_digest"]]
    names = (name for name in shipped.values() if default_out(str(manifest["command"]), name).name == path.name)
    return next((f"{name} (changed)" for name in names), None)


def _stages(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return the stages of a pipeline's folder, none of any other folder."""
    if not (folder / PIPELINE).is_file():
        return {}
    try:
        stages = read_json_object(folder / PIPELINE).get("stages")
    except DataError:
        return {}
    return {name: one for name, one in (stages or {}).items() if isinstance(one, Mapping)}


@lru_cache
def _shipped(command: str) -> dict[str, str]:
    """Return the shipped recipes of a command by the digest that their runs have."""
    found = {}
    for page in shipped_recipes():
        if page.command == command:
            recipe = load_any_recipe(page.name).recipe
            if isinstance(recipe, Recipe):
                found[digest(without(recipe.resolved(), recipe.OPERATIONAL))] = page.name
    return found


def _seconds(manifest: Mapping[str, Any]) -> float | None:
    """Return how long all attempts took together, a running one until now; None if one has no end.

    An attempt that measured no seconds took what lies between its two times of day, unless the clock was set back.
    """
    total_s = 0.0
    for attempt in attempts_of(manifest):
        seconds = attempt.get("seconds")
        if seconds is None:
            began, ended = moment(attempt.get("began")), moment(attempt.get("ended"))
            if ended is None and attempt.get("status") == "running":
                ended = datetime.now(UTC)
            if began is None or ended is None or ended < began:
                return None
            seconds = (ended - began).total_seconds()
        total_s += seconds
    return total_s


def moment(text: Any) -> datetime | None:
    """Return a time of a manifest; None if it says none."""
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


class Input(NamedTuple):
    """A run that another one reads.

    Attributes:
        field: Of the reader's recipe.
        path: As the recipe names it.
        state: ``unchanged``, ``changed`` if anything was written after the reader began, ``gone``, or ``unknown``.
    """

    field: str
    path: str
    state: Literal["unchanged", "changed", "gone", "unknown"]


def inputs_of(manifest: Mapping[str, Any]) -> list[Input]:
    """Return the runs that a run reads, and whether they are as they were when it began."""
    began = moment(manifest.get("created"))
    return [Input(run.field, run.path, _state(Path(run.path), began)) for run in _read_runs(manifest)]


def _read_runs(manifest: Mapping[str, Any]) -> Iterator[NamedRun]:
    """Yield the runs that a run's recipe names, without those of roles and suites that took no part."""
    recipe = manifest["recipe"]
    roles, suites = manifest.get("roles"), recipe.get("suites")
    for run in named_runs(recipe):
        section, _, rest = run.field.partition(".")
        name = rest.partition(".")[0]
        is_idle_role = section == "models" and roles is not None and name not in roles
        is_idle_suite = section == "settings" and suites is not None and name not in suites
        if not (is_idle_role or is_idle_suite):
            yield run


def _state(path: Path, began: datetime | None) -> Literal["unchanged", "changed", "gone", "unknown"]:
    if not path.exists():
        return "gone"
    try:
        manifest = read_manifest(path)
    except EsckitError:
        return "unknown"
    times = [moment(manifest.get("created"))]
    for attempt in attempts_of(manifest):
        times += [moment(attempt.get("began")), moment(attempt.get("ended"))]
    known = [time for time in times if time is not None]
    if began is None or not known:
        return "unknown"
    return "changed" if max(known) > began else "unchanged"


def readers(run: Path, among: Iterable[Path]) -> list[Path]:
    """Return the runs whose recipes name a run folder, or a file in it.

    Args:
        run: The run folder.
        among: Run folders; those with a broken manifest name nothing.
    """
    place = run.resolve()
    found = []
    for other in among:
        if other.resolve() == place:
            continue
        try:
            recipe = read_manifest(other)["recipe"]
        except EsckitError:
            continue
        if any(Path(text).resolve().is_relative_to(place) for text in strings_in(recipe) if _may_be_path(text)):
            found.append(other)
    return found


def _may_be_path(text: str) -> bool:
    return 0 < len(text) < 1024 and "\n" not in text and "\0" not in text


def require_removable(run: Path, *, force: bool) -> None:
    """Refuse to remove what is no run folder, or is in use.

    Args:
        run: The folder.
        force: Take a folder whose manifest cannot be read, if esckit has locked it once.

    Raises:
        ConfigError: If it is a link.
        DataError: If it is no run folder.
        StorageError: If a process holds it.
    """
    if run.is_symlink():
        raise ConfigError(f"{run} is a link", expected="the run folder itself", hint=f"It points to {run.resolve()}")
    try:
        read_manifest(run)
    except DataError as error:
        if not (run / MANIFEST).is_file():
            raise
        if not (force and (run / LOCK).is_file()):
            error.hint = "--force removes it all the same" if (run / LOCK).is_file() else None
            raise
    if is_held(run):
        raise StorageError(f"{run} is in use by another esckit process", hint="Wait for it, or stop it first")


def remove(run: Path) -> None:
    """Remove a run folder: it is renamed first, so that nobody ever sees half of it.

    Raises:
        StorageError: If a process holds it, or it cannot be removed.
    """
    place = run.resolve()
    for left in place.parent.glob(f".*{_REMOVED}"):  # of a removal that was killed
        shutil.rmtree(left, ignore_errors=True)
    lock_fd = hold(place)
    try:
        gone = place.with_name(f".{place.name}{_REMOVED}")
        place.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise storage_error(error, run) from error
    finally:
        os.close(lock_fd)


def remove_pipeline(folder: Path) -> None:
    """Remove what ``esckit run`` has written into a pipeline's folder, once its run folders are removed.

    What else lies there stays, and so does the folder then.

    Raises:
        StorageError: If a process holds it, or it cannot be changed.
    """
    lock_fd = hold(folder)
    try:
        shutil.rmtree(folder / PRINTED, ignore_errors=True)
        for name in (PIPELINE, "report.html", "report.md", LOCK):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise storage_error(error, folder) from error
    finally:
        os.close(lock_fd)


def input_identities(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run read, by digests: corpus files, gold labels, prompts, other runs and files, its taxonomy.

    Ids of dialogues stand for themselves as one digest.
    """
    found = {name: manifest[name] for name in ("data", "prompts", "inputs", "taxonomy") if manifest.get(name)}
    if isinstance(found.get("data"), Mapping):
        ids = found["data"].get("ids")
        found["data"] = {**found["data"], **({"ids": digest(ids)} if ids is not None else {})}
    labels = {
        suite: of["gold_labels"]
        for suite, of in (manifest.get("conditions") or {}).items()
        if "gold_labels" in (of or {})
    }
    return {**found, "gold_labels": labels}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values at which two recipes, or any nested mappings, differ, by dotted path."""

    def at(value: Any, path: str) -> Any:
        # Names of files are keys too, and have dots in them.
        if not path or not isinstance(value, Mapping):
            return None if path else value
        keys = (key for key in value if f"{path}.".startswith(f"{key}."))
        key = max(keys, key=len, default=None)
        return None if key is None else at(value[key], path[len(key) + 1 :])

    return {path: (at(ours, path), at(theirs, path)) for path in differing_fields(ours, theirs)}
