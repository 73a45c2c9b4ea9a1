"""Seconds for all statistics of an evaluation: 195 made-up dialogues, 10,000 resamples, all suites and comparisons.

Run: ``python -m tests.benchmarks.bench_statistics``. Only prints; no text here means anything.
"""

import random
import time
from collections.abc import Callable
from fractions import Fraction

from esckit.evaluate.suites.critics import CriticScale, Episode, headline_metrics
from esckit.evaluate.suites.dialogue import dialogue_rows, shared_metrics
from esckit.evaluate.suites.pairwise import PairCase, PairwiseSettings, pairwise_rows
from esckit.evaluate.suites.response import ResponseCase, response_metrics, response_rows
from esckit.evaluate.suites.reward import RewardCase, reward_metrics, reward_rows
from esckit.evaluate.suites.strategy import StrategyCase, StrategyScale, strategy_metrics, strategy_rows
from esckit.metrics.metric import Statistics
from esckit.metrics.rows import Comparer, Measurement
from esckit.types import TurnRatings
from tests.evaluate.casefakes import episode, pair_case, turn

SETTINGS = Statistics()
DIALOGUES = [f"d{index}" for index in range(195)]
STRATEGIES = tuple("ABCDEFGH")
TURNS = 12
SCALE = StrategyScale(STRATEGIES)
CRITICS = [CriticScale("rlff7"), CriticScale("ppdpp4")]
_zipf = random.Random(0)
WORDS = [f"w{int(_zipf.paretovariate(0.8)) % 8000}" for _ in range(40_000)]


def strategy_cases(seed: int) -> list[StrategyCase]:
    rng = random.Random(seed)
    cases = []
    for dialogue in DIALOGUES:
        for index in range(TURNS):
            gold = rng.choice(STRATEGIES)
            predicted = gold if rng.random() < 0.35 else rng.choice(STRATEGIES)
            name = f"{dialogue}.{index}"
            cases.append(
                StrategyCase(id=name, dialogue_id=dialogue, gold=gold, predicted=predicted, turn=index, n_turns=TURNS)
            )
    return cases


def response_cases(seed: int) -> list[ResponseCase]:
    rng = random.Random(seed)
    return [
        ResponseCase(
            id=f"{dialogue}.{index}",
            dialogue_id=dialogue,
            context_id=f"{dialogue}.{index}",
            reply=" ".join(rng.choices(WORDS, k=20)),
            reference=" ".join(rng.choices(WORDS, k=20)),
            nll=40.0,
            n_scorer_tokens=20,
        )
        for dialogue in DIALOGUES
        for index in range(TURNS)
    ]


def episodes(seed: int) -> list[Episode]:
    rng = random.Random(seed)

    def exchange(t: int) -> object:
        ratings = TurnRatings(empathy=rng.randint(1, 5), information=3, humanlikeness=4, strategic=rng.randint(1, 5))
        values = {scale.critic: Fraction(rng.randint(-20, 25), 40) for scale in CRITICS}
        return turn(
            t, values, text=" ".join(rng.choices(WORDS, k=30)), strategy=rng.choice(STRATEGIES), ratings=ratings
        )

    return [
        episode(name, {scale.critic: () for scale in CRITICS}, turns=[exchange(t) for t in range(1, 9)], emotion="sad")
        for name in DIALOGUES
    ]


def pair_cases(seed: int) -> list[PairCase]:
    rng = random.Random(seed)
    named = ("A", "B", "tie")
    return [pair_case(index, rng.choice(named), rng.choice(named)) for index in range(len(DIALOGUES))]


def reward_cases(seed: int) -> list[RewardCase]:
    rng = random.Random(seed)
    return [
        RewardCase(
            id=f"{dialogue}.{context}.{candidate}",
            dialogue_id=dialogue,
            context_id=f"{dialogue}.{context}",
            p=rng.random(),
            y=rng.random() < 0.5,
            reward_num=rng.randint(-3, 3),
            reward_den=4,
            n_words=rng.randint(3, 50),
        )
        for dialogue in DIALOGUES
        for context in range(3)
        for candidate in range(8)
    ]


def timed(name: str, work: Callable[[], list[object]]) -> float:
    start = time.perf_counter()
    n = len(work())
    seconds = time.perf_counter() - start
    print(f"{name:24s}{n:5d} values {seconds:7.2f} s")
    return seconds


def main() -> None:
    plan = Measurement.over("bench", DIALOGUES, 7, SETTINGS)
    comparer = Comparer.over("bench", DIALOGUES, 7, SETTINGS, other="other")
    sides = {
        "strategy": (strategy_metrics(SCALE), strategy_cases(1), strategy_cases(2)),
        "response": (response_metrics(scorer=True), response_cases(1), response_cases(2)),
        "dialogue": (
            [metric for scale in CRITICS for metric in headline_metrics(scale)] + list(shared_metrics(STRATEGIES)),
            episodes(1),
            episodes(2),
        ),
        "reward": (reward_metrics(), reward_cases(1), reward_cases(2)),
    }
    rows = {
        "strategy": lambda: strategy_rows(sides["strategy"][1], SCALE, plan),
        "response": lambda: response_rows(sides["response"][1], plan),
        "dialogue": lambda: dialogue_rows(sides["dialogue"][1], CRITICS, plan, STRATEGIES),
        "pairwise": lambda: pairwise_rows(pair_cases(1), ["overall"], plan),
        "reward": lambda: reward_rows(sides["reward"][1], plan),
    }
    total = sum(timed(name, work) for name, work in rows.items())
    for name, (metrics, ours, theirs) in sides.items():

        def compared(metrics=metrics, ours=ours, theirs=theirs) -> list:
            return [comparer.compare(metric, ours, theirs) for metric in metrics]

        total += timed(f"{name}, compared", compared)
    print(f"{'all':24s}{'':12s} {total:7.2f} s; pairwise times {len(PairwiseSettings().dimensions)} dimensions")


if __name__ == "__main__":
    main()
