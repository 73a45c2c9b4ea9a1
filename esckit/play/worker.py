"""One worker of a Ray cluster: it loads its own models and plays units; Ray starts it on some machine of the cluster.

Nothing here is imported by the process of the command but :func:`this_package` and the names that travel. A worker
writes no file. It returns errors of esckit as data, so that they arrive as they were raised; anything else is a bug,
which Ray hands on with its traceback.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import esckit
from esckit.config.sections import ModelRecipe, RayExecutor
from esckit.errors import ConfigError, EsckitError
from esckit.models.budget import Account, Spent
from esckit.play.executor import Cast, UnitPlayers, played
from esckit.roles.pool import ModelPool


def this_package() -> dict[str, str]:
    """Return what must be equal on all machines of a run: the version, and a digest of the package's own files."""
    root, found = Path(esckit.__file__).parent, sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".yaml")):
        found.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return {"esckit": esckit.__version__, "files": found.hexdigest()[:12]}


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is to play.

    Attributes:
        cast: Says who plays; see :mod:`esckit.play.executor`.
        recipe: The recipe.
        given: What ``cast`` needs beside pool and recipe.
        folder: Where the command was started: paths in the recipe begin there.
    """

    cast: Cast
    recipe: ModelRecipe
    given: tuple[Any, ...]
    folder: str


class Ready(NamedTuple):
    """What a worker that has loaded its models says of them; see :class:`esckit.protocols.Executor`."""

    inputs: Mapping[str, Any]
    facts: dict[str, Any]
    determinism: str


class Report(NamedTuple):
    """What a worker answers.

    Attributes:
        result: What was asked for; None beside an error.
        error: Why there is none.
        spent: What the worker used since its last report.
        warnings: What it logged since then.
    """

    result: Any
    error: EsckitError | None
    spent: Spent
    warnings: tuple[str, ...]


class Worker:
    """The actor. Its methods run at the same time, in one event loop."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._permits = Permits()
        self._warnings = Warnings()
        self._pool: ModelPool | None = None
        self._players: UnitPlayers | None = None
        self._playing: set[asyncio.Future[Any]] = set()

    async def hello(self) -> dict[str, Any]:
        """Return where this is, and which package it runs."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return {"host": socket.gethostname(), "pid": os.getpid(), "node": node, "package": this_package()}

    async def begin(self, order: Order) -> Report:
        """Load the models; the result is :class:`Ready`."""
        return await self._report(self._begin(order))

    async def play(self, file: str, unit: Any) -> Report:
        """Play a unit; the result is :class:`~esckit.play.executor.Played`."""
        assert self._players is not None
        playing = asyncio.ensure_future(played(self._players.play[file], unit))
        self._playing.add(playing)
        playing.add_done_callback(self._playing.discard)
        return await self._report(playing)

    async def wants_calls(self) -> Report:
        """Wait until this worker may make no more calls and wants to; the result is how many wait."""
        return await self._report(self._permits.wanted())

    async def lend(self, n: int) -> None:
        """Allow so many more calls."""
        self._permits.add(n)

    async def give_back(self) -> Report:
        """Forbid what is allowed and not used; the result is how many calls that is."""
        return await self._report(self._permits.take_all())

    async def stop(self) -> Report:
        """Give up what is being played; the result is what the manifest says of the models now."""
        return await self._report(self._stop())

    async def end(self) -> Report:
        """Release the models."""
        return await self._report(self._stack.aclose())

    async def _report(self, doing: Awaitable[Any]) -> Report:
        result, found = None, None
        try:
            result = await doing
        except EsckitError as error:
            found = error
        pool = self._pool
        spent = pool.budget.hand_on() if pool is not None else Spent(Account(), {})
        return Report(result, found, spent, self._warnings.take())

    async def _begin(self, order: Order) -> Ready:
        recipe, settings = order.recipe, order.recipe.executor
        assert isinstance(settings, RayExecutor)
        logging.getLogger("esckit").addHandler(self._warnings)
        if "working_dir" not in settings.runtime_env and Path(order.folder).is_dir():
            os.chdir(order.folder)
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # as the command line does: a user's own module:attr
        if settings.gpus:
            _require_gpu(settings.gpus)
        is_limited = any(limit is not None for limit in recipe.budget.model_dump().values())
        permit = self._permits.take if is_limited else None
        self._pool = await self._stack.enter_async_context(
            ModelPool(settings, recipe.budget, recipe.cache, permit=permit)
        )
        self._players = await order.cast(self._pool, recipe, *order.given)
        return Ready(self._players.inputs, self._pool.facts(), self._pool.determinism())

    async def _stop(self) -> dict[str, Any]:
        for playing in [*self._playing]:
            playing.cancel()
        return self._pool.facts() if self._pool is not None else {}


class Permits:
    """How many calls a worker may still make."""

    def __init__(self) -> None:
        self._n_left = self._n_waiting = 0
        self._more, self._asked = asyncio.Event(), asyncio.Event()

    async def take(self) -> None:
        """Take one, and wait for it if there is none."""
        self._n_waiting += 1
        try:
            while not self._n_left:
                self._more.clear()
                self._asked.set()
                await self._more.wait()
            self._n_left -= 1
        finally:
            self._n_waiting -= 1

    async def wanted(self) -> int:
        """Wait until somebody waits, and return how many do."""
        while not self._n_waiting or self._n_left:
            self._asked.clear()
            await self._asked.wait()
        return self._n_waiting

    def add(self, n: int) -> None:
        """Add some."""
        self._n_left += n
        self._more.set()

    async def take_all(self) -> int:
        """Take all that are left."""
        n, self._n_left = self._n_left, 0
        return n


class Warnings(logging.Handler):
    """Keeps what is logged until it is reported to the process of the command."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self._kept.append(record.getMessage())

    def take(self) -> tuple[str, ...]:
        """Return what was kept and forget it."""
        kept, self._kept = tuple(self._kept), []
        return kept


def _require_gpu(gpus: float) -> None:
    """Refuse to play on the processor where Ray reserved a GPU that torch cannot use.

    Raises:
        ConfigError: If torch sees none.
    """
    import torch

    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        raise ConfigError(
            f"a worker reserved {gpus:g} GPUs (CUDA_VISIBLE_DEVICES={visible!r}), but torch sees none there",
            expected="a CUDA build of torch, and GPUs where Ray counts them",
            hint="Start nodes without GPUs with 'ray start --num-gpus 0', or set executor.gpus to 0",
        )
