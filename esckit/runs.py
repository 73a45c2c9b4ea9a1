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
import time
from asyncio import CancelledError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, ValidationError

import esckit
from esckit.documents import complaint, dotted, read_json_object
from esckit.errors import (
    BudgetError,
    ConfigError,
    DataError,
    EsckitError,
    FailureRateError,
    OutageError,
    StorageError,
)
from esckit.faultpoints import reached
from esckit.ledger import total
from esckit.records import (
    JsonlAppender,
    clear_leftovers,
    digest,
    dump_json,
    require_in_place,
    write_json,
)
from esckit.storage import storage_error

MANIFEST = "manifest.json"

LOCK = ".lock"

PIPELINE = "pipeline.json"
"""In the folder of a pipeline: its stages, each with its recipe and how it ended."""

SPENT = ".spent"
"""What a running attempt has spent; what a killed one had spent is read from it."""

MANIFEST_SCHEMA = "esckit.manifest/1"

_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "aiohttp")


_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (KeyboardInterrupt, "interrupted"),
    (CancelledError, "interrupted"),
    (FailureRateError, "failures"),
    (OutageError, "outage"),
    (BudgetError, "budget"),
    (EsckitError, "error"),
)
"""Why a run stops, by the error that passes through; the first that fits."""

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
    seconds: NonNegativeFloat | None = None
    reason: str | None = None
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
    null or "auto", which stand for what was done before, or what ``_LATER`` says of it.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        start = f"{prefix}." if prefix else ""
        lacking = {
            key for key in ours.keys() ^ theirs.keys() if _is_as_before(f"{start}{key}", {**ours, **theirs}[key])
        }
        return [
            path
            for key in sorted({*ours, *theirs} - lacking)
            for path in differing_fields(ours.get(key), theirs.get(key), f"{start}{key}")
        ]
    return [] if ours == theirs else [prefix]


_LATER: dict[str, Any] = {"episode": "reply", "reward.shuffled": False}
"""Fields that came later, with the values that stand for what was done before."""

_TURNED_ON = ("dialogue",)
"""Sections that came later, which another field turns on."""


def _is_as_before(field: str, value: Any) -> bool:
    return value in (None, "auto") or field in _TURNED_ON or (field in _LATER and value == _LATER[field])


