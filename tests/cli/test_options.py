"""Options that every command takes, completion, paths under a home folder, and code of a user's own that raises."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from esckit.cli import app as cli
from esckit.config.load import load_any_recipe

# The console script's name: completion goes by it.
_CALL = "import sys; from esckit.cli.app import main; sys.argv[0] = 'esckit'; main()"


def esckit(*args: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _CALL, *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


# ---------------------------------------------------------------- logging


@pytest.mark.parametrize(
    "words", [("-q", "data", "convert"), ("data", "-q", "convert"), ("data", "convert", "--quiet")]
)
def test_quiet_may_stand_before_or_after_a_command(words: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, [*words, "sample:extes", "--to", "jsonl", "--out", str(tmp_path / "x.jsonl")])
    assert (done.exit_code, done.stderr) == (0, "")


def test_verbose_after_a_command_logs_more() -> None:
    done = CliRunner().invoke(cli.app, ["recipes", "list", "-vv"])
    assert done.exit_code == 0
    assert cli.logging.getLogger("esckit").level == cli.logging.DEBUG


@pytest.mark.parametrize("words", [("simulate",), ("recipes", "show"), ("data", "inspect")])
def test_the_help_of_a_command_shows_the_options_of_logging(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli.app, [*words, "--help"]).stdout
    assert "--quiet" in shown
    assert "--verbose" in shown


# ---------------------------------------------------------------- completion

ASKED = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


def completed(shell: str, line: str) -> str:
    done = esckit(**{"_ESCKIT_COMPLETE": f"complete_{shell}", **ASKED[shell](line)})
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", ASKED)
def test_the_completion_script_of_a_shell_is_printed(shell: str) -> None:
    done = esckit(_ESCKIT_COMPLETE=f"source_{shell}")
    assert done.returncode == 0
    assert f"complete_{shell}" in done.stdout


@pytest.mark.parametrize("shell", ASKED)
def test_commands_and_recipes_are_completed(shell: str) -> None:
    assert all(name in completed(shell, "esckit ") for name in ("simulate", "train-flow", "data"))
    assert "simulate" in completed(shell, "esckit si")
    recipes = completed(shell, "esckit search smoke/")
    assert "smoke/search_scripted" in recipes
    assert "smoke/simulate_scripted" not in recipes
    assert "--dry-run" in completed(shell, "esckit search --d")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("prompts show crit", "critic_resolution"),
        ("prompts check smoke/sim", "smoke/simulate_scripted"),
        ("strategies show e", "esconv"),
        ("strategies map extes", "extes_to_aflow"),
        ("strategies copy a", "aflow"),
        ("backbones fetch smol", "smollm2-135m-instruct"),
    ],
)
def test_shipped_names_are_completed(line: str, name: str) -> None:
    assert name in completed("bash", f"esckit {line}").split()


# What a user's shell does when it starts, and then at the tab key after "esckit si".
IN_SHELLS = {
    "bash": (
        'eval "$(_ESCKIT_COMPLETE=source_bash esckit)"; COMP_WORDS=(esckit si); COMP_CWORD=1; '
        '_esckit_completion esckit; echo "${COMPREPLY[@]}"'
    ),
    "zsh": (
        'autoload -Uz compinit; compinit -D -u; eval "$(_ESCKIT_COMPLETE=source_zsh esckit)"; echo $_comps[esckit]; '
        "_arguments() { print -r -- $@ }; words=(esckit si); CURRENT=2; _esckit_completion"
    ),
    "fish": 'env _ESCKIT_COMPLETE=source_fish esckit | source; complete -C "esckit si"',
}
BARE = {"bash": ("--norc",), "zsh": ("-f",), "fish": ("--no-config",)}


@pytest.mark.parametrize("shell", IN_SHELLS)
def test_a_real_shell_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    program = tmp_path / "esckit"
    program.write_text(f"#!{sys.executable}\n{_CALL}\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    words = [shell, *BARE[shell], "-c", IN_SHELLS[shell]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert "simulate" in done.stdout, done.stderr


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in CliRunner().invoke(cli.app, ["--help"]).stdout
    assert "--install-completion" not in CliRunner().invoke(cli.app, ["recipes", "--help"]).stdout


# ---------------------------------------------------------------- paths under a home folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of the user."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_path_option_may_begin_with_a_tilde(home: Path) -> None:
    for words in (["--out=~/a.jsonl"], ["--out", "~/b.jsonl"]):
        done = CliRunner().invoke(cli.app, ["data", "convert", "sample:esconv", "--to", "jsonl", *words])
        assert done.exit_code == 0, done.output
    assert CliRunner().invoke(cli.app, ["data", "inspect", "~/a.jsonl"]).exit_code == 0
    assert sorted(path.name for path in home.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_every_path_of_a_recipe_may_begin_with_a_tilde(home: Path) -> None:
    changes = ["data.path=~/corpus", "prompts.seeker=~/seeker.yaml", "models.seeker={backbone: ~/model}"]
    found = load_any_recipe("smoke/simulate_scripted", overrides=changes).recipe.resolved()
    assert found["data"]["path"] == str(home / "corpus")
    assert found["prompts"]["seeker"] == str(home / "seeker.yaml")
    assert found["models"]["seeker"]["backbone"] == str(home / "model")
    reward = load_any_recipe("smoke/train_reward_scripted", overrides=["inputs=[~/a, runs/~b]"]).recipe.resolved()
    assert reward["inputs"] == [str(home / "a"), "runs/~b"]


# ---------------------------------------------------------------- code of a user's own

OWN = """
    def reward(conversations, responses):
        return [1 / (len(text) - len(text)) for text in responses]

    def loader(path, *, sink):
        yield from {}["nothing"]

    def dialogues(path, *, sink):
        from esckit.types import Turn
        yield Turn(speaker="nobody", text=7)

    def seeker(messages, sampling, seed):
        raise RuntimeError("no luck")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a module that raises."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(OWN), encoding="utf-8")
    (tmp_path / "broken.py").write_text("def reward(:\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("simulate", "smoke/simulate_scripted", "--set", "models.seeker={scripted: 'mine:seeker'}"),
            "scripted/mine:seeker raised RuntimeError: no luck",
        ),
        (
            ("simulate", "smoke/simulate_scripted", "--set", "data={dataset: 'mine:loader', path: mine.py}"),
            "the loader 'mine:loader' raised KeyError: 'nothing'",
        ),
        (
            ("simulate", "smoke/simulate_scripted", "--set", "data={dataset: 'mine:dialogues', path: mine.py}"),
            "the loader 'mine:dialogues' raised ValidationError\n",
        ),
        (
            ("train-rl", "smoke/train_rl_lexicon", "--set", "reward.kind=broken:reward", "--dry-run"),
            "module 'broken' raised SyntaxError",
        ),
    ],
)
def test_own_code_that_raises_is_an_error_of_ours(own: Path, words: tuple[str, ...], said: str) -> None:
    plain = esckit(*words, cwd=own)
    assert plain.returncode == 2
    assert said in plain.stderr
    assert "Traceback" not in plain.stderr
    verbose = esckit("-v", *words, cwd=own)
    assert verbose.returncode == 2
    assert "Traceback" in verbose.stderr


def test_json_of_a_quiet_command_stays_json() -> None:
    done = CliRunner().invoke(cli.app, ["data", "inspect", "sample:esconv", "--json", "-q"])
    assert json.loads(done.stdout)["n_dialogues"] == 20


# ---------------------------------------------------------------- what scripts read


PRINTS_ITS_OWN = {
    ("recipes", "copy"), ("prompts", "copy"), ("strategies", "copy"), ("backbones", "fetch"),  # one path
    ("recipes", "schema"), ("table",), ("serve",),  # JSON, a choice of forms, a server
}  # fmt: skip


def leaves(command, words: tuple[str, ...] = ()):
    if not hasattr(command, "list_commands"):
        yield words, command
        return
    for name in command.list_commands(None):
        yield from leaves(command.get_command(None, name), (*words, name))


def test_every_command_with_results_takes_json() -> None:
    found = {words: {name for param in command.params for name in param.opts} for words, command in _commands()}
    assert {words for words, options in found.items() if "--json" not in options} == PRINTS_ITS_OWN


def _commands():
    return list(leaves(typer.main.get_command(cli.app)))
