"""Leakage: how the published cuts of ESConv overlap, and both rules."""

import pytest

from esckit.data.splits import LeakageRules, Seen, esconv_permutation
from esckit.errors import DataError

_CUTS = {"hub": (195, 390), "ppdpp": (130, 260)}


def cut(scheme: str) -> dict[str, frozenset[str]]:
    order = [str(position) for position in esconv_permutation()]
    valid, test = _CUTS[scheme]
    return {
        "valid": frozenset(order[:valid]),
        "test": frozenset(order[valid:test]),
        "train": frozenset(order[test:]),
    }


HUB, PPDPP = cut("hub"), cut("ppdpp")


@pytest.mark.parametrize(
    ("hub", "ppdpp", "shared"),
    [
        ("train", "train", 910), ("train", "valid", 0), ("train", "test", 0),
        ("valid", "train", 0), ("valid", "valid", 130), ("valid", "test", 65),
        ("test", "train", 130), ("test", "valid", 0), ("test", "test", 65),
    ],
)  # fmt: skip
def test_dialogues_shared_by_the_two_cuts(hub: str, ppdpp: str, shared: int) -> None:
    assert len(HUB[hub] & PPDPP[ppdpp]) == shared


def seen(part: str) -> Seen:
    return Seen("the strategist", HUB[part], "esconv", "hub")


def test_rule_1_raises_with_count_schemes_and_three_ids() -> None:
    with pytest.raises(DataError, match=r"65 dialogues .*hub.*ppdpp"):
        LeakageRules(allow_cross_family=True).flags(
            PPDPP["test"], corpus="esconv", scheme="ppdpp", seen=[seen("valid")]
        )


def test_rule_2_raises_where_no_dialogue_is_shared() -> None:
    with pytest.raises(DataError, match="made with scheme hub"):
        LeakageRules().flags(PPDPP["test"], corpus="esconv", scheme="ppdpp", seen=[seen("train")])


def test_the_switches_flag() -> None:
    both = LeakageRules(allow_overlap=True, allow_cross_family=True)
    ask = {"corpus": "esconv", "scheme": "ppdpp"}
    assert both.flags(PPDPP["test"], seen=[seen("valid")], **ask) == ("overlap", "cross_family")
    assert both.flags(PPDPP["test"], seen=[seen("train")], **ask) == ("cross_family",)
    assert LeakageRules().flags(HUB["test"], corpus="esconv", scheme="hub", seen=[seen("train")]) == ()


def test_another_corpus_is_no_other_family() -> None:
    other = Seen("the policy", frozenset({"extes-1"}), "extes", "ratio/13/0.8,0.1,0.1")
    assert LeakageRules().flags(HUB["test"], corpus="esconv", scheme="hub", seen=[other]) == ()
