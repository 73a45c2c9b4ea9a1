"""The commands that are killed, with scripted and tiny models, and how their unbroken runs are made."""

import shutil
import time
from pathlib import Path

from tests.cli.test_pipeline import JUDGE
from tests.shell import esckit
from tests.torture.lives import Command

_FILES = ("written", "flushed", "renamed", "ended")
_LINES = ("half-line", "line")
_FOLDERS = ("filled", "moved-away", "moved-in")
_TRAINING = (*_FILES, *_LINES, *_FOLDERS, "state")


def _sets(*changes: str) -> tuple[str, ...]:
    return tuple(word for change in changes for word in ("--set", change))


SIMULATE = Command(
    "simulate",
    ("simulate", "smoke/simulate_scripted", *_sets("concurrency.futures=2")),
    (*_FILES, *_LINES, *_LINES),
    ("contexts.jsonl", "futures.jsonl"),
)
SEARCH = Command(
    "search",
    ("search", "smoke/search_scripted", *_sets("concurrency.trees=2", "mcts.keep_rollouts=true")),
    (*_FILES, *_LINES, *_LINES),
    ("trees.jsonl",),
)
PREDICT = Command(
    "predict",
    ("predict", "smoke/predict_scripted"),
    (*_FILES, *_LINES, *_LINES),
    ("predictions.jsonl",),
)
EVALUATE = Command(
    "evaluate",
    (
        "evaluate",
        "smoke/evaluate_scripted",
        *_sets(
            "suites=[strategy, response, dialogue, pairwise, safety]",
            "models.scorer=null",
            "models.reward=null",
            "statistics.resamples=100",
            "settings.pairwise.opponent=runs/predict",
        ),
    ),
    (*_FILES, *_LINES, *_LINES),
    ("episodes.jsonl",),
    needs=("predict",),
)
REWARD = Command(
    "train-reward",
    ("train-reward", "smoke/train_reward_scripted", *_sets("inputs=[runs/simulate]")),
    _TRAINING,
    needs=("simulate",),
)
FLOW = Command(
    "train-flow",
    ("train-flow", "smoke/train_flow_tiny", *_sets("data.trees=[runs/search]")),
    _TRAINING,
    needs=("search",),
)
SFT = Command("train-sft", ("train-sft", "smoke/train_sft_tiny", *_sets("logging.save_every=1")), _TRAINING)
DPO = Command(
    "train-rl-dpo",
    (
        "train-rl",
        "smoke/train_rl_dpo",
        *_sets("inputs=[runs/simulate]", "optim.max_steps=3", "monitor.log_every=2"),
    ),
    _TRAINING,
    needs=("simulate",),
)
GRPO = Command(
    "train-rl-grpo",
    (
        "train-rl",
        "smoke/train_rl_scripted",
        *_sets("models.reward.checkpoint=runs/train-reward", "monitor.log_every=2"),
    ),
    _TRAINING,
    needs=("train-reward",),
)
RUN = Command("run", ("run", "page.yaml"), (*_FILES, *_LINES))

ALL = {command.name: command for command in (SIMULATE, SEARCH, PREDICT, EVALUATE, REWARD, FLOW, SFT, DPO, GRPO, RUN)}

_PAGE = """\
command: run
stages:
  told: {recipe: smoke/predict_scripted}
  judged: {recipe: judge.yaml, set: {predictions: stage:told}}
"""


class World:
    """A folder with the unbroken run of each command, made when it is asked for first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seconds: dict[str, float] = {}

    def home(self, name: str, command: Command) -> Path:
        """Return a new folder in which a command finds all that it reads, each under the same name."""
        home = self._folder / name
        home.mkdir()
        (home / "page.yaml").write_text(_PAGE, encoding="utf-8")
        (home / "judge.yaml").write_text(JUDGE, encoding="utf-8")
        for needed in command.needs:
            self.whole(ALL[needed])
            shutil.copytree(self._folder / "whole" / needed / "runs", home / "runs", dirs_exist_ok=True)
        return home

    def whole(self, command: Command) -> Path:
        """Return the unbroken run of a command."""
        home = self._folder / "whole" / command.name
        out = home / "runs" / command.name
        if not home.exists():
            (self._folder / "whole").mkdir(exist_ok=True)
            self.home(f"whole/{command.name}", command)
            began_s = time.monotonic()
            done = esckit(*command.words, "--out", f"runs/{command.name}", cwd=home)
            assert done.returncode == 0, done.stderr
            self._seconds[command.name] = time.monotonic() - began_s
        return out

    def seconds(self, command: Command) -> float:
        """Return how long the unbroken run of a command took."""
        return self._seconds[command.name]
