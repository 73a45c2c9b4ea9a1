"""What cannot be exported: one clear message each, and nothing left on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from esckit.errors import CheckpointError, ConfigError, DataError, EsckitError, StorageError
from esckit.export.run import export, plan
from tests.export.export_runs import OLD
from tests.tiny import tiny_folder


def refused(run: Path, folder: Path, kind: type[EsckitError], match: str, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        export(plan(run, folder, **options))
    assert caught.value.exit_code == 2
    assert not list(folder.parent.glob(f"*{folder.name}*"))


@pytest.fixture
def copied(tmp_path: Path) -> Any:
    def copy(name: str, file: str = "manifest.json", **facts: Any) -> Path:
        run = Path(shutil.copytree(OLD / name, tmp_path / "run"))
        path = run / file
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))
        return run

    return copy


def test_a_run_of_another_kind(tmp_path: Path) -> None:
    refused(OLD / "simulate", tmp_path / "out", CheckpointError, "run of 'simulate'; expected a run of train-flow")


def test_no_run_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", tmp_path / "out", DataError, "no run folder")


@pytest.mark.parametrize("name", ["reward-killed", "rl-killed", "flow-killed"])
def test_a_run_that_is_not_finished(name: str, tmp_path: Path) -> None:
    refused(OLD / name, tmp_path / "out", CheckpointError, "is not finished")


def test_a_finished_run_without_its_summary(copied: Any, tmp_path: Path) -> None:
    run = copied("rl-grpo")
    (run / "summary.json").unlink()
    refused(run, tmp_path / "out", CheckpointError, "is not finished")


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="already exists"):
        plan(OLD / "rl-grpo", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a file is where a folder is needed"):
        export(plan(OLD / "rl-grpo", tmp_path / "file" / "out"))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    refused(OLD / "rl-grpo", tmp_path / "out", StorageError, "the disk is full")


def test_a_backbone_that_is_gone(copied: Any, tmp_path: Path) -> None:
    run = copied("rl-grpo", "checkpoint/policy.json", backbone=str(tmp_path / "gone"))
    refused(run, tmp_path / "out", ConfigError, "there is no folder")


def test_a_whole_model_is_exported_without_its_backbone(copied: Any, tmp_path: Path) -> None:
    run = copied("reward-classifier", "checkpoint/reward.json", backbone=str(tmp_path / "gone"))
    export(plan(run, tmp_path / "out"))
    assert "base_model" not in (tmp_path / "out" / "README.md").read_text().split("---")[1]


def test_weights_that_do_not_fit_the_memory(copied: Any, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "backbone", "llama")
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**7, 10**7], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    run = copied("rl-grpo", "checkpoint/policy.json", backbone=str(folder))
    refused(run, tmp_path / "out", ConfigError, r"take 400000\.0 GB in float32.*free here")


def test_a_backbone_whose_weights_are_quantised(copied: Any, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "backbone", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    run = copied("rl-grpo", "checkpoint/policy.json", backbone=str(folder))
    refused(run, tmp_path / "out", ConfigError, r"are quantised \(bitsandbytes\)")


def test_an_adapter_that_does_not_fit_its_backbone(copied: Any, tmp_path: Path) -> None:
    run = copied("rl-grpo")
    path = run / "checkpoint/adapter/adapter_model.safetensors"
    save_file({name: torch.zeros(2, 2) for name in load_file(path)}, path)
    refused(run, tmp_path / "out", CheckpointError, "size mismatch|does not fit its backbone")


@pytest.mark.parametrize(
    ("name", "match"), [("reward-rrhf", "objective rrhf"), ("reward-classifier", "pooling 'mean'")]
)
def test_a_reward_model_without_a_form(name: str, match: str, copied: Any, tmp_path: Path) -> None:
    run = copied(name, "checkpoint/reward.json", **({"pooling": "mean"} if "mean" in match else {}))
    refused(run, tmp_path / "out", CheckpointError, match)


def test_a_prompt_that_has_changed(copied: Any, tmp_path: Path) -> None:
    run = copied("rl-grpo", "checkpoint/policy.json", prompt="supporter_rlff/0000000000000000")
    refused(run, tmp_path / "out", CheckpointError, "was trained with prompt supporter_rlff/0000000000000000")


def test_adapters_of_what_has_none(tmp_path: Path) -> None:
    refused(OLD / "flow", tmp_path / "out", ConfigError, "--adapter of a run of 'train-flow'", adapter=True)
    refused(OLD / "rl-grpo", tmp_path / "out", ConfigError, "built in memory", adapter=True)
    refused(OLD / "rl-grpo", tmp_path / "out", ConfigError, "--dtype", adapter=True, dtype="float16")


def test_numbers_that_differ_leave_nothing(tmp_path: Path) -> None:
    refused(OLD / "reward-classifier", tmp_path / "out", CheckpointError, "Use --dtype float32", dtype="bfloat16")
    refused(OLD / "reward-classifier", tmp_path / "out", CheckpointError, "differ from esckit's", dtype="float16")


def test_an_evaluation_of_other_models(tmp_path: Path) -> None:
    refused(OLD / "rl-grpo", tmp_path / "out", DataError, "other models", evaluation=OLD / "evaluate")
    refused(OLD / "rl-grpo", tmp_path / "out", DataError, "run of 'simulate'", evaluation=OLD / "simulate")
    killed = OLD / "evaluate-killed"
    refused(OLD / "reward-classifier", tmp_path / "out", DataError, "not finished", evaluation=killed)
