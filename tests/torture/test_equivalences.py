"""What must not depend on how the work is divided: 8 x 1 = 1 x 8, one in flight = many, whatever the seed of hashes.

Where the other equalities are tested, ``docs/reliability.md`` says.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from esckit.reward.run import run as train_reward
from esckit.rl.run import run as train_rl
from esckit.sft.run import run as train_sft
from esckit.training.monitor import METRICS, read_rows
from tests.pins.pinned import environment
from tests.reward.reward_runs import reward_recipe, simulated
from tests.rl.rl_runs import recipe as rl_recipe
from tests.sft.sft_runs import recipe as sft_recipe
from tests.shell import esckit
from tests.torture.commands import ALL, PREDICT, World
from tests.torture.lives import Life, complaints

STEPS = {"max_steps": 3, "lr": 1e-3}
NO_SAMPLES = {"sample_every": None, "dev_every": None}


@pytest.fixture(scope="module")
def futures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("futures") / "simulate")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def _reward(kind: str) -> Callable[[Path, int, Path], object]:
    def train(futures: Path, size: int, out: Path) -> object:
        optim = {"lr": 1e-3, "epochs": 1, "batch_size": size, "accumulate": 8 // size}
        label = {"label": {"rule": "goal"}} if kind == "pairwise" else {}
        return train_reward(reward_recipe(futures, objective={"kind": kind}, optim=optim, **label), out=out)

    return train


def _sft(futures: Path, size: int, out: Path) -> object:
    return train_sft(sft_recipe(optim={**STEPS, "batch_size": 8, "micro_batch": size}), out=out)


def _dpo(futures: Path, size: int, out: Path) -> object:
    dpo = {"batch_size": 8, "micro_batch": size, "max_prompt_tokens": 1600}
    given: dict[str, Any] = {"algorithm": "dpo", "inputs": (str(futures),), "data": None, "dpo": dpo}
    return train_rl(rl_recipe(**given, optim=STEPS, monitor=NO_SAMPLES), out=out)


def _grpo(futures: Path, size: int, out: Path) -> object:
    grpo = {"prompts_per_step": 2, "n_generations": 4, "micro_batch": size}
    return train_rl(rl_recipe(grpo=grpo, optim=STEPS, monitor=NO_SAMPLES), out=out)


TRAININGS = {
    "classifier": _reward("classifier"),
    "pairwise": _reward("pairwise"),
    "rrhf": _reward("rrhf"),
    "sft": _sft,
    "dpo": _dpo,
    "grpo": _grpo,
}


TOKEN_MEANS = ("/rl/kl", "/rl/entropy")
"""TRL logs the mean of passes' means over tokens, which differs where passes hold outputs of other lengths."""


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of a row of metrics that do not depend on durations and passes, each with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif not path.endswith("_s") and path not in TOKEN_MEANS:
        yield path, value


@pytest.mark.parametrize(
    "name", ["pairwise", *(pytest.param(name, marks=pytest.mark.slow) for name in TRAININGS if name != "pairwise")]
)
def test_one_pass_of_eight_is_eight_passes_of_one(name: str, futures: Path, tmp_path: Path) -> None:
    for size in (8, 1):
        TRAININGS[name](futures, size, tmp_path / str(size))
    together, alone = (read_rows(tmp_path / size / METRICS) for size in ("8", "1"))
    assert len(together) == len(alone) > 0
    for left, right in zip(together, alone, strict=True):
        # The last bits of float32 sums may differ, and AdamW makes more of them with every step.
        assert dict(leaves(right)) == pytest.approx(dict(leaves(left)), rel=1e-4, abs=1e-5)


# ---------------------------------------------------------------- what is played


@pytest.mark.parametrize("n", [1, 64])
def test_predictions_do_not_depend_on_concurrency(n: int, world: World) -> None:
    home = world.home(f"predict-{n}", PREDICT)
    done = esckit(*PREDICT.words, "--set", f"concurrency.cases={n}", "--out", "runs/predict", cwd=home)
    assert done.returncode == 0, done.stderr
    path = "runs/predict/predictions.jsonl"
    assert (home / path).read_bytes() == (world.whole(PREDICT) / "predictions.jsonl").read_bytes()


def test_an_invariant_local_model_plays_alike_at_any_concurrency(tmp_path: Path) -> None:
    model = {"backbone": "tiny-random", "dtype": "float32", "sampling": {"max_tokens": 12}}
    for n in (1, 16):
        simulated(
            tmp_path / str(n),
            data={"limit": 2},
            models={"supporter": model},
            simulation={"candidates": 2, "horizon": 1},
            executor={"batching": "invariant"},
            concurrency={"futures": n},
            max_failure_rate=1.0,
        )
    one, many = ((tmp_path / n / "futures.jsonl").read_bytes() for n in ("1", "16"))
    assert one == many
    assert one.count(b'"response":"') >= 4
    manifest = json.loads((tmp_path / "1/manifest.json").read_text(encoding="utf-8"))
    assert manifest["determinism"].startswith("identical bytes for every concurrency on one kind of machine")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simulate", "search", "evaluate", "train-flow", "train-sft", "train-rl-grpo"])
def test_no_file_depends_on_the_seed_of_hashes(name: str, world: World) -> None:
    """The unbroken run has another one: that of the process from which it was forked."""
    command = ALL[name]
    whole, home = world.whole(command), world.home(f"{name}-hashes", command)
    words = [sys.executable, "-m", "esckit", *command.words, "--out", f"runs/{name}"]
    done = subprocess.run(
        words, cwd=home, env=environment(PYTHONHASHSEED="4711"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert complaints(command, Life(home / "runs" / name), whole) == []
