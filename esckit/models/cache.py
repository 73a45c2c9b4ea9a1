"""Answers of servers, kept in one SQLite file, so that no question is paid for twice.

An answer is found by what was asked: the endpoint and its model, the operation, the messages, sampling and seed. A hit
gives the very reply of the first time, its usage included, so that a second run writes the same records; the budget
counts it as an answer that cost nothing. Failures are never kept, and neither are keys or headers: a row holds the name
of the model, a digest of the question, and the answer.

Several processes and threads may use one file: readers never wait, writers wait for each other
(SQLite's write-ahead log, which needs a local disk). An answer is in the file before it is used. Of two processes that
ask the same question at the same time, both use the answer that was kept first.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from esckit.errors import DataError, EsckitError, ModelError, OutageError, StorageError
from esckit.faultpoints import reached
from esckit.models.budget import Budget
from esckit.protocols import Capability, ChatModel, DrawsSeveral
from esckit.records import canonical_json
from esckit.registry import expand_home
from esckit.types import (
    ChoiceScore,
    ChoiceScores,
    Message,
    NextToken,
    Prices,
    Replies,
    Reply,
    Sampling,
    StopReason,
    Usage,
)

VARIABLE = "ESCKIT_CACHE"
"""The environment variable that names the file where a recipe does not."""

VERSION = 1
"""Of the file and of the digests of questions; SQLite's ``user_version``."""

BUSY_S = 60.0
"""How long a writer waits for the others, seconds."""

_APPLICATION = 0x45534B43
"""SQLite's ``application_id``: "ESKC"."""

_ROW_BYTES = 120
"""What a row and its entries in the indexes take beside its texts, about."""

