"""Level presets: parsing, exact means, the reward table."""

import contextlib
import time
from dataclasses import replace
from fractions import Fraction

import pytest

from esckit.errors import ConfigError, ParseError
from esckit.roles.verdicts import PRESETS, future_reward, load_preset

RLFF7 = load_preset("rlff7")
HALF = Fraction(1, 2)


def counts(**named: int) -> list[int]:
    short = {"same": 0, "sb": 1, "mb": 2, "gb": 3, "sw": 4, "mw": 5, "gw": 6}
    found = [0] * 7
    for name, n in named.items():
        found[short[name]] = n
    return found


@pytest.mark.parametrize(
    ("answers", "mean", "strict", "lenient"),
    [
        (counts(mb=10), Fraction(1, 2), False, True),
        (counts(mb=9, gb=1), Fraction(11, 20), True, True),
        (counts(mb=8, sb=1, gb=1), Fraction(21, 40), True, True),
        (counts(gb=5, same=5), Fraction(1, 2), False, True),
        (counts(mb=9), Fraction(1, 2), False, True),
        (counts(gb=3, sb=4, same=2, sw=1), Fraction(3, 8), False, False),
        (counts(mb=6), Fraction(1, 2), False, True),
        (counts(gb=3, same=1, mw=1), Fraction(1, 2), False, True),
    ],
)
def test_means_are_exact(answers: list[int], mean: Fraction, strict: bool, lenient: bool) -> None:
    assert RLFF7.mean(answers) == mean
    assert (mean > HALF, mean >= HALF) == (strict, lenient)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("**Moderately better.**", "Moderately Better"),
        ("slightly-better", "Slightly Better"),
        ("The patient feels the same", "Same"),
        ("Same. Same.", "Same"),
    ],
)
def test_rlff7_parses(text: str, level: str) -> None:
    assert RLFF7.levels[RLFF7.parse(text)] == level


@pytest.mark.parametrize(
    ("preset", "text", "kind"),
    [
        ("rlff7", "Better", "unparsed"),
        ("rlff7", "much better", "unparsed"),
        ("rlff7", "Slightly", "unparsed"),
        ("rlff7", "I cannot say", "unparsed"),
        ("rlff7", "Sl\u0131ghtly better", "unparsed"),
        ("rlff7", "S\u0130GN\u0130F\u0130CANTLY BETTER", "unparsed"),
        ("rlff7", "", "unparsed"),
        ("rlff7", "Significantly worse, not slightly better", "ambiguous"),
        ("ppdpp4", "Not solved, but better", "ambiguous"),
        ("ppdpp4", "no", "unparsed"),
    ],
)
def test_unreadable_answers_are_typed(preset: str, text: str, kind: str) -> None:
    with pytest.raises(ParseError) as error:
        load_preset(preset).parse(text)
    assert error.value.kind == kind


@pytest.mark.parametrize(
    ("text", "level"), [("No, but the patient feels better.", "Better"), ("Yes, it has been solved.", "Solved")]
)
def test_ppdpp4_parses(text: str, level: str) -> None:
    preset = load_preset("ppdpp4")
    assert preset.levels[preset.parse(text)] == level


REWARDS = {
    Fraction(1): (1.0, 0.75, 0.6667, 0.625, 0.6, 0.5833, 0.5714, 0.5625, 0.5556),
    Fraction(4, 5): (0.9, 0.65, 0.5667, 0.525, 0.5, 0.4833, 0.4714, 0.4625, 0.4556),
    Fraction(3, 4): (0.875, 0.625, 0.5417, 0.5, 0.475, 0.4583, 0.4464, 0.4375, 0.4306),
    Fraction(11, 20): (0.775, 0.525, 0.4417, 0.4, 0.375, 0.3583, 0.3464, 0.3375, 0.3306),
    Fraction(21, 40): (0.7625, 0.5125, 0.4292, 0.3875, 0.3625, 0.3458, 0.3339, 0.325, 0.3181),
}


