"""Sequences whose items are not in memory: they are computed, or read from a file, when they are asked for."""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, overload

from esckit.storage import storage_error

T = TypeVar("T")

_IN_MEMORY = 16
"""How many items of a sequence on disk are in memory as well, so that small ones are not read at all."""


class Computed(Sequence[T]):
    """A sequence that computes each item when it is asked for.

    Args:
        length: Number of items.
        item: Returns the item of a place from 0.
    """

    def __init__(self, length: int, item: Callable[[int], T]) -> None:
        self._length, self._item = length, item

    def __len__(self) -> int:
        """Return the number of items."""
        return self._length

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[T, ...]: ...
    def __getitem__(self, at: int | slice) -> T | tuple[T, ...]:
        """Return an item, or several."""
        places = range(self._length)[at]
        return self._item(places) if isinstance(places, int) else tuple(map(self._item, places))

    def __iter__(self) -> Iterator[T]:
        """Return the items, one after the other."""
        return map(self._item, range(self._length))


class OnDisk(Computed[T]):
    """Items in a file without a name in the folder for temporary files; the first few stay in memory.

    An item is written once and read whenever it is asked for, the one asked for last excepted. The file goes with the
    sequence, or with the process.

    Args:
        items: They must bear pickling. All are taken at once.

    Raises:
        StorageError: If the disk is full.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._first: list[T] = []
        self._ends, self._last = array("q", [0]), -1
        fd, path = tempfile.mkstemp(prefix="esckit-")
        os.unlink(path)
        self._fd, _ = fd, weakref.finalize(self, os.close, fd)
        for item in items:
            if len(self._first) < _IN_MEMORY:
                self._first.append(item)
            else:
                self._append(pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL))
        super().__init__(len(self._first) + len(self._ends) - 1, self._read)

    def _append(self, data: bytes) -> None:
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self._ends[-1] + written)
        except OSError as error:
            raise storage_error(error, Path(tempfile.gettempdir())) from error
        self._ends.append(self._ends[-1] + len(data))

    def _read(self, at: int) -> T:
        if at < len(self._first):
            return self._first[at]
        number = at - len(self._first)
        if number != self._last:
            start, end = self._ends[number : number + 2]
            self._last_item: T = pickle.loads(os.pread(self._fd, end - start, start))
            self._last = number
        return self._last_item
