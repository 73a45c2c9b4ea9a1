"""Trainings in several CPU processes under real DeepSpeed ZeRO or FSDP2, without a GPU.

accelerate takes CPU processes for one plain device each, so it is told that gloo processes are a multi-GPU machine.
Everything above that line is real: DeepSpeed's optimisers, FSDP2's sharding, the Trainer, TRL and esckit's commands.

A forked process (see :mod:`tests.shell`) does not finalise Python, which is where a process group that was never ended
aborts; so each rank checks that it is ended.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.shell import ROOT, forked

ENGINES = ("ddp", "zero2", "zero3", "fsdp")
GROUP_LEFT_OPEN = 99
"""Exit code of a rank that left its process group open."""

_FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}  # fmt: skip
_ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
    "ACCELERATE_GRADIENT_CLIPPING": "auto", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
}  # fmt: skip
_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "ddp": {},
    "fsdp": _FSDP,
    "zero2": {**_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {**_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}

_ALWAYS = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "ACCELERATE_MIXED_PRECISION": "no",
    "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Done:
    """What a run left: exit code of the worst rank, and what each rank printed."""

    code: int
    out: Path
    logs: tuple[str, ...] = field(repr=False)

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """Return the rows of a file of the run folder."""
        return [json.loads(line) for line in (self.out / name).read_text(encoding="utf-8").splitlines()]


def esckit(
    engine: str,
    arguments: Sequence[str],
    out: Path,
    *,
    n: int = 2,
    bf16: bool = False,
    recorded: bool = False,
    stop_after: int | None = None,
    poison_after: int | None = None,
    cwd: Path = ROOT,
    timeout_s: float = 240.0,
) -> Done:
    """Run a command of esckit in ``n`` processes.

    Args:
        engine: One of :data:`ENGINES`.
        arguments: Of the command; ``--out`` is added.
        out: The run folder.
        n: Number of processes; 1 is an ordinary run without any engine.
        bf16: Say that the device computes in bfloat16.
        recorded: GRPO takes its outputs from :func:`tests.sharded.worker.recorded_output` instead of sampling.
        stop_after: Interrupt the run after so many optimiser steps.
        poison_after: Make gradients of a flow model NaN in the last rank after so many steps.
        cwd: Where the command is run.
        timeout_s: After so long all ranks are killed.
    """
    logs = [out.with_name(f"{out.name}.rank{rank}.log") for rank in range(n)]
    ranks: list[BaseProcess] = []
    for rank, (log, environment) in enumerate(zip(logs, environments(engine, n), strict=True)):
        log.unlink(missing_ok=True)
        switches = {
            "pretend": n > 1 and engine != "ddp", "bf16": bf16, "recorded": recorded, "stop_after": stop_after,
            "poison_after": poison_after if rank == n - 1 else None,
        }  # fmt: skip
        words = [*arguments, "--out", str(out)]
        ranks.append(forked(_rank, words, env=environment, stdout=log, stderr=log, cwd=cwd, **switches))
    for process in ranks:
        process.join(timeout_s)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        if process.exitcode is None:
            process.kill()
            process.join()
    worst = next((code for code in codes if code), 0) if None not in codes else -9
    return Done(int(worst or 0), out, tuple(log.read_text(encoding="utf-8", errors="replace") for log in logs))


def environments(engine: str, n: int) -> list[dict[str, str]]:
    """Return the variables of each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, **_ALWAYS}
    if n == 1:
        return [shared]
    shared |= {**_ENVIRONMENT[engine], "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]


def launched(engine: str, arguments: Sequence[str], out: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes under torch's launcher, which reports a process that aborts as it ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    return subprocess.run(
        [*launcher, "--master_port", str(port), "-m", "tests.sharded.worker", *arguments, "--out", str(out)],
        env={**os.environ, **_ALWAYS, **_ENVIRONMENT[engine]},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def _rank(words: Sequence[str], **switches: Any) -> None:
    from tests.sharded.worker import play

    try:
        play(words, **switches)
    finally:
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            print("the process group was left open", file=sys.stderr)  # noqa: T201
            left = sys.exception()
            if left is None or (isinstance(left, SystemExit) and not left.code):
                sys.exit(GROUP_LEFT_OPEN)
