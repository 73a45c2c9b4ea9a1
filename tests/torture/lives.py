"""Commands that are killed and given again until they are done, and what must hold of their files then.

A *life* is one run folder from nothing to the end of its command. It is killed some times on the way: at the n-th
passing of a fault point (:mod:`esckit.faultpoints`) or after some time, with everything that it started.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from esckit.faultpoints import VARIABLE
from esckit.ledger import total
from tests.pins.pinned import environment
from tests.shell import forked, play

LIMIT_S = 240.0

# Times stand in these: they are compared without them, or only have to be there.
_TIMED = ("manifest.json", "metrics.jsonl", "pipeline.json")
_REPORTS = ("report.html", "report.md")


class Command(NamedTuple):
    """A command whose runs are killed.

    Attributes:
        name: Of the command, and of its run among others.
        words: All but ``--out``.
        points: Fault points that it passes.
        records: Files whose lines count as acknowledged as soon as they are whole.
        needs: Names of the commands whose runs it reads.
    """

    name: str
    words: tuple[str, ...]
    points: tuple[str, ...]
    records: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class Kill(NamedTuple):
    """When a command is killed: at the n-th passing of a fault point, else after some seconds."""

    point: str = ""
    number: int = 1
    after_s: float = 0.0


@dataclass
class Life:
    """What happened to one run folder.

    Attributes:
        out: The folder.
        kills: Those that struck.
        lines: Whole lines that a kill left in files of records, each with its file.
        said: What the attempts printed, one text each.
        torn: Files with an unfinished last line that an attempt found.
    """

    out: Path
    kills: list[Kill] = field(default_factory=list)
    lines: set[tuple[str, bytes]] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)


def attempt(words: Sequence[str], *, cwd: Path, log: Path, kill: Kill | None) -> int:
    """Give a command once, and kill it or not; return its exit code, below 0 for a signal."""
    fault = {VARIABLE: f"{kill.point}:{kill.number}"} if kill is not None and kill.point else {}
    env = environment(**fault)
    process = forked(play, tuple(words), cwd=cwd, env=env, stdout=log, stderr=log)
    process.join(kill.after_s if kill is not None and not kill.point else LIMIT_S)
    if process.exitcode is None:
        family = [process.pid, *_descendants(process.pid)]
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.join()
        for pid in family[1:]:
            _await_end(pid)
    assert process.exitcode is not None
    return process.exitcode


def _descendants(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from _descendants(child)


def _await_end(pid: int) -> None:
    """Wait until a process that another one started is gone, or is only waiting to be looked at."""
    state = "R"
    while state not in ("Z", "X", ""):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            state = ""
        time.sleep(0.005)


def live(command: Command, home: Path, kills: Sequence[Kill]) -> Life:
    """Give a command until it is done, each attempt with the next of the kills.

    An attempt that is done before its kill comes is the last one.

    Args:
        command: The command.
        home: Where it is given; its run folder is ``runs/<name>``.
        kills: When it is killed.

    Raises:
        AssertionError: If it ends in another way than being killed or done.
    """
    out, waiting, log = home / "runs" / command.name, list(kills), home / "said"
    life = Life(out)
    words = (*command.words, "--out", f"runs/{command.name}")
    while True:
        kill = waiting.pop(0) if waiting else None
        life.torn += _torn(out)
        log.unlink(missing_ok=True)
        code = attempt(words, cwd=home, log=log, kill=kill)
        life.said.append(log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")
        if code == 0:
            return life
        assert kill is not None, f"{words} left with {code}\n{life.said[-1]}"
        # A stage of a pipeline that dies ends the pipeline, with 128 and the signal.
        assert code in (-signal.SIGKILL, 128 + signal.SIGKILL), f"{words} left with {code}\n{life.said[-1]}"
        life.kills.append(kill)
        life.lines |= {(name, line) for name in command.records for line in _whole_lines(out / name)}


def drawn(command: Command, random: Random, duration_s: float) -> Kill:
    """Return a kill at a fault point of a command or, in one of three cases, at any moment.

    Trainings pass few points often, and replace few folders: what is drawn too high never strikes.
    """
    if random.random() < 1 / 3:
        return Kill(after_s=random.uniform(0.0, duration_s))
    point, most = random.choice(command.points), 12 if command.records else 6
    most = {"ended": 1, "state": 2, "filled": 2, "moved-away": 1, "moved-in": 2}.get(point, most)
    return Kill(point, number=min(random.randint(1, most), random.randint(1, most)))


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith(b"\n")]


def _torn(out: Path) -> list[str]:
    found = [path for path in sorted(out.rglob("*.jsonl")) if path.stat().st_size]
    return [path.name for path in found if not path.read_bytes().endswith(b"\n")]


# ---------------------------------------------------------------- what must hold


def complaints(command: Command, life: Life, whole: Path) -> list[str]:
    """Return what is wrong with a run that was killed, beside one that was not; nothing if all is well."""
    ours, theirs = _files(life.out), _files(whole)
    found = [f"{name}: only in one of the two" for name in sorted(ours.keys() ^ theirs.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        last = name.rpartition("/")[2]
        if last == "metrics.jsonl":
            found += _timing_complaints(name, _rows(ours[name]), _rows(theirs[name]))
        elif last == "manifest.json":
            found += _manifest_complaints(name, json.loads(ours[name]), json.loads(theirs[name]))
        elif last not in (*_TIMED, *_REPORTS) and "/printed/" not in f"/{name}" and ours[name] != theirs[name]:
            found.append(f"{name}: other bytes than in an unbroken run")
    for name, line in sorted(life.lines):
        n_times = Counter(_whole_lines(life.out / name))[line]
        if n_times != 1:
            found.append(f"{name}: an acknowledged record is there {n_times} times")
    silent = Counter(life.torn) - Counter(
        name for name in life.torn for said in life.said if f"{name}: cut off an unfinished last line" in said
    )
    return found + [f"{name}: a torn line was cut off in silence" for name in silent]


def _files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def _rows(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def _timing_complaints(name: str, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> list[str]:
    """Compare rows without their seconds; of a unit whose process died, the seconds may be missing."""

    def plain(row: Mapping[str, Any]) -> str:
        timed = ("seconds", "hours", "from_cache")
        return json.dumps({key: value for key, value in row.items() if key not in timed and not key.endswith("_s")})

    are_units = any("seconds" in row for row in theirs)
    mine, whole = Counter(map(plain, ours)), Counter(map(plain, theirs))
    if not are_units:
        return [] if [*map(plain, ours)] == [*map(plain, theirs)] else [f"{name}: other rows than in an unbroken run"]
    return [f"{name}: a row too many: {row}" for row in (mine - whole)]


def _manifest_complaints(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    varies = ("created", "attempts", "spent")
    found = [
        f"{name}: {key} differs"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in varies and not key.endswith("_s") and ours.get(key) != theirs.get(key)
    ]
    *killed, last = [attempt["status"] for attempt in ours["attempts"]]
    if last != "complete" or set(killed) - {"killed", "complete"}:
        found.append(f"{name}: attempts are {[*killed, last]}")
    spent = [attempt["spent"] for attempt in ours["attempts"] if attempt.get("spent")]
    if (total(spent) if spent else None) != ours.get("spent"):
        found.append(f"{name}: what was spent is not the sum of the attempts")
    return found
