"""Which of the processes that train together this is; accelerate and torchrun say so in the environment.

What processes that train together tell each other; nothing heavy is imported for a process that trains alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from esckit.errors import EsckitError


@dataclass(frozen=True, slots=True)
class Process:
    """One of the processes of a run.

    Attributes:
        rank: 0 in the main process, which alone writes.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0


def this_process() -> Process:
    """Return which process this is; the only one where no launcher says otherwise."""
    return Process(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def ending_group() -> Iterator[None]:
    """End the process group that a training opened, however it ends.

    A group that is left open aborts the process when Python ends, so that the launcher reports a failure.
    """
    try:
        yield
    finally:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


T = TypeVar("T")


def gathered(values: Sequence[T]) -> list[list[T]]:
    """Return the values of every process, by rank; they must be picklable. Called in all processes."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return [list(values)]
    shares: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shares, list(values))
    return shares


def together(compute: Callable[[], T]) -> T:
    """Compute something, and fail in all processes if one of them fails: one that is left alone would wait for ever.

    Raises:
        EsckitError: This process's own, else the first one by rank.
    """
    result, failure = None, None
    try:
        result = compute()
    except EsckitError as error:
        failure = error
    failures = [found for share in gathered([failure]) for found in share if found is not None]
    if failures:
        raise failure or failures[0]
    return cast(T, result)
