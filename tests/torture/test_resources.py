"""A full disk, few open files, little memory, two processes on one folder, and signals: one message, and files whole.

Whatever a machine refuses, the command leaves with a message and an exit code of its own, and the same command
afterwards ends with the files of an unbroken run.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from esckit.runs import hold
from tests.pins.pinned import environment
from tests.shell import forked, play
from tests.torture.commands import ALL, PREDICT, REWARD, World
from tests.torture.lives import LIMIT_S, Command, Life, complaints

TRAININGS = tuple(name for name in ALL if name.startswith("train"))


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int | None
    said: str


def give(
    command: Command,
    home: Path,
    *,
    limits: Sequence[tuple[int, int]] = (),
    signals: Sequence[tuple[float, signal.Signals]] = (),
) -> Ended:
    """Give a command under limits of :mod:`resource`, and send it signals, each so many seconds after the last."""
    log = home / f"said-{len(list(home.glob('said-*')))}"
    words = (*command.words, "--out", f"runs/{command.name}")
    process = forked(limited, words, limits, cwd=home, env=environment(), stdout=log, stderr=log)
    for after_s, number in signals:
        process.join(after_s)
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, number)
    process.join(LIMIT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail(f"{words} did not end:\n{log.read_text()}")
    return Ended(process.exitcode, log.read_text(encoding="utf-8", errors="replace"))


def limited(words: tuple[str, ...], limits: Sequence[tuple[int, int]]) -> None:
    for what, amount in limits:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 if what == resource.RLIMIT_AS else 0
        resource.setrlimit(what, (in_use + amount, in_use + amount))
    play(words)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@contextmanager
def small_disk(folder: Path, kb: int, *, options: str = "rw") -> Iterator[Callable[[], object]]:
    """Mount a disk of a size, and give a function that makes it large; skip where this user may not."""
    folder.mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", f"{options},size={kb}k", "tmpfs", str(folder)]
    if subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,rw,size=512m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def require_whole(command: Command, out: Path, whole: Path, ended: Sequence[Ended]) -> None:
    """Check a run that was stopped and given again beside one that was not."""
    life = Life(out, said=[each.said for each in ended])
    assert [wrong for wrong in complaints(command, life, whole) if "attempts are" not in wrong] == []


def require_message(ended: Ended, *words: str) -> None:
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said, ended.said
    assert ended.said.count("error: ") == 1, ended.said
    assert all(word in ended.said for word in words), ended.said


def size_kb(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- disks


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("simulate", 0.6),
        ("train-reward", 0.4),
        *(
            pytest.param(name, share, marks=pytest.mark.slow)
            for name in ALL
            for share in ((0.3, 0.9) if name != "run" else (0.5,))
        ),
    ],
)
def test_a_full_disk_is_one_message_and_loses_nothing(name: str, share: float, world: World) -> None:
    command = ALL[name]
    whole = world.whole(command)
    home = world.home(f"{name}-full-{share}", command)
    with small_disk(home / "runs" / name, int(size_kb(whole) * share)) as enlarge:
        full = give(command, home)
        require_message(full, "the disk is full")
        enlarge()
        again = give(command, home)
        assert again.code == 0, again.said
        require_whole(command, home / "runs" / name, whole, [full, again])


def test_a_read_only_disk_is_one_message(world: World) -> None:
    home = world.home("read-only", PREDICT)
    with small_disk(home / "runs/predict", 64, options="ro"):
        require_message(give(PREDICT, home), "the file system is read-only", "--out")


def test_a_file_that_may_not_grow_is_one_message_and_loses_nothing(world: World) -> None:
    home = world.home("fsize", REWARD)
    full = give(REWARD, home, limits=[(resource.RLIMIT_FSIZE, 20_000)])
    require_message(full, "larger than is allowed here")
    again = give(REWARD, home)
    assert again.code == 0, again.said
    require_whole(REWARD, home / "runs/train-reward", world.whole(REWARD), [full, again])


# ---------------------------------------------------------------- open files and memory


@pytest.mark.parametrize("n_files", [12, 14, pytest.param(17, marks=pytest.mark.slow)])
def test_few_open_files_are_one_message(n_files: int, world: World) -> None:
    home = world.home(f"files-{n_files}", PREDICT)
    few = give(PREDICT, home, limits=[(resource.RLIMIT_NOFILE, n_files)])
    require_message(few, "oo many ", "files")
    again = give(PREDICT, home)
    assert again.code == 0, again.said
    require_whole(PREDICT, home / "runs/predict", world.whole(PREDICT), [few, again])


def test_little_memory_is_one_message(world: World) -> None:
    home = world.home("memory", REWARD)
    require_message(give(REWARD, home, limits=[(resource.RLIMIT_AS, 2**20)]), "memory ran out")


# ---------------------------------------------------------------- several at once, and signals


@pytest.mark.parametrize("name", ["predict", *(pytest.param(name, marks=pytest.mark.slow) for name in TRAININGS)])
def test_a_folder_that_another_process_holds_is_left_alone(name: str, world: World) -> None:
    home = world.home(f"{name}-held", ALL[name])
    held = hold(home / "runs" / name)
    try:
        require_message(give(ALL[name], home), "is in use by another esckit process", "--out")
    finally:
        os.close(held)
    assert [path.name for path in (home / "runs" / name).iterdir()] == [".lock"]


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
/* The time of day jumps by hours, back and forth, whenever it is asked for. */
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    static long asked;
    if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int found = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += (++asked % 7 - 3) * 3600;
    return found;
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("name", ["simulate", "train-sft"])
def test_a_clock_that_jumps_changes_no_file_and_no_duration(name: str, world: World, tmp_path: Path) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    library = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "clock.c"), "-ldl"], check=True)
    command = ALL[name]
    whole, home = world.whole(command), world.home(f"{name}-clock", command)
    words = [sys.executable, "-m", "esckit", *command.words, "--out", f"runs/{name}"]
    variables = environment(LD_PRELOAD=str(library))
    done = subprocess.run(words, cwd=home, env=variables, capture_output=True, text=True, check=False)
    out = home / "runs" / name
    require_whole(command, out, whole, [Ended(done.returncode, done.stderr)])
    (attempt,) = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["attempts"]
    assert 0 < attempt["seconds"] < 300
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [value for row in rows for key, value in row.items() if key == "seconds" or key.endswith("_s")]
    assert all(0 <= each < 300 for each in seconds)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name != "run"])
@pytest.mark.parametrize(
    "signals",
    [[(0.5, signal.SIGTERM)], [(0.5, signal.SIGINT)], [(0.5, signal.SIGINT), (0.02, signal.SIGINT)]],
    ids=["term", "once", "twice"],
)
def test_a_signal_ends_a_command_and_loses_nothing(
    name: str, signals: list[tuple[float, signal.Signals]], world: World
) -> None:
    """The first signal comes after a share of the time that the command takes."""
    command = ALL[name]
    whole = world.whole(command)
    home = world.home(f"{name}-{'-'.join(each.name for _, each in signals)}", command)
    timed = [(share * world.seconds(command) if at == 0 else share, one) for at, (share, one) in enumerate(signals)]
    stopped = give(command, home, signals=timed)
    assert stopped.code in (0, 130), stopped.said
    assert "Traceback" not in stopped.said, stopped.said
    again = give(command, home)
    assert again.code == 0, again.said
    require_whole(command, home / "runs" / name, whole, [stopped, again])
