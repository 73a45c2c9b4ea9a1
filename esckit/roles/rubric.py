"""Rubrics, and the critic that rates supporter turns by one, as in AFlow (arXiv 2602.08826).

The critic gives the last supporter turn four ratings from 1 to 5, whose weighted mean over 5 is the reward. It has two
read-outs: ``sampled`` reads four lines that the model writes, ``expected`` reads each criterion from one next-token
distribution over the digits 1 to 5. Their scores cannot be compared, so every record names its read-out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from math import fsum, isfinite
from pathlib import Path

from esckit.config import sections
from esckit.documents import read_yaml
from esckit.errors import NOT_FINITE, ConfigError, ParseError, UnscoredError
from esckit.ledger import Scope
from esckit.prompts.prompt import Prompt
from esckit.records import digest
from esckit.roles.asking import Voice, as_tagged_lines, gather_all
from esckit.roles.verdicts import MassWatch, ask_verdict, unfenced, verdict_text
from esckit.text import lines_of
from esckit.types import Message, NextToken, Record, Reply, RubricReading, Scenario, Score, Turn

MAX_RATING = 5

RATINGS = ("1", "2", "3", "4", "5")


class Criterion(Record):
    """One criterion.

    Attributes:
        key: Name in recipes and records.
        question: What the critic asks itself.
        anchors: What a rating of 1, 2, 3, 4 and 5 means, in this order.
    """

    key: str
    question: str
    anchors: tuple[str, str, str, str, str]

    def as_text(self, number: int) -> str:
        """Return the criterion for a prompt, best rating first."""
        anchors = [f"   {rating}: {self.anchors[rating - 1]}" for rating in range(MAX_RATING, 0, -1)]
        return "\n".join([f"{number}. {self.key}: {self.question}", *anchors])


class Rubric(Record):
    """A named list of criteria."""

    name: str
    criteria: tuple[Criterion, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the criteria in order."""
        return tuple(criterion.key for criterion in self.criteria)

    @property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the rubric's content."""
        return digest(self.model_dump())


def load_rubric(name: str) -> Rubric:
    """Return a shipped rubric by name.

    Raises:
        ConfigError: If there is none of this name.
    """
    known = read_yaml(Path(__file__).parent / "rubrics.yaml", "rubrics")
    if name not in known:
        raise ConfigError(f"unknown rubric {name!r}", expected=f"one of {', '.join(known)}")
    return Rubric.model_validate({"name": name, "criteria": known[name]})


