"""What is refused before anything runs: missing runs, slips in names, prompts of another role; and idle roles."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.config.load import RecipeFile, default_out, load_any_recipe, shipped_recipes
from esckit.errors import ConfigError, EsckitError, MissingRunsError
from esckit.lineage import named_runs
from esckit.prompts.prompt import ROLES, load_prompt, prompt_names
from esckit.registry import shipped_dir


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert isinstance(done.exception, EsckitError), done.output
    assert done.exception.exit_code == 2
    return str(done.exception)


# ---------------------------------------------------------------- runs that are not there


@pytest.mark.parametrize("extra", [("--dry-run",), ()])
@pytest.mark.parametrize(
    ("words", "field", "command"),
    [
        ("train-reward smoke/train_reward_scripted", "inputs:", "esckit simulate smoke/simulate_scripted"),
        ("train-flow smoke/train_flow_tiny", "data.trees:", "esckit search smoke/search_scripted"),
        ("train-rl smoke/train_rl_scripted", "models.reward.checkpoint:", "esckit train-reward smoke/train_reward"),
        (
            "evaluate smoke/evaluate_scripted",
            "settings.reward.inputs:",
            "smoke/simulate_scripted --set data.split=test",
        ),
        ("train-reward smoke/train_reward_scripted --set inputs=[own]", "inputs:", "esckit simulate RECIPE --out own"),
        (
            "train-rl smoke/train_rl_lexicon --set models.policy={checkpoint:\x20mine}",
            "models.policy.checkpoint:",
            "esckit train-sft RECIPE --out mine",
        ),
        ("search smoke/search_scripted --set taxonomy=runs/search-aflow", "taxonomy:", "esckit search aflow/search"),
        ("chat runs/train-rl-rlff", "runs/train-rl-rlff:", "esckit train-rl rlff/train_rl"),
        (
            "simulate smoke/simulate_scripted --set models.supporter={checkpoint:\x20mine}",
            "models.supporter.checkpoint:",
            "esckit train-rl RECIPE --out mine",
        ),
    ],
)
def test_a_missing_run_names_the_field_and_what_makes_it(
    here: Path, words: str, field: str, command: str, extra: tuple[str, ...]
) -> None:
    head, _, changes = words.partition(" --set ")
    message = refused(*head.split(), *(["--set", changes] if changes else []), *extra)
    assert field in message
    assert command in message
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "not_counted"),
    [
        ("train-rl rlff/train_rl", "models.reward"),
        ("train-rl rlff/train_rl_dpo", None),
        ("train-reward rlff/train_reward", None),
        ("train-reward rlff/train_reward_pairwise", "more than two candidates of a context"),
        ("train-flow aflow/train_flow", None),
    ],
)
def test_memory_is_planned_before_the_inputs_are_there(recipe: str, not_counted: str | None) -> None:
    done = CliRunner().invoke(app, [*recipe.split(), "--dry-run", "--processes", "4", "--json"])
    planned = json.loads(done.stdout)
    assert isinstance(done.exception, MissingRunsError)
    assert (planned["processes"], planned["steps_at_most"]) == (4, None)
    assert planned["memory_per_device"]["total"] > 10**9
    assert planned.get("memory_not_counted") == not_counted
    assert "there is no runs/" in planned["refusal"]


@pytest.mark.parametrize(
    "page", [page for page in shipped_recipes() if page.command != "run"], ids=lambda page: page.name
)
def test_every_field_that_names_a_run_is_known_with_its_maker(page: RecipeFile) -> None:
    makers = {str(default_out(each.command, each.name)): each.command for each in shipped_recipes()}
    recipe = load_any_recipe(page.name).recipe.resolved()
    named = {run.path: run.maker for run in named_runs(recipe)}
    assert {path for path in _texts(recipe) if path.startswith("runs/")} == named.keys()
    assert {path: makers.get(path, maker) for path, maker in named.items()} == named


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def test_all_missing_runs_are_named_at_once() -> None:
    message = refused("evaluate", "smoke/evaluate_scripted", "--dry-run")
    assert "models.reward.checkpoint" in message
    assert "settings.pairwise.opponent" in message


def test_a_run_nearby_is_suggested(here: Path) -> None:
    (here / "runs" / "simulate-smoke").mkdir(parents=True)
    message = refused("train-reward", "smoke/train_reward_scripted", "--set", "inputs=[runs/simulate-smok]")
    assert "did you mean runs/simulate-smoke?" in message


@pytest.mark.parametrize(
    "words",
    [
        "evaluate smoke/evaluate_scripted --set suites=[safety]",
        "simulate smoke/simulate_scripted --set models.strategist={checkpoint:\x20gone}",
    ],
)
def test_a_run_that_nothing_looks_at_may_be_missing(words: str) -> None:
    head, *changes = words.split(" --set ")
    sets = [word for change in changes for word in ("--set", change)]
    done = CliRunner().invoke(app, [*head.split(), *sets, "--dry-run"])
    assert "gone" not in str(done.exception)
    assert "train-reward" not in str(done.exception)


def test_a_mistyped_run_folder_is_not_taken_for_a_hub_id(here: Path) -> None:
    run = here / "runs" / "train-flow-mine"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}", encoding="utf-8")
    words = ("predict", "--input", "sample:esconv", "--dry-run", "--strategist")
    assert "did you mean runs/train-flow-mine?" in refused(*words, "runs/train-flow-min")
    assert "there is no runs/train-flow-practice" in (message := refused(*words, "runs/train-flow-practice"))
    assert "Make it with: esckit train-flow practice/train_flow --out runs/train-flow-practice" in message
    run.parent.rename(here / "own")
    assert "Did you mean 'own/train-flow-mine'?" in refused(*words, "own/train-flow-min")


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize("extra", [("--dry-run",), ()])
def test_a_slip_in_a_gate_is_told_before_inputs_are_missed(extra: tuple[str, ...]) -> None:
    message = refused("evaluate", "smoke/evaluate_scripted", "--fail-under", "strategy.acuracy=0.3", *extra)
    assert "did you mean 'strategy.accuracy'?" in message


# ---------------------------------------------------------------- prompts


def _prompt(here: Path, like: str, **changes: object) -> Path:
    shipped = Path(__file__).resolve().parents[2] / "esckit" / "prompts" / f"{like}.yaml"
    path = here / "mine.yaml"
    path.write_text(
        yaml.safe_dump({**yaml.safe_load(shipped.read_text(encoding="utf-8")), **changes}), encoding="utf-8"
    )
    return path


CALLS = {
    "simulate": ("simulate", "smoke/simulate_scripted"),
    "search": ("search", "smoke/search_scripted"),
    "predict": ("predict", "smoke/predict_scripted"),
    "safety": ("evaluate", "smoke/evaluate_scripted", "--set", "suites=[safety]"),
    "train-rl": ("train-rl", "smoke/train_rl_lexicon"),
    "train-sft": ("train-sft", "smoke/train_sft_tiny"),
}


@pytest.mark.parametrize("extra", [("--dry-run",), ("--out", "out")])
@pytest.mark.parametrize(
    ("call", "field", "like"),
    [
        ("simulate", "prompts.supporter", "judge_reply"),
        ("simulate", "prompts.seeker", "seeker_aflow"),
        ("simulate", "prompts.critic", "critic_aflow"),
        ("search", "prompts.seeker", "seeker"),
        ("search", "prompts.critic", "critic_resolution"),
        ("search", "prompts.strategist", "seeker"),
        ("predict", "prompts.supporter", "seeker"),
        ("safety", "prompts.judge_reply", "judge_pairwise"),
        ("train-rl", "prompt", "seeker"),
        ("train-sft", "prompt", "seeker"),
    ],
)
def test_a_prompt_of_another_role_is_refused(
    here: Path, call: str, field: str, like: str, extra: tuple[str, ...]
) -> None:
    path = _prompt(here, like)
    message = refused(*CALLS[call], "--set", f"{field}={path}", *extra)
    assert str(path) in message
    assert "it declares" in message
    assert [each.name for each in here.iterdir()] == ["mine.yaml"]


def test_missing_and_unknown_placeholders_of_a_prompt_are_named(here: Path) -> None:
    messages = [{"role": "user", "content": "{emotion_type} {mood}"}]
    path = _prompt(here, "seeker", variables=["emotion_type", "mood"], optional=[], messages=messages)
    with pytest.raises(ConfigError) as caught:
        load_prompt(str(path), "seeker")
    assert "it declares 'mood', which the role does not give; it declares no 'problem_type', 'situation'" in str(
        caught.value
    )
    assert "expected variables: [emotion_type, problem_type], optional: [situation]" in str(caught.value)


def test_every_shipped_prompt_is_one_of_some_role() -> None:
    def fits(name: str, role: str) -> bool:
        try:
            load_prompt(name, role)
        except ConfigError:
            return False
        return True

    assert [name for name in prompt_names() if not any(fits(name, role) for role in ROLES)] == []
    assert [role for role in ROLES if not any(fits(name, role) for name in prompt_names())] == []


# ---------------------------------------------------------------- idle roles


def test_simulate_warns_of_a_strategist_without_a_part(caplog: pytest.LogCaptureFixture) -> None:
    assert (shipped_dir("recipes") / "scripted" / "strategist.yaml").is_file()
    words = ["simulate", "smoke/simulate_scripted", "--set", "models.strategist={scripted: strategist}", "--dry-run"]
    with caplog.at_level(logging.WARNING):
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "models.strategist takes no part: simulation.strategy is none" in caplog.text + done.stderr
