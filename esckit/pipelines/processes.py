"""Which of the processes that train together this is; accelerate and torchrun say so in the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


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