_TABLE = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    operation TEXT NOT NULL,
    answer TEXT NOT NULL,
    digest TEXT NOT NULL,
    made REAL NOT NULL
);
CREATE INDEX answers_by_model ON answers (model, made);
"""

A = TypeVar("A", ChoiceScores, NextToken, Replies, Reply)


def cache_path(named: str | None) -> Path | None:
    """Return the file that a recipe names, else the one that the environment names; None is no cache.

    A folder in the environment is that of converted weights, which the variable named in 0.1.0.
    """
    if named:
        return Path(expand_home(named))
    path = os.environ.get(VARIABLE)
    return None if not path or Path(expand_home(path)).is_dir() else Path(expand_home(path))


class Row(NamedTuple):
    """One answer as it is kept.

    Attributes:
        key: Digest of the question.
        model: Name of the endpoint and its model.
        operation: ``complete``, ``complete_several``, ``score``, ``next_token``, or ``capabilities``: what a check of a
            server found.
        answer: JSON.
    """

    key: str
    model: str
    operation: str
    answer: str

    @property
    def digest(self) -> str:
        """Digest of the answer and its question."""
        return hashlib.sha256(f"{self.key}\x1f{self.answer}".encode()).hexdigest()[:32]


class ResponseCache:
    """The open file.

    Args:
        path: The file; it is created if there is none.
        busy_s: How long a writer waits for other processes, seconds.

    Raises:
        StorageError: If it cannot be read and written as a cache of this version; see :func:`_connect`.
    """

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        self.path = path
        # The one reads in the event loop, where a row takes microseconds; the other writes in a thread of its own.
        self._reader = _connect(path, busy_s=busy_s)
        self._writer = _connect(path, busy_s=busy_s)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="esckit-cache")
        self._lock = asyncio.Lock()
        self._waiting: dict[str, Row] = {}
        self._kept: dict[str, str] = {}

    def find(self, key: str) -> str | None:
        """Return the answer to a question, None if there is none.

        Raises:
            StorageError: If it cannot be read, or is not what was written.
        """
        with _told(self.path):
            found = self._reader.execute("SELECT model, operation, answer, digest FROM answers WHERE key = ?", (key,))
            row = found.fetchone()
        if row is None:
            return None
        if Row(key, *row[:3]).digest != row[3]:
            raise _damaged(self.path, "an answer is not what was written")
        return str(row[2])

    async def keep(self, row: Row) -> str:
        """Write an answer and return the one that is kept: an earlier one to the same question stays.

        Answers that wait at the same time are written in one transaction.

        Raises:
            StorageError: If it cannot be written.
        """
        reached("asked")
        self._waiting[row.key] = row
        async with self._lock:
            if row.key in self._waiting:
                batch = list(self._waiting.values())
                # Where this is given up meanwhile, whoever waits for the lock writes them again.
                self._kept |= await asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
                for written in batch:
                    self._waiting.pop(written.key, None)
        reached("kept")
        return self._kept.pop(row.key)

    def _write(self, rows: Sequence[Row]) -> dict[str, str]:
        now = time.time()
        with _told(self.path), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            values = [(*row, row.digest, now) for row in rows]
            self._writer.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", values)
            ask = "SELECT answer FROM answers WHERE key = ?"
            return {row.key: str(self._writer.execute(ask, (row.key,)).fetchone()[0]) for row in rows}

    def close(self) -> None:
        """Wait for what is being written, and close the file."""
        self._thread.shutdown()
        self._reader.close()
        self._writer.close()


class Shelf:
    """What the cache holds of one model, and the one place where its questions are asked.

    The check of the server is left to the first question that the cache cannot answer, if the cache knows what an
    earlier check found: a run that is cached whole needs no server.

    Args:
        cache: The open cache.
        name: What the cache knows the model by: equal names must mean equal answers.
        model: The endpoint's model.
    """

    def __init__(self, cache: ResponseCache, name: str, model: ChatModel) -> None:
        self._cache, self._name, self._model = cache, name, model
        self._known: frozenset[Capability] | None = None
        self._asking: dict[str, asyncio.Task[str]] = {}
        self._check: asyncio.Task[None] | None = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What an earlier check of the server found, else the last one."""
        return self._model.capabilities if self._known is None else self._known

    async def check(self) -> None:
        """Look up what the server offers; ask it only if the cache does not know.

        Raises:
            EsckitError: As the check of the model.
        """
        found = self._cache.find(self._key("capabilities", {}))
        if found is not None:
            self._known = frozenset(json.loads(found))
            return
        await self._model.check()
        await self._cache.keep(self._row("capabilities", {}, _written(sorted(self._model.capabilities))))

    async def answer(
        self, operation: str, question: Mapping[str, Any], ask: Callable[[], Awaitable[str]]
    ) -> tuple[str, bool]:
        """Return the answer to a question, and whether it cost nothing.

        Args:
            operation: What is asked for.
            question: All that the answer depends on, as plain data.
            ask: Asks the server and returns the answer as JSON; only called if nobody asked before.

        Raises:
            EsckitError: As ``ask``; nothing is kept then.
            StorageError: If the cache cannot be read or written.
        """
        key = self._key(operation, question)
        if (found := self._cache.find(key)) is not None:
            return found, True
        if (asked := self._asking.get(key)) is not None:
            # Somebody asks the same at this moment: the answer is one, whoever is given up meanwhile.
            return await asyncio.shield(asked), True

        async def first() -> str:
            await self._ready()
            return await self._cache.keep(self._row(operation, question, await ask()))

        self._asking[key] = task = asyncio.create_task(first())
        task.add_done_callback(lambda _: self._asking.pop(key, None))
        try:
            return await asyncio.shield(task), False
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _ready(self) -> None:
        """Check the server once, if that was left out.

        Raises:
            OutageError: If it cannot be used now; that is no failure of the question.
        """
        if self._known is None:
            return
        if self._check is None:
            self._check = asyncio.create_task(self._model.check())
        try:
            await asyncio.shield(self._check)
        except ModelError as error:
            raise OutageError(
                f"{error.found}, and {self._cache.path} does not hold all answers of this run", hint=error.hint
            ) from error

    def _key(self, operation: str, question: Mapping[str, Any]) -> str:
        return key_of(self._name, operation, question)

    def _row(self, operation: str, question: Mapping[str, Any], answer: str) -> Row:
        return Row(self._key(operation, question), self._name, operation, answer)


