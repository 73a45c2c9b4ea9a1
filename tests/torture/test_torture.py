"""SIGKILL at fault points and at random moments; the same command until done; the same files as without."""

import json
import logging
import os
from collections import Counter
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.torture.commands import ALL, EVALUATE, FLOW, PREDICT, REWARD, RUN, SEARCH, SIMULATE, World
from tests.torture.lives import Command, Kill, complaints, drawn, live
from tests.torture.paid import PaidServer

SHORT = {
    "half-line": (SIMULATE, [Kill("half-line", 5), Kill("line", 9)]),
    "line": (SEARCH, [Kill("line", 4)]),
    "random": (SEARCH, [Kill(after_s=0.5)]),
    "flushed": (PREDICT, [Kill("flushed", 3)]),
    "renamed": (EVALUATE, [Kill("renamed", 7)]),
    "moved-away": (REWARD, [Kill("moved-away", 1)]),
    "state": (FLOW, [Kill("state", 1)]),
    "ended": (RUN._replace(words=(*RUN.words, "--until", "told"), name="run-one"), [Kill("ended", 1)]),
}
log = logging.getLogger(__name__)

N_KILLS = int(os.environ.get("ESCKIT_TORTURE_KILLS", "200"))
SEED = int(os.environ.get("ESCKIT_TORTURE_SEED", "18"))
MOST_FAILED = 10
"""Lives that may end in another way than killed or done before no more are begun."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", SHORT)
def test_a_killed_command_ends_as_an_unbroken_one(name: str, world: World) -> None:
    command, kills = SHORT[name]
    whole = world.whole(command)
    life = live(command, world.home(name, command), kills)
    assert complaints(command, life, whole) == []
    assert [kill for kill in life.kills if kill.point] == [kill for kill in kills if kill.point]


@pytest.mark.parametrize("is_cached", [False, True])
def test_paid_calls_are_repeated_at_most_those_in_flight(is_cached: bool, world: World, tmp_path: Path) -> None:
    with PaidServer().running() as server:
        command = Command("paid", (*SIMULATE.words, "--set", "data.limit=1", *server.words()), (), SIMULATE.records)
        whole = live(command, world.home(f"paid-{is_cached}", command), [])
        n_needed = len(server.paid())
        assert spent(whole.out) == n_needed > 0
        most_of_a_future = max(unit["calls"] for unit in rows(whole.out / "metrics.jsonl"))
        server.forget()
        kills = [Kill("line", 4), Kill("line", 2)]
        if is_cached:
            kills = [Kill("asked", 7), Kill("kept", 9)]
            command = command._replace(words=(*command.words, "--set", f"cache={tmp_path}/answers.db"))
        life = live(command, world.home(f"paid-{is_cached}-killed", command), kills)
        assert life.kills == kills
        assert [wrong for wrong in complaints(command, life, whole.out) if "manifest" not in wrong] == []
        n_paid = len(server.paid())
        # With the cache, only calls that no answer had come to are made again; without it, all of two futures.
        repeated_at_most = len(kills) * (server.most_at_once if is_cached else 2 * most_of_a_future)
        assert n_needed < n_paid <= n_needed + repeated_at_most
        # A call counts as soon as it is made: those that a kill stopped on their way may not have come to the server.
        assert n_paid <= spent(life.out) <= n_paid + len(kills) * server.most_at_once


def spent(out: Path) -> int:
    return int(json.loads((out / "manifest.json").read_text(encoding="utf-8"))["spent"]["calls"])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_kills_at_drawn_moments(world: World) -> None:
    """Set ``ESCKIT_TORTURE_KILLS`` and ``ESCKIT_TORTURE_SEED`` for another number or other moments."""
    random, n_kills, struck, wrong, n_failed = Random(SEED), 0, Counter[str](), list[str](), 0
    for number in count():
        if n_kills >= N_KILLS or n_failed == MOST_FAILED:
            break
        command = [*ALL.values()][number % len(ALL)]
        whole = world.whole(command)
        planned = [drawn(command, random, world.seconds(command)) for _ in range(random.randint(1, 4))]
        try:
            life = live(command, world.home(f"{number}", command), planned)
        except AssertionError as error:
            # The other lives may show more.
            wrong.append(f"{number} {command.name} {planned}: {error}")
            n_failed += 1
            continue
        n_kills += len(life.kills)
        struck.update(f"{command.name} {kill.point or 'random'}" for kill in life.kills)
        found = complaints(command, life, whole)
        wrong += [f"{number} {command.name} {life.kills}: {complaint}" for complaint in found]
        log.info("%d kills: %s %s %s", n_kills, command.name, life.kills, found)
    log.info("%s", dict(sorted(struck.items())))
    assert wrong == []
