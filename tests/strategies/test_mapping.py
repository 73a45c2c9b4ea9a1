"""Mappings: the shipped tables as pinned, and what a file may not hold."""

from pathlib import Path

import pytest

from esckit.errors import ConfigError
from esckit.strategies.files import mappings_between, shipped_names
from esckit.strategies.mapping import load_mapping, skeleton
from esckit.strategies.taxonomy import load_taxonomy

TABLES = {
    "extes_to_esconv.published": "RS-RF Cla-Q EV-AR ES-AR Aff-AR OH-AR AJC-AR SO-PS CP-PS PDP-PS RNT-PS SI-IN NE-PS "
    "PSP-PS SM-PS Oth-",
    "extes_to_esconv.proposed": "RS-RP Cla-Q EV-RF ES-RF Aff-AR OH-AR AJC-AR SO-PS CP-PS PDP-PS RNT-PS SI-IN NE-AR "
    "PSP-PS SM-PS Oth-OT",
    "extes_to_aflow": "RS-RS Cla-Cla EV-EV ES-ES Aff-Aff OH-Aff AJC-EV SO-SO CP-CP PDP-SO RNT-SO SI-SI NE-EV PSP-SO "
    "SM-SO Oth-",
    "esconv_to_aflow": "Q-Cla RP-RS RF-EV SD-ES AR-Aff PS-SO IN-SI OT-",
}


def test_four_mappings_ship() -> None:
    assert set(shipped_names("mapping")) == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_as_pinned(name: str) -> None:
    mapping = load_mapping(name)
    source, target = load_taxonomy(mapping.source), load_taxonomy(mapping.target)
    pairs = [
        f"{source.by_name(old).abbr}-{target.by_name(new).abbr if new else ''}" for old, new in mapping.map.items()
    ]
    assert " ".join(pairs) == TABLES[name]
    assert mapping.name == name
    assert name.split(".")[0] == f"{mapping.source}_to_{mapping.target}"
    assert mapping.lossy


def test_own_tables_say_that_they_are_ours() -> None:
    assert all(
        "This project's table" in load_mapping(name).note
        for name in shipped_names("mapping")
        if "published" not in name
    )


def test_mappings_between() -> None:
    assert mappings_between("extes", "esconv") == ("extes_to_esconv.proposed", "extes_to_esconv.published")
    assert mappings_between("esconv", "extes") == ()


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nfrom: aflow\nto: cso\nlossy: true\nnote: n\nextra: 1\nmap: {Clarification: Nothing, Foo: null}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        load_mapping(str(path))
    message = str(caught.value)
    assert "10 faults" in message
    assert "'Reflective Statements' of taxonomy aflow is missing" in message
    assert "'Foo' is no strategy of taxonomy aflow" in message
    assert "map.Clarification (line 7): 'Nothing' is no strategy of taxonomy cso" in message
    assert "extra (line 6): unknown key" in message


@pytest.mark.parametrize("none", ["'null'", "None"])
def test_a_null_in_quotes_is_said_to_be_a_name(tmp_path: Path, none: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(skeleton("aflow", "cso", name="mine").replace("'?'", none), encoding="utf-8")
    with pytest.raises(ConfigError, match="write null without quotes"):
        load_mapping(str(path))


def test_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"unknown mapping.*extes_to_esconv\.proposed"):
        load_mapping("extes_to_esconv")


def test_a_taxonomy_file_may_lie_beside_its_mapping(tmp_path: Path) -> None:
    strategies = (
        "[{name: Ask, abbr: A, definition: Asks., stage: x}, {name: Tell, abbr: T, definition: Tells., stage: x}]"
    )
    content = f"name: mine\ntitle: Mine\nsource: ours\nstages: [x]\nstrategies: {strategies}\n"
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    mapping = "name: m\nfrom: mine.yaml\nto: aflow\nlossy: true\nnote: n\nmap: {Ask: Clarification, Tell: null}\n"
    (tmp_path / "map.yaml").write_text(mapping, encoding="utf-8")
    assert load_taxonomy(load_mapping(str(tmp_path / "map.yaml")).source).names == ("Ask", "Tell")
