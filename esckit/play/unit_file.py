"""The file of a run folder in which every unit has one record, and what the runner remembers of it.

A unit is known by its number, which is its place in the order of the file. Of finished units only the places of their
lines are in memory, and whether they failed: some 20 bytes each, however long the records are. Whoever wants the
records reads the file again, one after the other.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from esckit.records import Line, dump_line, quick_id, read_lines, read_records, record_of, write_lines
from esckit.types import Record

U = TypeVar("U")
R = TypeVar("R", bound=Record)

id_of = attrgetter("id")

_NOWHERE = -1


class Numbers:
    """Finds units by id in 12 bytes a unit, by the sorted hashes of the ids.

    Args:
        ids: Id of each unit; computed ones have to be cheap.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids
        hashes = array("q", map(hash, ids))
        self._order = array("I", sorted(range(len(hashes)), key=hashes.__getitem__))
        self._hashes = array("q", map(hashes.__getitem__, self._order))
        self._are_unique = len(set(hashes)) == len(hashes)

    def of(self, name: str, guess: int = 0) -> list[int]:
        """Return the numbers of the units with an id, ascending; nearly always one, none for a foreign id.

        Args:
            name: The id.
            guess: The number that it probably has, which is looked at first.
        """
        if self._are_unique and guess < len(self._ids) and self._ids[guess] == name:
            return [guess]
        wanted, found = hash(name), []
        for at in range(bisect_left(self._hashes, wanted), len(self._order)):
            if self._hashes[at] != wanted:
                break
            if self._ids[self._order[at]] == name:
                found.append(self._order[at])
        return found


