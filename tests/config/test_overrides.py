import pytest

from esckit.config.load import Source, apply_overrides
from esckit.errors import ConfigError

SOURCE = Source("r", {"data": {"path": "a", "limit": 3}, "seed": 7, "empty": None})


def test_values_are_yaml_and_later_ones_win():
    changed, paths = apply_overrides(
        SOURCE, ["data.limit=4", "data.limit=null", "data.path=b=c", "data.split=[train, valid]", "new.deep.er=x"]
    )
    assert changed.data == {
        "data": {"path": "b=c", "limit": None, "split": ("train", "valid")},
        "seed": 7,
        "empty": None,
        "new": {"deep": {"er": "x"}},
    }
    assert ("data", "limit") in paths
    assert SOURCE.data["data"] == {"path": "a", "limit": 3}


def test_an_empty_section_can_be_filled():
    assert apply_overrides(SOURCE, ["empty.a=1"])[0].data["empty"] == {"a": 1}


def test_every_malformed_one_is_named():
    with pytest.raises(ConfigError) as caught:
        apply_overrides(SOURCE, ["data.limit", "=3", "a..b=1", "seed.x=1", "data.path=[1", "data.limit=4"])
    message = str(caught.value)
    for part in (
        "--set 'data.limit' has no '='",
        "--set '' names no field",
        "--set 'a..b' names no field",
        "'seed' is a value",
        "--set data.path",
    ):
        assert part in message
