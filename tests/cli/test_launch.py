"""`--accelerate`: the same command under the launcher."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from esckit.cli.app import main
from esckit.cli.launch import find_preset, launch, launch_command, note_exit_code, preset_names
from esckit.errors import ConfigError


def test_the_presets_ship():
    assert set(preset_names()) == {"single", "multi-gpu", "fsdp", "zero2", "zero3", "multi-node"}


@pytest.mark.parametrize("name", ["single", "multi-gpu", "fsdp", "zero2", "zero3", "multi-node"])
def test_accelerate_reads_every_preset(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(find_preset(name)))
    assert config.mixed_precision == "no"
    assert (
        str(config.distributed_type).rpartition(".")[2]
        == yaml.safe_load(find_preset(name).read_text())["distributed_type"]
    )


def test_the_command_is_started_again_without_the_option():
    preset = find_preset("single")
    for option in (["--accelerate", "single"], ["--accelerate=single"]):
        command = launch_command(["-v", "train-reward", "mine.yaml", *option, "--out", "run"], preset)
        assert command[0] == sys.executable
        assert command[command.index("-m", 4) :] == ["-m", "esckit", "-v", "train-reward", "mine.yaml", "--out", "run"]
        assert command[command.index("--config_file") + 1] == str(preset)


def test_a_file_of_ones_own_is_taken(tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(find_preset("single").read_text())
    assert find_preset(str(mine)) == mine


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown launcher settings 'zero4'") as caught:
        find_preset("zero4")
    assert "zero" in str(caught.value.hint)


def test_settings_for_gpus_need_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="no GPU"):
        launch("multi-gpu")


def test_an_exit_code_is_noted_for_the_launcher_that_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    note_exit_code(3)  # nobody asks
    monkeypatch.setenv("ESCKIT_EXIT_CODE_FILE", str(tmp_path / "code"))
    note_exit_code(0)
    note_exit_code(None)
    assert not (tmp_path / "code").exists()
    note_exit_code(130)
    assert (tmp_path / "code").read_text() == "130"
    note_exit_code(2)
    assert (tmp_path / "code").read_text() == "130", "the first process to end says why"


def test_who_is_interrupted_ends_what_the_launcher_started(tmp_path: Path):
    code = (
        "import os, sys; from esckit.cli.launch import run_launcher\n"
        "run_launcher(['sh', '-c', 'sleep 60 & p=$!; sleep 1; echo $p > new; mv new pid; wait'], dict(os.environ))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() and parent.poll() is None:
        time.sleep(0.01)
    parent.send_signal(signal.SIGINT)
    parent.wait(timeout=30)
    started = Path("/proc") / (tmp_path / "pid").read_text().strip() / "status"
    for _ in range(500):
        if not started.exists() or "(zombie)" in started.read_text():
            return
        time.sleep(0.02)
    raise AssertionError("it is still running")


@pytest.mark.parametrize("command", ["train-reward", "train-sft", "train-rl", "train-flow"])
def test_every_training_command_notes_what_its_error_leads_to(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ESCKIT_EXIT_CODE_FILE", str(tmp_path / "code"))
    monkeypatch.setattr(sys, "argv", ["esckit", command, str(tmp_path / "no_recipe.yaml")])
    with pytest.raises(SystemExit):
        main()
    assert (tmp_path / "code").read_text() == "2"
