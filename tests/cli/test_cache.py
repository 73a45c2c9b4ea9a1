"""The response cache from the shell: a second run asks nobody, and `esckit cache` looks after the file."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import REPLY
from tests.cli.test_servers import at, lines
from tests.models.fake_server import FakeServer, completion, refusal

RECORDS = ("futures.jsonl", "contexts.jsonl", "failures.jsonl", "summary.json")


def spent(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())["spent"]


def varied(server: FakeServer, n: int = 400) -> None:
    """Let every answer differ, so that equal records show that answers were kept."""
    server.queue.clear()
    server.queue.extend(completion(f"<think>a</think> <response>Answer {k}.</response>") for k in range(n))


def test_a_second_run_makes_no_call_and_writes_the_same(simulate, server: FakeServer, tmp_path: Path) -> None:
    cache, first, second = f"cache={tmp_path}/answers.db", tmp_path / "first", tmp_path / "second"
    varied(server)
    assert simulate(first, at(server, ", prices: {prompt: 5, completion: 15}"), cache).code == 0
    n_requests, paid = len(server.requests), spent(first)["roles"]["supporter"]
    assert paid["calls"] == len(server.chats) - 1 > 0  # the check's own question is not booked
    varied(server)
    done = simulate(second, at(server, ", prices: {prompt: 5, completion: 15}"), cache, "budget.max_cost=0.000001")
    assert done.code == 0, done.stderr
    assert len(server.requests) == n_requests
    assert [(first / name).read_bytes() for name in RECORDS] == [(second / name).read_bytes() for name in RECORDS]
    free = spent(second)["roles"]["supporter"]
    assert (free["calls"], free["cost"], free["from_cache"]) == (0, 0.0, paid["calls"])


def test_what_failed_is_asked_again_and_the_rest_is_not(simulate, server: FakeServer, tmp_path: Path) -> None:
    cache = f"cache={tmp_path}/answers.db"
    server.queue.extend([completion(REPLY), completion(REPLY), refusal("odd request")])
    simulate(tmp_path / "first", at(server), cache, "max_failure_rate=1.0", "concurrency.futures=1")
    assert lines(tmp_path / "first/failures.jsonl")
    n_before = len(server.chats)
    assert simulate(tmp_path / "second", at(server), cache, "concurrency.futures=1").code == 0
    assert lines(tmp_path / "second/failures.jsonl") == []
    assert 0 < len(server.chats) - n_before < n_before


def test_a_cache_can_be_added_to_a_run_that_goes_on(simulate, server, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "run"
    assert simulate(out, at(server), "budget.max_calls=20").code == 3
    monkeypatch.setenv("ESCKIT_CACHE", str(tmp_path / "folder/answers.db"))
    assert simulate(out, at(server)).code == 0
    assert (tmp_path / "folder/answers.db").is_file()


def test_scripted_models_leave_no_cache(simulate, tmp_path: Path) -> None:
    assert simulate(tmp_path / "run", "{scripted: supporter}", f"cache={tmp_path}/answers.db").code == 0
    assert not (tmp_path / "answers.db").exists()


def test_a_key_is_nowhere_in_the_file(simulate, server: FakeServer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    binding = f"{{endpoint: {{base_url: '{server.url}', api_key_env: MY_KEY}}, model: m}}"
    assert simulate(tmp_path / "run", binding, f"cache={tmp_path}/answers.db").code == 0
    found = [file.read_bytes() for file in tmp_path.glob("answers.db*")]
    assert found
    assert not any(b"very-secret" in content for content in found)


def test_a_file_that_is_no_cache_ends_a_run_with_2(simulate, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "answers.db").write_text("dear diary " * 100)
    done = simulate(tmp_path / "run", at(server), f"cache={tmp_path}/answers.db")
    assert (done.code, "is not a response cache" in done.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def test_info_prune_and_verify_look_after_a_cache(simulate, esckit, server, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "answers.db"
    assert simulate(tmp_path / "run", at(server), f"cache={file}").code == 0
    monkeypatch.setenv("ESCKIT_CACHE", str(file))

    code, out, _ = esckit("cache", "info", "--json")
    facts = json.loads(out)
    assert (code, facts["answers"]) == (0, spent(tmp_path / "run")["roles"]["supporter"]["calls"])
    (name,) = facts["models"]
    code, shown, _ = esckit("cache", "info")
    assert (code, shown.split("\n\n")[1].split()[:6]) == (
        0,
        ["model", "answers", "replies", "characters", "newest", "oldest"],
    )
    assert esckit("cache", "verify", str(file))[0] == 0
    assert esckit("cache", "prune")[0] == 2
    assert "one of" in esckit("cache", "prune", "--model", "nobody")[2]
    code, out, _ = esckit("cache", "prune", "--model", name, "--json")
    assert (code, json.loads(out)["left"]) == (0, 0)


def test_looking_after_no_cache_ends_with_2(esckit, tmp_path: Path) -> None:
    code, _, err = esckit("cache", "info")
    assert (code, "ESCKIT_CACHE" in err) == (2, True)
    code, _, err = esckit("cache", "verify", str(tmp_path / "none.db"))
    assert (code, "no response cache" in err) == (2, True)


def test_a_damaged_answer_ends_verify_with_1(simulate, esckit, server: FakeServer, tmp_path: Path) -> None:
    file = tmp_path / "answers.db"
    assert simulate(tmp_path / "run", at(server), f"cache={file}").code == 0
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("UPDATE answers SET answer = '{}' WHERE operation = 'complete'")
    code, _, err = esckit("cache", "verify", str(file))
    assert (code, "not what was written" in err) == (1, True)


def test_a_server_without_usage_is_refused_at_its_check(simulate, server: FakeServer, tmp_path: Path) -> None:
    del server.usual.body["usage"]
    done = simulate(tmp_path / "run", at(server), "budget.max_tokens=1000")
    assert (done.code, "budget.max_tokens cannot be watched" in done.stderr) == (3, True)
    assert len(server.chats) == 1
    assert not (tmp_path / "run").exists()


def test_cached_prompt_tokens_are_told_and_cost_less(simulate, server: FakeServer, tmp_path: Path) -> None:
    server.usual.body["usage"]["prompt_tokens_details"] = {"cached_tokens": 4}
    out = tmp_path / "run"
    assert simulate(out, at(server, ", prices: {prompt: 10, completion: 0, cached: 1}")).code == 0
    supporter = spent(out)["roles"]["supporter"]
    assert supporter["cached_prompt_tokens"] == 4 * supporter["calls"]
    assert supporter["cost"] == pytest.approx(supporter["calls"] * (3 * 10 + 4 * 1) / 1e6)
    assert "cached_tokens" not in (out / "futures.jsonl").read_text()
