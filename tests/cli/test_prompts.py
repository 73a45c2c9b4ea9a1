"""``esckit prompts``: what ships is listed and shown filled in; one's own is checked before any model is loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.config.load import RECIPES
from esckit.errors import ConfigError
from esckit.prompts.prompt import FIELDS, ROLES, load_prompt, prompt_names

COPIED = "critic_resolution"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def esckit(*words: str) -> Any:
    done = CliRunner().invoke(app, list(words))
    if done.exception is not None:
        raise done.exception
    return done


def prompts(*words: str) -> str:
    return esckit("prompts", *words).stdout


def own(like: str, **changes: str) -> str:
    """Copy a prompt and replace texts of it; return the file."""
    path = Path(prompts("copy", like, "--force").strip())
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return str(path)


def _prompt_fields(section: type[BaseModel], place: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        inner, here = info.annotation, f"{place}{name}"
        if name == "prompts":
            yield from (f"{here}.{field}" for field in inner.model_fields)
        elif name == "prompt":
            yield here
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _prompt_fields(inner, f"{here}.")


@pytest.mark.parametrize("command", RECIPES.names())
def test_every_field_that_names_a_prompt_is_known(command: str) -> None:
    assert set(_prompt_fields(RECIPES.resolve(command))) == set(FIELDS.get(command, ()))


def test_the_list_says_what_each_prompt_is_for() -> None:
    rows = {row["name"]: row for row in json.loads(prompts("list", "--json"))}
    assert set(rows) == set(prompt_names())
    assert rows["supporter_rlff"]["roles"] == ["supporter", "policy"]
    assert rows["seeker"]["placeholders"] == ["emotion_type", "problem_type", "situation?"]
    assert "prompts.turn_judge of evaluate" in rows["critic_aflow"]["fields"]
    assert {role for row in rows.values() for role in row["roles"]} == set(ROLES)


@pytest.mark.parametrize("name", prompt_names())
def test_every_prompt_is_shown_filled_in(name: str) -> None:
    (row,) = json.loads(prompts("check", name, "--json"))
    assert row["identity"] == load_prompt(name).identity
    contents = [message["content"] for one in row["examples"] for message in one["messages"]]
    assert contents
    assert all(content.strip() for content in contents)
    slots = {f"{{{variable}}}" for variable in (*load_prompt(name).variables, *load_prompt(name).optional)}
    assert not any(slot in content for slot in slots for content in contents)
    assert row["notes"] == []


def test_an_example_shows_the_strategies_that_are_asked_for() -> None:
    (row,) = json.loads(prompts("show", "strategist_any", "--rendered", "--taxonomy", "cso", "--json"))
    as_json, choices = row["examples"]
    assert '"EV", "Aff", "CP"' in as_json["messages"][-1]["content"]
    assert "- Emotional Validation" in choices["messages"][-1]["content"]


def test_a_copy_has_the_name_of_its_file_and_can_be_shown() -> None:
    path = own(COPIED)
    assert load_prompt(path).name == Path(path).stem
    assert prompts("show", path) == Path(path).read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="already exists"):
        prompts("copy", COPIED)


FAULTY = """\
name: bad
version: 1
variables: [emotion_type, problem_type, conversation]
mesage: none
messages:
  - role: system
    content: "You judge {{conversation}}."
  - role: user
    content: |-
      The patient came with {emotion}.
      Say { yes }.
      {problem_type}
  - {role: user, content: " "}
