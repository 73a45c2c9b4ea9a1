"""How OpenMP's threads wait: chosen by the load, before torch, and never against what a user set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esckit.cli import openmp


def child(code: str, **variables: str) -> str:
    """Return what a fresh Python prints, on both streams, without OpenMP's variables but these."""
    env = {name: value for name, value in os.environ.items() if name not in openmp.USERS} | variables
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


CHOOSE = "from esckit.cli import openmp; openmp.used_by_others = lambda: {share}; openmp.choose_waiting({threads});"
SHOW = f"import os; print({{name: os.environ.get(name) for name in {openmp.USERS!r} if name in os.environ}})"


@pytest.mark.parametrize(("share", "chosen"), [(0.0, {}), (0.24, {}), (0.5, openmp.BUSY)])
def test_the_load_decides_how_threads_wait(share: float, chosen: dict[str, str]) -> None:
    assert child(CHOOSE.format(share=share, threads=None) + SHOW).strip() == str(chosen)


@pytest.mark.parametrize("name", openmp.USERS)
def test_what_a_user_set_stays(name: str) -> None:
    assert child(CHOOSE.format(share=1.0, threads=None) + SHOW, **{name: "2"}).strip() == str({name: "2"})


def test_threads_of_the_recipe_and_a_loaded_torch_are_left_alone() -> None:
    assert child(CHOOSE.format(share=1.0, threads=2) + SHOW).strip() == "{}"
    loaded = "import sys; sys.modules['torch'] = None;" + CHOOSE.format(share=1.0, threads=None) + SHOW
    assert child(loaded).strip() == "{}"


def test_torch_reads_what_was_chosen() -> None:
    if sys.platform != "linux":
        pytest.skip("another OpenMP reads other variables")
    shown = child(CHOOSE.format(share=0.5, threads=None) + "import torch", OMP_DISPLAY_ENV="VERBOSE")
    assert f"OMP_WAIT_POLICY = '{openmp.BUSY['OMP_WAIT_POLICY']}'" in shown


def test_the_share_of_others_is_read_from_the_system(tmp_path: Path) -> None:
    stat = tmp_path / "stat"

    def a_moment_later(seconds: float) -> None:
        stat.write_text("cpu  103 0 102 1010 5 0 0 0 0 0\n")

    stat.write_text("cpu  100 0 100 1000 0 0 0 0 0 0\n")
    assert openmp.used_by_others(stat, a_moment_later) == pytest.approx(5 / 20)
    for content in ("nonsense\n", "", "cpu 1 2\n"):
        stat.write_text(content)
        assert openmp.used_by_others(stat, a_moment_later) == 0.0
    assert openmp.used_by_others(tmp_path / "none") == 0.0
