"""Taxonomies: what ships, how labels are looked up, and what a user's own file may not hold."""

from pathlib import Path

import pytest

from esckit.errors import ConfigError, DataError
from esckit.strategies.files import shipped_names
from esckit.strategies.taxonomy import Taxonomy, label_key, load_taxonomy

ESCONV = (
    "Question",
    "Restatement or Paraphrasing",
    "Reflection of feelings",
    "Self-disclosure",
    "Affirmation and Reassurance",
    "Providing Suggestions",
    "Information",
    "Others",
)


def test_five_taxonomies_ship_in_their_order() -> None:
    assert shipped_names("taxonomy") == ("aflow", "cso", "esconv", "extes", "multiesc")
    assert load_taxonomy("esconv").names == ESCONV
    assert load_taxonomy("esconv").abbrs == ("Q", "RP", "RF", "SD", "AR", "PS", "IN", "OT")
    assert " ".join(load_taxonomy("extes").abbrs) == "RS Cla EV ES Aff OH AJC SO CP PDP RNT SI NE PSP SM Oth"
    assert load_taxonomy("aflow").abbrs == ("RS", "Cla", "EV", "ES", "Aff", "CP", "SO", "SI")
    assert load_taxonomy("cso").abbrs == ("EV", "Aff", "CP", "ES", "AJC", "PDP", "RNT", "SI")


@pytest.mark.parametrize("name", ["esconv", "extes", "aflow", "cso", "multiesc"])
def test_files_are_named_after_what_they_hold(name: str) -> None:
    taxonomy = load_taxonomy(name)
    assert taxonomy.name == name
    assert taxonomy.stages == ("exploration", "comforting", "action")
    assert {strategy.stage for strategy in taxonomy.strategies} <= {*taxonomy.stages, "any"}
    assert all(strategy.definition.endswith(".") for strategy in taxonomy.strategies)


def test_fallbacks_and_stages() -> None:
    fallbacks = {name: load_taxonomy(name).fallback for name in shipped_names("taxonomy")}
    assert {name: found.name if found else None for name, found in fallbacks.items()} == {
        "esconv": "Others",
        "extes": "Others",
        "aflow": None,
        "cso": None,
        "multiesc": "Others",
    }
    disclosure = load_taxonomy("esconv").by_name("Self-disclosure")
    assert (disclosure.stage, disclosure.stages) == ("comforting", ("exploration", "action"))
    extes = load_taxonomy("extes")
    by_stage = [[s.abbr for s in extes.strategies if s.stage == stage] for stage in (*extes.stages, "any")]
    assert by_stage == [
        ["RS", "Cla", "EV", "AJC"],
        ["ES", "Aff", "PDP", "NE"],
        ["OH", "SO", "CP", "RNT", "SI", "PSP", "SM"],
        ["Oth"],
    ]


def test_names_and_definitions_of_the_subsets() -> None:
    extes, aflow, cso = (load_taxonomy(name) for name in ("extes", "aflow", "cso"))
    assert set(aflow.names) < set(extes.names)
    assert all(extes.by_name(name).definition != aflow.by_name(name).definition for name in aflow.names)
    assert all(extes.by_name(name) == cso.by_name(name) for name in cso.names)


@pytest.mark.parametrize("name", ["esconv", "extes", "aflow", "cso"])
def test_every_spelling_finds_its_strategy(name: str) -> None:
    taxonomy = load_taxonomy(name)
    for index, strategy in enumerate(taxonomy.strategies):
        spellings = [
            *(text for _, text in strategy.spellings()),
            strategy.name.upper(),
            f"[{strategy.name}]",
            f"({strategy.abbr})",
            f"{strategy.name} ({strategy.abbr})",
            f"[{strategy.name.lower()} ({strategy.abbr.lower()})]",
            strategy.name.replace(" ", "_"),
            strategy.name.replace(" and ", " & ").replace(" ", "  "),
        ]
        assert [taxonomy.resolve(spelling) for spelling in spellings] == [strategy] * len(spellings)
        assert taxonomy.index(strategy.name) == index


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Questions", "Question"),
        ("Open question", "Question"),
        ("Retatement or Paraphrasing", "Restatement or Paraphrasing"),
        ("Self disclosure", "Self-disclosure"),
        ("Approval and Reassurance", "Affirmation and Reassurance"),
        ("Direct Guidance", "Providing Suggestions"),
        ("Providing Information", "Information"),
        ("Greeting", "Others"),
    ],
)
def test_esconv_aliases(label: str, name: str) -> None:
    assert load_taxonomy("esconv").resolve(label).name == name


def test_unknown_label_names_the_nearest_the_list_and_the_switch() -> None:
    with pytest.raises(DataError) as caught:
        load_taxonomy("esconv").resolve("Sympathy")
    message = str(caught.value)
    assert all(name in message for name in ESCONV)
    assert "'Sympathy'" in message
    assert "nearest: " in message
    assert "unknown_strategy: keep" in message