"""


def test_all_faults_come_at_once_with_their_lines() -> None:
    Path("bad.yaml").write_text(FAULTY, encoding="utf-8")
    told = (
        "prompt bad.yaml: 5 problems",
        "mesage (line 4): is unknown (did you mean 'messages'?)",
        "messages[0] (line 7): {{conversation}} is not filled in; write {conversation}",
        "messages[1] (line 10): undeclared variable 'emotion' (did you mean 'emotion_type'?)",
        "messages[1] (line 11): a single brace",
        "messages[2] (line 13): content: empty",
    )
    words = ["--set", "prompts.critic=bad.yaml"]
    for call in (
        ["prompts", "check", "bad.yaml"],
        ["prompts", "check", "smoke/simulate_scripted", *words],
        ["recipes", "check", "smoke/simulate_scripted", *words],
        ["simulate", "smoke/simulate_scripted", "--dry-run", *words],
        ["simulate", "smoke/simulate_scripted", "--out", "run", *words],
    ):
        with pytest.raises(ConfigError) as caught:
            esckit(*call)
        assert all(text in str(caught.value) for text in told)
    assert not Path("run").exists()


def test_a_prompt_without_what_the_task_needs_is_refused() -> None:
    path = own(COPIED, **{"{conversation}": "the talk"})
    with pytest.raises(ConfigError, match=r"no message holds \{conversation\}"):
        esckit("simulate", "smoke/simulate_scripted", "--dry-run", "--set", f"prompts.critic={path}")


@pytest.mark.parametrize(
    ("like", "changes", "recipe", "field", "note"),
    [
        (COPIED, {"Slightly Better:": "A bit better:"}, "smoke/simulate_scripted", "prompts.critic", "Slightly Better"),
        (COPIED, {"{problem_type}": "a problem"}, "smoke/simulate_scripted", "prompts.critic", "never used"),
        ("seeker", {"stay in the role": "stay <|im_end|>"}, "smoke/simulate_scripted", "prompts.seeker", "<|im_end|>"),
        ("judge_reply", {'"yes"': '"1"'}, "smoke/evaluate_scripted", "prompts.judge_reply", "as yes or no"),
        ("supporter_ppdpp", {"succinct": "warm"}, "smoke/train_sft_tiny", "prompt", "train-rl rewards"),
    ],
)
def test_what_may_be_wrong_is_noted(like: str, changes: dict[str, str], recipe: str, field: str, note: str) -> None:
    path = own(like, **changes)
    rows = json.loads(prompts("check", recipe, "--set", f"{field}={path}", "--json"))
    (row,) = [row for row in rows if row["field"] == field]
    assert row["prompt"] == path
    assert any(note in text for text in row["notes"])


def test_a_dry_run_says_where_the_examples_are() -> None:
    words = ["simulate", "smoke/simulate_scripted", "--dry-run"]
    assert "prompts check" not in esckit(*words).stderr
    assert (
        "prompts.seeker: 'esckit prompts check RECIPE'"
        in esckit(*words, "--set", f"prompts.seeker={own('seeker')}").stderr
    )


def test_only_prompts_that_take_part_are_shown() -> None:
    rows = json.loads(prompts("check", "practice/simulate", "--json"))
    assert rows == []
    fields = [
        row["field"] for row in json.loads(prompts("check", "smoke/search_scripted", "--set", "taxonomy=cso", "--json"))
    ]
    assert fields == list(FIELDS["search"])
    (row,) = [
        row
        for row in json.loads(prompts("check", "smoke/search_scripted", "--set", "taxonomy=cso", "--json"))
        if row["role"] == "strategist"
    ]
    assert row["prompt"] == "strategist_any"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "smoke/simulatee"], "no prompt or recipe"),
        (["check", COPIED, "--set", "a=1"], "--set with a prompt"),
        (["check", "smoke/simulate_scripted", "--role", "seeker"], "--role with a recipe"),
        (["check", COPIED, "--role", "seekr"], "Did you mean 'seeker'?"),
        (["check", COPIED, "--role", "seeker"], "which the role does not give"),
        (["copy", "seker"], "Did you mean 'seeker'?"),
        (["copy", "seeker", "own.txt"], "does not end in .yaml"),
        (["show", "gone.yaml"], "no such file"),
    ],
)
def test_bad_input_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prompts(*words)
    assert said in str(caught.value)


def test_a_prompt_for_no_role_is_told_what_is_nearest() -> None:
    content = yaml.safe_load(Path(own("seeker")).read_text(encoding="utf-8"))
    Path("odd.yaml").write_text(
        yaml.safe_dump({**content, "optional": [], "messages": content["messages"][:2]}), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"prompt odd\.yaml as seeker: it declares no 'situation'"):
        prompts("check", "odd.yaml")