class RunFolder:
    """One run's folder, open for writing by one process at a time.

    Use as a context manager: leaving it writes the run's state into the manifest and lets the folder go.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], lock_fd: int) -> None:
        self.path = path
        self.manifest = manifest
        self._lock_fd = lock_fd
        self._attempt: dict[str, Any] | None = None
        self._began_s = 0.0
        self._spent_fd = -1
        self._spent_width = 0

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
        lock_fd = hold(path)
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
            else:
                (path / SPENT).unlink(missing_ok=True)
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
        for number, earlier in enumerate(attempts, start=1):
            if earlier["status"] == "running":
                earlier |= {"status": "killed", **self._spent_by(number)}
        self._began_s = time.monotonic()
        self._attempt = {"began": _now(), "ended": None, "status": "running", "versions": _versions()}
        attempts.append(self._attempt)
        self.update_manifest(
            status="running", versions=self._attempt["versions"], attempts=attempts, **_spent_in_all(attempts)
        )
        (self.path / SPENT).unlink(missing_ok=True)

    def book(self, spent: Mapping[str, Any]) -> None:
        """Write what this attempt has spent so far, and what all attempts have; does nothing without an attempt.

        Args:
            spent: Amounts by name, and by role below ``roles``; None is unknown.
        """
        if self._attempt is None:
            return
        self._attempt["spent"] = dict(spent)
        self.update_manifest(**_spent_in_all(self.manifest["attempts"]))

    def note_spent(self, spent: Mapping[str, Any]) -> None:
        """Keep what this attempt has spent so far, so that it is known if the process is killed.

        It is cheap enough for every call to a model: one system call, which a kill does not cut in two.

        Args:
            spent: As for :meth:`book`.

        Raises:
            StorageError: If it cannot be written.
        """
        if self._attempt is None:
            return
        fact = {"attempt": len(self.manifest["attempts"]), "spent": dict(spent)}
        text = dump_json(fact).encode().ljust(self._spent_width)
        try:
            if self._spent_fd < 0:
                self._spent_fd = os.open(self.file(SPENT), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.pwrite(self._spent_fd, text, 0)
        except OSError as error:
            raise storage_error(error, self.path / SPENT) from error
        self._spent_width = len(text)

    def _spent_by(self, number: int) -> dict[str, Any]:
        """Return what an attempt that was killed had spent; nothing if it had asked no model."""
        source = self.path / SPENT
        found = read_json_object(source) if source.is_file() and source.stat().st_size else {}
        return {"spent": found["spent"]} if found.get("attempt") == number else {}

    def close(self, status: str, reason: str | None = None) -> None:
        """End the attempt as ``complete`` or ``stopped``, if one was begun, and let the folder go.

        Args:
            status: How it ended.
            reason: Why it stopped, as :class:`esckit.archive.Entry` says it; None if unknown.
        """
        if self._lock_fd < 0:
            return
        try:
            if self._attempt is not None:
                why = {} if reason is None else {"reason": reason}
                # By a clock that nobody sets: the two times of day may lie anyhow.
                took_s = round(time.monotonic() - self._began_s, 1)
                self._attempt |= {"ended": _now(), "seconds": took_s, "status": status, **why}
                reached("ended")
                self.update_manifest(status=status)
                (self.path / SPENT).unlink(missing_ok=True)
        finally:
            if self._spent_fd >= 0:
                os.close(self._spent_fd)
                self._spent_fd = -1
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Self:
        """Return the run."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        """Close the run as complete, or as stopped if an error passes through."""
        if kind is None:
            self.close("complete")
        else:
            self.close("stopped", next((why for error, why in _REASONS if issubclass(kind, error)), None))


def hold(path: Path) -> int:
    """Make a folder if need be, and hold it until the file descriptor that is returned is closed.

    Raises:
        StorageError: If it cannot be written, or another process holds it.
    """
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
    return lock_fd


def is_held(path: Path) -> bool:
    """Return whether a process holds a folder."""
    try:
        lock_fd = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock_fd)
    return False


def require_own(
    path: Path,
    *,
    command: str,
    recipe: Mapping[str, Any],
    operational: Iterable[str] = (),
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a folder that is not this recipe's, as :meth:`RunFolder.open` would; writes nothing.

    Args:
        path: The folder.
        command: As for :meth:`RunFolder.open`, like all others.
        recipe: The resolved recipe.
        operational: Fields that may differ.
        inputs: As far as they are known; prompts that do not stand in them are not compared.

    Raises:
        ConfigError: If the folder belongs to another command, recipe or inputs, or holds something else.
    """
    operational = tuple(operational)
    known = json.loads(json.dumps(inputs or {}))
    if "prompts" in known and (path / MANIFEST).is_file():
        known["prompts"] = (read_manifest(path).get("prompts") or {}) | known["prompts"]
    _own_manifest(path, command, without(recipe, operational), operational, known)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a run folder.

    Raises:
        DataError: If the folder holds none, or it cannot be read.
    """
    source = path / MANIFEST
    if not source.is_file() and (path / PIPELINE).is_file():
        runs = sorted(str(child.parent) for child in path.glob(f"*/{MANIFEST}"))
        expected = f"one of its runs ({', '.join(runs)})" if runs else "a run; it holds none yet"
        raise DataError("the folder of a pipeline", path=str(path), expected=expected)
    if not source.is_file():
        found = "no run folder (it holds no manifest.json)" if path.exists() else "no run folder (nothing is there)"
        raise DataError(found, path=str(path), expected="a folder that an esckit command wrote")
    refuse_links(_all_of(path))
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


def _all_of(folder: Path) -> Iterator[Path]:
    """Yield a folder and everything in it; what is removed meanwhile is passed over."""
    yield folder
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def refuse_links(paths: Iterable[Path]) -> None:
    """Refuse symbolic links among the files of a run: it writes to its own files only, and shows no others.

    Raises:
        DataError: If there is one.
    """
    for path in paths:
        if path.is_symlink():
            raise DataError(
                "a symbolic link",
                path=str(path),
                expected="a folder or file of the run itself",
                hint=f"Name or copy what it points to: {os.path.realpath(path)}",
            )


def _own_manifest(
    path: Path, command: str, identity: Mapping[str, Any], operational: Iterable[str], inputs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the manifest of a folder that belongs to this recipe, None if it is new or empty; else refuse it."""
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
    refuse_links(_all_of(path))
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


def _spent_in_all(attempts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a manifest says of the cost of its attempts: nothing where none has asked a model."""
    spent = [attempt["spent"] for attempt in attempts if attempt.get("spent")]
    return {"spent": total(spent)} if spent else {}


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
