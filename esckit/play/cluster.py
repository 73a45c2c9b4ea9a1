"""Units are played by the workers of a Ray cluster: the side of the process that the user started.

This process alone reads data, writes files, keeps the budget and counts failures. A worker is an actor with its own
models (:mod:`esckit.play.worker`); it is handed several units at a time. When a worker dies, another one takes its
place and its units are played again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from esckit.config.sections import ModelRecipe, RayExecutor
from esckit.errors import ClusterError, ConfigError
from esckit.models.budget import Account, Budget, Spent
from esckit.models.cache import cache_path
from esckit.play.connection import connected, fits_nowhere, what_it_has
from esckit.play.executor import Cast, Played, spread
from esckit.play.worker import Order, Ready, Report, Worker, this_package

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""So many workers may die over one unit, or one after the other without playing any, before the run stops."""

BLOCK_CALLS = 64
"""Calls that are lent to a worker at a time, at most; fewer when few are left."""

BLOCK_WATCHED = 8
"""The same where tokens or cost are limited: what is lent may be spent before the limit is seen."""

MANY_CALLS = 1024
"""What a worker may be asked beside playing, at once, and for files with larger batches."""

_LOGS = (
    "What is done is kept. Ray's logs on the machines of the workers (/tmp/ray/session_latest/logs) say why they died; "
    "often the memory was too small. Then run the same command again"
)

_INSTALL = "Install the same package on every machine, or bring it along with executor.runtime_env (docs/scaling.md)"

END_S = 10.0
"""Longest wait for what a worker says at the end."""


