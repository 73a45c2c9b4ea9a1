"""Labels to strategies: lookup, at most one mapping, and what is refused, kept or counted."""

import pytest

from esckit.data.contexts import merge_runs
from esckit.data.layouts import IssueList
from esckit.data.selection import LabelRules, resolve_labels
from esckit.errors import ConfigError, DataError
from esckit.strategies.mapping import load_mapping
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Dialogue, Turn
from tests.data.dialogues import dialogue, turn

TALK = dialogue(turn("s", "a"), turn("c", "b", "question"), turn("c", "d", "Self-disclosure"), turn("c", "e", "Others"))
TO_AFLOW = load_mapping("esconv_to_aflow")


def _resolved(one: Dialogue, sink: IssueList | None = None, **rules: object) -> Dialogue:
    (found,) = resolve_labels([one], LabelRules(**rules), sink or IssueList())  # type: ignore[arg-type]
    return found


def _strategies(one: Dialogue) -> list[str | None]:
    return [t.strategy for t in one.turns]


def _unknown_to_esckit(one: Dialogue) -> Dialogue:
    """Return the dialogue as one of the record format that does not say which taxonomy it is in."""
    assert one.source is not None
    return one.model_copy(update={"source": one.source.model_copy(update={"format": "jsonl"})})


def test_labels_are_read_in_the_corpus_own_taxonomy() -> None:
    sink = IssueList()
    found = _resolved(TALK, sink)
    assert _strategies(found) == [None, "Question", "Self-disclosure", "Others"]
    assert [t.source_strategy for t in found.turns] == [None, "question", "Self-disclosure", "Others"]
    assert (found.taxonomy, found.mapping) == ("esconv", None)
    assert [(issue.code, issue.severity, issue.field) for issue in sink.issues] == [
        ("strategy_alias", "N", "turns[1].strategy")
    ]


def test_a_mapping_sets_strategy_taxonomy_and_its_own_name() -> None:
    sink = IssueList()
    found = _resolved(TALK, sink, mapping=TO_AFLOW, target=load_taxonomy("aflow"))
    assert _strategies(found) == [None, "Clarification", "Empathetic Statements", None]
    assert (found.taxonomy, found.mapping) == ("aflow", "esconv_to_aflow")
    assert [issue.code for issue in sink.issues] == ["strategy_alias", "unmapped"]
    assert found.turns[3].source_strategy == "Others"


def test_different_taxonomies_need_a_mapping() -> None:
    with pytest.raises(ConfigError, match=r"esconv.*aflow.*esconv_to_aflow"):
        _resolved(TALK, target=load_taxonomy("aflow"))
    with pytest.raises(ConfigError, match="None from esconv to cso is shipped"):
        _resolved(TALK, target=load_taxonomy("cso"))


def test_a_mapping_must_fit() -> None:
    with pytest.raises(ConfigError, match=r"leads from extes to aflow; expected one from esconv to aflow"):
        _resolved(TALK, mapping=load_mapping("extes_to_aflow"))
    with pytest.raises(ConfigError, match=r"leads from esconv to aflow; expected one from esconv to esconv"):
        _resolved(TALK, mapping=TO_AFLOW, target=load_taxonomy("esconv"))


def test_mappings_never_chain_but_mapped_dialogues_stay_usable() -> None:
    mapped = _resolved(TALK, mapping=TO_AFLOW)
    assert _resolved(mapped) == mapped
    assert _resolved(mapped, mapping=TO_AFLOW, target=load_taxonomy("aflow")) == mapped
    with pytest.raises(ConfigError, match="never chained"):
        _resolved(mapped, target=load_taxonomy("esconv"))
    with pytest.raises(ConfigError, match="never chained"):
        _resolved(mapped, mapping=load_mapping("extes_to_esconv.published"))


def test_resolving_twice_equals_resolving_once() -> None:
    once = _resolved(TALK)
    assert _resolved(once) == once
    assert _strategies(_resolved(once, mapping=TO_AFLOW)) == _strategies(_resolved(TALK, mapping=TO_AFLOW))


def test_an_unknown_label_is_refused_with_its_place() -> None:
    odd = dialogue(turn("s", "a"), turn("c", "b", "Sympathy"), record=7)
    with pytest.raises(DataError) as caught:
        _resolved(odd)
    assert str(caught.value).startswith("some.json: record 7, turns[1].strategy: found the unknown strategy 'Sympathy'")
    sink = IssueList(go_on=True)
    assert list(resolve_labels([odd, TALK], LabelRules(), sink)) == [_resolved(TALK)]
    assert len(sink.refusals) == 1


def test_an_unknown_label_can_be_kept_unlabelled_and_is_counted() -> None:
    sink = IssueList()
    odd = dialogue(turn("s", "a"), turn("c", "b", "Sympathy"))
    found = _resolved(odd, sink, unknown="keep")
    assert (found.turns[1].strategy, found.turns[1].source_strategy) == (None, "Sympathy")
    assert [(issue.code, issue.severity) for issue in sink.issues] == [("strategy_unknown", "W")]


def test_a_missing_label_stands_for_others_only_if_asked() -> None:
    blank = dialogue(turn("s", "a"), turn("c", "b"), turn("c", "d", " "))
    assert _strategies(_resolved(blank)) == [None, None, None]
    assert _strategies(_resolved(blank, blank_as="Others")) == [None, "Others", "Others"]
    with pytest.raises(ConfigError, match=r"blank_as 'Nothing'.*esconv"):
        _resolved(blank, blank_as="Nothing")


def test_a_taxonomy_can_be_forced_on_a_corpus() -> None:
    with pytest.raises(DataError, match="of taxonomy extes"):
        _resolved(TALK, own=load_taxonomy("extes"))


def test_records_without_known_taxonomy_take_the_wanted_or_none() -> None:
    own = _unknown_to_esckit(TALK)
    assert _resolved(own) == own
    found = _resolved(own, target=load_taxonomy("esconv"))
    assert _strategies(found) == [None, "Question", "Self-disclosure", "Others"]


def test_merged_turns_are_resolved_with_their_pieces() -> None:
    merged = merge_runs(TALK)
    for rules in ({}, {"mapping": TO_AFLOW}):
        found = _resolved(merged, **rules)
        expected = merge_runs(_resolved(TALK, **rules))
        assert found == expected
    sink = IssueList()
    _resolved(merged, sink)
    assert [issue.field for issue in sink.issues] == ["turns[1].parts[0].strategy"]


def test_seeker_turns_are_left_alone() -> None:
    seeker = Turn(speaker="seeker", text="a", source_strategy="Nonsense")
    assert _resolved(dialogue(seeker)).turns == (seeker,)
