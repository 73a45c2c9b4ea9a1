"""What pydantic says never reaches a user in its own words."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from esckit.documents import complaint
from esckit.errors import ConfigError
from esckit.prompts.prompt import load_prompt


class Part(BaseModel, extra="forbid", allow_inf_nan=False):
    text: str = "x"
    whole: int = 1
    number: float = 1.0
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    switch: bool = True
    items: tuple[int, ...] = (1,)
    names: list[str] = ["a"]
    table: dict[str, int] = {}
    word: Literal["a", "b"] = "a"
    name: Annotated[str, Field(min_length=1)] = "n"
    some: Annotated[list[int], Field(min_length=1)] = [1]
    inner: "Part | None" = None
    needed: int


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("text", 1, "must be text"),
        ("whole", "three", "must be a whole number"),
        ("whole", 1.5, "must be a whole number"),
        ("number", "x", "must be a number"),
        ("number", float("nan"), "must be a finite number"),
        ("share", 2, "must be less than or equal to 1"),
        ("switch", 7, "must be true or false"),
        ("items", 3, "must be a list"),
        ("names", 3, "must be a list"),
        ("table", 3, "must be a section (a mapping)"),
        ("word", "c", "must be 'a' or 'b'"),
        ("name", "", "must not be empty"),
        ("some", [], "must not be empty"),
        ("inner", 3, "must be a section (a mapping)"),
        ("other", 3, "is unknown"),
        ("needed", None, "must be a whole number"),
    ],
)
def test_a_wrong_value_is_told_by_what_it_must_be(field: str, value: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Part.model_validate({"needed": 1, field: value})
    assert complaint(caught.value.errors()[0]) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("just words", "the file: must be a section (a mapping)"),
        ("name: x\nversion: one\nmessages: []", "version (line 2): must be a whole number"),
        ("name: x\nversion: 1", "messages: is missing"),
        ("name: x\nversion: 1\nmesages: []", "mesages (line 3): is unknown (did you mean 'messages'?)"),
        ("name: x\nversion: 1\nmessages: [{role: user}]", "messages[0].content (line 3): is missing"),
        ("name: [", "expected YAML"),
    ],
)
def test_a_prompt_file_is_told_in_our_words(tmp_path: Any, content: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_prompt(str(path))
    assert said in str(caught.value)
    assert "pydantic" not in str(caught.value)
