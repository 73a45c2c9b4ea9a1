"""A key stays where it was given: no command writes, logs or shows it, whatever goes wrong.

Every command of the app runs at debug level, with the key in each environment variable that may hold one, and with
servers that repeat it in their errors. All files in the home of these commands and all that they print are then
searched for the key, as it is and encoded. The commands are taken from the app, so that a new one without a case fails.
"""

import base64
import html
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

import pytest
import typer
from typer.testing import CliRunner

from esckit.cli import app as cli
from esckit.errors import EsckitError
from esckit.models.backbones import weights_dir
from tests.cli.test_pipeline import JUDGE
from tests.pins.pinned import environment
from tests.shell import esckit, started
from tests.torture.hostile import FAULTS, Ask, HostileServer

KEY = "sk-torture/18+a~Kq7vN2xWcR=="
"""Holds what URLs, HTML and both alphabets of Base64 write in another way."""

VARIABLES = (
    *("TORTURE_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"),
    *("ESCKIT_SERVE_TOKEN", "AWS_SECRET_ACCESS_KEY", "VLLM_API_KEY"),
)


def spellings(secret: str) -> set[bytes]:
    """Return a secret as it is and in each encoding; of Base64 what all texts with the secret in it have."""
    raw = secret.encode()
    found = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), html.escape(secret), raw.hex()}
    found |= {"".join(f"&#{byte};" for byte in raw), json.dumps(secret)[1:-1].replace("/", "\\/")}
    for n_before in range(3):
        encoded = base64.b64encode(bytes(n_before) + raw + bytes(2)).decode()
        inner = encoded[4 if n_before else 0 : len(encoded) // 4 * 4 - 8]
        found |= {inner, inner.replace("+", "-").replace("/", "_"), quote(inner, safe="")}
    return {one.encode() for one in found}


SPELLINGS = spellings(KEY)


def test_the_search_finds_a_key_in_each_encoding() -> None:
    for n_before in range(4):
        text = b"Bearer "[:n_before] + KEY.encode() + b" and more"
        for encoded in (text, base64.b64encode(text), base64.urlsafe_b64encode(text), text.hex().encode()):
            assert any(spelt in encoded for spelt in SPELLINGS)
    assert not any(spelt in b"Bearer [key], sk-torture, sk-..." for spelt in SPELLINGS)


class Case(NamedTuple):
    """One way to give a command.

    Attributes:
        words: Its words; ``URL`` becomes the address of the server.
        code: Exit code.
        typed: What it reads.
    """

    words: str
    code: int = 0
    typed: str | None = None


_SERVER = "--set 'models.supporter={endpoint: {base_url: \"URL\", api_key_env: TORTURE_KEY}, model: m}'"
_LOOSE = f"{_SERVER} --set max_failure_rate=1.0 --set cache=answers.db"
_ESCONV = "sample:esconv"

# In this order: some read what others wrote.
CASES = {
    "simulate": Case(f"simulate smoke/simulate_scripted --set data.limit=3 --out runs/simulate {_LOOSE}"),
    "search": Case(f"search smoke/search_scripted --set data.limit=4 --out runs/search {_LOOSE}"),
    "predict": Case(f"predict smoke/predict_scripted --set data.limit=2 --out runs/predict {_LOOSE}"),
    "evaluate": Case(f"evaluate judge.yaml --set data.limit=6 --set predictions=null {_LOOSE} --out runs/evaluate"),
    "run": Case("run page.yaml --dry-run"),
    "train-flow": Case("train-flow smoke/train_flow_tiny --set data.trees=[runs/search] --dry-run"),
    "train-reward": Case("train-reward smoke/train_reward_scripted --set inputs=[runs/simulate] --dry-run"),
    "train-sft": Case("train-sft smoke/train_sft_tiny --dry-run"),
    "train-rl": Case(f"train-rl smoke/train_rl_online {_SERVER} --dry-run"),
    "report": Case("report runs/evaluate --out page.html"),
    "table": Case("table runs/evaluate --to csv --cost"),
    "study make": Case("study make runs/evaluate --out study --kind rating --items 2 --checks 0"),
    "study read": Case("study read study", code=2),
    "data inspect": Case("data inspect sample:esconv"),
    "data convert": Case("data convert sample:esconv --to messages --out messages.jsonl"),
    "data split": Case("data split sample:esconv --scheme ratio --out splits --seed 1"),
    "strategies list": Case("strategies list"),
    "strategies show": Case("strategies show aflow"),
    "strategies map": Case("strategies map esconv_to_aflow --corpus sample:esconv"),
    "strategies copy": Case("strategies copy aflow mine.yaml"),
    "chat": Case(f"chat chat/scripted {_SERVER} --out runs/chat", code=3, typed="I failed my exam.\nAnd now?\n"),
    "backbones list": Case("backbones list"),
    "backbones show": Case("backbones show tiny-random"),
    "backbones fetch": Case("backbones fetch owner/model", code=2),
    "export": Case("export runs/simulate exported", code=2),
    "recipes list": Case("recipes list"),
    "recipes show": Case(f"recipes show smoke/simulate_scripted --resolved {_SERVER}"),
    "recipes copy": Case("recipes copy smoke/simulate_scripted copied.yaml"),
    "recipes check": Case(f"recipes check smoke/simulate_scripted {_SERVER}"),
    "recipes fields": Case("recipes fields simulate"),
    "recipes schema": Case("recipes schema simulate"),
    "prompts list": Case("prompts list"),
    "prompts show": Case("prompts show seeker --rendered"),
    "prompts copy": Case("prompts copy seeker seeker.yaml"),
    "prompts check": Case(f"prompts check smoke/simulate_scripted {_SERVER}"),
    "runs list": Case("runs list runs"),
    "runs show": Case("runs show runs/simulate"),
    "runs diff": Case("runs diff runs/simulate runs/simulate"),
    "cache info": Case("cache info answers.db"),
    "cache verify": Case("cache verify answers.db"),
    "cache prune": Case("cache prune answers.db --older-than 1"),
    "doctor": Case(f"doctor smoke/simulate_scripted {_SERVER}"),
    "runs rm": Case("runs rm runs/predict --yes"),
}
"""What the default tier gives of each command; ``serve`` runs until it is stopped, and has a test of its own."""


def commands() -> Iterator[str]:
    """Yield every command of the app, as it is typed."""
    root: Any = typer.main.get_command(cli.app)
    for name in cli.COMMANDS:
        below = getattr(root.get_command(None, name), "commands", {})
        yield from (f"{name} {inner}" for inner in below) if below else [name]


def held_key(texts: Mapping[str, bytes]) -> list[str]:
    """Return where the key stands, and in which spelling."""
    return [f"{name}: {spelt!r}" for name, text in texts.items() for spelt in SPELLINGS if spelt in text]


def written(home: Path) -> dict[str, bytes]:
    """Return everything below a folder: the contents of files, names, and where links lead."""
    paths = sorted(home.rglob("*"))
    found = {f"{path}": path.read_bytes() for path in paths if path.is_file() and not path.is_symlink()}
    names = [f"{path} {os.readlink(path) if path.is_symlink() else ''}" for path in paths]
    return {**found, "names of files": "\n".join(names).encode(errors="surrogateescape")}


PAGE = """\
command: run
stages:
  told: {recipe: smoke/predict_scripted, set: {data.limit: 2}}
  judged: {recipe: judge.yaml, set: {predictions: stage:told}}
"""
REPLIES = JUDGE.replace("[strategy]", "[response]").replace("statistics", "models: {}\nstatistics")


class Home:
    """A folder in which commands run that know the key, and what they printed."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.printed: dict[str, bytes] = {}
        # Whatever a library keeps for its user lies in here as well.
        places = {"HOME": folder, "TMPDIR": folder / "tmp", "RAY_TMPDIR": folder / "ray", "XDG_CACHE_HOME": folder}
        for place in places.values():
            place.mkdir(exist_ok=True)
        variables = dict.fromkeys(VARIABLES, KEY) | {name: str(place) for name, place in places.items()}
        self.environment = environment(**variables, ESCKIT_MODELS=str(weights_dir()))
        (folder / "page.yaml").write_text(PAGE, encoding="utf-8")
        (folder / "judge.yaml").write_text(REPLIES, encoding="utf-8")

    def give(self, case: Case) -> None:
        """Give a command at debug level."""
        words = shlex.split(case.words.replace("URL", self.url))
        done = esckit(*words, "-v", "-v", cwd=self.folder, env=self.environment, typed=case.typed)
        self.printed |= {
            f"stdout of {case.words}": done.stdout.encode(),
            f"stderr of {case.words}": done.stderr.encode(),
        }
        assert done.returncode == case.code, (case.words, done.stdout[-1000:], done.stderr[-3000:])


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    """A server that says the key in all its answers, and answers every tenth request badly, with the key."""
    names = ("400 with the key", "the key as an encoding", "a redirect with the key in its path", "the key in the text")
    faults = [act for act in FAULTS if act.name in names]
    assert len(faults) == len(names)

    def good(ask: Ask) -> str:
        return f"<think>I was given {ask.key}.</think> <response>{ask.text} {ask.key}</response>"

    with HostileServer(0.1, 18, faults, good=good).running() as found:
        yield found


def test_every_command_has_a_case() -> None:
    assert sorted(commands()) == sorted([*CASES, "serve"])


@pytest.mark.timeout(900)  # some fifty commands, one after the other
def test_no_command_shows_or_keeps_a_key(server: HostileServer, tmp_path: Path) -> None:
    home = Home(tmp_path, server.url)
    for case in CASES.values():
        home.give(case)
    assert any("with the key" in act.name for acts in server.played.values() for act in acts)
    assert held_key(home.printed | written(tmp_path)) == []


_RAY = "--set executor.kind=ray --set executor.address=local --set executor.workers=1 --set executor.cpus=0.5"
FULL = (
    Case("simulate smoke/simulate_scripted --out runs/simulate"),
    Case("search smoke/search_scripted --out runs/search"),
    Case("train-reward smoke/train_reward_scripted --set inputs=[runs/simulate] --out runs/train-reward"),
    Case("train-flow smoke/train_flow_tiny --set data.trees=[runs/search] --out runs/train-flow"),
    Case("train-sft smoke/train_sft_tiny --out runs/train-sft"),
    Case(f"train-rl smoke/train_rl_online {_SERVER} --set max_failure_rate=1.0 --out runs/train-rl"),
    Case("export runs/train-sft exported"),
    Case("run page.yaml --out runs/page"),
    Case(f"simulate smoke/simulate_scripted {_LOOSE} {_RAY} --set data.limit=1 --out runs/on-ray"),
)
TRACKER = """\
class Sent:
    def __init__(self, name):
        self.name = name

    def __getattr__(self, name):
        return Sent(f"{self.name}.{name}")

    def __call__(self, *values, **named):
        with open("sent", "a") as file:
            file.write(f"{self.name} {values!r} {named!r}\\n")
        return self

    __setitem__ = __call__


run = None
config = Sent("config")


def init(*values, **named):
    global run
    run = Sent("run")(*values, **named)
    return run


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Sent(name)
"""
"""Stands for a tracker's package, and writes down all that is sent to it."""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder in which the paths of Ray's sockets are not too long."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_neither_trainings_nor_trackers_nor_clusters_keep_a_key(server: HostileServer, short_path: Path) -> None:
    tmp_path, home = short_path, Home(short_path, server.url)
    for name, content in (("", TRACKER), ("sdk/", ""), ("sdk/lib/", "")):
        (tmp_path / "beside/wandb" / name).mkdir(parents=True)
        (tmp_path / "beside/wandb" / name / "__init__.py").write_text(content, encoding="utf-8")
    (tmp_path / "beside/wandb/sdk/lib/config_util.py").write_text(
        "class ConfigError(Exception): ...\n", encoding="utf-8"
    )
    for case in FULL:
        home.give(case)
    # Libraries look for a tracker when they are imported, so that a process with all imports done would not see it.
    words = shlex.split("train-sft smoke/train_sft_tiny --set trackers=[wandb] --out runs/tracked -v -v")
    found = {**home.environment, "PYTHONPATH": f"{tmp_path}/beside:{home.environment['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "esckit", *words],
        cwd=tmp_path,
        env=found,
        capture_output=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    home.printed |= {"stdout with a tracker": done.stdout, "stderr with a tracker": done.stderr}
    assert "config.update" in (tmp_path / "sent").read_text(encoding="utf-8")
    assert held_key(home.printed | written(tmp_path)) == []


def test_a_server_of_ours_shows_neither_its_token_nor_its_models_key(server: HostileServer, tmp_path: Path) -> None:
    home, log = Home(tmp_path, server.url), tmp_path / "log"
    words = shlex.split(f"serve chat/scripted {_SERVER} --port 0 -v -v".replace("URL", server.url))
    process = started(*words, log=log, cwd=tmp_path, env=home.environment)
    answers = {}
    try:
        deadline_s = time.monotonic() + 120
        while not (found := re.search(r"^page +(http://\S+)/", log.read_text() if log.exists() else "", re.MULTILINE)):
            assert process.is_alive(), log.read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        for number, token in enumerate((KEY, KEY, KEY, KEY[:-1], "")):
            said = {"model": "chat/scripted", "messages": [{"role": "user", "content": f"Day {number}"}]}
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
            request = urllib.request.Request(f"{found[1]}/v1/chat/completions", json.dumps(said).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    answers[f"answer {number}"] = answer.read()
            except urllib.error.HTTPError as error:
                answers[f"error {error.code} of {number}"] = error.read() + str(error.headers).encode()
    finally:
        process.terminate()
        process.join(30)
    assert {"error 401 of 3", "error 401 of 4"} < answers.keys()
    assert held_key(answers | written(tmp_path)) == []


@pytest.mark.parametrize(
    "change",
    [
        "models.supporter={endpoint: {base_url: 'URL', api_key_env: '<key>'}, model: m}",
        "models.supporter={endpoint: {base_url: 'URL', api_key: '<key>'}, model: m}",
        "models.supporter={endpoint: {base_url: 'http://me:<key>@127.0.0.1:9/v1'}, model: m}",
        "models.supporter={endpoint: {base_url: 'URL?key=<key>'}, model: m}",
        "models.supporter={endpoint: '<key>', model: m}",
        "models.supporter={endpoint: {serve: 'vllm serve m --port {port} --api-key <key>'}, model: m}",
        "models.supporter={endpoint: {serve: 'env VLLM_API_KEY=<key> vllm serve m --port {port}'}, model: m}",
        "models.supporter={endpoint: {serve: 'vllm --port {port}', environment: {VLLM_API_KEY: '<key>'}}, model: m}",
        "executor={kind: ray, workers: 1, runtime_env: {env_vars: {HF_TOKEN: '<key>'}}}",
        "executor={kind: ray, workers: 1, runtime_env: {working_dir: 'https://me:<key>@127.0.0.1/code.zip'}}",
        "api_key=<key>",
    ],
)
def test_a_key_in_a_wrong_place_is_refused_unseen(
    change: str, server: HostileServer, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    changed = change.replace("URL", server.url).replace("<key>", KEY)
    done = CliRunner().invoke(
        cli.app, ["simulate", "smoke/simulate_scripted", "--set", changed, "--out", "run", "-v", "-v"]
    )
    assert isinstance(done.exception, EsckitError)
    assert done.exception.exit_code == 2
    said = "".join(traceback.format_exception(done.exception)) + done.output + "".join(map(str, done.exception.args))
    assert held_key({"said": said.encode()} | written(tmp_path)) == []
