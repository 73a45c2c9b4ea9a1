"""Runs against servers, from the shell: what a user sees of failures, budgets, outages and odd servers."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from esckit.errors import OutageError
from esckit.roles.verdicts import load_preset
from esckit.types import Message, Reply, Sampling
from tests.cli.conftest import REPLY
from tests.fakes import FakeModel
from tests.models.fake_server import Canned, FakeServer, completion, refusal
from tests.models.test_several import ChoiceServer
from tests.shell import ROOT


@dataclass
class Mortal(FakeModel):
    """A model whose server dies after so many calls."""

    dies_after: int = 1000

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        if len(self.asked) >= self.dies_after:
            raise OutageError("the server has stopped answering")
        return await super().complete(messages, sampling, seed=seed)


mortal = Mortal(answer=lambda messages, seed: REPLY)


def at(server: FakeServer, more: str = "") -> str:
    return f"{{endpoint: {{base_url: '{server.url}'}}, model: m{more}}}"


def in_flight(out: Path) -> dict[str, int]:
    models = json.loads((out / "manifest.json").read_text())["models"]
    *_, found = (facts["in_flight"] for facts in models.values() if "in_flight" in facts)  # the last attempt's
    return found


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_kind_of_fault_is_told_apart_in_files_and_summary(simulate, server: FakeServer, tmp_path: Path) -> None:
    quota = refusal("no credit", status=429, code="insufficient_quota")
    server.queue.extend(
        [
            completion(REPLY),
            refusal("odd request"),
            quota,
            completion("so far", "content_filter"),
            refusal("no", status=403),
        ]
    )

    done = simulate(tmp_path / "run", at(server), "max_failure_rate=1.0", "concurrency.futures=1")

    assert done.code == 0, done.stderr
    failures = lines(tmp_path / "run/failures.jsonl")
    kinds = {"bad_request", "quota", "content_filter", "no_access"}
    assert {failure["kind"] for failure in failures} == kinds
    assert "odd request" in next(one["message"] for one in failures if one["kind"] == "bad_request")
    counted = Counter(f"{failure['stage']}/{failure['kind']}" for failure in failures)
    assert json.loads((tmp_path / "run/summary.json").read_text())["failed"] == counted


def test_the_recipe_bounds_requests_in_flight_and_their_time(simulate, server: FakeServer, tmp_path: Path) -> None:
    out, many = tmp_path / "run", "concurrency.futures=16"
    server.usual.wait_s = 0.02
    assert simulate(out, at(server, ", concurrency: 3"), many).code == 0
    assert server.most_at_once == 3
    first = (out / "futures.jsonl").read_bytes()
    assert simulate(out, at(server, ", concurrency: 4, timeout_s: 7"), many).code == 0  # the same run
    assert (out / "futures.jsonl").read_bytes() == first
    assert in_flight(out) == {"start": 4, "lowest": 4, "highest": 4, "last": 4, "halvings": 0}

    server.usual.wait_s, server.models.wait_s = 1.5, 1.5
    slow = simulate(tmp_path / "slow", at(server, ", timeout_s: 1"), many)
    assert (slow.code, "within 1 s" in slow.stderr) == (2, True)


def test_the_manifest_says_how_many_were_in_flight(simulate, server: FakeServer, tmp_path: Path) -> None:
    server.queue.extend([completion(REPLY), refusal("slow down", status=429, headers={"Retry-After": "0"})])
    done = simulate(tmp_path / "run", at(server))
    assert done.code == 0, done.stderr
    assert in_flight(tmp_path / "run") == {"start": 32, "lowest": 16, "highest": 32, "last": 16, "halvings": 1}


def test_samples_of_a_critic_are_one_request_if_the_recipe_says_so(simulate, tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    with ChoiceServer().running() as server:
        level = load_preset("rlff7").levels[0]
        server.usual, server.says = completion(REPLY), lambda at, seed: f"{level} {at}"
        sets = (f"models.critic={at(server)}", "critic.samples_as=choices")
        for out in runs:
            assert simulate(out, at(server), *sets).code == 0
        other = simulate(runs[0], at(server), sets[0], "critic.samples_as=null")
    assert (other.code, "samples_as" in other.stderr) == (2, True)
    assert (runs[0] / "futures.jsonl").read_bytes() == (runs[1] / "futures.jsonl").read_bytes()
    exchanges = [one for future in lines(runs[0] / "futures.jsonl") for one in future["exchanges"]]
    readings = [one["reading"] for one in exchanges if one["reading"]]
    assert all(reading["n_parsed"] == 10 for reading in readings)
    assert [body.get("n") for body in server.chats].count(10) == 2 * len(readings)
    usage = json.loads((runs[0] / "summary.json").read_text())["usage"]["critic"]
    assert (usage["calls"], usage["prompt_tokens"]) == (len(readings), 7 * len(readings))


def test_samples_as_choices_need_an_endpoint(simulate, server: FakeServer, tmp_path: Path) -> None:
    done = simulate(tmp_path / "run", at(server), "critic.samples_as=choices")
    assert (done.code, "without an endpoint" in done.stderr) == (2, True)


def test_a_single_404_in_the_middle_costs_nothing(simulate, server: FakeServer, tmp_path: Path) -> None:
    server.queue.extend([completion(REPLY), completion(REPLY), refusal("?", status=404, headers={"Retry-After": "0"})])
    done = simulate(tmp_path / "run", at(server))
    assert done.code == 0, done.stderr
    assert lines(tmp_path / "run/failures.jsonl") == []


def test_a_run_resumes_after_its_server_died_without_failures(simulate, tmp_path: Path, monkeypatch) -> None:
    supporter = "{scripted: tests.cli.test_servers:mortal}"
    monkeypatch.setattr(mortal, "dies_after", len(mortal.asked) + 10)
    died = simulate(tmp_path / "run", supporter)

    assert died.code == 3
    assert "has stopped answering" in died.stderr
    assert lines(tmp_path / "run/failures.jsonl") == []
    n_before = len(lines(tmp_path / "run/futures.jsonl"))

    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    assert simulate(tmp_path / "run", supporter).code == 0
    assert len(lines(tmp_path / "run/futures.jsonl")) > n_before
    assert simulate(tmp_path / "unbroken", supporter).code == 0
    assert (tmp_path / "run/futures.jsonl").read_bytes() == (tmp_path / "unbroken/futures.jsonl").read_bytes()


@pytest.mark.parametrize("limit", ["budget.max_tokens=100000", "budget.max_cost=100"])
def test_a_budget_that_cannot_be_watched_is_refused(simulate, server: FakeServer, tmp_path: Path, limit: str) -> None:
    del server.usual.body["usage"]
    prices = ", prices: {prompt: 5, completion: 15}"
    done = simulate(tmp_path / "run", at(server, prices), limit, "concurrency.futures=1")
    assert done.code == 3
    assert f"{limit.partition('=')[0]} cannot be watched" in done.stderr
    assert len(server.chats) <= 2


def test_unknown_tokens_and_cost_are_null_in_both_files(simulate, server: FakeServer, tmp_path: Path) -> None:
    del server.usual.body["usage"]
    done = simulate(tmp_path / "run", at(server))
    assert done.code == 0, done.stderr
    spent = json.loads((tmp_path / "run/manifest.json").read_text())["spent"]
    assert (spent["prompt_tokens"], spent["completion_tokens"], spent["cost"]) == (None, None, None)
    usage = json.loads((tmp_path / "run/summary.json").read_text())["usage"]["supporter"]
    assert usage["prompt_tokens"] is None
    assert usage["unknown_calls"] == usage["calls"] > 0


def test_what_a_server_says_cannot_act_on_the_terminal(simulate, server: FakeServer, tmp_path: Path) -> None:
    server.models = server.usual = Canned({"error": {"message": "\x1b]52;c;ZXZpbA==\x07 \x9b31mred"}}, 400)
    done = simulate(tmp_path / "run", at(server))
    assert done.code == 2
    assert "\\u001b]52" in done.stderr
    assert not set("\x1b\x07\x9b") & set(done.stderr)
