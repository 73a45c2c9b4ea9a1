"""One runner for everything that plays units: futures, trees, cases of an evaluation, predictions.

A unit has a stable id and one record in a file of the run folder. The runner plays the units that have no record yet,
appends each record as soon as it is there, keeps watch over the share of failed units, and sorts the file in the order
of the units when play ends, whatever ends it. The caller defines in a :class:`~esckit.play.unit_file.UnitFile` what a
unit is and what counts as a failure; an :class:`~esckit.protocols.Executor` plays it (:mod:`esckit.play.executor`).
Since a record depends on the seed and the id of its unit only, a finished file has the same bytes for every executor.

Around its work such a run holds its folder, writes down what took part, and books the cost (:func:`playing`). Trainings
have a frame of their own (:mod:`esckit.training.run`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from esckit.config.sections import Binding, Recipe
from esckit.errors import FailureRateError
from esckit.play.executor import Played
from esckit.play.forecast import Staged
from esckit.play.pilot import Pilot, PilotPlayed, estimate, unit_costs
from esckit.play.unit_file import UnitFile, id_of
from esckit.protocols import Executor, Models, Progress
from esckit.roles.pool import checkpoint_ids
from esckit.runs import RunFolder
from esckit.strategies.kept import keep_taxonomy, taxonomy_inputs
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Record

SUMMARY = "summary.json"

BOOK_EVERY_S = 60.0
"""How often the manifest of a run says what it has spent."""

HOPELESS = 0.5
"""A run whose finished units are useful by themselves stops early only above this share of failed units."""

TIMINGS = "metrics.jsonl"

U = TypeVar("U")
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where the results are, and what they look like; the summary is empty in processes that do not write."""

    out: Path
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, as it is known without any model.

    Attributes:
        counts: How much there is to play.
        calls_at_most: Bounds on the calls to models, by role; retries are not included.
        staged: The run as it can be rehearsed for a forecast.
    """

    counts: Mapping[str, int]
    calls_at_most: Mapping[str, int]
    staged: Staged

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        calls = dict(self.calls_at_most)
        return {**self.counts, "calls_at_most": calls, "calls_at_most_in_all": sum(calls.values())}


def played_inputs(inputs: Mapping[str, Any], bindings: Iterable[Binding], taxonomy: Taxonomy | None) -> dict[str, Any]:
    """Return what a run that plays with models is known by beside its recipe; arguments are as for :func:`playing`."""
    checkpoints = checkpoint_ids(bindings)
    return {**inputs, **taxonomy_inputs(taxonomy), **({"checkpoints": checkpoints} if checkpoints else {})}


@asynccontextmanager
async def playing(
    recipe: Recipe,
    out: Path,
    models: Models,
    *,
    bindings: Iterable[Binding],
    inputs: Mapping[str, Any],
    taxonomy: Taxonomy | None,
) -> AsyncIterator[RunFolder]:
    """Hold the folder of a run that plays with models.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        models: The run's models, or the executor that loaded them.
        bindings: Who plays; a run does not go on with another checkpoint under the same name.
        inputs: What else the run is known by beside its recipe.
        taxonomy: What strategies of the run are named in, of which the folder keeps a copy if it is a user's own; None
            if it names none.

    Raises:
        StorageError: If the folder is moved or deleted meanwhile.
    """
    known = played_inputs(inputs, bindings, taxonomy)
    with RunFolder.open(
        out, command=recipe.command, recipe=recipe.resolved(), operational=recipe.OPERATIONAL, inputs=known
    ) as folder:
        keep_taxonomy(taxonomy, folder.path)
        async with booking(folder, models):
            yield folder


@asynccontextmanager
async def booking(folder: RunFolder, models: Models, *, n_processes: int = 1) -> AsyncIterator[None]:
    """Write what the models are and what they cost into the manifest: at the beginning, every minute, at the end.

    Between two minutes it is kept beside the manifest, so that it is known of an attempt that is killed.

    Args:
        folder: The open run folder.
        models: The run's models in this process, or the executor that loaded them.
        n_processes: Processes that share the run; what the others spend is unknown, and so is then the sum.
    """

    def spent() -> dict[str, Any]:
        own = models.spent()
        return own if n_processes == 1 else {**dict.fromkeys(own), "hours": own["hours"]}

    def book() -> None:
        folder.book(spent())

    def describe() -> None:
        facts = models.facts()
        # An attempt loads only what its missing units need.
        known = {**folder.manifest.get("models", {}), **facts.get("models", {})}
        folder.update_manifest(determinism=models.determinism(), **{**facts, "models": known})

    async def book_regularly() -> None:
        while True:
            await asyncio.sleep(BOOK_EVERY_S)
            book()

    # Also at the beginning: if the process is killed after the last unit, the next attempt loads no models.
    describe()
    models.on_spent(lambda: folder.note_spent(spent()))
    booking_task = asyncio.create_task(book_regularly())
    try:
        yield
    finally:
        booking_task.cancel()
        await asyncio.gather(booking_task, return_exceptions=True)
        book()
        describe()


class NoProgress:
    """Shows nothing."""

    def start(self, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, n: int = 1, *, spent: Mapping[str, Any] | None = None, **counts: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class FailureRate:
    """Watches the share of failed units.

    Attributes:
        allowed: Largest allowed share, in [0, 1].
        min_units: Finished units before the share is judged while the run goes on.
        what: Plural noun for messages.
        retry: The recipe's field that has failed units played again.
        failed: What happened to those, for messages.
        hopeless: The run goes on up to this share even where less is allowed, and is judged at its end.
        n: Finished units.
        n_failed: Those that failed.
    """

    allowed: float
    min_units: int
    what: str
    retry: str
    failed: str = "failed"
    hopeless: float = 0.0
    n: int = 0
    n_failed: int = 0

    def count(self, *, failed: bool) -> None:
        """Count a finished unit."""
        self.n += 1
        self.n_failed += failed

    def watch(self) -> None:
        """Raise a :class:`~esckit.errors.FailureRateError` if the share is passed after at least ``min_units``."""
        if self.n >= self.min_units and self.n_failed > self.hopeless * self.n:
            self.judge()

    @property
    def is_passed(self) -> bool:
        """Whether more units failed than is allowed, however few there are."""
        return self.n_failed > self.allowed * self.n

    def judge(self) -> None:
        """Raise a :class:`~esckit.errors.FailureRateError` if the share is passed, however few units there are."""
        if self.is_passed:
            raise FailureRateError(
                f"{self.n_failed} of {self.n} {self.what} {self.failed}",
                expected=f"at most {self.allowed:.1%} (max_failure_rate)",
                hint="What is done is kept; failures.jsonl says why. Fix the cause, then run the same command with "
                f"--set {self.retry}=true, or allow more with --set max_failure_rate=SHARE",
            )


async def play_units(
    files: Sequence[UnitFile[Any, Any]],
    folder: RunFolder,
    executor: Executor | None,
    rate: FailureRate,
    progress: Progress,
    *,
    settled: Callable[[], object],
    pilot: Pilot | None = None,
) -> None:
    """Play what is missing, file after file; every file is sorted at the end, whatever happens.

    Args:
        files: Read already.
        folder: The open run folder; a new attempt begins if anything is missing.
        executor: Plays the units; None if nothing is missing.
        rate: Counts all units. The caller judges it at the end, after writing the results.
        progress: Shows how far the run is.
        settled: Writes what follows from the sorted files.
        pilot: Play a sample of the units only.

    Raises:
        FailureRateError: If so many units failed that playing on is hopeless.
        PilotPlayed: When the pilot is played.
        StorageError: If the folder was moved or deleted, or records are gone from it.
    """
    total = sum(len(file.ids) for file in files)
    for file in files:
        for failed in file.finished():
            rate.count(failed=failed)
    chosen = pilot.choose(files) if pilot is not None else {}
    n_planned = sum(map(len, chosen.values())) if chosen else total
    n_missing = sum(len(file.missing) for file in files)
    if n_missing:
        folder.begin_attempt()
    # Where no model is to be asked any more, going on costs nothing and brings the results.
    if any(file.asks_models and file.missing for file in files):
        rate.watch()
    progress.start(n_planned, n_planned - n_missing)
    began_s = time.perf_counter()
    try:
        for file in files:
            if executor is not None and file.missing:
                await _play_file(file, folder, executor, rate, progress)
    finally:
        progress.close()
        folder.require_present()
        for file in files:
            file.settle()
        settled()
    if chosen:
        pace_s = (time.perf_counter() - began_s) / n_missing if n_missing else None
        raise PilotPlayed(estimate(unit_costs(files, folder.file(TIMINGS), chosen), pace_s))
    folder.require_whole(sum(file.n_found for file in files), total, rate.what)


async def _play_file(
    file: UnitFile[U, R],
    folder: RunFolder,
    executor: Executor,
    rate: FailureRate,
    progress: Progress,
) -> None:
    with ExitStack() as stack:
        names: dict[type[Record], str] = {file.kind: file.name, **file.beside}
        lines = {kind: stack.enter_context(folder.appender(name)) for kind, name in names.items()}
        timings = stack.enter_context(folder.appender(TIMINGS)) if file.timed_as else None

        def take(result: Played) -> None:
            records, seconds, asked = result
            # The unit's own record comes last: once it is there, so are those beside it.
            place = 0
            for record in records:
                place = lines[type(record)].append(record)
            own: Any = records[-1]
            file.note(own, place)
            if timings is not None:
                timings.append({**file.timed_in, file.timed_as: id_of(own), "seconds": round(seconds, 3), **asked})
            rate.count(failed=file.is_failed(own))
            if file.asks_models:
                rate.watch()
            progress.advance(spent=executor.spent(), failed=rate.n_failed)

        await executor.run(file.name, map(file.unit, file.missing), take, batch=file.batch)