@dataclass(slots=True)
class UnitFile(Generic[U, R]):
    """A file of the run folder with one record for each unit.

    Attributes:
        name: The file, relative to the run folder.
        kind: Class of its records, which have an ``id``.
        ids: Id of each unit, in the order of the file. Of two units with one id both count, and the record of the
            later one stands for both.
        unit: Returns the unit of a number, just before it is played.
        is_failed: Whether a record counts as failed for the failure rate.
        batch: Units that a model reads together; at least so many are in flight.
        is_retried: Whether a record that is there is played again. None keeps all.
        may_fail: Whether a line must be read to know if its record is failed or retried. False only where the bytes
            that :func:`~esckit.records.dump_line` wrote show that it is neither.
        beside: Files of the records that come with a unit's own, by class.
        timed_as: What a unit is called in ``metrics.jsonl``, where its seconds stand; without it there are none.
        timed_in: What else stands beside the seconds.
        asks_models: Whether playing a unit costs a call to a model. Units that cost none are played to the end
            whatever the failure rate.
        missing: Numbers of the units to play, after :meth:`read`.
    """

    name: str
    kind: type[R]
    ids: Sequence[str]
    unit: Callable[[int], U]
    is_failed: Callable[[R], bool]
    batch: int = 1
    is_retried: Callable[[R], bool] | None = None
    may_fail: Callable[[bytes], bool] = lambda raw: True
    beside: Mapping[type[Record], str] = field(default_factory=dict)
    timed_as: str = ""
    timed_in: Mapping[str, str] = field(default_factory=dict)
    asks_models: bool = True
    missing: Sequence[int] = field(init=False, default=())
    _path: Path = field(init=False)
    _numbers: Numbers = field(init=False)
    _places: array[int] = field(init=False)
    _failed: bytearray = field(init=False)
    _retried: bytearray = field(init=False)

    def read(self, folder: Path) -> None:
        """Look up which units have a record; an unfinished last line is none."""
        self._path = folder / self.name
        self._numbers = Numbers(self.ids)
        self._look_up()
        self.missing = array("L", (n for n, place in enumerate(self._places) if place == _NOWHERE or self._retried[n]))

    def _look_up(self) -> bool:
        """Find the line of each unit, the last if there are several.

        Returns:
            Whether the file holds nothing else, in the order of the units, and as this version writes it.
        """
        self._places = array("q", [_NOWHERE]) * len(self.ids)
        self._failed, self._retried = bytearray(len(self.ids)), bytearray(len(self.ids))
        in_order, previous, end = True, -1, 0
        for line in self._lines():
            name = quick_id(self.kind, line.raw)
            read = record_of(self.kind, line, self._path) if name is None or self.may_fail(line.raw) else None
            numbers = self._numbers.of(id_of(read) if name is None else name, guess=previous + 1)
            is_ours = name is not None and not line.raw.endswith(b"\r\n")
            in_order &= is_ours and len(numbers) == 1 and numbers[0] > previous and line.offset == end
            end = line.offset + len(line.raw)
            for previous in numbers:
                self._places[previous] = line.offset
                self._failed[previous] = read is not None and self.is_failed(read)
                self._retried[previous] = read is not None and self.is_retried is not None and self.is_retried(read)
        return in_order and end == (self._path.stat().st_size if self._path.is_file() else 0)

    def _lines(self) -> Iterator[Line]:
        yield from read_lines(self._path, allow_cut=True) if self._path.is_file() else ()

    def finished(self) -> Iterator[bool]:
        """Yield for each unit that is not to be played whether it failed."""
        for place, failed, retried in zip(self._places, self._failed, self._retried, strict=True):
            if place != _NOWHERE and not retried:
                yield bool(failed)

    def note(self, record: R, place: int) -> None:
        """Take note of a unit's record, which was written at a place of the file."""
        for number in self._numbers.of(id_of(record)):
            self._places[number] = place

    def settle(self) -> None:
        """Sort the file by its units. A line is copied as it is, unless another program wrote it."""
        if self._look_up():
            return
        with self._path.open("rb") as source:
            write_lines(self._path, (self._line(source, place) for place in self._places if place != _NOWHERE))
        self._look_up()

    def _line(self, source: BinaryIO, place: int) -> bytes:
        source.seek(place)
        raw = source.readline()
        if quick_id(self.kind, raw) is not None and not raw.endswith(b"\r\n"):
            return raw
        record = record_of(self.kind, Line(place, 1 if place == 0 else 0, raw), self._path)
        return f"{dump_line(record)}\n".encode()

    @property
    def n_found(self) -> int:
        """How many units have a record."""
        return len(self._places) - self._places.count(_NOWHERE)

    def records(self, where: Callable[[bytes], bool] | None = None) -> Iterator[R]:
        """Yield the records, one after the other; in the order of the units once the file is settled.

        Args:
            where: Which lines are wanted, by their bytes. Lines that another program wrote all are.
        """
        for line in self._lines():
            if where is None or where(line.raw) or quick_id(self.kind, line.raw) is None:
                yield record_of(self.kind, line, self._path)

    def record(self, name: str) -> R | None:
        """Return the record of a unit, None if there is none yet."""
        place = max((self._places[number] for number in self._numbers.of(name)), default=_NOWHERE)
        if place == _NOWHERE:
            return None
        with self._path.open("rb") as source:
            source.seek(place)
            return record_of(self.kind, Line(place, 1 if place == 0 else 0, source.readline()), self._path)

    def found(self) -> Iterator[str]:
        """Yield the ids of the units that have a record."""
        return (name for name, place in zip(self.ids, self._places, strict=True) if place != _NOWHERE)

    @property
    def done(self) -> Mapping[str, R]:
        """The records that are on disk by id, each read when it is asked for."""
        return _Done(self)


class _Done(Mapping[str, R]):
    """The records of a file by id, read from the disk."""

    def __init__(self, file: UnitFile[Any, R]) -> None:
        self._file = file

    def __getitem__(self, name: str) -> R:
        """Return the record of a unit.

        Raises:
            KeyError: If there is none.
        """
        record = self._file.record(name)
        if record is None:
            raise KeyError(name)
        return record

    def __iter__(self) -> Iterator[str]:
        """Return the ids of the units that have a record."""
        return iter(self._file.found())

    def __len__(self) -> int:
        """Return how many units have a record."""
        return self._file.n_found


def latest(path: Path, kind: type[R]) -> dict[str, R]:
    """Return the records of a file by id; of a unit that was played again its latest, of a missing file none."""
    if not path.is_file():
        return {}
    return {id_of(record): record for record in read_records(kind, path, allow_cut=True)}
