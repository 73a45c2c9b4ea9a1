"""A server that answers as it is told, and a key."""

from collections.abc import Iterator

import pytest

from tests.models.endpoint_calls import KEY
from tests.models.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer().running() as running:
        yield running


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ESC_TEST_KEY", KEY)
    return "ESC_TEST_KEY"
