"""Tiny trainings give the numbers that they gave, and leave the files that they left."""

import pytest

from tests.pins import trainings
from tests.pins.pinned import kept_names, pinned, require_same


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trainings.play(tmp_path_factory.mktemp("pins") / "world")


@pytest.mark.parametrize("name", [f"{name}.yaml" for name in trainings.NAMES])
def test_trainings_give_the_numbers_that_they_gave(found: dict[str, str], name: str) -> None:
    wrong = trainings.close(pinned(f"trainings/{name}"), found[name])
    assert not wrong, "\n".join([*wrong[:60], "If this is meant: python -m tests.pins.renew trainings"])


def test_trainings_leave_the_files_that_they_left(found: dict[str, str]) -> None:
    require_same("trainings/files.txt", found["files.txt"])


def test_every_training_is_pinned(found: dict[str, str]) -> None:
    assert sorted(found) == kept_names("trainings")


@pytest.mark.parametrize(
    ("kept", "now", "wrong"),
    [
        ("a: 1.0\n", "a: 1.00005\n", []),
        ("a: 1.0\n", "a: 1.001\n", ["a: 1.0, now 1.001"]),
        ("a: [0.5, 2.0]\n", "a: [0.5, 3.0]\n", ["a: [0.5, 2.0], now [0.5, 3.0]"]),
        ("a: 1\n", "a: 2\n", ["a: 1, now 2"]),
        ("a: 0.5\n", "a: null\n", ["a: 0.5, now null"]),
        ("a: 1\nb: 2\n", "a: 1\nc: 2\n", ["gone: b", "new: c: 2"]),
    ],
)
def test_only_the_last_digits_of_a_number_may_differ(kept: str, now: str, wrong: list[str]) -> None:
    assert trainings.close(kept, now) == wrong