def key_of(model: str, operation: str, question: Mapping[str, Any]) -> str:
    """Return the digest of a question."""
    asked = canonical_json(["esckit.cache", VERSION, model, operation, question])
    # Lone surrogates can stand in a text and not in UTF-8.
    return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()


class CachedModel:
    """A chat model in a role whose answers are looked up first; otherwise the model it wraps.

    Args:
        inner: Asks the server, on the run's budget.
        shelf: What the cache holds of it.
        budget: Counts the answers that came from the cache.
        role: Who asks.
        prices: What the model costs; None if that is not known.
    """

    def __init__(self, inner: ChatModel, shelf: Shelf, budget: Budget, role: str, prices: Prices | None) -> None:
        self._inner, self._shelf = inner, shelf
        self._budget, self._role, self._prices = budget, role, prices

    @property
    def name(self) -> str:
        """The wrapped model's name."""
        return self._inner.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the server offers, as far as the cache or a check knows."""
        return self._shelf.capabilities

    async def check(self) -> None:
        """Check the server, unless the cache knows it."""
        await self._shelf.check()

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Return the kept reply, or the server's.

        Raises:
            EsckitError: As the wrapped model, or if the cache cannot be used.
        """
        question = {"messages": _plain(messages), "sampling": sampling.model_dump(mode="json"), "seed": seed}
        return await self._answer(
            "complete", question, lambda: self._inner.complete(messages, sampling, seed=seed), _reply
        )

    async def complete_several(self, messages: Sequence[Message], sampling: Sampling, *, seed: int, n: int) -> Replies:
        """Return the kept replies, or the server's.

        Raises:
            EsckitError: As the wrapped model, or if the cache cannot be used.
        """
        inner, sampled = self._inner, sampling.model_dump(mode="json")
        assert isinstance(inner, DrawsSeveral)
        question = {"messages": _plain(messages), "sampling": sampled, "seed": seed, "n": n}
        return await self._answer(
            "complete_several",
            question,
            lambda: inner.complete_several(messages, sampling, seed=seed, n=n),
            _replies,
        )

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Return the kept scores, or the server's.

        Raises:
            EsckitError: As the wrapped model, or if the cache cannot be used.
        """
        question = {"messages": _plain(messages), "choices": list(choices), "temperature": temperature}
        return await self._answer(
            "score", question, lambda: self._inner.score(messages, choices, temperature=temperature), _scores
        )

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        """Return the kept probabilities, or the server's.

        Raises:
            EsckitError: As the wrapped model, or if the cache cannot be used.
        """
        question = {"messages": _plain(messages), "labels": list(labels), "temperature": temperature}
        return await self._answer(
            "next_token", question, lambda: self._inner.next_token(messages, labels, temperature=temperature), _next
        )

    async def aclose(self) -> None:
        """Close the wrapped model."""
        await self._inner.aclose()

    async def _answer(
        self,
        operation: str,
        question: Mapping[str, Any],
        ask: Callable[[], Awaitable[A]],
        read: Callable[[dict[str, Any]], A],
    ) -> A:
        async def asked() -> str:
            found: Any = await ask()
            if isinstance(found, Replies):
                return _written({"replies": [_as_data(reply) for reply in found.replies]})
            return _written(_as_data(found))

        text, is_free = await self._shelf.answer(operation, question, asked)
        answer = read(json.loads(text))
        if is_free:
            self._budget.book_cached(self._role, answer.usage, self._prices)
        return answer


def _written(answer: Any) -> str:
    """Return JSON in ASCII: a text may hold lone surrogates, which SQLite does not take."""
    return json.dumps(answer, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _as_data(answer: ChoiceScores | NextToken | Reply) -> dict[str, Any]:
    return {**asdict(answer), "usage": answer.usage.model_dump()}


def _plain(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, message.content] for message in messages]


def _reply(kept: dict[str, Any]) -> Reply:
    return Reply(**{**kept, "stop_reason": StopReason(kept["stop_reason"]), "usage": Usage(**kept["usage"])})


def _replies(kept: dict[str, Any]) -> Replies:
    return Replies(tuple(_reply(reply) for reply in kept["replies"]))


def _scores(kept: dict[str, Any]) -> ChoiceScores:
    return ChoiceScores(tuple(ChoiceScore(**choice) for choice in kept["choices"]), Usage(**kept["usage"]))


def _next(kept: dict[str, Any]) -> NextToken:
    return NextToken(tuple(kept["probabilities"]), kept["label_mass"], Usage(**kept["usage"]))


# ---------------------------------------------------------------- the file


def _connect(path: Path, *, busy_s: float, is_new_allowed: bool = True) -> sqlite3.Connection:
    """Open a cache.

    Raises:
        DataError: If there is none and none may be made.
        StorageError: If it is a folder, no SQLite file, one of another program or version, damaged, locked or
            read-only.
    """
    if path.is_dir():
        raise StorageError(f"{path} is a folder", expected="a file for the response cache")
    if not path.exists():
        if not is_new_allowed:
            raise DataError("no response cache", path=str(path), expected=f"the file that cache: or {VARIABLE} names")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {path.parent}: {error.strerror}") from error
    with _told(path):
        # Transactions are begun by hand. The reader is used in one thread at a time, but not always in the same one.
        connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the table in a new file, and refuse a file that is no cache of this version."""
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if (application, version) == (_APPLICATION, VERSION):
        # A read-only file is found out here and not in the middle of a run.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        connection.execute("PRAGMA synchronous = NORMAL")
        return
    if application == _APPLICATION:
        raise StorageError(
            f"{path} is a response cache of version {version}",
            expected=f"version {VERSION}",
            hint="Name another file, or use the esckit that made this one.",
        )
    if version or application or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise StorageError(
            f"{path} is a database of another program", expected="a response cache of esckit, or no file"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have made it meanwhile.
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        for statement in _TABLE.split(";")[:-1]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raise what SQLite says as an error for the user."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise StorageError(
                f"{path} is locked by another process",
                hint="Wait until that process ends, or name another file; what is done is kept.",
            ) from error
        if "readonly" in text or "unable to open" in text:
            raise StorageError(
                f"{path} cannot be written", expected="a file, in a folder, that this user may write"
            ) from error
        if "disk is full" in text:
            raise StorageError(f"{path} cannot be written: the disk is full", hint="Free some space.") from error
        if "not a database" in text:
            raise StorageError(
                f"{path} is not a response cache", expected="a file that esckit made, or no file"
            ) from error
        raise _damaged(path, text) from error


