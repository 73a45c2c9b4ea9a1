"""What roles share when they ask a model."""

import asyncio

import pytest

from esckit.errors import BackendError, OutageError
from esckit.roles.asking import gather_all


async def failing(error: Exception) -> None:
    raise error


def test_what_stops_the_run_goes_before_the_failure_of_one_call() -> None:
    async def gather() -> list[None]:
        return await gather_all(failing(BackendError("one call")), failing(OutageError("all")))

    with pytest.raises(OutageError):
        asyncio.run(gather())
