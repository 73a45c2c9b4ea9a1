"""Text, JSON and YAML of others: read carefully, and one clear error for what cannot be read."""

import ast
from pathlib import Path

import pytest

from esckit.documents import parse_json, parse_yaml, read_json_object, read_text, read_yaml
from esckit.errors import ConfigError, DataError, EsckitError
from esckit.models.scripted import load_scripted
from esckit.prompts.prompt import load_prompt
from esckit.strategies.mapping import load_mapping
from esckit.strategies.taxonomy import load_taxonomy
from tests.shell import ROOT, esckit

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
HOSTILE = {
    "bomb": BOMB.encode(),
    "deep": b"a: " + b"[" * 5_000 + b"]" * 5_000,
    "deep map": b"{a: " * 5_000,
    "tag": b"name: !!timestamp x\n",
    "python": b"!!python/object/apply:os.system [id]\n",
    "latin-1": "name: caf\u00e9\n".encode("latin-1"),
    "control": b"name: \x00\n",
    "twice": b"name: a\nname: b\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a list": b"- 1\n",
    "nothing": b"",
    "number": b"0x_\n",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("load", [load_prompt, load_taxonomy, load_mapping, load_scripted])
def test_no_yaml_file_of_a_user_is_more_than_an_error(tmp_path: Path, load: object, content: bytes) -> None:
    (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(EsckitError) as caught:
        load(str(tmp_path / "own.yaml"))  # type: ignore[operator]
    assert "own.yaml" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_date_is_text_and_a_byte_order_mark_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("\ufeffday: 2024-01-01\nrate: 1e-5\n".encode())
    assert read_yaml(tmp_path / "a.yaml", "file") == {"day": "2024-01-01", "rate": 1e-5}
    assert parse_yaml("", "file") is None


def test_json_that_is_nested_too_deeply_is_a_data_error(tmp_path: Path) -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "{", b"\xff"):
        with pytest.raises(DataError, match="JSON"):
            parse_json(text, tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="a JSON list"):
        read_json_object(tmp_path / "a.json")


def test_what_is_no_text_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for path, found in ((tmp_path, "a folder"), (tmp_path / "none", "no such file"), (tmp_path / "latin", "not UTF-8")):
        with pytest.raises(DataError, match=found):
            read_text(path)
    with pytest.raises(ConfigError, match=r"prompt .*latin: bytes that are not UTF-8"):
        read_yaml(tmp_path / "latin", "prompt")


def test_yaml_and_json_of_others_are_read_in_one_place() -> None:
    """Only `documents` may load YAML; `report` and `recipes show` write it."""
    found = []
    for path in sorted((ROOT / "esckit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "yaml":
                found.append((str(path.relative_to(ROOT)), node.attr))
    assert {path for path, name in found if name != "safe_dump"} == {"esckit/documents.py"}


def test_a_prompt_of_aliases_ends_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(BOMB)
    command = ["simulate", "smoke/simulate_scripted", "--dry-run", "--set", f"prompts.critic={tmp_path}/bomb.yaml"]
    done = esckit(*command)
    assert done.returncode == 2, done.stderr
    assert "bomb.yaml, line 2: an alias" in done.stderr
    assert "Traceback" not in done.stderr
