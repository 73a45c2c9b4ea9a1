"""`--dry-run` and `--pilot` from the shell: what a run may cost, and what it will."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from esckit.models.backbones import resolve_backbone
from tests.cli.test_servers import at
from tests.models.fake_server import FakeServer, completion
from tests.shell import ROOT

RUNS = {
    "simulate": ("smoke/simulate_scripted", "data.limit=2"),
    "search": ("smoke/search_scripted", "data.limit=4"),
    "predict": ("smoke/predict_scripted", "data.limit=2"),
    "evaluate": ("smoke/evaluate_scripted", "suites=[response, strategy]", "data.limit=2"),
}


def words(command: str, *more: str) -> list[str]:
    recipe, *sets = RUNS[command]
    return [command, recipe, *(f"--set={change}" for change in sets), *more]


@pytest.mark.parametrize("command", RUNS)
def test_every_playing_command_forecasts(esckit, command: str) -> None:
    code, out, err = esckit(*words(command, "--dry-run", "--rate", "5", "--json"))
    assert code == 0, err
    plan = json.loads(out)
    found = plan["forecast"]
    asked = {role: n for role, n in plan["calls_at_most"].items() if role != "scorer"}
    assert {role: one["calls"] for role, one in found["roles"].items()} == asked
    assert found["calls"] == sum(asked.values()) > 0
    assert all(found[name] > 0 for name in ("prompt_tokens", "completion_tokens", "disk_bytes"))
    assert (found["cost"], found["hours"]) == (0.0, round(found["calls"] / 18_000, 2))
    code, out, _ = esckit(*words(command, "--dry-run"))
    assert "units rehearsed" in out
    assert "--rate CALLS" in out


@pytest.mark.parametrize("command", RUNS)
def test_every_playing_command_has_a_pilot_and_goes_on(esckit, command: str, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "run"))
    code, printed, err = esckit(*words(command, *out, "--pilot", "3", "--json"))
    assert code == 0, err
    found = json.loads(printed)["estimate"]
    assert 3 <= found["pilot_units"] < found["units"]
    assert found["calls"]["low"] <= found["calls"]["value"] <= found["calls"]["high"]
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert (manifest["status"], manifest["spent"]["calls"]) == ("stopped", found["pilot_calls"])
    assert esckit(*words(command, *out))[0] == 0
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "complete"


def test_a_forecast_has_the_prices_of_a_server(esckit) -> None:
    binding = "{endpoint: openai, model: gpt-4o, prices: {prompt: 1000000, completion: 1000000}}"
    code, out, _ = esckit(*words("simulate", f"--set=models.critic={binding}", "--dry-run", "--json"))
    critic = json.loads(out)["forecast"]["roles"]["critic"]
    assert code == 0
    assert critic["cost"] == critic["prompt_tokens"] + critic["completion_tokens"]
    unpriced = "{endpoint: openai, model: gpt-4o}"
    code, out, _ = esckit(*words("simulate", f"--set=models.critic={unpriced}", "--dry-run", "--json"))
    found = json.loads(out)["forecast"]
    assert (found["cost"], found["roles"]["critic"]["cost"], found["roles"]["seeker"]["cost"]) == (None, None, 0.0)


def test_the_tokenizer_of_a_local_model_is_used(esckit) -> None:
    resolve_backbone("smollm2-135m-instruct")  # converted where it was not yet
    binding = "{backbone: smollm2-135m-instruct}"
    code, out, _ = esckit(*words("simulate", f"--set=models.seeker={binding}", "--dry-run", "--json"))
    roles = json.loads(out)["forecast"]["roles"]
    assert code == 0
    assert 3.0 < roles["seeker"]["bytes_per_token"] < 5.5
    assert roles["seeker"]["tokenizer"].endswith("tokenizer.json")
    assert (roles["critic"]["bytes_per_token"], roles["critic"]["tokenizer"]) == (4.0, None)


def test_a_forecast_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom esckit.cli.app import main\n"
        f"sys.argv = ['esckit', *{words('simulate', '--dry-run')!r}]\n"
        "try:\n    main()\nexcept SystemExit as left:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'datasets', 'openai', 'aiohttp', 'ray'} & set(sys.modules)\n"
        "    sys.exit(left.code or ', '.join(sorted(heavy)) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_options_that_do_not_go_together_are_refused(esckit) -> None:
    code, _, err = esckit(*words("simulate", "--rate", "5"))
    assert (code, "--rate without --dry-run" in err) == (2, True)
    code, _, err = esckit(*words("search", "--dry-run", "--pilot", "5"))
    assert (code, "--pilot with --dry-run" in err) == (2, True)


def test_a_dry_run_refuses_a_cache_that_cannot_be_used(esckit, tmp_path: Path) -> None:
    (tmp_path / "answers.db").write_text("dear diary " * 100)
    cache, binding = f"--set=cache={tmp_path}/answers.db", "--set=models.critic={endpoint: local, model: m}"
    code, _, err = esckit(*words("simulate", cache, binding, "--dry-run"))
    assert (code, "is not a response cache" in err) == (2, True)
    code, _, _ = esckit(*words("simulate", f"--set=cache={tmp_path}/none.db", binding, "--dry-run"))
    assert code == 0
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_pilot_foresees_what_a_server_bills(esckit, seed: int, tmp_path: Path) -> None:
    draws = random.Random(seed)
    with FakeServer().running() as server:
        for _ in range(4000):
            text = f"<response>{'so ' * draws.randrange(1, 40)}</response>"
            answer = completion(text)
            answer.body["usage"] = {
                "prompt_tokens": draws.randrange(300, 900),
                "completion_tokens": draws.randrange(5, 60),
            }
            server.queue.append(answer)
        binding = at(server, ", prices: {prompt: 2, completion: 8}")
        sets = ("contexts.per_dialogue=null", "simulation.candidates=4", "critic.samples=2", f"seed={seed}")
        made = [*words("simulate", f"--set=models.supporter={binding}"), *(f"--set={change}" for change in sets)]
        made += ["--out", str(tmp_path / "run")]
        found = json.loads(esckit(*made, "--pilot", "24", "--json")[1])["estimate"]
        assert esckit(*made)[0] == 0
    spent = json.loads((tmp_path / "run/manifest.json").read_text())["spent"]
    for name in ("calls", "prompt_tokens", "completion_tokens", "cost"):
        assert found[name]["value"] == pytest.approx(spent[name], rel=0.25)


def test_a_training_forecasts_the_futures_that_it_plays(esckit) -> None:
    binding = "{endpoint: local, model: m, prices: {prompt: 1, completion: 1}}"
    train = ("train-rl", "smoke/train_rl_online", "--dry-run", "--rate", "5")
    code, out, err = esckit(*train, f"--set=models.critic={binding}", "--json")
    assert code == 0, err
    plan = json.loads(out)
    found = plan["forecast"]
    assert {role: one["calls"] for role, one in found["roles"].items()} == plan["calls_at_most"]
    # 4 steps of 2 contexts with 4 outputs each; 4 dev contexts before, in the middle and at the end.
    assert found["units"] == 4 * 2 * 4 + 3 * 4
    assert found["cost"] == found["roles"]["critic"]["cost"] > 0
    assert (found["hours"], found["disk_bytes"]) == (round(found["calls"] / 18_000, 2), None)
    code, out, _ = esckit(*train)
    assert "44 of 44 units rehearsed" in out
    assert "the training itself comes on top" in out
    assert "disk" not in out


def test_samples_that_are_choices_of_one_request_are_one_call(esckit) -> None:
    binding = "{endpoint: local, model: m}"
    sets = (f"--set=models.critic={binding}", "--set=critic.samples_as=choices")
    code, out, err = esckit(*words("simulate", *sets, "--dry-run", "--json"))
    assert code == 0, err
    critic = json.loads(out)["forecast"]["roles"]["critic"]
    assert critic["completion_tokens"] == critic["calls"] * 10 * 16
