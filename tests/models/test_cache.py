"""The response cache: what is kept, what is asked again, several users of one file, and files that are none."""

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from esckit.errors import BackendError, BudgetError, DataError, OutageError, StorageError
from esckit.models.budget import Budget, BudgetedModel, counted
from esckit.models.cache import CachedModel, CacheFile, ResponseCache, Row, Shelf, key_of
from esckit.types import Limits, Message, Prices, Reply, Sampling
from tests.fakes import FakeModel

HELLO = [Message("user", "hello")]
PRICES = Prices(prompt=1.0, completion=2.0)


@dataclass
class Cached:
    """A cached model over a fake one, with its budget."""

    path: Path
    inner: FakeModel = field(default_factory=lambda: FakeModel(answer=lambda messages, seed: f"reply {seed}"))
    limits: Limits = field(default_factory=Limits)
    name: str = "server/m"

    def __post_init__(self) -> None:
        self.budget = Budget(self.limits)

    def play(self, *calls, checked: bool = True):
        """Return what the calls give, each a function of the model, all asked at once."""

        async def run():
            cache = ResponseCache(self.path, busy_s=0.2)
            try:
                shelf = Shelf(cache, self.name, self.inner)
                model = CachedModel(
                    BudgetedModel(self.inner, self.budget, "critic", PRICES), shelf, self.budget, "critic", PRICES
                )
                if checked:
                    await model.check()
                return await asyncio.gather(*(call(model) for call in calls), return_exceptions=True)
            finally:
                cache.close()

        return asyncio.run(run())


def complete(seed: int = 0, text: str = "hello", **sampling):
    return lambda model: model.complete([Message("user", text)], Sampling(**sampling), seed=seed)


def test_an_answer_is_paid_once_and_equal_ever_after(tmp_path: Path) -> None:
    calls = (
        complete(),
        lambda model: model.score(HELLO, ["a", "b c"]),
        lambda model: model.next_token(HELLO, ["a", "b"]),
    )
    first, second = Cached(tmp_path / "c.db"), Cached(tmp_path / "c.db")
    paid, kept = first.play(*calls), second.play(*calls)
    assert kept == paid
    assert len(first.inner.asked) == 3
    assert second.inner.asked == []
    assert first.budget.spent()["calls"] == 3
    spent = second.budget.spent()
    assert (spent["calls"], spent["from_cache"], spent["prompt_tokens"], spent["cost"]) == (0, 3, 0, 0.0)
    assert spent["roles"]["critic"]["from_cache"] == 3


@pytest.mark.parametrize(
    ("again", "n"),
    [
        (complete(), 1),
        (complete(seed=1), 2),
        (complete(text="hello "), 2),
        (complete(temperature=0.5), 2),
        (complete(max_tokens=5), 2),
        (lambda model: model.next_token(HELLO, ["a"]), 2),
    ],
)
def test_a_question_is_the_same_only_if_all_of_it_is(again, n: int, tmp_path: Path) -> None:
    cached = Cached(tmp_path / "c.db")
    cached.play(complete())
    cached.play(again)
    assert len(cached.inner.asked) == n


def test_models_of_other_names_do_not_share_answers(tmp_path: Path) -> None:
    one, other = Cached(tmp_path / "c.db"), Cached(tmp_path / "c.db", name="server/other")
    one.play(complete())
    other.play(complete())
    assert len(other.inner.asked) == 1


class Failing(FakeModel):
    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        await super().complete(messages, sampling, seed=seed)
        if len(self.asked) == 1:
            raise BackendError("sk-secret was refused", kind="rate_limit")
        return await super().complete(messages, sampling, seed=seed)


def test_a_failure_is_not_kept_and_its_text_is_nowhere(tmp_path: Path) -> None:
    cached = Cached(tmp_path / "c.db", Failing())
    assert isinstance(cached.play(complete())[0], BackendError)
    assert cached.play(complete())[0].text == "Hello."
    assert not any(b"sk-secret" in file.read_bytes() for file in tmp_path.iterdir())


def test_hits_need_no_budget(tmp_path: Path) -> None:
    Cached(tmp_path / "c.db").play(complete())
    poor = Cached(tmp_path / "c.db", limits=Limits(max_calls=1))
    poor.budget.admit("critic")
    kept, refused = poor.play(complete(), complete(seed=9))
    assert kept.text == "reply 0"
    assert isinstance(refused, BudgetError)


def test_the_same_question_at_the_same_time_is_asked_once(tmp_path: Path) -> None:
    cached = Cached(tmp_path / "c.db")
    replies = cached.play(*[complete()] * 8)
    assert [reply.text for reply in replies] == ["reply 0"] * 8
    assert len(cached.inner.asked) == 1
    assert cached.budget.spent()["from_cache"] == 7


def test_of_two_processes_the_first_answer_stays(tmp_path: Path) -> None:
    path = tmp_path / "c.db"

    class Slow(FakeModel):
        async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
            first = Cached(path, FakeModel(answer=lambda messages, seed: "first"))
            thread = threading.Thread(target=first.play, args=(complete(),))
            thread.start()
            thread.join()
            return await super().complete(messages, sampling, seed=seed)

    assert Cached(path, Slow(answer=lambda messages, seed: "second")).play(complete())[0].text == "first"


