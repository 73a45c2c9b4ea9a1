"""What the tests of old runs share: where these lie, and a command's end as a shell sees it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Finished(NamedTuple):
    code: int
    out: str
    err: str


Esckit = Callable[[str], Finished]


def ran(done: Finished) -> str:
    assert done.code == 0, done.err
    return done.out


def refused(done: Finished) -> str:
    assert done.code == 2, done
    assert done.err.startswith("error: ")
    return done.err


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rows_by_id(path: str | Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows(path)}


def status(run: str) -> str:
    return str(json.loads(Path(run, "manifest.json").read_text())["status"])
