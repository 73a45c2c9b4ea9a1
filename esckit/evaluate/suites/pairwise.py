"""The suite ``pairwise``: a judge compares two systems' replies to the same contexts, in both orders.

A is the system under test. If both orders name the same system, it wins. If both tie, the case is a tie. Anything else
is a tie that counts as inconsistent. A comparison without a readable answer in both orders is unscored. Where a recipe
asks for one order (``swap: false``), that order decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PositiveInt

from esckit.config.sections import Section
from esckit.errors import DataError, ModelError
from esckit.evaluate.suite import Case, CaseFile, Done, Material, Player, Suite, Unit, Work, prompted
from esckit.evaluate.suites.response import (
    ReplyTask,
    ResponseCase,
    answerable,
    build_responder,
    gold_conditions,
    gold_labels,
    has_replies,
    reply_calls,
    reply_tasks,
    speakers,
)
from esckit.ledger import Ledger, derive_seed, uniform
from esckit.metrics.metric import RATIO, Array, C, Facts, Metric, Stats, Sums, Unscored, collect, divide
from esckit.predict.run import read_predictions
from esckit.records import digest, read_records
from esckit.roles.cast import Casting
from esckit.roles.critics import DIMENSIONS, PairJudge
from esckit.text import n_words
from esckit.types import Context, Record

if TYPE_CHECKING:
    from esckit.evaluate.recipe import EvaluateRecipe
    from esckit.metrics.rows import Measurement, MetricRow

FAIR_CONSISTENCY = 0.7
"""Below this share of consistent cases, verdicts are flagged ``position_bias``."""

Dimension = Literal["fluency", "identification", "comfort", "suggestion", "overall", "empathy"]

Winner = Literal["A", "B", "tie"]


class PairwiseSettings(Section):
    """The suite ``pairwise``: two systems' replies to one context.

    Attributes:
        opponent: A run folder of ``esckit evaluate`` or ``esckit predict``, or a predictions file.
        dimensions: What the judge compares, each with a verdict of its own.
        swap: Judge every pair in both orders; otherwise once in a drawn order.
        contexts: Sample size, one per dialogue while enough dialogues exist; None uses all contexts.
    """

    opponent: str | None = None
    dimensions: tuple[Dimension, ...] = Field(
        default=("fluency", "identification", "comfort", "suggestion", "overall"), min_length=1
    )
    swap: bool = True
    contexts: PositiveInt | None = 100


# ---------------------------------------------------------------- cases


Verdict = Literal["1", "2", "tie"]

Order = Literal["AB", "BA"]


class Judgement(Record):
    """The judge's answer for one order of the two replies.

    Attributes:
        order: Which system's reply was shown as "1" first; A is the system under test.
        verdicts: Answer per dimension, as given; a dimension without a readable answer is absent.
        unscored: Why there is no answer at all.
    """

    order: Order
    verdicts: dict[str, Verdict] = Field(default_factory=dict)
    unscored: str | None = None


class PairCase(Case):
    """One comparison of two replies to one context.

    Attributes:
        judgements: One per order asked, in the order asked.
        n_words_a: Words of the reply of the system under test.
        n_words_b: Words of the opponent's reply.
    """

    SCHEMA: ClassVar[str] = "esckit.case.pairwise/1"

    context_id: str
    reply_a: str | None = None
    reply_b: str | None = None
    judgements: tuple[Judgement, ...] = ()
    n_words_a: int = 0
    n_words_b: int = 0

    def _unread(self) -> Iterator[str | None]:
        return (judgement.unscored for judgement in self.judgements)


def pairwise_work(material: Material) -> Work:
    """Return the cases of the suite.

    Raises:
        DataError: If the opponent has no reply to any of the contexts.
    """
    recipe, settings = material.recipe, material.recipe.settings.pairwise
    assert settings.opponent is not None
    theirs = opponent_replies(Path(settings.opponent), material.all_context_ids())
    chosen = one_per_dialogue(answerable(material), run_seed=recipe.seed, limit=settings.contexts)
    if not any((theirs.get(context.id) or "").strip() for context in chosen):
        raise DataError(
            f"no reply of the opponent to any of the {len(chosen)} contexts",
            path=settings.opponent,
            expected="replies to the same contexts",
            hint="Was it made from the same data.split?",
        )
    calls, roles = reply_calls(material, len(chosen))

    def completed(unit: Unit, done: Done) -> Unit:
        """Add the reply that the suite ``response`` has for the context already."""
        return replace(unit, what=unit.what._replace(ours=done.get("response", {}).get(unit.id)))

    return Work(
        units=tuple(
            Unit(context.id, context.dialogue_id, PairTask(task, theirs.get(context.id)))
            for context, task in reply_tasks(material, chosen)
        ),
        calls={**calls, "judge": len(chosen) * (2 if settings.swap else 1)},
        given=has_replies(material),
        completed=completed,
        roles=(*roles, "judge"),
        # By what it says, not by its path: two copies are one opponent, and a file that was changed is another.
        conditions={
            "opponent": digest({context.id: theirs.get(context.id) for context in chosen}),
            **gold_labels(material, chosen),
        },
    )


class PairTask(NamedTuple):
    """Two replies to compare.

    Attributes:
        task: The context that is answered.
        theirs: The opponent's reply; None if it has none.
        ours: The reply of the system under test, if it is known already.
    """

    task: ReplyTask
    theirs: str | None
    ours: ResponseCase | None = None


def pair_player(recipe: EvaluateRecipe, casting: Casting, from_file: bool) -> Player:
    """Return what compares two replies."""
    judge = casting.pair_judge(recipe.settings.pairwise.dimensions)
    responder = build_responder(recipe, casting, from_file)

    async def play(unit: Unit) -> PairCase:
        pair: PairTask = unit.what
        ours = pair.ours or await responder(pair.task)
        return await _compare(recipe, pair.task.context, ours, pair.theirs, judge)

    return play


def one_per_dialogue(found: list[C], *, run_seed: int, limit: int | None) -> list[C]:
    """Return a seeded sample of contexts or cases: one of each dialogue while there are enough, then a second one.

    The sample keeps the order of the corpus.
    """
    if limit is None or limit >= len(found):
        return found
    by_dialogue: dict[str, list[C]] = {}
    for context in sorted(found, key=lambda one: derive_seed(run_seed, "pairwise", one.id)):
        by_dialogue.setdefault(context.dialogue_id, []).append(context)
    turns = sorted(by_dialogue, key=lambda name: derive_seed(run_seed, "pairwise", name))
    longest = max(map(len, by_dialogue.values()))
    ranked = [by_dialogue[name][k] for k in range(longest) for name in turns if k < len(by_dialogue[name])]
    kept = {context.id for context in ranked[:limit]}
    return [context for context in found if context.id in kept]


def opponent_replies(path: Path, known: Collection[str]) -> dict[str, str | None]:
    """Return the replies of a run of ``evaluate`` or ``predict``, or of a predictions file, by context id.

    Args:
        path: The run folder or file.
        known: Ids that a predictions file may name.

    Raises:
        DataError: If there is none, or a file names other ids.
    """
    if (replies := path / "examples" / "response.jsonl").is_file():
        return {case.context_id: case.reply for case in read_records(ResponseCase, replies, allow_cut=True)}
    if (pairs := path / "examples" / "pairwise.jsonl").is_file():
        return {case.context_id: case.reply_a for case in read_records(PairCase, pairs, allow_cut=True)}
    file = path / "predictions.jsonl" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise DataError(
            "a folder without replies",
            path=str(path),
            expected="a run of 'evaluate' with suite response or pairwise, or of 'predict'",
        )
    return {name: entry.reply for name, entry in read_predictions(file, known).items()}


async def _compare(
    recipe: EvaluateRecipe, context: Context, ours: ResponseCase, theirs: str | None, judge: PairJudge
) -> PairCase:
    blank = theirs is None or not theirs.strip()
    reason = ours.unscored or (("missing" if theirs is None else "blank") if blank else None)
    judgements: list[Judgement] = []
    ledger = Ledger(recipe.seed, context.id)
    if ours.reply is not None and theirs is not None and reason is None:
        # Which order comes first, or is the only one, is drawn.
        is_swapped = uniform(derive_seed(recipe.seed, context.id, "order")) < 0.5
        orders: tuple[Order, ...] = ("BA", "AB") if is_swapped else ("AB", "BA")
        for order in orders if recipe.settings.pairwise.swap else orders[:1]:
            first, second = (ours.reply, theirs) if order == "AB" else (theirs, ours.reply)
            scope = ledger.at("judge", order)
            try:
                verdicts = await judge.compare(context.scenario, context.turns, first, second, scope)
                judgements.append(Judgement(order=order, verdicts=dict(verdicts)))
            except ModelError as error:
                judgements.append(Judgement(order=order, unscored=error.kind))
    return PairCase(
        id=context.id,
        dialogue_id=context.dialogue_id,
        unscored=reason,
        context_id=context.id,
        reply_a=ours.reply,
        reply_b=theirs,
        judgements=tuple(judgements),
        reasoning=ledger.thoughts(),
        n_words_a=n_words(ours.reply or ""),
        n_words_b=n_words(theirs or ""),
    )


# ---------------------------------------------------------------- decisions


@dataclass(frozen=True, slots=True)
class Decision:
    """What the orders of one case say together.

    Attributes:
        winner: ``A`` and ``B`` only if all orders agree on it.
        consistent: True if all orders say the same.
        n_first: Calls won by the reply shown first.
        n_decided: Calls without a tie.
    """

    winner: Winner
    consistent: bool
    n_first: int
    n_decided: int


def decide(case: PairCase, dimension: str, *, swapped: bool = True) -> Decision | Unscored:
    """Return the decision of a case on a dimension, or why there is none.

    Args:
        case: The case.
        dimension: What the judge was asked.
        swapped: True if both orders have to be judged: one of them alone says nothing about consistency.
    """
    if case.unscored is not None:
        return Unscored(case.unscored)
    failed = next((judgement.unscored for judgement in case.judgements if judgement.unscored), None)
    if failed is not None:
        return Unscored(failed)
    if len({judgement.order for judgement in case.judgements}) < (2 if swapped else 1):
        return Unscored("missing")
    verdicts = [judgement.verdicts.get(dimension) for judgement in case.judgements]
    if None in verdicts:
        return Unscored("unparsed")
    # The first reply is the system's under test in order AB.
    winners: list[Winner] = [
        "tie" if verdict == "tie" else "A" if (verdict == "1") == (judgement.order == "AB") else "B"
        for verdict, judgement in zip(verdicts, case.judgements, strict=True)
    ]
    agreed = len(set(winners)) == 1
    return Decision(
        winner=winners[0] if agreed else "tie",
        consistent=agreed,
        n_first=verdicts.count("1"),
        n_decided=len(verdicts) - verdicts.count("tie"),
    )


# ---------------------------------------------------------------- metrics

PairMetric = Metric[PairCase]


def pair_metrics(dimension: str, *, swapped: bool = True) -> tuple[PairMetric, ...]:
    """Return the metrics of a dimension; a consistency rate needs both orders."""

    def metric(
        name: str, read: Callable[[PairCase, Decision], Stats | None], sums: Sums = RATIO, **facts: Any
    ) -> PairMetric:
        def collect_case(case: PairCase) -> Stats | Unscored | None:
            decision = decide(case, dimension, swapped=swapped)
            return decision if isinstance(decision, Unscored) else read(case, decision)

        given = {"minimum": "1 scored comparison", "test": "none", **facts}
        return Metric(Facts(f"pairwise.{dimension}.{name}", **given), collect_case, sums)

    def share(name: str, winner: Winner, *, higher_is_better: bool | None) -> PairMetric:
        return metric(
            name,
            lambda _, decision: (float(decision.winner == winner), 1.0),
            higher_is_better=higher_is_better,
            counts=(name, "cases"),
        )

    signs = {"A": 1.0, "tie": 0.0, "B": -1.0}
    consistency = metric(
        "position_consistency", lambda _, decision: (float(decision.consistent), 1.0), counts=("consistent", "cases")
    )
    return (
        share("win", "A", higher_is_better=True),
        share("tie", "tie", higher_is_better=None),
        share("lose", "B", higher_is_better=False),
        metric("net", lambda _, decision: (signs[decision.winner], 1.0), range=(-1.0, 1.0), minimum="1 case"),
        metric(
            "sign_p",
            lambda _, decision: (
                None if decision.winner == "tie" else (float(decision.winner == "A"), float(decision.winner == "B"))
            ),
            Sums(_sign_p),
            unit="p",
            higher_is_better=None,
            minimum="1 decided case",
            interval="none",
            no_interval="a p-value, Holm-adjusted over the dimensions",
            counts=("win", "lose"),
        ),
        *((consistency,) if swapped else ()),
        metric(
            "first_share",
            lambda _, decision: (float(decision.n_first), float(decision.n_decided)) if decision.n_decided else None,
            higher_is_better=None,
            minimum="1 call without a tie",
            counts=("first", "decided"),
        ),
        metric(
            "longer_share",
            _longer_won,
            higher_is_better=None,
            minimum="1 decided case with replies of different length",
            counts=("longer", "decided"),
        ),
    )


def _sign_p(sums: Array) -> Array:
    """Return the exact two-sided binomial p of wins against losses, ties left out."""
    from esckit.metrics.intervals import two_sided_binomial

    decided = divide(sums.sum(axis=1), sums.sum(axis=1))
    return decided * [two_sided_binomial(int(wins), int(losses)) for wins, losses in sums.tolist()]


def _longer_won(case: PairCase, decision: Decision) -> Stats | None:
    """Return whether the longer reply won; equal lengths and ties are left out; a share of ½ is unbiased."""
    if decision.winner == "tie" or case.n_words_a == case.n_words_b:
        return None
    longer = "A" if case.n_words_a > case.n_words_b else "B"
    return (float(decision.winner == longer), 1.0)


def pairwise_rows(
    cases: Sequence[PairCase], dimensions: Sequence[str], measurement: Measurement, *, swapped: bool = True
) -> list[MetricRow]:
    """Return all rows of the suite.

    A dimension whose orders rarely agree is flagged ``position_bias``; the sign tests of all dimensions are one family:
    each ``sign_p`` is adjusted after Holm.
    """
    from esckit.metrics.intervals import holm

    rows = []
    for dimension in dimensions:
        metrics = pair_metrics(dimension, swapped=swapped)
        consistency = next((metric for metric in metrics if metric.name.endswith(".position_consistency")), None)
        share = consistency.finish(collect(consistency, cases).stats) if consistency else None
        flags = ("position_bias",) if share is not None and share < FAIR_CONSISTENCY else ()
        rows += [measurement.row(metric, cases, flags=flags) for metric in metrics]
    tested = [index for index, row in enumerate(rows) if row.unit == "p" and row.value is not None]
    for index, adjusted in zip(tested, holm([rows[index].value or 0.0 for index in tested]), strict=True):
        rows[index] = rows[index].model_copy(update={"value": adjusted})
    return rows


# ---------------------------------------------------------------- the suite


def _conditions(material: Material, cases: Mapping[str, str]) -> dict[str, Any]:
    recipe, settings = material.recipe, material.recipe.settings.pairwise
    asked = digest({name: DIMENSIONS[name] for name in settings.dimensions})
    return {
        "settings": settings.model_dump(mode="json", exclude={"opponent"}),
        "judge": {**prompted(recipe, "judge", recipe.prompts.judge_pairwise), "asked": asked},
        **cases,
        **gold_conditions(material),
    }


PAIRWISE = Suite(
    name="pairwise",
    roles=lambda recipe: (*speakers(recipe), "judge"),
    files=(
        CaseFile(
            name="pairwise",
            kind=PairCase,
            work=pairwise_work,
            prepare=pair_player,
            metrics=lambda recipe, strategies: [
                metric
                for name in recipe.settings.pairwise.dimensions
                for metric in pair_metrics(name, swapped=recipe.settings.pairwise.swap)
            ],
            rows=lambda recipe, strategies, cases, measurement: pairwise_rows(
                cases, recipe.settings.pairwise.dimensions, measurement, swapped=recipe.settings.pairwise.swap
            ),
        ),
    ),
    conditions=_conditions,
    fields=lambda recipe: ("settings.pairwise.opponent", "data"),
    sources=lambda recipe: {"predictions": recipe.predictions, "opponent": recipe.settings.pairwise.opponent},
    reads_labels=lambda recipe: recipe.settings.response.strategy == "gold",
    judge="judge",
    judge_prompts=("judge_pairwise",),
)
