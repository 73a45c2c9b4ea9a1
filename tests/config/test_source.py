import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.config.load import Source, apply_overrides, parse_source
from esckit.documents import dotted
from esckit.errors import ConfigError


def test_lists_are_tuples_and_every_key_knows_its_line():
    source = parse_source("a: 1\nb:\n  c: [x, {d: 2}]\n", "r.yaml")
    assert source.data == {"a": 1, "b": {"c": ("x", {"d": 2})}}
    assert source.lines[("b", "c", 1, "d")] == 3
    assert dotted(("b", "c", 1, "d")) == "b.c[1].d"


def test_scientific_notation_is_a_number_and_a_date_is_text():
    assert parse_source("lr: 1e-5\nday: 2024-01-01\n", "r").data == {"lr": 1e-5, "day": "2024-01-01"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: a is given twice (first in line 1)"),
        ("a: {b: 1, b: 2}\nc: 1\nc: 2\n", "line 1: a.b is given twice (first in line 1); line 3: c"),
        ("a: &x 1\nb: *x\n", "line 2: an alias"),
        ("a: [1\n", "line 2"),
        ("a: 1\n---\nb: 2\n", "another document"),
        ("1: 2\n", "not plain text"),
        ("? [a]\n: 1\n", "not plain text"),
        ("a: !!python/object:os.system x\n", "line 1: a tag (tag:yaml.org,2002:python/object:os.system)"),
        ("a: !!timestamp x\n", "line 1: a tag (tag:yaml.org,2002:timestamp)"),
        ("a: 0b_\n", "plain YAML values"),
        ("- a\n", "no mapping"),
        ("[" * 5000, "levels of nesting"),
        ("a: 0x" + "f" * 5000 + "\n", "line 1: a number of 5,002 characters"),
        ("a: 1\n" * 500, "and 489 more"),
        ("a" * 1_100_000, "1,100,000 characters"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_source(text, "r.yaml")
    assert message in str(caught.value)
    assert "r.yaml" in str(caught.value)


@pytest.mark.parametrize("text", ["!!timestamp x", "!!python/object:os.system x", "{a: 1, a: 2}", "[&x 1, *x]"])
def test_a_value_of_set_is_refused_as_in_a_file(text):
    with pytest.raises(ConfigError, match=r"^--set a"):
        apply_overrides(Source("r.yaml", {}), [f"a={text}"])


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
@settings(deadline=None, max_examples=200)
def test_any_text_gives_a_value_or_one_clear_error(text):
    try:
        apply_overrides(Source("r.yaml", {}), [f"x={text}"])
    except ConfigError as error:
        assert str(error).startswith("--set x")  # noqa: PT017