def test_a_unit_counts_its_calls_from_the_cache_too(tmp_path: Path) -> None:
    Cached(tmp_path / "c.db").play(complete())

    async def counting(model):
        with counted() as unit:
            await asyncio.gather(complete()(model), complete(seed=1)(model))
        return unit

    (unit,) = Cached(tmp_path / "c.db").play(counting)
    assert (unit.calls, unit.from_cache, unit.prompt_tokens) == (2, 1, 20)
    assert unit.cost == pytest.approx((20 * 1.0 + 4 * 2.0) / 1e6)


class Dead(FakeModel):
    async def check(self) -> None:
        raise BackendError("nobody at server/m", kind="unreachable")


def test_a_run_that_is_cached_whole_needs_no_server(tmp_path: Path) -> None:
    Cached(tmp_path / "c.db").play(complete())
    kept, missing = Cached(tmp_path / "c.db", Dead()).play(complete(), complete(seed=5))
    assert kept.text == "reply 0"
    assert isinstance(missing, OutageError)  # no failure of a unit, and resumable


def test_what_a_server_offers_is_known_from_the_cache(tmp_path: Path) -> None:
    Cached(tmp_path / "c.db").play(complete())

    async def capabilities(model):
        return model.capabilities

    (found,) = Cached(tmp_path / "c.db", FakeModel(capabilities=frozenset())).play(capabilities)
    assert found == {"score", "next_token"}


def test_odd_texts_come_back_as_they_were(tmp_path: Path) -> None:
    odd = "\ud800 \x00 \u2028 你好 \U0001f600"
    inner = FakeModel(answer=lambda messages, seed: odd)
    first = Cached(tmp_path / "c.db", inner).play(complete(text=odd))
    assert Cached(tmp_path / "c.db", FakeModel()).play(complete(text=odd)) == first


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    ResponseCache(path).close()

    def write(start: int) -> None:
        async def keep() -> None:
            cache = ResponseCache(path)
            await asyncio.gather(*(cache.keep(Row(f"k{start + n}", "m", "complete", str(n))) for n in range(200)))
            cache.close()

        asyncio.run(keep())

    threads = [threading.Thread(target=write, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with closing(sqlite3.connect(path)) as found:
        assert found.execute("SELECT count(*) FROM answers").fetchone() == (800,)


def made(path: Path, n: int = 1) -> Path:
    Cached(path).play(*(complete(seed=seed) for seed in range(n)))
    return path


def other_version(path: Path) -> None:
    made(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA user_version = 7")


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE notes (text)")


def damaged(path: Path) -> None:
    made(path, 300)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 4096 * 4)


def raise_first(play) -> None:
    raise next(answer for answer in play() if isinstance(answer, BaseException))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("dear diary " * 200), "is not a response cache"),
        (other_version, "is a response cache of version 7"),
        (other_program, "database of another program"),
        (damaged, "is damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_and_left(make, says: str, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StorageError, match=says) as caught:
        raise_first(lambda: Cached(path).play(*(complete(seed=seed) for seed in range(300))))
    assert caught.value.exit_code == 2
    assert before is None or path.read_bytes() == before or make is damaged


def test_a_place_where_nothing_can_be_written_is_told() -> None:
    with pytest.raises(StorageError, match="cannot"):
        ResponseCache(Path("/proc/esckit/c.db"))


def test_a_lock_that_lasts_is_told(tmp_path: Path) -> None:
    path = made(tmp_path / "c.db")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked by another process"):
        Cached(path).play(complete(seed=3))
    holder.execute("ROLLBACK")
    holder.close()
    assert Cached(path).play(complete(seed=3))[0].text == "reply 3"


def test_info_counts_by_model_and_prune_deletes(tmp_path: Path) -> None:
    path = made(tmp_path / "c.db", 50)
    Cached(path, name="server/other").play(complete())
    with CacheFile(path) as cache:
        facts = cache.facts()
        assert facts["answers"] == 51
        assert facts["models"]["server/m"]["complete"] == 50
        assert cache.faults() == []
        assert cache.prune(older_than_days=1.0)["deleted"] == 0
        assert cache.prune(model="server/other")["left"] == 50  # what the check found is no answer
        half = cache.prune(max_bytes=10_000)
        assert 0 < half["left"] < 40
        assert half["bytes"] < facts["bytes"]
        assert cache.prune(older_than_days=0.0)["left"] == 0


def test_verify_finds_an_answer_that_was_changed(tmp_path: Path) -> None:
    path = made(tmp_path / "c.db", 2)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE answers SET answer = replace(answer, 'reply 0', 'reply X')")
    with CacheFile(path) as cache:
        assert [fault.partition(": ")[2] for fault in cache.faults()] == ["not what was written"]
    assert isinstance(Cached(path).play(complete())[0], StorageError)


def test_looking_at_no_cache_makes_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no response cache"):
        CacheFile(tmp_path / "c.db")
    assert not list(tmp_path.iterdir())


def test_questions_have_the_digests_that_old_files_hold() -> None:
    """A change of this digest makes every cache useless: then VERSION has to change too."""
    question = {"messages": [["user", "hello"]], "sampling": Sampling().model_dump(mode="json"), "seed": 7}
    assert key_of("server/m", "complete", question)[:16] == "8a80652a223526e7"
