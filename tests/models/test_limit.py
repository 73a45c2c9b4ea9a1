"""How many requests are in flight: more while a server keeps up, fewer once it refuses, never above the bound."""

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from esckit.models.limit import AdaptiveLimit


class Answer(NamedTuple):
    is_refused: bool = False
    seconds: float = 0.05
    kind: int = 16


Serve = Callable[[int], Answer]
"""Returns what becomes of a request, given how many were in flight when it was sent."""


def play(most: int, n_requests: int, serve: Serve) -> tuple[AdaptiveLimit, int]:
    """Have all requests made, refused ones again, and return the limit and the most that were in flight."""
    limit, at_once, highest = AdaptiveLimit(most), 0, 0

    async def request() -> None:
        nonlocal at_once, highest
        async with limit:
            while True:
                n_halvings = limit.n_halvings
                at_once += 1
                highest = max(highest, at_once)
                answer = serve(at_once)
                await asyncio.sleep(0)
                at_once -= 1
                limit.note(answer.kind, answer.seconds, n_halvings=n_halvings, is_refused=answer.is_refused)
                if not answer.is_refused:
                    return
                await asyncio.sleep(0)

    async def all_requests() -> None:
        await asyncio.gather(*(request() for _ in range(n_requests)))

    asyncio.run(all_requests())
    return limit, highest


def test_a_healthy_server_gets_all_within_a_few_answers() -> None:
    limit, highest = play(256, 1000, lambda n: Answer())
    assert limit.facts() == {"start": 32, "lowest": 32, "highest": 256, "last": 256, "halvings": 0}
    assert highest == 256


@pytest.mark.parametrize("most", [1, 3, 32])
def test_a_low_bound_is_there_from_the_start(most: int) -> None:
    limit, highest = play(most, 100, lambda n: Answer())
    assert highest == most
    assert limit.facts() == {"start": most, "lowest": most, "highest": most, "last": most, "halvings": 0}


def test_nothing_grows_that_nobody_waits_for() -> None:
    assert play(256, 20, lambda n: Answer())[0].facts()["highest"] == 32


def test_refusals_of_one_wave_are_one_halving() -> None:
    limit = AdaptiveLimit(64)
    for _ in range(64):
        limit.note(16, 0.05, n_halvings=0, is_refused=True)
    assert limit.facts() == {"start": 32, "lowest": 16, "highest": 32, "last": 16, "halvings": 1}


def test_a_server_that_refuses_everything_is_asked_one_by_one() -> None:
    limit = AdaptiveLimit(32)
    for _ in range(32 * 6):
        limit.note(16, 0.05, n_halvings=limit.n_halvings, is_refused=True)
    assert limit.facts()["last"] == 1


def test_a_server_of_limited_room_is_kept_busy_within_it() -> None:
    n_refused = 0

    def serve(at_once: int) -> Answer:
        nonlocal n_refused
        n_refused += at_once > 24
        return Answer(at_once > 24)

    limit, _ = play(256, 4000, serve)
    facts = limit.facts()
    assert 6 <= facts["lowest"] <= facts["last"] <= 32
    assert n_refused < 600


def test_single_refusals_whatever_the_load_do_not_end_in_a_queue() -> None:
    draw = random.Random(0)
    limit, _ = play(128, 10_000, lambda n: Answer(draw.random() < 0.1))
    assert limit.facts()["last"] > 64


def test_a_server_that_recovers_gets_all_again() -> None:
    n_seen = 0

    def serve(at_once: int) -> Answer:
        nonlocal n_seen
        n_seen += 1
        return Answer(200 < n_seen < 500)

    limit, _ = play(64, 5000, serve)
    facts = limit.facts()
    assert facts["lowest"] <= 8
    assert facts["last"] == 64


def test_a_queue_at_the_server_ends_the_growth() -> None:
    # Half of the requests are sent before the queue has its full length.
    limit, _ = play(1024, 20_000, lambda n: Answer(seconds=0.05 * max(1.0, n / 32)))
    assert 40 < limit.facts()["highest"] <= 256
    assert limit.n_halvings == 0


def test_long_answers_are_not_taken_for_slow_ones() -> None:
    numbers = iter(range(100_000))

    def serve(at_once: int) -> Answer:
        is_long = next(numbers) > 40
        return Answer(seconds=5.0 if is_long else 0.1, kind=512 if is_long else 16)

    assert play(256, 2000, serve)[0].facts()["highest"] == 256


def test_a_place_of_a_cancelled_request_is_free_again() -> None:
    async def go() -> int:
        limit = AdaptiveLimit(1)
        order: list[int] = []

        async def request(number: int) -> None:
            async with limit:
                order.append(number)
                await asyncio.sleep(0)
            if number == 0:
                tasks[2].cancel()  # has been given the place and does not know yet

        tasks = [asyncio.create_task(request(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()  # waits for its place
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 3]
        async with limit:
            return 1

    assert asyncio.run(asyncio.wait_for(go(), 10.0)) == 1


def test_who_gives_up_after_being_passed_over_takes_no_place() -> None:
    async def give_up() -> None:
        limit = AdaptiveLimit(1)
        await limit.__aenter__()
        first, second = (asyncio.create_task(limit.__aenter__()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()  # in one turn of the event loop with what frees the place
        await limit.__aexit__()
        assert [type(one) for one in await asyncio.gather(first, return_exceptions=True)] == [asyncio.CancelledError]
        await asyncio.wait_for(second, 5)
        await limit.__aexit__()

    asyncio.run(give_up())
