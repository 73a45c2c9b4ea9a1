"""Leakage: how the published cuts of ESConv overlap, and both rules."""

from pathlib import Path

import pytest

from esckit.data.splits import esconv_permutation
from esckit.errors import DataError
from esckit.evaluate import setup
from esckit.evaluate.setup import Seen

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


def broken(scheme: str, part: str, seen: Seen, **allowed: bool) -> tuple[str, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "seen_by", lambda role, run: [seen])
        patch.setattr(setup, "lost_inputs", lambda run: [])
        evaluated = {"hub": HUB, "ppdpp": PPDPP}[scheme][part]
        return setup.leakage_flags(evaluated, scheme, {"strategist": Path("run")}, **allowed)


TRAIN, VALID = (Seen("the strategist", HUB[part], "", "hub") for part in ("train", "valid"))


def test_rule_1_raises_with_count_schemes_and_three_ids() -> None:
    with pytest.raises(DataError, match=r"65 dialogues .*hub.*ppdpp.*(\d+, ){2}\d+;.*allow_overlap"):
        broken("ppdpp", "test", VALID, allow_cross_family=True)


def test_rule_2_raises_where_no_dialogue_is_shared() -> None:
    with pytest.raises(DataError, match="made with scheme hub"):
        broken("ppdpp", "test", TRAIN)


def test_the_switches_flag() -> None:
    both = {"allow_overlap": True, "allow_cross_family": True}
    assert broken("ppdpp", "test", VALID, **both) == ("overlap", "cross_family")
    assert broken("ppdpp", "test", TRAIN, **both) == ("cross_family",)
    assert broken("hub", "test", TRAIN) == ()


def test_another_corpus_is_no_other_family() -> None:
    assert broken("hub", "test", Seen("the policy", frozenset({"extes-1"}), "extes", "ratio/13/0.8,0.1,0.1")) == ()
