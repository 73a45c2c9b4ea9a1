"""Many trees at once: a bounded number grows concurrently, and each is handed over as soon as it is finished.

Trees are independent, so their order of completion means nothing; whoever takes them sorts by id. Resuming is the
caller's: it leaves out the tasks that are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def grow_forest(
    tasks: Iterable[T], grow: Callable[[T], Awaitable[R]], *, concurrency: int, on_tree: Callable[[R], None]
) -> None:
    """Grow the trees of all tasks.

    Args:
        tasks: What to grow, taken in order.
        grow: Grows one.
        concurrency: How many may be in flight, at least 1.
        on_tree: Takes each finished tree; what it raises (too many failures, a full disk) stops the forest.

    Raises:
        Exception: The first error of ``grow`` or ``on_tree``; trees in flight are cancelled and leave nothing behind.
    """
    queue = iter(tasks)
    workers = [asyncio.ensure_future(_worker(queue, grow, on_tree)) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _worker(queue: Iterator[T], grow: Callable[[T], Awaitable[R]], on_tree: Callable[[R], None]) -> None:
    for task in queue:
        on_tree(await grow(task))
