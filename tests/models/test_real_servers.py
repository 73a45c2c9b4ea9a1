"""The embedded model behind real servers that a run starts; each needs an environment of its own (docs/servers.md)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from esckit.models.backbones import fetch_backbone, load_backbones, shipped_gguf
from tests.shell import esckit

BACKBONE = "smollm2-135m-instruct"
SAMPLED = ("critic.readout=sampled", "critic.samples=2")


def program(variable: str) -> str:
    """The program that an environment variable names; without it the test is skipped."""
    if variable not in os.environ:
        pytest.skip(f"{variable} names no program (docs/servers.md)")
    return os.environ[variable]


def simulate(out: Path, endpoint: dict[str, Any], model: str, *sets: str) -> dict[str, Any]:
    """Play two futures with all roles on a server; return the summary."""
    binding = {"endpoint": endpoint, "model": model, "on_length": "last_sentence", "sampling": {"max_tokens": 32}}
    roles = [f"models.{role}={json.dumps(binding)}" for role in ("supporter", "seeker", "critic")]
    sets = ("data.limit=2", "simulation.candidates=1", "simulation.horizon=1", "max_failure_rate=1.0", *roles, *sets)
    done = esckit("simulate", "smoke/simulate", "--out", str(out), *(f"--set={change}" for change in sets))
    assert done.returncode == 0, done.stderr
    kinds = {json.loads(line)["kind"] for line in (out / "failures.jsonl").read_text().splitlines()}
    assert kinds <= {"unparsed"}  # so small a model may name no level; the server itself answers everything
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.timeout(1800)
def test_vllm_plays_all_roles_and_returns_probabilities(tmp_path: Path) -> None:
    serve = (
        f"{program('ESCKIT_VLLM')} -m vllm.entrypoints.openai.api_server --model {fetch_backbone(BACKBONE)} "
        "--served-model-name smollm2 --dtype bfloat16 --max-model-len 2048 --max-num-batched-tokens 8192 "
        "--enforce-eager --host 127.0.0.1 --port {port}"
    )
    environment = {"VLLM_CPU_KVCACHE_SPACE": 1, "VLLM_CPU_OMP_THREADS_BIND": 0, "VLLM_NO_USAGE_STATS": 1}
    summary = simulate(tmp_path / "run", {"serve": serve, "environment": environment}, "smollm2")
    assert summary["mean_name_mass"] > 0.3


@pytest.mark.timeout(1800)
def test_transformers_serve_plays_all_roles(tmp_path: Path) -> None:
    folder = fetch_backbone(BACKBONE)
    serve = f"{program('ESCKIT_TRANSFORMERS')} serve {folder} --device cpu --dtype bfloat16 --host 127.0.0.1"
    simulate(tmp_path / "run", {"serve": f"{serve} --port {{port}}"}, str(folder), *SAMPLED)


@pytest.mark.timeout(1800)
def test_llama_cpp_plays_all_roles_and_returns_probabilities(tmp_path: Path) -> None:
    gguf = shipped_gguf(str(load_backbones()[BACKBONE].package))
    serve = f"{program('ESCKIT_LLAMA')} --model {gguf} --ctx-size 8192 --parallel 4 --host 127.0.0.1 --port {{port}}"
    summary = simulate(tmp_path / "run", {"serve": serve}, "smollm2")
    assert summary["mean_name_mass"] > 0.3
