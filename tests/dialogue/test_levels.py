"""Level presets: parsing, exact means, the reward table."""

from fractions import Fraction

import pytest

from esckit.dialogue.levels import PRESETS, future_reward, load_preset
from esckit.errors import ConfigError, ParseError

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