def weighted_reward(ratings: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return R = Σ w_c r_c / (5 Σ w_c), in [0.2, 1].

    Args:
        ratings: Rating per criterion in [1, 5].
        weights: Weight per criterion, each at least 0, sum above 0.

    Raises:
        UnscoredError: ``not_finite`` if a rating is not finite.
    """
    total = fsum(weights[key] * rating for key, rating in ratings.items())
    if not isfinite(total):
        raise UnscoredError("ratings that are not finite", kind=NOT_FINITE, expected="ratings from 1 to 5")
    # Rounding may put a perfect turn one ulp above 1, which no return may pass.
    return min(1.0, total / (MAX_RATING * fsum(weights.values())))


def check_weights(weights: Mapping[str, float], rubric: Rubric) -> None:
    """Refuse weights (each at least 0) that do not fit a rubric.

    Raises:
        ConfigError: If a criterion is missing or unknown, or all weights are 0.
    """
    if set(weights) != set(rubric.keys):
        raise ConfigError(
            f"critic weights for {', '.join(sorted(weights)) or 'nothing'}", expected=f"for {', '.join(rubric.keys)}"
        )
    if not any(weights.values()):
        raise ConfigError("critic weights that are all 0", expected="weights of at least 0 with a sum above 0")


_RATING_LINE = re.compile(r"\s*([1-9])\s*[:：]\s*([1-5])\s*")


class RubricCritic:
    """A chat model that rates the last supporter turn by a rubric.

    Args:
        voice: Model and settings.
        prompt: A prompt with ``transcript`` and the optional ``criteria`` (``sampled``) and ``criterion``
            (``expected``).
        settings: Rubric, weights and read-out.

    Raises:
        ConfigError: If the weights do not fit the rubric, or the model cannot do the read-out.
    """

    def __init__(self, voice: Voice, prompt: Prompt, settings: sections.RubricCritic) -> None:
        self.rubric = load_rubric(settings.rubric)
        check_weights(settings.weights, self.rubric)
        if settings.readout == "expected" and "next_token" not in voice.model.capabilities:
            raise ConfigError(
                f"model {voice.model.name} gives no next-token probabilities",
                expected="a model that does",
                hint="Set critic.readout: sampled",
            )
        self.voice, self.prompt, self.settings = voice, prompt, settings
        self.identity = f"{self.rubric.name}/{digest([prompt.digest, self.rubric.digest])}"
        self._mass = MassWatch("ratings")

    async def score(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Score:
        """Rate the last turn, which is a supporter's.

        Raises:
            ModelError: If no readable answer came; never replaced by a number.
        """
        ratings, mass = await (
            self._sampled(turns, scope) if self.settings.readout == "sampled" else self._expected(turns, scope)
        )
        return Score(
            values=ratings,
            reward=weighted_reward(ratings, self.settings.weights),
            reading=RubricReading(
                readout=self.settings.readout, critic=self.identity, ratings=ratings, label_mass=mass
            ),
        )

    async def _sampled(self, turns: Sequence[Turn], scope: Scope) -> tuple[dict[str, float], None]:
        criteria = "\n\n".join(c.as_text(number) for number, c in enumerate(self.rubric.criteria, start=1))

        def parse(reply: Reply) -> list[float]:
            return parse_ratings(verdict_text(reply), len(self.rubric.criteria))

        messages = partial(self._messages, criteria=criteria)
        ratings = await ask_verdict(self.voice, messages, turns, scope, "critic", parse)
        return dict(zip(self.rubric.keys, ratings, strict=True)), None

    async def _expected(self, turns: Sequence[Turn], scope: Scope) -> tuple[dict[str, float], float]:
        criteria = [criterion.as_text(number) for number, criterion in enumerate(self.rubric.criteria, start=1)]
        found = await gather_all(*(self._distribution(criterion, turns, scope) for criterion in criteria))
        mass = min(distribution.label_mass for distribution in found)
        self._mass.add(mass)
        if mass <= 0.0 or mass < self.settings.min_label_mass:
            raise UnscoredError(
                f"a probability of {mass:.3g} that the critic answers with a rating",
                kind="label_mass",
                expected=f"at least {self.settings.min_label_mass}",
            )
        ratings = [expected_rating(distribution.probabilities) for distribution in found]
        return dict(zip(self.rubric.keys, ratings, strict=True)), mass

    def _messages(
        self, shown: Sequence[Turn], *, criteria: str | None = None, criterion: str | None = None
    ) -> list[Message]:
        transcript = as_tagged_lines(shown, show_strategy=self.settings.show_strategy)
        return self.prompt.render(transcript=transcript, criteria=criteria, criterion=criterion)

    async def _distribution(self, criterion: str, turns: Sequence[Turn], scope: Scope) -> NextToken:
        prompt = self.voice.window.fit(partial(self._messages, criterion=criterion), turns, scope, "critic")
        found = await self.voice.model.next_token(prompt, RATINGS)
        scope.spend("critic", found.usage)
        return found


def parse_ratings(text: str, n_criteria: int) -> list[float]:
    """Return the ratings of an answer of exactly one line ``N: rating`` per criterion, in order.

    Raises:
        ParseError: If a line is missing, doubled, out of order or no whole number from 1 to 5.
    """
    lines = [line for line in lines_of(unfenced(text).replace("*", "")) if line.strip()]
    found = [_RATING_LINE.fullmatch(line) for line in lines]
    ratings = [float(match[2]) for number, match in enumerate(found, start=1) if match and int(match[1]) == number]
    if len(lines) != n_criteria or len(ratings) != n_criteria:
        raise ParseError(
            "an answer that is not one rating per criterion",
            expected=f"{n_criteria} lines 'number: rating' with ratings 1 to 5",
            samples=(text,),
        )
    return ratings


def expected_rating(probabilities: Sequence[float]) -> float:
    """Return E = Σ_k k·p_k / Σ_k p_k over the ratings 1 to 5, in [1, 5]."""
    return sum(k * p for k, p in enumerate(probabilities, start=1)) / sum(probabilities)
