"""A step of `esckit train-rl` beside a bare TRL script with the same settings: time of a step, and peak memory.

Run: ``python -m tests.benchmarks.bench_grpo [--backbone NAME] [--steps 6] [--rounds 2]``. Only prints. Each side runs
in a process of its own, in turn; both draw the same contexts and outputs, so they do the same work. Ours has its guard,
metrics at every step and samples on; the bare script has two plain reward functions and nothing else. On a machine
that others use too, read the processor's seconds: they count what the step itself computed.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from esckit.config.load import load_recipe
from esckit.play.runner import NoProgress
from esckit.rl.recipe import TrainRlRecipe


def recipe_of(backbone: str, steps: int) -> TrainRlRecipe:
    overrides = [
        f"models.policy.backbone={backbone}", f"optim.max_steps={steps}", "grpo.prompts_per_step=2",
        "grpo.max_prompt_tokens=400", "grpo.max_completion_tokens=32", "monitor.log_every=1", "monitor.sample_every=1",
        "monitor.dev_every=null", "logging.save_every=1000", "dev.share=0.0", "lora.targets=[q_proj, v_proj]",
    ]  # fmt: skip
    if backbone == "tiny-random":
        overrides.append("grpo.max_prompt_tokens=1600")
    return load_recipe("smoke/train_rl_lexicon", TrainRlRecipe, overrides=overrides).recipe


class Clock(NoProgress):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def advance(self, n: int = 1, **counts: int) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))


def ours(recipe: TrainRlRecipe, folder: Path) -> list[tuple[float, float]]:
    from esckit.rl.run import run

    clock = Clock()
    run(recipe, out=folder / "run", progress=clock)
    return clock.ends


def bare(recipe: TrainRlRecipe, folder: Path) -> list[tuple[float, float]]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from esckit.prompts.prompt import load_prompt
    from esckit.rl.recipe import plan_steps
    from esckit.rl.rewards import lexicon_reward
    from esckit.rl.rows import build_rows, collect
    from esckit.rl.trainer import grpo_arguments, load_learner
    from esckit.training.policy import PolicyPrompt
    from esckit.training.run import TrainingRun, training_order

    learner = load_learner(recipe)
    prompt = PolicyPrompt(load_prompt(recipe.prompt), learner.chat, recipe.grpo.max_prompt_tokens)
    rows = build_rows(collect(recipe).train, prompt).rows
    plan = plan_steps(recipe, n_rows=len(rows), n_processes=1)
    order = training_order(len(rows), n_batches=plan.n_batches, batch=plan.batch, seed=recipe.seed)
    ends: list[tuple[float, float]] = []

    class Timer(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

    def future(completions: list[Any], **columns: Any) -> list[float]:
        return lexicon_reward([()] * len(completions), [each[0]["content"] for each in completions])

    def form(completions: list[Any], **columns: Any) -> list[float]:
        return [float("<think>" in each[0]["content"]) for each in completions]

    GRPOTrainer(
        model=learner.model,
        reward_funcs=[future, form],
        args=grpo_arguments(recipe, plan, TrainingRun(folder)),
        train_dataset=Dataset.from_list([rows[index] for index in order]),
        processing_class=learner.tokenizer,
        callbacks=[Timer()],
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    ).train()
    return ends


def child(side: str, backbone: str, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ends = (ours if side == "ours" else bare)(recipe_of(backbone, steps), Path(folder))
    seconds = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write("\n" + json.dumps({"seconds": seconds, "peak_mb": peak}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "bare"))
    args = parser.parse_args()
    if args.side:
        child(args.side, args.backbone, args.steps)
        return
    rounds: dict[str, list[list[tuple[float, float]]]] = {"ours": [], "bare": []}
    peak = {"ours": 0.0, "bare": 0.0}
    for _ in range(args.rounds):
        for side, found in rounds.items():
            command = [sys.executable, "-m", "tests.benchmarks.bench_grpo", "--side", side]
            command += ["--backbone", args.backbone, "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            result = json.loads(done.stdout.strip().splitlines()[-1])
            found.append(result["seconds"])
            peak[side] = max(peak[side], result["peak_mb"])
    print(f"{args.backbone}: {args.steps - 1} steps of 8 outputs, best of {args.rounds} rounds")
    mean = {side: _best(found) for side, found in rounds.items()}
    for side, (wall, cpu) in mean.items():
        print(f"{side:>5}  {wall:.3f} s a step, {cpu:.3f} s of the processor, peak {peak[side]:.0f} MB")
    ratios = [a / b for a, b in zip(mean["ours"], mean["bare"], strict=True)]
    print(f"ours / bare  x {ratios[0]:.3f} by the clock, x {ratios[1]:.3f} by the processor")


def _best(rounds: list[list[tuple[float, float]]]) -> tuple[float, float]:
    """Return mean seconds a step by clock and by processor, each step in its best round."""
    steps = list(zip(*rounds, strict=True))
    wall = statistics.mean(min(each[0] for each in step) for step in steps)
    cpu = statistics.mean(min(each[1] for each in step) for step in steps)
    return wall, cpu


if __name__ == "__main__":
    main()
