"""Many trees at once: the same trees whatever is in flight, and errors that stop everything."""

import asyncio

import pytest

from esckit.errors import FailureRateError
from esckit.records import dump_line
from esckit.search.forest import grow_forest
from esckit.search.mcts import Grown
from tests.search.fakes import World, grow


def forest(concurrency: int, numbers=range(20), on_tree=None) -> list[Grown]:
    found: list[Grown] = []

    async def one(number: int) -> Grown:
        return await grow(World(jitter=True), number, n_simulations=12)

    asyncio.run(grow_forest(numbers, one, concurrency=concurrency, on_tree=on_tree or found.append))
    return found


def test_concurrency_changes_the_order_and_nothing_else() -> None:
    lines = [sorted(dump_line(one.tree) for one in forest(concurrency)) for concurrency in (1, 64)]
    assert lines[0] == lines[1]
    assert len(set(lines[0])) == 20


def test_no_more_than_the_bound_are_in_flight_and_tasks_are_taken_lazily() -> None:
    running, peak, taken = 0, 0, []

    async def one(number: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    def tasks():
        for number in range(10):
            taken.append(number)
            yield number

    found: list[int] = []
    asyncio.run(grow_forest(tasks(), one, concurrency=3, on_tree=found.append))
    assert (peak, sorted(found), taken) == (3, list(range(10)), list(range(10)))


def test_an_error_of_the_taker_stops_the_forest() -> None:
    seen: list[Grown] = []

    def refuse(one: Grown) -> None:
        seen.append(one)
        if len(seen) == 2:
            raise FailureRateError("too many failures")

    with pytest.raises(FailureRateError):
        forest(4, on_tree=refuse)
    assert len(seen) == 2
