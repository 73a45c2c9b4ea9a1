"""Against a server with every fault: no invented reply, each failure under its kind, and waits within bounds."""

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from esckit.errors import BackendError
from esckit.models.endpoint import EndpointModel
from esckit.models.transport import Timeouts
from esckit.types import Message, NextToken, Reply, Sampling
from tests.models.endpoint_calls import KEY, dead_url
from tests.shell import esckit
from tests.torture.hostile import FAULTS, Act, Ask, HostileServer, request_id

LIMITS = Timeouts(timeout_s=4.0, concurrency=64, max_retries=3, first_wait_s=0.01, max_wait_s=0.1)
N_MODELS = 4

Outcome = Reply | NextToken | BackendError


class Waits(logging.Handler):
    """Takes note of the waits that are logged, in seconds, and of all that is said."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        if isinstance(record.args, tuple) and "next request in" in record.msg:
            self.seconds.append(float(record.args[-1]))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESC_TEST_KEY", KEY)


@pytest.fixture
def waits():
    logger, handler = logging.getLogger("esckit.models"), Waits()
    logger.addHandler(handler)
    before, logger.level = logger.level, logging.INFO
    yield handler
    logger.level = before
    logger.removeHandler(handler)


async def outcomes(server: HostileServer, n: int, *, listing: bool = False) -> dict[str, Outcome]:
    """Ask a server with different questions; return what came of each."""
    models = [EndpointModel(server.url, "m", api_key_env="ESC_TEST_KEY", timeouts=LIMITS) for _ in range(N_MODELS)]
    for model in models:
        await model.check()
    found: dict[str, Outcome] = {}
    questions = iter(range(n))

    async def worker(model: EndpointModel) -> None:
        for number in questions:
            messages = [Message("user", f"Question {number}")]
            name = request_id([{"role": "user", "content": f"Question {number}"}], 0 if listing else number)
            try:
                if listing:
                    found[name] = await model.next_token(messages, ("A", "B"))
                else:
                    found[name] = await model.complete(messages, Sampling(max_tokens=64), seed=number)
            except BackendError as error:
                found[name] = error

    await asyncio.gather(*(worker(model) for model in models for _ in range(16)))
    for model in models:
        await model.aclose()
    return found


def faults_of(name: str, acts: list[Act], outcome: Outcome) -> list[str]:
    """Say where an outcome does not follow from what the server played."""
    last, wrong = acts[-1], []
    if any(not act.again for act in acts[:-1]):
        wrong.append("asked again where that cannot help")
    if isinstance(outcome, BackendError):
        if outcome.kind != last.kind:
            wrong.append(f"counted as {outcome.kind}")
        if last.again and (len(acts), outcome.attempts) != (LIMITS.max_retries + 1,) * 2:
            wrong.append(f"given up after {len(acts)} requests, {outcome.attempts} of them counted")
        text = f"{outcome} {outcome.samples}"
    else:
        if last.kind is not None:
            wrong.append("an answer where there was none")
        text = outcome.text if isinstance(outcome, Reply) else ""
        if isinstance(outcome, Reply) and text != last.says(Ask(name, said_by(acts, outcome), KEY)):
            wrong.append(f"the answer {text[:60]!r}")
        outcome.usage.model_dump_json()
    if KEY.lower() in text.lower():
        wrong.append("the key")
    text.encode()
    return [f"{[act.name for act in acts]}: {fault}" for fault in wrong]


def said_by(acts: list[Act], outcome: Reply) -> str:
    """An echo is right if it is the question, whose number is checked by the id of the request."""
    return outcome.text if acts[-1].name == "an echo of the prompt" else ""


def asked(share: float, n: int, waits: Waits, *, seed: int = 1, listing: bool = False) -> Counter[str]:
    """Ask a server, check all that came of it, and return how many failures there are by kind."""
    with HostileServer(share, seed).running() as server:
        found = asyncio.run(outcomes(server, n, listing=listing))
    assert set(found) == set(server.played)
    assert [one for name in found for one in faults_of(name, server.played[name], found[name])] == []
    assert server.seen == []
    assert all(0.0 <= wait_s <= LIMITS.max_wait_s for wait_s in waits.seconds)
    assert not any(KEY in said for said in waits.said)
    kinds = Counter(one.kind for one in found.values() if isinstance(one, BackendError))
    assert kinds == Counter(acts[-1].kind for acts in server.played.values() if acts[-1].kind)
    n_again = sum(len(acts) - 1 for acts in server.played.values())
    assert len(waits.seconds) == n_again
    return kinds


def test_each_fault_ends_as_its_line_of_the_table_says(waits: Waits) -> None:
    """Every fault once, so that none is missed by chance; it comes again for every retry. Stalls take too long."""
    quick = [fault for fault in FAULTS if "stall" not in fault.steps(Ask("0", "", KEY))]
    with HostileServer(1.0, chosen=lambda ask: quick[int(ask.said.split()[-1])]).running() as server:
        found = asyncio.run(outcomes(server, len(quick)))
    assert len(found) == len(quick)
    assert [one for name in found for one in faults_of(name, server.played[name], found[name])] == []
    assert not any(KEY in said for said in waits.said)


def test_with_a_third_of_faults_nothing_is_invented(waits: Waits) -> None:
    assert len(asked(0.3, 400, waits)) >= 8


def test_odd_log_probabilities_are_failures_or_numbers(waits: Waits) -> None:
    assert set(asked(0.8, 200, waits, listing=True)) == {"not_finite", "no_log_probs"}


def of_simulate(out: Path, server_url: str, *sets: str, more: str = "") -> tuple[int, str, list[str]]:
    """Run ``simulate`` with a server as its supporter; return exit code, errors, and the files it left."""
    binding = f"{{endpoint: {{base_url: '{server_url}'}}, model: m{more}}}"
    changes = [f"--set={one}" for one in ("data.limit=2", f"models.supporter={binding}", *sets)]
    done = esckit("simulate", "smoke/simulate_scripted", f"--out={out}", *changes)
    return done.returncode, done.stderr, sorted(path.name for path in out.iterdir()) if out.exists() else []


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Without long waits, and without answers that no supporter of the recipe would be recorded with.
ODD = ("an echo of the prompt", "the key in the text")
BRIEF = [one for one in FAULTS if "retry after" not in one.name and "stall" not in one.steps(Ask("0", "", ""))]
BRIEF = [one for one in BRIEF if one.name not in ODD]


def replied(ask: Ask) -> str:
    return f"<think>why</think> <response>{ask.text}</response>"


@pytest.mark.slow
def test_a_run_records_what_the_server_said_and_each_failure(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with HostileServer(0.3, 3, faults=BRIEF, good=replied).running() as server:
        code, err, _ = of_simulate(out, server.url, "max_failure_rate=1.0")
        assert code == 0, err
        n_asked = len(server.played)
        code, err, _ = of_simulate(out, server.url, "max_failure_rate=0.0")
        assert (code, "max_failure_rate" in err) == (3, True)
    assert len(server.played) == n_asked  # failed units are not played again unasked
    said = {Ask(name, "", "").text for name, acts in server.played.items() if acts[-1].kind is None}
    futures = lines(out / "futures.jsonl")
    assert {one["supporter"]["response"] for future in futures for one in future["exchanges"]} <= said
    failed = Counter(one["kind"] for one in lines(out / "failures.jsonl"))
    assert failed
    assert failed == Counter(acts[-1].kind for acts in server.played.values() if acts[-1].kind)
    assert failed.total() == sum(future["failure"] is not None for future in futures)


DEAD = {act.name: act for act in FAULTS if act.name in ("503", "a reset before the answer")}


@pytest.mark.parametrize("way", ["refused", *DEAD])
def test_a_dead_server_ends_the_command_without_data(tmp_path: Path, way: str) -> None:
    with HostileServer(1.0, chosen=lambda ask: DEAD[way], is_dead=True).running() as server:
        code, err, files = of_simulate(tmp_path / "run", dead_url() if way == "refused" else server.url)
    assert code == 2
    assert err.splitlines()[-2 if way in ("refused", "a reset before the answer") else -1].startswith("error: ")
    assert "waiting" not in err  # which would take half a minute
    assert files == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_requests_with_a_third_of_faults(waits: Waits, seed: int, record_property) -> None:
    kinds = asked(0.3, 10_000, waits, seed=seed)
    assert kinds.total() > 900
    record_property("failures", dict(kinds.most_common()))
    record_property("retries", len(waits.seconds))
