import pytest

from esckit.errors import ConfigError
from esckit.registry import Registry, did_you_mean, load_attr, nearest

SHAPES = Registry("shape", {"path": "pathlib:Path", "joiner": "os.path:join"})


def test_names_and_plug_ins_resolve():
    from pathlib import Path

    assert SHAPES.names() == ("joiner", "path")
    assert SHAPES.resolve("path") is Path
    assert SHAPES.resolve("pathlib:Path.exists") is Path.exists


def test_an_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(ConfigError) as caught:
        SHAPES.resolve("pth")
    assert caught.value.headline == "unknown shape 'pth'"
    assert caught.value.expected == "one of joiner, path, or module:attr"
    assert caught.value.hint == "did you mean 'path'?"


def test_the_beginning_of_a_long_name_is_enough():
    known = ("qwen2.5-7b-instruct", "smollm2-135m-instruct", "smollm2-360m-instruct")
    assert nearest("SmolLM2", known) == "smollm2-135m-instruct"
    assert nearest("smo", known) is None


@pytest.mark.parametrize(
    "target", ["nowhere", ":x", "os:", "no_such_module_here:x", "os:no_such_attr", "os.path:join.x"]
)
def test_a_target_that_is_not_there_is_one_clear_error(target):
    with pytest.raises(ConfigError, match="module:attr"):
        load_attr(target)


def test_suggestions_ignore_case_and_need_a_close_name():
    assert nearest("PATH", ["path", "seed"]) == "path"
    assert did_you_mean("zzz", ["path"]) == ""
