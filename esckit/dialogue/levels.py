"""Level presets of the resolution critic, with exact arithmetic.

Levels carry values in quarter units, so that a mean of n answers with sum S is the fraction S/(4n) and "more than one
half" is S > 2n: floats would turn six times "moderately better" into 0.49999999999999994.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from esckit.dialogue.verdicts import read_name
from esckit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Preset:
    """The levels of a critic.

    Attributes:
        name: Name in recipes.
        levels: Level names in the order of the prompt.
        quarters: Value of each level in quarters, in [-4, 4].
        prompt: Name of the shipped prompt that lists these levels; with ``_letters`` behind it, of the one that
            lists them by letter.
        takes_first: Read answers as PPDPP's code does: the first level, in preset order, that occurs anywhere.
    """

    name: str
    levels: tuple[str, ...]
    quarters: tuple[int, ...]
    prompt: str
    takes_first: bool = False

    @property
    def letters(self) -> tuple[str, ...]:
        """``A``, ``B`` … in the order of the levels."""
        return tuple("ABCDEFGHIJ"[: len(self.levels)])

    def parse(self, text: str) -> int:
        """Return the index of the one level that an answer names.

        Raises:
            ParseError: As :func:`esckit.dialogue.verdicts.read_name`.
        """
        if self.takes_first:
            # Without any, the rule below says so.
            for index, name in enumerate(self.levels):
                if name.casefold() in text.casefold():
                    return index
        return read_name(text, self.levels)

    def mean(self, counts: Sequence[int]) -> Fraction:
        """Return the exact mean value of parsed answers, in [-1, 1].

        Args:
            counts: Answers per level, at least one in all.
        """
        total = sum(count * quarter for count, quarter in zip(counts, self.quarters, strict=True))
        return Fraction(total, 4 * sum(counts))

    def expectation(self, weights: Sequence[float]) -> Fraction:
        """Return the expected value under level probabilities, rounded to whole millionths."""
        value = sum(weight * quarter / 4 for weight, quarter in zip(weights, self.quarters, strict=True))
        return Fraction(round(value * 1_000_000), 1_000_000)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "rlff7",
            (
                "Same",
                "Slightly Better",
                "Moderately Better",
                "Significantly Better",
                "Slightly Worse",
                "Moderately Worse",
                "Significantly Worse",
            ),
            (0, 1, 2, 4, -1, -2, -4),
            "critic_resolution",
        ),
        Preset("ppdpp4", ("Worse", "Same", "Better", "Solved"), (-4, -2, 2, 4), "critic_ppdpp4"),
    )
}


def load_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown critic preset {name!r}", expected=f"one of {', '.join(PRESETS)}")
    return PRESETS[name]


def future_reward(value: Fraction, k: int) -> Fraction:
    """Return the reward of a candidate, ``(r_k + 1/(k+1)) / 2`` (RLFF-ESC, arXiv 2508.12935).

    Args:
        value: The critic's last value, in [-1, 1].
        k: Exchanges played after the first.
    """
    return (value + Fraction(1, k + 1)) / 2
