"""What processes that train together tell each other; nothing heavy is imported for a process that trains alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from esckit.errors import EsckitError

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