@asynccontextmanager
async def on_cluster(recipe: ModelRecipe, limit: int, cast: Cast, *given: Any) -> AsyncIterator[ClusterExecutor]:
    """Join or start the cluster of a recipe, and begin a worker at least; see :func:`esckit.play.places.executing`.

    Raises:
        EsckitError: If the cluster or a worker on it cannot be had, or a worker cannot load its models.
    """
    settings = recipe.executor
    assert isinstance(settings, RayExecutor)
    async with connected(settings):
        cache = cache_path(recipe.cache)
        recipe = recipe.model_copy(update={"cache": str(cache.absolute()) if cache is not None else None})
        executor = ClusterExecutor(Order(cast, recipe, given, os.getcwd()), settings, limit)
        try:
            await executor.start()
            yield executor
            await executor.end()
        finally:
            executor.kill()


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker as it is known here.

    Attributes:
        actor: Ray's handle of :class:`~esckit.play.worker.Worker`.
        where: Its host and process, for messages.
        node: Its node, as Ray knows it.
        n_playing: Units that it plays.
        n_lent: Calls that it may still make, as far as is known.
        n_played: Units that it has played.
    """

    actor: Any
    where: str = "a worker"
    node: str = ""
    n_playing: int = 0
    n_lent: int = 0
    n_played: int = 0


class ClusterExecutor:
    """Plays units on the cluster that this process is connected to; see :class:`~esckit.protocols.Executor`.

    Args:
        order: What the workers are to play.
        settings: The recipe's ``executor``.
        limit: Units in flight, over all workers.
    """

    def __init__(self, order: Order, settings: RayExecutor, limit: int) -> None:
        self._order, self._settings, self._limit = order, settings, limit
        self._budget = Budget(order.recipe.budget)
        self._workers: list[_Worker] = []
        self._all: list[_Worker] = []
        self._changed = asyncio.Condition()
        self._at_once = limit
        self._ready: Ready | None = None
        self._facts: dict[str, Any] = {}
        self._n_dead = 0
        self._is_short = False
        self._warned: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._lending = asyncio.Lock()

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the players say of themselves; all workers say the same."""
        return self._ready.inputs if self._ready is not None else {}

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says about the models and the workers."""
        notes = [*self._facts.get("notes", ())]
        if self._n_dead:
            notes.append(f"{self._n_dead} workers died; what they spent after their last report is not counted")
        return {**self._facts, "notes": notes} if notes else self._facts

    def determinism(self) -> str:
        """Return how far the seeds of the run determine its records."""
        return self._ready.determinism if self._ready is not None else ""

    def spent(self) -> dict[str, Any]:
        """Return what the workers have reported."""
        return self._budget.spent()

    def on_spent(self, note: Callable[[], None]) -> None:
        """Have a function called with every report of a worker."""
        self._budget.on_change = note

    async def run(self, file: str, units: Iterable[Any], take: Callable[[Played], None], *, batch: int = 1) -> None:
        """Play all units of a file; see :class:`~esckit.protocols.Executor`."""
        n_workers = self._settings.workers
        limit = max(self._limit, batch * n_workers)
        self._at_once = math.ceil(limit / n_workers)
        try:
            await self._unless_failed(spread(units, partial(self._play, file), take, limit=limit))
        finally:
            # What is still played is given up and spends no more; what it used is to be booked.
            await self._of_all(self._stop)

    # ------------------------------------------------------------ playing

    async def _play(self, file: str, unit: Any) -> Played:
        """Play a unit on the worker that plays fewest; on another one if it dies over it.

        Raises:
            ClusterError: If too many die.
        """
        import ray

        for _ in range(MAX_DEATHS):
            while True:
                worker = await self._free()
                try:
                    played: Played = self._read(await worker.actor.play.remote(file, unit), worker)
                    worker.n_played += 1
                    return played
                except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
                    self._drop(worker)
                    if await self._is_alive(worker.node):
                        break
                    # That a machine leaves says nothing against the unit.
                finally:
                    await self._release(worker)
        raise ClusterError(
            f"{MAX_DEATHS} workers died over one and the same unit",
            hint=_LOGS,
        )

    async def _free(self) -> _Worker:
        """Return the worker that plays fewest, as soon as one may play more, and count it as playing."""

        def idlest() -> _Worker | None:
            found = min(self._workers, key=lambda worker: worker.n_playing, default=None)
            return found if found is not None and found.n_playing < self._at_once else None

        async with self._changed:
            await self._changed.wait_for(lambda: idlest() is not None)
            worker = idlest()
            assert worker is not None
            worker.n_playing += 1
            return worker

    async def _release(self, worker: _Worker) -> None:
        async with self._changed:
            worker.n_playing -= 1
            self._changed.notify()

    def _read(self, report: Report, worker: _Worker) -> Any:
        """Book what a report says and return its result.

        Raises:
            EsckitError: As the worker met it.
        """
        self._budget.settle(report.spent)
        worker.n_lent = max(0, worker.n_lent - report.spent.whole.calls)
        for warning in report.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                log.warning("%s", warning)
        if report.error is not None:
            report.error.found += f" ({worker.where})"
            raise report.error
        return report.result

    # ------------------------------------------------------------ workers

    async def start(self) -> None:
        """Begin the workers and return when the first one is ready.

        Raises:
            EsckitError: If none can be had.
        """
        if self._settings.address == "local" and fits_nowhere(self._settings):
            self._require_place()
        self._tasks = [asyncio.create_task(self._keep()) for _ in range(self._settings.workers)]
        await self._unless_failed(self._first())

    async def _first(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._workers))

    async def end(self) -> None:
        """Let the workers release their models."""
        await self._of_all(self._end)

    async def _end(self, worker: _Worker) -> None:
        self._read(await worker.actor.end.remote(), worker)

    async def _stop(self, worker: _Worker) -> None:
        facts = self._read(await worker.actor.stop.remote(), worker)
        notes = dict.fromkeys([*self._facts.get("notes", ()), *facts.get("notes", ())])
        self._facts = {**self._facts, **facts, **({"notes": list(notes)} if notes else {})}

    async def _of_all(self, ask: Callable[[_Worker], Awaitable[None]]) -> None:
        """Ask every worker that is ready; one that dies or is slow now is left out."""
        import ray

        async def ask_one(worker: _Worker) -> None:
            with suppress(TimeoutError, ray.exceptions.RayError):
                await asyncio.wait_for(ask(worker), END_S)

        await asyncio.gather(*map(ask_one, self._workers))

    def kill(self) -> None:
        """End all workers at once."""
        self._cancel()
        for worker in [*self._all]:
            self._drop(worker)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _unless_failed(self, doing: Awaitable[None]) -> None:
        """Wait for something unless a worker fails for good before."""
        main = asyncio.ensure_future(doing)
        try:
            done, _ = await asyncio.wait({main, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            await (main if main in done else done.pop())
        finally:
            main.cancel()
            await asyncio.gather(main, return_exceptions=True)

    async def _keep(self) -> None:
        """Have a worker at work, and another one whenever it dies; never returns.

        Raises:
            EsckitError: If no worker can be had, they die one after the other, or the budget is used up.
        """
        import ray

        n_useless = 0
        while True:
            worker = self._new()
            try:
                await self._greet(worker)
                await self._begin(worker)
                await self._lend(worker)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                log.warning("%s died; another one takes its place", worker.where)
                log.info("Ray says: %s", error)
                self._n_dead += 1
                # What it was allowed to spend may be spent.
                self._budget.settle(_calls(worker.n_lent))
                has_left = worker.node != "" and not await self._is_alive(worker.node)
                n_useless = 0 if worker.n_played or has_left else n_useless + 1
                if n_useless == MAX_DEATHS:
                    raise ClusterError(f"{MAX_DEATHS} workers died one after the other", hint=_LOGS) from error
            finally:
                self._drop(worker)

    def _new(self) -> _Worker:
        import ray

        settings = self._settings
        kind = ray.remote(Worker).options(
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_concurrency=self._limit + MANY_CALLS,
        )
        worker = _Worker(kind.remote())
        self._all.append(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        """Play nothing on a worker any more, and end it; one that was dropped before is left alone.

        After the run has left the cluster any call to Ray would start another cluster.
        """
        import ray

        if worker not in self._all:
            return
        self._all.remove(worker)
        if worker in self._workers:
            self._workers.remove(worker)
        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(worker.actor)

    async def _greet(self, worker: _Worker) -> None:
        """Wait until a worker has its place, with a bound where no other one has any.

        Raises:
            ConfigError: If there is no place, or esckit there is not what it is here.
            ClusterError: If there is no place any more.
        """
        import ray

        hello = asyncio.ensure_future(_awaited(worker.actor.hello.remote()))
        try:
            while not (await asyncio.wait({hello}, timeout=self._settings.wait_s))[0]:
                self._require_place()
            found = await hello
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise ConfigError(f"executor.runtime_env cannot be set up: {error}") from error
        except ray.exceptions.RayActorError as error:
            if "No module named 'esckit" not in str(error):
                raise
            raise ConfigError(
                "a machine of the cluster has no esckit, or another version of it", expected=_package(), hint=_INSTALL
            ) from error
        finally:
            hello.cancel()
        worker.where, worker.node = f"the worker on {found['host']}, process {found['pid']}", found["node"]
        if found["package"] != this_package():
            theirs = found["package"]
            raise ConfigError(
                f"{worker.where} runs esckit {theirs['esckit']} with the files {theirs['files']}",
                expected=_package(),
                hint=_INSTALL,
            )

    def _require_place(self) -> None:
        """Raise if no worker at all has a place; warn if some have none."""
        placed = sum(bool(worker.node) for worker in self._all)
        settings = self._settings
        wanted = f"{settings.cpus:g} CPUs and {settings.gpus:g} GPUs"
        if placed:
            if not self._is_short:
                self._is_short = True
                text = "%d of %d workers have a place; each needs %s, and the cluster has %s"
                log.warning(text, placed, settings.workers, wanted, what_it_has())
            return
        kind = ConfigError if self._ready is None else ClusterError
        raise kind(
            f"no worker has found a place within {settings.wait_s:g} s: each needs {wanted} on one node, and the "
            f"cluster has {what_it_has()}",
            hint="Add nodes, wait longer with executor.wait_s, or change executor.cpus and executor.gpus",
        )

    async def _begin(self, worker: _Worker) -> None:
        """Load the models of a worker and let it play.

        Raises:
            EsckitError: If it cannot, or would play something else than the others.
        """
        ready: Ready = self._read(await worker.actor.begin.remote(self._order), worker)
        if self._ready is None:
            self._ready, self._facts = ready, ready.facts
        elif ready.inputs != self._ready.inputs:
            raise ConfigError(
                f"{worker.where} has other prompts or models than the first worker",
                expected="the same files on all machines",
                hint="Keep them in a file system that all machines share, or name executor.runtime_env.working_dir",
            )
        async with self._changed:
            self._workers.append(worker)
            self._changed.notify_all()

    async def _is_alive(self, node: str) -> bool:
        """Return whether a node is still part of the cluster."""
        import ray

        nodes = await asyncio.to_thread(ray.nodes)
        return any(one["Alive"] for one in nodes if one["NodeID"] == node)

    # ------------------------------------------------------------ budget

    async def _lend(self, worker: _Worker) -> None:
        """Lend calls to a worker whenever it has none left; never returns.

        Raises:
            BudgetError: If the budget is used up.
        """
        while True:
            n_waiting = self._read(await worker.actor.wants_calls.remote(), worker)
            async with self._lending:
                if self._budget.n_left == 0:
                    await self._recall(worker)
                n = self._budget.lend(self._block(n_waiting))
                worker.n_lent += n
            await worker.actor.lend.remote(n)

    def _block(self, n_waiting: int) -> int:
        """Return how many calls to lend: less and less towards the end of the budget, which others want too."""
        limits, left = self._budget.limits, self._budget.n_left
        is_watched = limits.max_tokens is not None or limits.max_cost is not None
        wanted = max(n_waiting, BLOCK_WATCHED if is_watched else BLOCK_CALLS)
        return wanted if left is None else max(1, min(wanted, left // (2 * self._settings.workers)))

    async def _recall(self, wanting: _Worker) -> None:
        """Take back the calls that other workers have not made."""
        import ray

        for worker in [*self._workers]:
            if worker is not wanting and worker.n_lent:
                with suppress(ray.exceptions.RayActorError):
                    n_returned = self._read(await worker.actor.give_back.remote(), worker)
                    self._budget.settle(_calls(0), n_unmade=n_returned)
                    worker.n_lent = max(0, worker.n_lent - n_returned)


def _calls(n: int) -> Spent:
    """Return so many calls of which nothing else is known."""
    return Spent(Account(calls=n), {})


async def _awaited(reference: Any) -> Any:
    return await reference


def _package() -> str:
    ours = this_package()
    return f"esckit {ours['esckit']} with the files {ours['files']}, as here"
