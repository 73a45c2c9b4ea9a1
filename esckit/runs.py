"""Run folders: one command, one recipe, one folder.

A folder belongs to the digest of its resolved recipe without operational fields. The same recipe resumes it; another
one is refused with the names of the fields that differ. ``manifest.json`` says what made the folder. A run may take
several *attempts*: the manifest lists each with its versions, its times, its status and what it spent. A complete run
that is opened again begins an attempt only when there is work left.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

import esckit
from esckit.documents import complaint, dotted, read_json_object
from esckit.errors import ConfigError, DataError, EsckitError, StorageError
from esckit.ledger import total
from esckit.records import JsonlAppender, clear_leftovers, digest, require_in_place, storage_error, write_json

MANIFEST = "manifest.json"

LOCK = ".lock"

MANIFEST_SCHEMA = "esckit.manifest/1"

_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "aiohttp")


_Facts = dict[str, Any] | None


class _Shape(BaseModel):
    """Part of a manifest: what a reader may rely on; all else is as the command wrote it."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Data(_Shape):
    ids: list[str] | None = None


class _Dev(_Shape):
    share: float | None = None


class _Recipe(_Shape):
    contexts: _Facts = None
    critic: _Facts = None
    data: _Facts = None
    dev: _Dev | None = None
    models: dict[str, _Facts] | None = None
    objective: _Facts = None
    report: _Facts = None
    seed: int | None = None
    simulation: _Facts = None


class _Attempt(_Shape):
    status: str
    versions: _Facts = None
    spent: _Facts = None


class _Manifest(_Shape):
    command: str
    recipe: _Recipe
    recipe_digest: str
    attempts: list[_Attempt] | None = None
    conditions: _Facts = None
    data: _Data | None = None
    models: _Facts = None
    prompts: _Facts = None
    roles: list[str] | dict[str, Any] | None = None
    spent: _Facts = None


