"""SIGKILL of the driver of a cluster and of one of its workers; the same command until done."""

from pathlib import Path
from typing import Any

import pytest

from esckit.faultpoints import VARIABLE
from tests.play import test_cluster
from tests.play.test_cluster import contents, environment, manifest, on_one_machine, words
from tests.shell import esckit

pytestmark = pytest.mark.slow

cluster, folder = test_cluster.cluster, test_cluster.folder


@pytest.mark.parametrize("point", ["half-line:3", "line:7", "renamed:6", "ended:1"])
def test_driver_and_worker_die_and_nothing_is_lost(point: str, cluster: Any, folder: Path) -> None:
    expected = on_one_machine(folder)
    (folder / "calls").unlink()
    (folder / "kill_at").write_text("20")
    given = words(cluster, "ray")
    killed = esckit(*given, cwd=folder, env={**environment(), VARIABLE: point})
    assert killed.returncode == -9, killed.stderr
    lines = (folder / "ray/futures.jsonl").read_bytes().splitlines(keepends=True)
    acknowledged = [line for line in lines if line.endswith(b"\n")]
    ended = esckit(*given, cwd=folder, env=environment())
    assert ended.returncode == 0, ended.stderr
    assert contents(folder / "ray") == expected
    assert set(acknowledged) <= set(expected["futures.jsonl"].splitlines(keepends=True))
    assert [attempt["status"] for attempt in manifest(folder / "ray")["attempts"]] == ["killed", "complete"]
