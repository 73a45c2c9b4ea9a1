"""Questions that wait at the same time are read together."""

from __future__ import annotations

import asyncio
import threading

import pytest

from esckit.errors import BackendError, ModelError
from esckit.models.batches import Batches


class Reader:
    """Doubles numbers; refuses negative ones."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, asked: list[int]) -> list[int | ModelError]:
        self.go_on.wait(30)
        self.batches.append(asked)
        return [2 * number if number >= 0 else BackendError("negative") for number in asked]


def test_what_waits_together_is_one_batch() -> None:
    reader = Reader()

    async def ask() -> list[int]:
        batches: Batches[int, int] = Batches(reader)
        return await asyncio.gather(*map(batches.ask, range(5)))

    assert asyncio.run(ask()) == [0, 2, 4, 6, 8]
    assert reader.batches == [[0, 1, 2, 3, 4]]


def test_what_comes_meanwhile_is_the_next_batch() -> None:
    reader = Reader()
    reader.go_on.clear()

    async def ask() -> list[int]:
        batches: Batches[int, int] = Batches(reader)
        first = asyncio.create_task(batches.ask(1))
        await asyncio.sleep(0.05)
        later = [asyncio.create_task(batches.ask(number)) for number in (2, 3)]
        await asyncio.sleep(0.05)
        reader.go_on.set()
        return await asyncio.gather(first, *later)

    assert asyncio.run(ask()) == [2, 4, 6]
    assert reader.batches == [[1], [2, 3]]


def test_an_error_is_that_of_its_question() -> None:
    async def ask() -> None:
        batches: Batches[int, int] = Batches(Reader())
        good, bad = await asyncio.gather(batches.ask(1), batches.ask(-1), return_exceptions=True)
        assert (good, str(bad)) == (2, "negative")

    asyncio.run(ask())


def test_who_gives_up_takes_nobody_along() -> None:
    reader = Reader()
    reader.go_on.clear()

    async def ask() -> None:
        batches: Batches[int, int] = Batches(reader)
        asked = [asyncio.create_task(batches.ask(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0.05)
        asked[0].cancel()
        await asyncio.sleep(0.05)
        later = asyncio.create_task(batches.ask(4))
        reader.go_on.set()
        assert await asyncio.gather(*asked[1:], later) == [4, 6, 8]
        with pytest.raises(asyncio.CancelledError):
            await asked[0]

    asyncio.run(ask())
    assert reader.batches == [[1, 2, 3], [4]]


def test_a_bug_is_that_of_all_who_wait() -> None:
    def broken(asked: list[int]) -> list[int | ModelError]:
        raise ZeroDivisionError

    async def ask() -> None:
        batches: Batches[int, int] = Batches(broken)
        found = await asyncio.gather(batches.ask(1), batches.ask(2), return_exceptions=True)
        assert [type(one) for one in found] == [ZeroDivisionError, ZeroDivisionError]

    asyncio.run(ask())