def _damaged(path: Path, what: str) -> StorageError:
    return StorageError(
        f"{path} is damaged: {what}",
        hint=f"'esckit cache verify {path}' says more; move the file away to begin a new one.",
    )


# ---------------------------------------------------------------- looking after it


class CacheFile:
    """A cache that is there already, for ``esckit cache``.

    Args:
        path: The file.
        busy_s: How long to wait for other processes, seconds.

    Raises:
        DataError: If there is none.
        StorageError: As :class:`ResponseCache`.
    """

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        self.path = path
        self._db = _connect(path, busy_s=busy_s, is_new_allowed=False)

    def facts(self) -> dict[str, Any]:
        """Return the size of the cache and what it holds, by model and operation; ages in days."""
        with _told(self.path):
            rows = self._db.execute(
                "SELECT model, operation, count(*), sum(length(answer)), min(made), max(made) FROM answers "
                "GROUP BY model, operation ORDER BY model, operation"
            ).fetchall()
        # By a clock that was set back since, an answer may come from the future.
        now = max([time.time(), *(newest for *_, newest in rows)])
        models: dict[str, dict[str, Any]] = {}
        for model, operation, n, n_chars, oldest, newest in rows:
            one = models.setdefault(model, {"answers": 0, "characters": 0, "oldest_days": 0.0, "newest_days": None})
            if operation == "capabilities":
                continue
            one[operation] = n
            one["answers"] += n
            one["characters"] += n_chars
            one["oldest_days"] = max(one["oldest_days"], round((now - oldest) / 86_400, 3))
            age = round((now - newest) / 86_400, 3)
            one["newest_days"] = age if one["newest_days"] is None else min(age, one["newest_days"])
        return {
            "file": str(self.path),
            "version": VERSION,
            "bytes": self._bytes(),
            "answers": sum(one["answers"] for one in models.values()),
            "models": models,
        }

    def prune(
        self, *, older_than_days: float | None = None, model: str | None = None, max_bytes: int | None = None
    ) -> dict[str, Any]:
        """Delete answers and give the space back.

        Args:
            older_than_days: Answers made before that.
            model: Answers of this model; with ``older_than_days`` only the old ones of it.
            max_bytes: Then the oldest, until the rest takes no more than this.

        Raises:
            StorageError: If another process uses the file.
        """
        wanted, values = list[str](), list[float | str]()
        if older_than_days is not None:
            wanted.append("made < ?")
            values.append(time.time() - older_than_days * 86_400)
        if model is not None:
            wanted.append("model = ?")
            values.append(model)
        with _told(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            n_before = self._n_answers()
            if wanted:
                self._db.execute(f"DELETE FROM answers WHERE {' AND '.join(wanted)}", values)
            if max_bytes is not None:
                self._shrink(max_bytes)
            self._db.execute("COMMIT")
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            left = self._n_answers()
        return {"file": str(self.path), "deleted": n_before - left, "left": left, "bytes": self._bytes()}

    def _n_answers(self) -> int:
        """Return how many answers there are; what checks of servers found is no answer."""
        return int(self._db.execute("SELECT count(*) FROM answers WHERE operation != 'capabilities'").fetchone()[0])

    def _shrink(self, max_bytes: int) -> None:
        size = f"length(CAST(answer AS BLOB)) + length(key) * 2 + length(model) * 2 + {_ROW_BYTES}"
        self._db.execute(
            f"DELETE FROM answers WHERE key IN (SELECT key FROM (SELECT key, sum({size}) OVER "
            "(ORDER BY made DESC, key) AS so_far FROM answers) WHERE so_far > ?)",
            (max_bytes,),
        )

    def faults(self) -> list[str]:
        """Return what is wrong with the file: SQLite's own check, and every answer that is not what was written."""
        try:
            with _told(self.path):
                found = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check")]
                faults = [] if found == ["ok"] else found
                for row in self._db.execute("SELECT key, model, operation, answer, digest FROM answers"):
                    faults += [f"answer {row[0][:16]} of {row[1]}: {fault}" for fault in _row_faults(row)]
        except StorageError as error:
            return [error.found]
        return faults

    def _bytes(self) -> int:
        files = (Path(f"{self.path}{end}") for end in ("", "-wal", "-shm"))
        return sum(file.stat().st_size for file in files if file.is_file())

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it."""
        self._db.close()


_READERS: Mapping[str, Callable[[Any], object]] = {
    "complete": _reply,
    "complete_several": _replies,
    "score": _scores,
    "next_token": _next,
    "capabilities": list,
}


def _row_faults(row: Sequence[Any]) -> Iterator[str]:
    *kept, written = row
    one = Row(*kept)
    if one.digest != written:
        yield "not what was written"
        return
    try:
        _READERS[one.operation](json.loads(one.answer))
    except (KeyError, TypeError, ValueError, EsckitError):
        yield f"not the answer to {one.operation!r}"