def without(recipe: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Return a recipe without some dotted paths; ``*.name`` removes ``name`` from every section."""
    kept: dict[str, Any] = json.loads(json.dumps(recipe))
    for path in paths:
        *sections, name = path.split(".")
        holders: list[Any] = [kept]
        for section in sections:
            inside = [holder for holder in holders if isinstance(holder, dict)]
            holders = [value for holder in inside for key, value in holder.items() if section in ("*", key)]
        for holder in holders:
            if isinstance(holder, dict):
                holder.pop(name, None)
    return kept


def differing_fields(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Return the dotted paths at which two recipes differ, sorted.

    An earlier version did not know every field. So a field that one of them lacks is no difference where the other has
    null or "auto", which stand for what was done before.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        start = f"{prefix}." if prefix else ""
        lacking = {key for key in ours.keys() ^ theirs.keys() if {**ours, **theirs}[key] in (None, "auto")}
        return [
            path
            for key in sorted({*ours, *theirs} - lacking)
            for path in differing_fields(ours.get(key), theirs.get(key), f"{start}{key}")
        ]
    return [] if ours == theirs else [prefix]


class RunFolder:
    """One run's folder, open for writing by one process at a time.

    Use as a context manager: leaving it writes the run's state into the manifest and lets the folder go.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], lock_fd: int) -> None:
        self.path = path
        self.manifest = manifest
        self._lock_fd = lock_fd
        self._attempt: dict[str, Any] | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        command: str,
        recipe: Mapping[str, Any],
        operational: Iterable[str] = (),
        inputs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Create a run folder, or open the one that belongs to this recipe.

        Args:
            path: The folder.
            command: Name of the command, ``simulate``.
            recipe: The resolved recipe as plain data.
            operational: Dotted paths of fields that may change between two attempts at one run.
            inputs: Facts about what the recipe only names, such as digests of data and prompts; they stand in the
                manifest, and the run is resumed only while they are the same.

        Raises:
            ConfigError: If the folder belongs to another command, recipe or inputs, or holds something else.
            StorageError: If it cannot be written, or another process is writing it.
        """
        operational = tuple(operational)
        identity = without(recipe, operational)
        given = json.loads(json.dumps(inputs or {}))
        _own_manifest(path, command, identity, operational, given)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock_fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise storage_error(error, path) from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock_fd)
            raise StorageError(
                f"{path} is in use by another esckit process", hint="Wait for it, or choose another --out"
            ) from error
        try:
            # Again: between the first look and the lock another process may have made the folder its own.
            manifest = _own_manifest(path, command, identity, operational, given)
            clear_leftovers(path)
            new = {
                "schema": MANIFEST_SCHEMA,
                "command": command,
                "recipe_digest": digest(identity),
                "created": _now(),
            }
            run = cls(path, manifest or new, lock_fd)
            run.update_manifest(recipe=dict(recipe), **given)
            if run.manifest.get("status") != "complete":
                run.begin_attempt()
        except EsckitError:
            os.close(lock_fd)
            raise
        return run

    @property
    def id(self) -> str:
        """Digest of the recipe that the folder belongs to."""
        return str(self.manifest["recipe_digest"])

    def require_present(self) -> None:
        """Raise if this is no longer the folder that was opened.

        Raises:
            StorageError: If it was moved, replaced or deleted: writing would make a new one in its place.
        """
        if self._lock_fd >= 0:
            require_in_place(self._lock_fd, self.path / LOCK, self.path)

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder, which must still be there."""
        self.require_present()
        return self.path / name

    def appender(self, name: str) -> JsonlAppender:
        """Open a JSON-lines file of the folder for appending."""
        return JsonlAppender(self.file(name))

    def require_whole(self, n_found: int, n_planned: int, what: str) -> None:
        """Raise if a run that came to its end does not hold all that was planned.

        Raises:
            StorageError: If something that was done is not there any more.
        """
        if n_found < n_planned:
            raise StorageError(
                f"{self.path} holds {n_found} of {n_planned} {what}, although all were done",
                expected="files that no other program changes during the run",
                hint="Run the same command again: what is missing is done again",
            )

    def update_manifest(self, **facts: Any) -> None:
        """Add facts to the manifest and write it."""
        self.require_present()
        self.manifest |= facts
        write_json(self.path / MANIFEST, self.manifest)

    def begin_attempt(self) -> None:
        """Say that there is work to do; a run that was complete is so no longer. Calling it twice is harmless."""
        if self._attempt is not None:
            return
        attempts = attempts_of(self.manifest)
        for earlier in attempts:
            if earlier["status"] == "running":
                earlier["status"] = "killed"
        self._attempt = {"began": _now(), "ended": None, "status": "running", "versions": _versions()}
        attempts.append(self._attempt)
        self.update_manifest(status="running", versions=self._attempt["versions"], attempts=attempts)

    def book(self, spent: Mapping[str, Any]) -> None:
        """Write what this attempt has spent so far, and what all attempts have; does nothing without an attempt.

        Args:
            spent: Amounts by name, and by role below ``roles``; None is unknown.
        """
        if self._attempt is None:
            return
        self._attempt["spent"] = dict(spent)
        booked = [attempt["spent"] for attempt in self.manifest["attempts"] if attempt.get("spent")]
        self.update_manifest(spent=total(booked))

    def close(self, status: str) -> None:
        """End the attempt as ``complete`` or ``stopped``, if one was begun, and let the folder go."""
        if self._lock_fd < 0:
            return
        try:
            if self._attempt is not None:
                self._attempt |= {"ended": _now(), "status": status}
                self.update_manifest(status=status)
        finally:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Self:
        """Return the run."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        """Close the run as complete, or as stopped if an error passes through."""
        self.close("complete" if kind is None else "stopped")


def require_own(path: Path, *, command: str, recipe: Mapping[str, Any], operational: Iterable[str] = ()) -> None:
    """Refuse a folder that is not this recipe's, as :meth:`RunFolder.open` would; writes nothing.

    Raises:
        ConfigError: If the folder belongs to another command or recipe, or holds something else.
    """
    operational = tuple(operational)
    _own_manifest(path, command, without(recipe, operational), operational, {})


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a run folder.

    Raises:
        DataError: If the folder holds none, or it cannot be read.
    """
    source = path / MANIFEST
    if not source.is_file():
        found = "no run folder (it holds no manifest.json)" if path.exists() else "no run folder (nothing is there)"
        raise DataError(found, path=str(path), expected="a folder that an esckit command wrote")
    refuse_links(path.glob("*"))
    manifest = read_json_object(source)
    if manifest.get("schema") != MANIFEST_SCHEMA:
        raise DataError("another kind of manifest", path=str(source), expected=f"schema {MANIFEST_SCHEMA!r}")
    missing = sorted({"command", "recipe", "recipe_digest"} - manifest.keys())
    if missing:
        raise DataError(f"a manifest without {', '.join(missing)}", path=str(source))
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DataError(
            "a wrong value",
            path=str(source),
            field=dotted(first["loc"]),
            expected=complaint(first).removeprefix("must be "),
        ) from error
    return manifest


def attempts_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the attempts of a run, oldest first; a manifest of 0.1.0 tells of the last one only."""
    if "attempts" in manifest:
        return [dict(attempt) for attempt in manifest["attempts"] or ()]
    if "status" not in manifest:
        return []
    known = {name: manifest[name] for name in ("status", "versions", "spent") if name in manifest}
    return [{"began": manifest.get("created"), "ended": None, **known}]


def stated(manifest: Mapping[str, Any], field: str, *, path: Path | str) -> Any:
    """Return what a manifest says of a field such as ``recipe.objective.kind``.

    Args:
        manifest: The manifest.
        field: Its dotted name.
        path: The run folder, for messages.

    Raises:
        DataError: If the manifest says nothing of it.
    """
    value: Any = manifest
    for key in field.split("."):
        if not isinstance(value, Mapping) or value.get(key) is None:
            raise DataError(f"a manifest that does not say its {field}", path=str(path))
        value = value[key]
    return value


def refuse_links(paths: Iterable[Path]) -> None:
    """Refuse symbolic links among the files of a run: it writes to its own files only, and shows no others.

    Raises:
        DataError: If there is one.
    """
    for path in paths:
        if path.is_symlink():
            raise DataError(
                "a symbolic link", path=str(path), expected="a file of the run itself", hint="Copy what it points to"
            )


def _own_manifest(
    path: Path, command: str, identity: Mapping[str, Any], operational: Iterable[str], inputs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the manifest of a folder that belongs to this recipe, None if it is new or empty; else refuse it."""
    refuse_links(path.glob("*"))
    if (path / MANIFEST).is_file():
        manifest = read_manifest(path)
        if manifest["command"] != command:
            raise ConfigError(
                f"{path} belongs to a run of {manifest['command']!r}",
                expected=f"one of {command!r}",
                hint="Choose another folder with --out",
            )
        if fields := differing_fields(identity, without(manifest["recipe"], operational)):
            raise ConfigError(
                f"{path} belongs to another recipe: {_differ(fields)}",
                hint="Choose another folder with --out, or undo the change to resume",
            )
        if fields := differing_fields(inputs, {name: manifest.get(name, inputs[name]) for name in inputs}):
            raise ConfigError(
                f"{path} was begun with other inputs: {_differ(fields)}",
                hint="Choose another folder with --out, or bring the old inputs back to resume",
            )
        return manifest
    if path.is_dir():
        # The lock, or a manifest that was not finished, is what a run leaves that died at once.
        if any(not child.name.startswith((LOCK, f".{MANIFEST}.")) for child in path.iterdir()):
            raise ConfigError(
                f"{path} is not empty and is not a run folder", hint="Choose another folder with --out, or empty it"
            )
        return None
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise ConfigError(f"{there} is a file", expected="a folder, or nothing", hint="Choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise storage_error(PermissionError(errno.EACCES, ""), there)
    return None


def _differ(fields: Sequence[str]) -> str:
    return f"{', '.join(fields)} differ{'s' if len(fields) == 1 else ''}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    """Return the versions of what can change a run's results."""
    found = {"esckit": esckit.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