@pytest.mark.parametrize(("value", "row"), REWARDS.items())
def test_the_reward_table(value: Fraction, row: tuple[float, ...]) -> None:
    assert [float(future_reward(value, k)) for k in range(9)] == pytest.approx(row, abs=5e-5)


@pytest.mark.parametrize(
    ("value", "k", "reward"),
    [
        (Fraction(11, 20), 1, Fraction(21, 40)),
        (Fraction(4, 5), 4, Fraction(1, 2)),
        (Fraction(1, 2), 8, Fraction(11, 36)),
        (Fraction(21, 40), 8, Fraction(229, 720)),
        (Fraction(-1), 8, Fraction(-4, 9)),
        (Fraction(1), 1, Fraction(3, 4)),
        (Fraction(1, 4), 8, Fraction(13, 72)),
        (Fraction(0), 8, Fraction(1, 18)),
    ],
)
def test_rewards_are_exact(value: Fraction, k: int, reward: Fraction) -> None:
    assert future_reward(value, k) == reward


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="rlff7, ppdpp4"):
        load_preset("rlff8")


def test_presets_have_one_value_per_level() -> None:
    assert all(len(preset.levels) == len(preset.quarters) for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("preset", "text", "level"),
    [
        ("ppdpp4", "No, the patient feels the same.", "Same"),
        ("ppdpp4", "No but the patient feels better", "Better"),
        ("ppdpp4", "It is not over yet they feel better", "Better"),
        ("ppdpp4", "It was not easy \u2013 they feel better", "Better"),
        ("ppdpp4", "There is no answer.\u2028Same", "Same"),
        ("ppdpp4", "Not much；Better。", "Better"),
        ("ppdpp4", "```TEXT\nSame\n```", "Same"),
        ("ppdpp4", "~~~text\nSame\n~~~", "Same"),
        ("ppdpp4", "```` text\r\nSame\r\n````", "Same"),
        ("rlff7", "“Significantly-Better”", "Significantly Better"),
    ],
)
def test_a_negation_counts_in_its_own_clause_only(preset: str, text: str, level: str) -> None:
    found = load_preset(preset)
    assert found.levels[found.parse(text)] == level


@pytest.mark.parametrize(
    ("preset", "text"),
    [
        ("ppdpp4", "The issue is not solved."),
        ("ppdpp4", "The issue isn\u2019t solved"),
        ("ppdpp4", "Without being solved"),
        ("ppdpp4", "Better. I would never say better."),
        ("rlff7", "Nobody would call this significantly better"),
        ("rlff7", "No, nobody would call this Significantly Better."),
        ("rlff7", "It cannot be the same"),
        ("ppdpp4", "The issue is not yet solved."),
        ("ppdpp4", "It hasn\u2019t as yet been solved"),
        ("ppdpp4", "The issue is __not__ solved"),
        ("ppdpp4", "It *has not yet* been solved"),
        *(("ppdpp4", f"The issue isn{mark}t solved") for mark in "`\u00b4\u2018\u2032\u02bc\uff07"),
        ("ppdpp4", "The issue isnt solved"),
    ],
)
def test_a_denied_level_is_no_level(preset: str, text: str) -> None:
    with pytest.raises(ParseError) as error:
        load_preset(preset).parse(text)
    assert error.value.kind == "negated"


def test_ppdpp_compat_reads_a_denial_as_ppdpp_does() -> None:
    preset = replace(load_preset("ppdpp4"), takes_first=True)
    assert preset.levels[preset.parse("The issue is not solved.")] == "Solved"
    assert preset.levels[preset.parse("Not solved, but better")] == "Better"


@pytest.mark.parametrize(
    "text", ["same " * 20_000, "slightly " * 20_000, "not " * 20_000 + "same", "," * 80_000 + "same"]
)
def test_reading_a_level_takes_linear_time(text: str) -> None:
    began = time.process_time()
    with contextlib.suppress(ParseError):
        RLFF7.parse(text)
    assert time.process_time() - began < 2.0
