"""Cases with just the fields that a metric reads."""

from collections.abc import Sequence
from fractions import Fraction

from esckit.evaluate.suites.critics import Episode
from esckit.evaluate.suites.pairwise import Judgement, PairCase
from esckit.evaluate.suites.response import ResponseCase
from esckit.evaluate.suites.strategy import StrategyCase
from esckit.metrics.metric import Statistics
from esckit.metrics.rows import Measurement
from esckit.types import CriticReading, EpisodeTurn, Failure, Generation, Scenario, TurnRatings

FAST = Statistics(resamples=200)


def measurement(suite: str, dialogue_ids: Sequence[str], settings: Statistics = FAST) -> Measurement:
    return Measurement.over(suite, dialogue_ids, 7, settings)


def reading(value: Fraction, critic: str = "rlff7") -> CriticReading:
    return CriticReading(
        readout="sampled", critic=f"{critic}/0", num=value.numerator, den=value.denominator, value=float(value)
    )


def turn(
    t: int,
    values: dict[str, Fraction],
    *,
    text: str = "I hear you.",
    strategy: str | None = None,
    ratings: TurnRatings | None = None,
) -> EpisodeTurn:
    return EpisodeTurn(
        t=t,
        supporter=Generation(raw=text, reasoning=None, response=text, format_ok=True, parse_kind="ok"),
        strategy=strategy,
        seeker="Okay.",
        readings={critic: reading(value, critic) for critic, value in values.items()},
        ratings=ratings,
    )


def episode(
    name: str,
    values: dict[str, Sequence[Fraction]],
    *,
    max_turns: int = 8,
    failure: Failure | None = None,
    emotion: str | None = None,
    turns: Sequence[EpisodeTurn] | None = None,
) -> Episode:
    length = max((len(found) for found in values.values()), default=0)
    played = [
        turn(t, {critic: found[t - 1] for critic, found in values.items() if t <= len(found)})
        for t in range(1, length + 1)
    ]
    return Episode(
        id=name,
        dialogue_id=name,
        scenario=Scenario(id=name, situation="s", emotion_type=emotion),
        run_seed=7,
        max_turns=max_turns,
        critics=tuple(values),
        turns=tuple(turns if turns is not None else played),
        failure=failure,
    )


def quarters(*sums: int) -> list[Fraction]:
    """Critic values of ten parsed samples each, from the sums of their levels in quarter units."""
    return [Fraction(total, 40) for total in sums]


def strategy_case(index: int, predicted: str | None, gold: str, *, dialogue: str | None = None) -> StrategyCase:
    return StrategyCase(
        id=f"c{index}",
        dialogue_id=dialogue or f"d{index}",
        gold=gold,
        gold_all=(gold,),
        predicted=predicted,
        unscored=None if predicted else "backend",
    )


def of_matrix(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> list[StrategyCase]:
    """Cases with these counts, rows predicted and columns gold."""
    cells = [(names[i], names[j]) for i, row in enumerate(matrix) for j, count in enumerate(row) for _ in range(count)]
    return [strategy_case(index, predicted, gold) for index, (predicted, gold) in enumerate(cells)]


def response_case(
    index: int, reply: str | None, reference: str = "Yes.", *, dialogue: str | None = None
) -> ResponseCase:
    return ResponseCase(
        id=f"c{index}",
        dialogue_id=dialogue or f"d{index}",
        context_id=f"c{index}",
        reply=reply,
        reference=reference,
        unscored=None if reply else "blank",
    )


def pair_case(index: int, in_ab: str, in_ba: str, *, words: tuple[int, int] = (5, 7)) -> PairCase:
    """A comparison from the systems named in order AB and in order BA."""
    verdicts = {"AB": {"A": "1", "B": "2", "tie": "tie"}, "BA": {"A": "2", "B": "1", "tie": "tie"}}
    judgements = tuple(
        Judgement.model_validate({"order": order, "verdicts": {"overall": verdicts[order][named]}})
        for order, named in (("AB", in_ab), ("BA", in_ba))
    )
    return PairCase(
        id=f"c{index}",
        dialogue_id=f"d{index}",
        context_id=f"c{index}",
        judgements=judgements,
        n_words_a=words[0],
        n_words_b=words[1],
    )