def test_label_of_another_taxonomy_is_said_to_be_its() -> None:
    with pytest.raises(DataError) as caught:
        load_taxonomy("esconv").resolve("Affirmation")
    message = str(caught.value)
    assert "nearest: Affirmation and Reassurance" in message
    assert "known to taxonomy aflow, cso, extes (mapping: " in message
    assert "extes_to_esconv.published" in message


@pytest.mark.parametrize(
    "label", ["Providing Suggestions or Information", "Question/Others", "[Question, Information]"]
)
def test_fused_label_is_ambiguous(label: str) -> None:
    with pytest.raises(DataError, match="ambiguous") as caught:
        load_taxonomy("esconv").resolve(label)
    assert load_taxonomy("esconv").find(label) is None
    assert " or " in caught.value.found


@pytest.mark.parametrize("label", ["Question (RP)", "(Q) Question", "Question Q", "", "()"])
def test_contradicting_or_empty_labels_are_unknown(label: str) -> None:
    with pytest.raises(DataError, match="unknown strategy"):
        load_taxonomy("esconv").resolve(label)


def test_a_label_is_shown_clipped_and_escaped() -> None:
    with pytest.raises(DataError) as caught:
        load_taxonomy("esconv").resolve("\x1b[2J" + "a" * 500)
    assert "\x1b" not in str(caught.value)
    assert "a" * 61 not in str(caught.value)


def test_by_name_and_index_take_names_only() -> None:
    taxonomy = load_taxonomy("esconv")
    with pytest.raises(DataError):
        taxonomy.by_name("Q")
    with pytest.raises(DataError):
        taxonomy.index("question")


def test_label_keys() -> None:
    assert label_key("  [Affirmation  &\tReassurance] ") == "affirmation and reassurance"
    assert label_key("Self\u2011Disclosure") == label_key("self_disclosure") == "self disclosure"


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"one of aflow, cso, esconv, extes.*did you mean 'esconv'"):
        load_taxonomy("escon")


# ---------------------------------------------------------------- a user's own file

GOOD = """
name: mine
title: Mine
source: me
stages: [early, late]
strategies:
  - {name: Ask, abbr: A, stage: early, definition: Asks.}
  - {name: Tell, abbr: T, stage: late, definition: Tells., aliases: [Say], fallback: true}
"""


def _load(folder: Path, text: str) -> Taxonomy:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_taxonomy(str(path))


def _faults(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(folder, text)
    return str(caught.value)


def test_own_file_loads(tmp_path: Path) -> None:
    taxonomy = _load(tmp_path, GOOD)
    assert taxonomy.names == ("Ask", "Tell")
    assert taxonomy.resolve("say").name == "Tell"
    assert len(taxonomy.digest) == 16
    assert taxonomy.digest != _load(tmp_path, GOOD.replace("Asks.", "Asks much.")).digest


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    text = (
        GOOD.replace("abbr: A, stage: early", "abbr: A, stage: earlie, alias: [x]").replace("[Say]", "[Say, ask]")
        + "colour: red\n"
    )
    message = _faults(tmp_path, text)
    assert "4 faults" in message
    assert "strategies[0].stage (line 7): unknown stage 'earlie'" in message
    assert "strategies[0].alias (line 7): unknown key (did you mean 'aliases'?)" in message
    assert "strategies[1].aliases[1] (line 8): 'ask' is also 'Ask' of strategies[0]" in message
    assert "colour (line 9): unknown key" in message


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("Asks.", "' '", "strategies[0].definition (line 7): empty"),
        ("name: Ask", "name: ''", "strategies[0].name (line 7): empty"),
        ("abbr: A", "abbr: t", "strategies[1].abbr (line 8): 'T' is also 't'"),
        ("definition: Asks.", "definition: Asks., fallback: true", "2 fallbacks"),
        ("name: Ask", "name: 3", "strategies[0].name (line 7): must be text"),
        ("title: Mine", "titel: Mine", "title: is missing"),
        ("[Say]", "['()']", "strategies[1].aliases[0] (line 8): empty"),
        ("name: Ask", "name: 'Ask [A]'", "strategies[0].name (line 7): 'Ask [A]' holds '[' and ']'"),
    ],
)
def test_single_faults(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert fault in _faults(tmp_path, GOOD.replace(old, new, 1))


def test_number_of_strategies_is_bounded(tmp_path: Path) -> None:
    head, _, tail = GOOD.partition("  - ")
    one = head + "  - " + tail.split("\n", 1)[0] + "\n"
    assert "1 found, 2 to 64 expected" in _faults(tmp_path, one)
    many = head + "".join(f"  - {{name: s{i}, abbr: a{i}, stage: early, definition: d}}\n" for i in range(65))
    assert "65 found" in _faults(tmp_path, many)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "a: \x00"])
def test_other_content_is_refused(tmp_path: Path, text: str) -> None:
    assert "mine.yaml" in _faults(tmp_path, text)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_taxonomy(str(tmp_path / "none.yaml"))
