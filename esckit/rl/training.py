"""What ``train-rl`` does between its material and its summary: policy, rewards, training, and what is kept of it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

import esckit
from esckit.errors import ConfigError, DataError, MissingExtraError, TrainingError
from esckit.models.backbones import quiet_off_terminal
from esckit.models.checkpoint import FOLDER
from esckit.play.session import STATES, SUMMARY
from esckit.processes import Process, gathered
from esckit.prompts.prompt import load_prompt
from esckit.protocols import Progress
from esckit.records import write_atomic, write_json
from esckit.rl.material import RlMaterial
from esckit.rl.monitor import DevEvaluation, DevMetrics, DevSet, GreedyWriter, Samples, Watch
from esckit.rl.policy import METADATA, PolicyMetadata, read_policy
from esckit.rl.recipe import TrainRlRecipe, dpo_settings, grpo_settings, plan_grpo, policy_optim
from esckit.rl.rewards import PairedRewards
from esckit.rl.rows import Pairs, PolicyPrompt, Rows, build_pairs, build_rows
from esckit.rl.source import open_measure
from esckit.rl.trainer import (
    Batches,
    Learner,
    Place,
    PolicyLora,
    dpo_trainer,
    grpo_trainer,
    load_learner,
    quiet_warnings,
    save_policy,
)
from esckit.training.callbacks import StepProgress
from esckit.training.checkpoint import metrics_table, render_card
from esckit.training.harness import Diverged, TrainingRun, last_state, step_of
from esckit.training.monitor import read_rows
from esckit.training.sharding import EngineGuard, gathered_state

log = logging.getLogger(__name__)


_DEV_SCORE = "dev/reward/future"


@dataclass(slots=True)
class _Session:
    """One go at training, and what it has found so far."""

    recipe: TrainRlRecipe
    material: RlMaterial
    out: Path
    process: Process
    progress: Progress
    learner: Learner
    prompt: PolicyPrompt
    state: Path | None
    trainer: Any = None
    counts: dict[str, int] = field(default_factory=dict)
    best: float | None = None
    dev: dict[str, DevMetrics] = field(default_factory=dict)

    @property
    def resumed_step(self) -> int:
        """Step that training goes on from."""
        return step_of(self.state)


def train(
    recipe: TrainRlRecipe, material: RlMaterial, out: Path, process: Process, progress: Progress
) -> dict[str, Any]:
    """Train, keep the policy, and write the summary; return facts for the manifest.

    Raises:
        TrainingError: If training diverged; the last finite policy is kept.
        EsckitError: See :mod:`esckit.errors`.
    """
    _check_engine(recipe)
    session = _session(recipe, material, out, process, progress)
    with ExitStack() as stack:
        stack.callback(progress.close)
        facts: dict[str, Any] = {}
        if recipe.algorithm == "dpo":
            diverged, session.trainer = _dpo(session)
        else:
            by_id = {context.id: context for context in (*material.train, *material.dev)}
            measure, facts = stack.enter_context(open_measure(recipe, by_id))
            rewards = PairedRewards(measure, n_generations=recipe.grpo.n_generations, process_index=process.rank)
            diverged, session.trainer = _grpo(session, rewards)
        _fit(session, diverged)
    _finish(session)
    return facts


def _check_engine(recipe: TrainRlRecipe) -> None:
    if recipe.algorithm == "grpo" and recipe.grpo.engine == "vllm":
        if util.find_spec("vllm") is None:
            raise MissingExtraError("grpo.engine 'vllm'", "vllm")
        if not torch.cuda.is_available():
            raise ConfigError("grpo.engine 'vllm' without a CUDA GPU", expected="one, or grpo.engine: transformers")


def _session(recipe: TrainRlRecipe, material: RlMaterial, out: Path, process: Process, progress: Progress) -> _Session:
    """Seed the generators, then load the policy."""
    transformers_logging.set_verbosity_error()
    quiet_off_terminal()
    if recipe.executor.threads is not None:
        torch.set_num_threads(recipe.executor.threads)
    if process.count > 1 and torch.cuda.is_available():
        # Before the Trainer chooses devices: the reward model of each process belongs on the process's own GPU.
        torch.cuda.set_device(process.rank % torch.cuda.device_count())
    set_seed(recipe.seed % 2**32)
    lora = recipe.lora
    learner = load_learner(
        recipe.models.policy.backbone,
        PolicyLora(lora.rank, lora.alpha, lora.dropout, lora.targets),
        precision=recipe.optim.precision,
    )
    limit = (recipe.dpo if recipe.algorithm == "dpo" else recipe.grpo).max_prompt_tokens
    prompt = PolicyPrompt(load_prompt(recipe.prompt), learner.chat, limit)
    session = _Session(recipe, material, out, process, progress, learner, prompt, last_state(out / STATES))
    for row in read_rows(out / "metrics.jsonl"):
        if _DEV_SCORE in row and row["step"] <= session.resumed_step:
            _note_dev(session, row["step"], row)
    return session


# ---------------------------------------------------------------- trainers


def _grpo(session: _Session, rewards: PairedRewards) -> tuple[Diverged, Any]:
    recipe = session.recipe
    rows = build_rows(session.material.train, session.prompt)
    _count(session, rows)
    if rows.n_too_long and len(rows.rows) < recipe.grpo.prompts_per_step:
        raise DataError(
            f"{len(rows.rows)} contexts to train on, once {rows.n_too_long} that are too long are left out",
            expected=f"at least {recipe.grpo.prompts_per_step}, those of one step (grpo.prompts_per_step)",
            hint="Raise grpo.max_prompt_tokens",
        )
    settings, optim, n_rows = grpo_settings(recipe), policy_optim(recipe), len(rows.rows)
    plan = plan_grpo(settings, optim, n_rows=n_rows, n_processes=session.process.count)
    diverged = _diverged(session, lambda: rewards.context_ids)
    watch = _watch(session, diverged, plan.steps_per_epoch)
    callbacks: list[TrainerCallback] = [watch, _engine_guard(session, diverged), _steps(session)]
    if recipe.monitor.sample_every is not None:
        callbacks.append(
            Samples(
                session.out / "samples.jsonl",
                every=recipe.monitor.sample_every,
                n=recipe.monitor.samples,
                weights=(recipe.reward.weights.future, recipe.reward.weights.format),
                rewards=rewards,
                resumed_step=session.resumed_step,
                writes=session.process.is_main,
            )
        )
    callbacks += _dev_callbacks(session, rewards, watch)
    return diverged, grpo_trainer(
        session.learner,
        rows.rows,
        rewards,
        settings=settings,
        optim=optim,
        place=_place(session, callbacks),
    )


def _dpo(session: _Session) -> tuple[Diverged, Any]:
    recipe, material = session.recipe, session.material
    contexts = {context.id: context for context in material.train}
    pairs = build_pairs(
        contexts,
        material.futures,
        session.prompt,
        require_format=recipe.dpo.require_format,
        max_completion_tokens=recipe.dpo.max_completion_tokens,
    )
    _count(session, pairs)
    settings, optim = dpo_settings(recipe), policy_optim(recipe)
    batches = Batches(pairs.rows, settings=settings, optim=optim, n_processes=session.process.count)
    diverged = _diverged(session, lambda: batches.context_ids)
    watch = _watch(session, diverged, batches.plan.steps_per_epoch)
    place = _place(session, [watch, _engine_guard(session, diverged), _steps(session)])
    return diverged, dpo_trainer(session.learner, batches, settings=settings, optim=optim, place=place)


def _count(session: _Session, rows: Rows | Pairs) -> None:
    session.counts["rows"] = len(rows.rows)
    session.counts["cut"] = rows.n_cut
    session.counts["too_long"] = rows.n_too_long
    if isinstance(rows, Pairs):
        session.counts |= {"equal": rows.n_equal, "malformed": rows.n_malformed}


def _place(session: _Session, callbacks: list[TrainerCallback]) -> Place:
    return Place(session.out / STATES, session.process.count, tuple(callbacks))


def _diverged(session: _Session, batch_ids: Callable[[], Sequence[str]]) -> Diverged:
    return Diverged(
        TrainingRun(session.out, session.process),
        batch_ids,
        advice="What measures the replies gave it, which is not trained here: mend reward.kind or its model",
    )


def _watch(session: _Session, diverged: Diverged, steps_per_epoch: int) -> Watch:
    return Watch(
        session.out,
        every=session.recipe.monitor.log_every,
        resumed_step=session.resumed_step,
        steps_per_epoch=steps_per_epoch,
        diverged=diverged,
        max_unscored=session.recipe.max_failure_rate,
        writes=session.process.is_main,
    )


def _engine_guard(session: _Session, diverged: Diverged) -> EngineGuard:
    return EngineGuard(lambda: session.trainer, diverged.stop)


def _steps(session: _Session) -> StepProgress:
    return StepProgress(session.progress.start, session.progress.advance)


def _dev_callbacks(session: _Session, rewards: PairedRewards, watch: Watch) -> list[TrainerCallback]:
    """Return what looks at dev contexts, nothing where there are none."""
    recipe = session.recipe
    rows = build_rows(session.material.dev[: recipe.dev.max_contexts], session.prompt).rows
    if recipe.monitor.dev_every is None or not rows:
        return []
    writer = GreedyWriter(
        session.learner.tokenizer,
        tuple(sorted(session.learner.chat.stop_ids)),
        recipe.grpo.max_completion_tokens,
        recipe.grpo.micro_batch,
    )

    def measured(step: int, metrics: DevMetrics) -> None:
        watch.row(step, metrics)
        if _note_dev(session, step, metrics) and recipe.optim.select == "best_dev":
            _keep(session, step, metrics)

    return [
        DevEvaluation(
            DevSet(rows, writer, rewards),
            every=recipe.monitor.dev_every,
            resumed_step=session.resumed_step,
            measured=measured,
            trainer=lambda: session.trainer,
        )
    ]


def _note_dev(session: _Session, step: int, row: Mapping[str, Any]) -> bool:
    """Remember an evaluation; return whether it is the best so far (the untrained policy is none to keep)."""
    metrics = {name: value for name, value in row.items() if name.startswith("dev/")}
    session.dev |= {"before training" if step == 0 else "after training": metrics}
    score = metrics[_DEV_SCORE]
    if step == 0 or score is None or (session.best is not None and score <= session.best):
        return False
    session.best = score
    return True


# ---------------------------------------------------------------- training, and what is kept


def _fit(session: _Session, diverged: Diverged) -> None:
    trainer = session.trainer
    try:
        with diverged.guarded(trainer), quiet_warnings():
            trainer.train(resume_from_checkpoint=str(session.state) if session.state else None)
    except TrainingError:
        if not _has_policy(session):
            _keep(session, trainer.state.global_step, {}, diverged=True)
        raise


def _finish(session: _Session) -> None:
    """Keep the policy, write summary and card, and let the states go."""
    step = session.trainer.state.global_step
    last = session.dev.get("after training", {})
    if session.recipe.optim.select == "last" or not _has_policy(session):
        _keep(session, step, last)
    if not session.process.is_main:
        return
    metadata = read_policy(session.out)
    write_atomic(session.out / FOLDER / "README.md", _card(session, metadata, step))
    summary = {
        "schema": "esckit.train_rl_summary/1",
        "algorithm": session.recipe.algorithm,
        "steps": step,
        "selected_step": metadata.step,
        "contexts": {"train": len(session.material.train), "dev": len(session.material.dev)},
        "rows": session.counts,
        "dev": session.dev,
        "dialogues": len(session.material.dialogue_ids),
    }
    write_json(session.out / SUMMARY, summary)
    # What a tracker wrote lies beside the states.
    for path in [*(session.out / STATES).glob("checkpoint-*")] if session.recipe.trackers else [session.out / STATES]:
        shutil.rmtree(path, ignore_errors=True)


def _has_policy(session: _Session) -> bool:
    """Return whether a policy is kept, not counting what an earlier go left when it diverged; as the writer sees it."""
    out = session.out
    has_policy = (out / FOLDER / METADATA).is_file() and not read_policy(out).diverged
    return gathered([has_policy])[0][0]


def _keep(session: _Session, step: int, metrics: DevMetrics, *, diverged: bool = False) -> None:
    """Write the policy as it is; after a divergence only if all its weights are finite. Called in every process."""
    recipe, material = session.recipe, session.material
    state = gathered_state(session.trainer, trained_only=True)
    if not session.process.is_main or (diverged and not all(bool(t.isfinite().all()) for t in state.values())):
        return
    metadata = PolicyMetadata(
        backbone=recipe.models.policy.backbone,
        algorithm=recipe.algorithm,
        prompt=session.prompt.prompt.identity,
        reward=material.reward_facts,
        inputs=material.inputs,
        dialogue_ids=material.dialogue_ids,
        dev_ids=tuple(dict.fromkeys(context.dialogue_id for context in material.dev)),
        selected_by=recipe.optim.select,
        step=step,
        metrics=dict(metrics),
        diverged=diverged,
    )
    save_policy(session.trainer.model, state, session.learner.tokenizer, metadata, session.out / FOLDER)


def _card(session: _Session, metadata: PolicyMetadata, steps: int) -> str:
    recipe, material = session.recipe, session.material
    targets = recipe.lora.targets
    return render_card(
        "policy",
        version=esckit.__version__,
        backbone=metadata.backbone,
        algorithm=metadata.algorithm,
        steps=steps,
        rank=recipe.lora.rank,
        alpha=recipe.lora.alpha,
        targets=targets if isinstance(targets, str) else ", ".join(targets),
        prompt=metadata.prompt,
        reward=", ".join(f"{name} {value}" for name, value in metadata.reward.items()),
        n_train=session.counts["rows"],
        n_dev=len(material.dev),
        n_dialogues=len(metadata.dialogue_ids),
        selected_by=metadata.selected_by,
        step=metadata.step,
        metrics=metrics_table(session.dev, sorted({name for row in session.dev.values() for name in row}))
        if session.dev
        else "Not measured.",
    )
