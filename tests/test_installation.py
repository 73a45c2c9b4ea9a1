"""What an installation takes from `pyproject.toml`, the locks and the `Makefile`: they say the same."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import esckit

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = ROOT / "esckit" / "constraints.txt"
LOWEST = ROOT / "tests" / "constraints-lowest.txt"
LOCKS = {
    LOCK: ("dev", "deepspeed", "ray", "tensorboard", "wandb"),
    LOWEST: ("dev", "deepspeed", "ray"),
    ROOT / "esckit" / "constraints-vllm.txt": ("vllm",),
    ROOT / "esckit" / "constraints-verifiers.txt": ("verifiers",),
}
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
_PIN = re.compile(r"[a-z0-9-]+==[0-9a-z.]+(?: ; .+)?")


def pins(lock: Path, python: str) -> dict[str, str]:
    """Return what a lock names for Linux and one Python, by normalised name."""
    there = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    found: dict[str, str] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({**there, "platform_machine": "x86_64"}):
            assert pin.name not in found, line
            found[pin.name] = str(pin.specifier).removeprefix("==")
    return found


def asked(*extras: str) -> Iterator[Requirement]:
    for text in (*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])):
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            yield requirement


def lock_name(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def test_esckit_supports_the_pythons_that_the_makefile_takes() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^PYTHONS := (.+)$", makefile, re.MULTILINE).group(1).split() == PYTHONS
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [minor for minor in range(9, 20) if f"3.{minor}.1" in allowed] == [int(p[2:]) for p in PYTHONS]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_public_versions_and_no_place(lock: Path) -> None:
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not _PIN.fullmatch(line)] == []
    assert "://" not in lock.read_text(encoding="utf-8")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_fits_every_range_on_every_python(lock: Path, python: str) -> None:
    named = pins(lock, python)
    wrong = [str(r) for r in asked(*LOCKS[lock]) if not r.specifier.contains(named.get(lock_name(r), "0"))]
    assert wrong == [], "run `make lock`"


def test_the_lowest_lock_names_the_lower_bounds() -> None:
    named = pins(LOWEST, PYTHONS[0])
    assert named.pop("torch") == pins(LOCK, PYTHONS[0])["torch"]
    direct = [requirement for requirement in asked(*LOCKS[LOWEST]) if requirement.name != "torch"]
    bounds = {
        lock_name(one): Version(bound.version) for one in direct for bound in one.specifier if ">" in bound.operator
    }
    assert bounds == {name: Version(named[name]) for name in map(lock_name, direct)}


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.14", ""])
def test_make_refuses_another_python_before_it_installs(tmp_path: Path, version: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)
    environment = tmp_path / "venv"
    done = subprocess.run(
        ["make", "setup", f"PYTHON={python}", f"VENV={environment}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"expected one of {' '.join(PYTHONS)}" in done.stderr
    assert "PYTHON=python3.1" in done.stderr
    assert not environment.exists()


def test_a_release_says_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / ".github/CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+) – (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest.groups() == (esckit.__version__, str(citation["date-released"]))
    assert citation["version"] == esckit.__version__
