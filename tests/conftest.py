"""What every test shares: an offline, single-threaded process, and where the real corpora lie."""

import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("COLUMNS", "200")
os.environ.pop("ESCKIT_CACHE", None)

import pytest
from hypothesis import settings

# The same examples in every run: a check that fails by chance helps nobody.
settings.register_profile("esckit", derandomize=True, deadline=None)
settings.load_profile("esckit")

# A run that was started in the background has SIGINT ignored, and so would be whatever it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
ENDINGS = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder with the real corpora; the test is skipped where it is absent."""
    named = os.environ.get("ESCKIT_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real corpora not found: set ESCKIT_DATA (see docs/data.md)")
    return folder


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Undo what a command in this process sets for its logging, and that it ignores signals as it ends."""
    own = logging.getLogger("esckit")
    level = own.level
    _heed_signals()
    yield
    _heed_signals()
    own.setLevel(level)
    for handler in [each for each in logging.root.handlers if type(each).__module__.startswith("esckit.")]:
        logging.root.removeHandler(handler)


def _heed_signals() -> None:
    for ending, handler in ENDINGS.items():
        signal.signal(ending, handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a worker send what a test captured: hostile text holds lone surrogates, which UTF-8 does not know."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
