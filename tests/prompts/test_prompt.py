"""Prompts: declared variables, one-pass rendering, digests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esckit.errors import ConfigError
from esckit.prompts.prompt import Prompt, PromptMessage, load_prompt, prompt_names
from esckit.types import Message


def prompt(content: str, **fields: object) -> Prompt:
    return Prompt(name="p", version=1, messages=(PromptMessage(role="user", content=content),), **fields)


@pytest.mark.parametrize("name", prompt_names())
def test_every_shipped_prompt_renders_with_all_its_variables(name: str) -> None:
    found = load_prompt(name)
    assert found.name == name
    values = {variable: f"<{variable}>" for variable in (*found.variables, *found.optional)}
    text = "\n".join(message.content for message in found.render(**values))
    assert all(value in text for value in values.values())


@given(st.text())
def test_a_value_is_never_rendered_again(value: str) -> None:
    assert prompt("say {a}", variables=("a",)).render(a=value) == [Message("user", f"say {value}")]


def test_what_a_value_holds_cannot_reach_another_variable() -> None:
    found = prompt("{a} and {b}", variables=("a", "b")).render(a="{b}", b="secret")
    assert found[0].content == "{b} and secret"


def test_double_braces_stand_for_themselves() -> None:
    assert prompt('{{"EV": {a}}}', variables=("a",)).render(a="1")[0].content == '{"EV": 1}'


def test_a_message_with_when_is_left_out_without_its_variable() -> None:
    supporter = load_prompt("supporter_rlff")
    assert len(supporter.render()) == 1
    assert "EV: listen" in supporter.render(strategy="EV: listen")[1].content


def test_missing_and_undeclared_variables_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown variables \['c'\], missing variables \['a'\]"):
        prompt("{a}", variables=("a",)).render(c="x")


def test_a_changed_word_changes_the_digest() -> None:
    assert prompt("one").digest != prompt("two").digest


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'seeker'"):
        load_prompt("seker")


def test_a_users_file_is_checked(tmp_path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: p\nversion: 1\nmessages: [{role: user, content: 'a {b} } c'}]\n")
    with pytest.raises(ConfigError, match=r"(?s)line 3\): a single brace.*line 3\): undeclared variable 'b'"):
        load_prompt(str(path))
