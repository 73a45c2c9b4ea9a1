"""A cluster that the run starts for itself on this machine, as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell import ROOT

pytest.importorskip("ray", reason="the extra 'ray' is not installed")


def test_a_run_starts_a_cluster_of_its_own(tmp_path: Path) -> None:
    for name, changes in (("here", ()), ("ray", ("--set", "executor={kind: ray, address: local, workers: 2}"))):
        words = [
            "simulate",
            "smoke/simulate_scripted",
            "--set",
            "data.limit=2",
            *changes,
            "--out",
            str(tmp_path / name),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "esckit", *words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Ray" not in done.stderr  # which says so if a late call starts another cluster
    for file in ("futures.jsonl", "contexts.jsonl", "failures.jsonl", "summary.json"):
        assert (tmp_path / "ray" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()
