"""The suite ``response``: one reply to each gold context, from a supporter or from a file.

Shares of text overlap are given on 0-100, as in the literature. Tokens are those of :func:`esckit.text.tokenise`, for
reply and reference alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, PositiveInt, model_validator

from esckit.config.sections import Section
from esckit.data.contexts import after_opening
from esckit.errors import ConfigError, DataError, ModelError
from esckit.evaluate.suite import MALFORMED, Case, CaseFile, Material, Player, Suite, Unit, Work, played_by
from esckit.ledger import Ledger, derive_seed
from esckit.metrics.metric import RATIO, Array, Estimator, Facts, Metric, Stats, Sums, Unscored, ratio
from esckit.metrics.overlap import (
    DistinctShare,
    bleu_from_sums,
    bleu_stats,
    meteor_exact,
    ngrams,
    rouge_l,
)
from esckit.predict.run import Prediction, predicted
from esckit.records import digest
from esckit.report.compared import GOLD_LABELS
from esckit.roles.cast import Casting
from esckit.text import TOKENIZER, n_words, tokenise
from esckit.types import Context, ParseKind

if TYPE_CHECKING:
    from esckit.evaluate.recipe import EvaluateRecipe
    from esckit.metrics.rows import Measurement, MetricRow

_log = logging.getLogger(__name__)

TOKENISATION = "esckit.tokens/1"


class ResponseSettings(Section):
    """The suite ``response``: one reply to each gold context.

    Attributes:
        strategy: Which strategy the supporter is given.
        per_dialogue: Seeded subsample of so many contexts of each dialogue; None uses all.
    """

    strategy: Literal["gold", "predicted", "none"] = "none"
    per_dialogue: PositiveInt | None = None


# ---------------------------------------------------------------- cases


class ResponseCase(Case):
    """One generated reply against the gold supporter turn.

    Attributes:
        context_id: The context it answers.
        reply: The reply alone, without reasoning or tags; None if unscored.
        reference: The gold turn.
        strategy: The strategy that the supporter was given, None if none.
        parse_kind: How the reply was found in the output, None where a file gave it.
        format_ok: Whether the output had the agreed form, None where a file gave the reply.
        nll: Summed negative log-likelihood (nats) of the reply under the scorer, None without one.
        nll_unscored: Why an asked scorer gave none.
        n_scorer_tokens: Tokens that ``nll`` is summed over.
    """

    SCHEMA: ClassVar[str] = "esckit.case.response/1"
    READS: ClassVar[str] = "scorer"

    context_id: str
    reply: str | None = None
    reference: str
    strategy: str | None = None
    parse_kind: ParseKind | None = None
    format_ok: bool | None = None
    nll: float | None = None
    nll_unscored: str | None = None
    n_scorer_tokens: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _answered_or_not(self) -> Self:
        if (self.reply is None or not self.reply.strip()) and self.unscored is None:
            raise ValueError("a blank reply is an unscored case")
        return self

    def _unread(self) -> tuple[str | None, ...]:
        return (self.nll_unscored,)


def response_work(material: Material) -> Work:
    """Return the cases of the suite.

    Raises:
        DataError: If there is none.
    """
    recipe = material.recipe
    found = answerable(material)
    kept = _sampled(found, run_seed=recipe.seed, per_dialogue=recipe.settings.response.per_dialogue)
    calls, roles = reply_calls(material, len(kept))

    return Work(
        units=tuple(Unit(context.id, context.dialogue_id, task) for context, task in reply_tasks(material, kept)),
        calls=calls | ({"scorer": len(kept)} if recipe.models.scorer is not None else {}),
        given=has_replies(material),
        roles=roles,
        left_out={"without a strategy": sum(1 for _ in material.reply_contexts()) - len(found)},
        conditions=gold_labels(material, kept),
    )


class ReplyTask(NamedTuple):
    """A context to answer.

    Attributes:
        prediction: Its line in the predictions file; None without one.
    """

    context: Context
    prediction: Prediction | None = None


def reply_tasks(material: Material, found: Iterable[Context]) -> Iterator[tuple[Context, ReplyTask]]:
    """Yield each context with what is needed to answer it."""
    known = material.predictions or {}
    for context in found:
        yield context, ReplyTask(context, known.get(context.id))


def response_player(recipe: EvaluateRecipe, casting: Casting, from_file: bool) -> Player:
    """Return what answers a context and, if there is a scorer, scores the reply."""
    responder = build_responder(recipe, casting, from_file)
    scorer = casting.pool.scorer(recipe.models.scorer) if recipe.models.scorer is not None else None
    # One reply at a time, beside the event loop.
    lock = asyncio.Lock()

    async def play(unit: Unit) -> ResponseCase:
        task: ReplyTask = unit.what
        case = await responder(task)
        if scorer is None or case.reply is None:
            return case
        try:
            async with lock:
                found = await asyncio.to_thread(scorer.score, task.context.turns, case.reply)
        except ModelError as error:
            # The reply stands; its perplexity is what is missing.
            return case.model_copy(update={"nll_unscored": error.kind})
        return case.model_copy(update={"nll": found.nll, "n_scorer_tokens": found.n_tokens})

    return play


def answerable(material: Material) -> list[Context]:
    """Return the contexts that can be answered: with ``strategy: gold`` those whose gold turn has a label.

    Raises:
        DataError: If there is none.
    """
    needs_label = material.recipe.settings.response.strategy == "gold"
    found = [
        context
        for context in material.reply_contexts()
        if not needs_label or (context.reference is not None and context.reference.strategy is not None)
    ]
    if not found:
        raise DataError("no context to answer", expected="at least one supporter turn with a seeker turn before it")
    return found


def _sampled(found: list[Context], *, run_seed: int, per_dialogue: int | None) -> list[Context]:
    """Return a seeded subsample of each dialogue's contexts, in order."""
    if per_dialogue is None:
        return found
    by_dialogue: dict[str, list[Context]] = {}
    for context in found:
        by_dialogue.setdefault(context.dialogue_id, []).append(context)
    kept = {
        context.id
        for of_dialogue in by_dialogue.values()
        for context in sorted(of_dialogue, key=lambda one: derive_seed(run_seed, "response", one.id))[:per_dialogue]
    }
    return [context for context in found if context.id in kept]


def has_replies(material: Material) -> bool:
    """Return whether a predictions file gives the replies."""
    return any(entry.reply is not None for entry in (material.predictions or {}).values())


def reply_calls(material: Material, n: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the calls that n replies take, and the roles that make them.

    Raises:
        ConfigError: If nothing gives replies.
    """
    if has_replies(material):
        return {}, ()
    recipe = material.recipe
    if recipe.models.supporter is None:
        raise ConfigError("no reply in the predictions file", expected="models.supporter, or lines with a reply")
    if material.predictions is not None:
        _log.warning("no reply in %s: models.supporter writes the replies", recipe.predictions)
    roles = speakers(recipe)
    return dict.fromkeys(roles, n), roles


def speakers(recipe: EvaluateRecipe) -> tuple[str, ...]:
    """Return the roles that make a reply: a strategist as well where the supporter follows its choice."""
    return ("strategist", "supporter") if recipe.settings.response.strategy == "predicted" else ("supporter",)


Responder = Callable[[ReplyTask], Awaitable[ResponseCase]]


def build_responder(recipe: EvaluateRecipe, casting: Casting, from_file: bool) -> Responder:
    """Return what answers a context: the predictions file if it has replies, else the supporter."""
    if not from_file:
        return _speaker(recipe, casting)

    async def look_up(task: ReplyTask) -> ResponseCase:
        reply = predicted(task.prediction, "reply")
        if isinstance(reply, Unscored):
            return _case(task.context, unscored=reply.reason)
        return _case(task.context, reply=reply, strategy=task.prediction.strategy if task.prediction else None)

    return look_up


def _speaker(recipe: EvaluateRecipe, casting: Casting) -> Responder:
    kind = recipe.settings.response.strategy
    supporter = casting.supporter()
    strategist = casting.strategist() if kind == "predicted" else None

    async def speak(task: ReplyTask) -> ResponseCase:
        context = task.context
        ledger = Ledger(recipe.seed, context.id)
        strategy = context.reference.strategy if kind == "gold" and context.reference else None
        try:
            if strategist is not None:
                # The same draws as in the suite `strategy`: one system predicts one thing.
                strategy = (await strategist.decide(context.scenario, context.turns, ledger.at("strategy"))).strategy
            written = await supporter.reply(after_opening(context.turns), ledger.at("response"), strategy=strategy)
        except ModelError as error:
            return _case(context, strategy=strategy, unscored=error.kind, reasoning=ledger.thoughts())
        return _case(
            context,
            reply=written.response,
            strategy=strategy,
            parse_kind=written.parse_kind,
            format_ok=written.format_ok,
            reasoning=ledger.thoughts(),
            is_measured=not casting.pool.IS_REHEARSAL,
        )

    return speak


def _case(context: Context, *, reply: str | None = None, is_measured: bool = True, **fields: Any) -> ResponseCase:
    assert context.reference is not None
    statistics = {}
    if is_measured and reply is not None and reply.strip():
        tokens = tokenise(reply), tokenise(context.reference.text)
        statistics = {"rouge_l": (rouge_l(*tokens),), "meteor_exact": (meteor_exact(*tokens),)}
    return ResponseCase(
        id=context.id,
        dialogue_id=context.dialogue_id,
        statistics=statistics,
        context_id=context.id,
        reply=reply,
        reference=context.reference.text,
        **fields,
    )


# ---------------------------------------------------------------- metrics

ResponseMetric = Metric[ResponseCase]


class _Pair(NamedTuple):
    """Tokens of a scored reply and its reference."""

    reply: tuple[str, ...]
    reference: tuple[str, ...]


def _metric(
    name: str, read: Callable[[ResponseCase, _Pair], Stats | Unscored], estimator: Estimator = RATIO, **facts: Any
) -> ResponseMetric:
    """Return a metric over the cases with a reply."""

    def collect(case: ResponseCase) -> Stats | Unscored:
        if case.unscored is not None or case.reply is None:
            return Unscored(case.unscored or "blank")
        return read(case, _Pair(tokenise(case.reply), tokenise(case.reference)))

    return Metric(Facts(f"response.{name}", **facts), collect, estimator)


_OF_100: dict[str, Any] = {"unit": "0-100", "range": (0.0, 100.0), "tokenizer": TOKENIZER}


def bleu(order: int) -> ResponseMetric:
    """Return corpus BLEU up to n-grams of ``order``, one reference."""
    orders = range(1, order + 1)
    counts = (*(f"matches_{n}" for n in orders), *(f"ngrams_{n}" for n in orders), "tokens", "reference_tokens")
    facts = {"minimum": f"an n-gram of order {order}", "counts": counts, **_OF_100}
    return _metric(f"bleu_{order}", lambda _, pair: bleu_stats(*pair, order), Sums(bleu_from_sums), **facts)


def distinct(n: int) -> ResponseMetric:
    """Return Distinct-n over all replies together."""

    def read(_: ResponseCase, pair: _Pair) -> Stats:
        counts = ngrams(pair.reply, n)
        return (counts.total(), len(counts), counts)

    facts = {"minimum": f"an n-gram of order {n}", "interval": "jackknife", "counts": ("ngrams",), **_OF_100}
    return _metric(f"distinct_{n}", read, DistinctShare(), **facts)


ROUGE_L = _metric("rouge_l", lambda _, pair: (rouge_l(*pair), 1.0), **_OF_100)

METEOR_EXACT = _metric("meteor_exact", lambda _, pair: (meteor_exact(*pair), 1.0), **_OF_100)


def _surprise(case: ResponseCase, _: _Pair) -> Stats | Unscored:
    if case.nll is None:
        return Unscored(case.nll_unscored or "missing")
    return (case.nll, float(case.n_scorer_tokens))


def _perplexity(sums: Array) -> Array:
    import numpy as np

    with np.errstate(over="ignore"):
        found = np.exp(ratio(sums))
    return np.where(np.isfinite(found), found, np.nan)


PPL = _metric(
    "ppl", _surprise, Sums(_perplexity), unit="none", range=(1.0, None), higher_is_better=False,
    undefined="needs 1 scored token, and a perplexity that a float can hold", counts=("nll", "tokens"),
)  # fmt: skip

_LENGTH: dict[str, Any] = {"range": (0.0, None), "higher_is_better": None, "tokenizer": TOKENIZER}

WORDS = _metric("words", lambda case, _: (float(n_words(case.reply or "")), 1.0), unit="words", **_LENGTH)

LENGTH_RATIO = _metric(
    "length_ratio", lambda _, pair: (float(len(pair.reply)), float(len(pair.reference))),
    unit="none", counts=("tokens", "reference_tokens"), **_LENGTH,
)  # fmt: skip


def malformed_share(kind: ParseKind) -> ResponseMetric:
    """Return the share of outputs without the agreed form from which the reply was taken in one way."""

    def collect(case: ResponseCase) -> Stats | Unscored | None:
        if case.parse_kind is None:
            return None if case.unscored is None else Unscored(case.unscored)
        return (float(not case.format_ok and case.parse_kind == kind), 1.0)

    return Metric(
        Facts("response.malformed_share", higher_is_better=False, minimum="1 output", counts=("malformed", "outputs")),
        collect,
        RATIO,
    )


def response_metrics(*, scorer: bool = False) -> tuple[ResponseMetric, ...]:
    """Return the suite's metrics over all cases; ``ppl`` only where a scorer was asked."""
    ppl = (PPL,) if scorer else ()
    return (bleu(2), bleu(4), ROUGE_L, METEOR_EXACT, distinct(1), distinct(2), *ppl, WORDS, LENGTH_RATIO)


def response_rows(cases: Sequence[ResponseCase], measurement: Measurement, *, scorer: bool = False) -> list[MetricRow]:
    """Return all rows of the suite; the share of every malformed form stands in ``group.parse_kind``."""
    rows = [measurement.row(metric, cases) for metric in response_metrics(scorer=scorer)]
    if any(case.parse_kind is not None for case in cases):
        rows += [measurement.row(malformed_share(kind), cases, group={"parse_kind": kind}) for kind in MALFORMED]
    return rows


# ---------------------------------------------------------------- the suite


def gold_conditions(material: Material) -> dict[str, Any]:
    """Return the conditions of replies for which the supporter is given the strategies of the corpus."""
    if material.recipe.settings.response.strategy != "gold":
        return {}
    return {"told": "gold", **material.labels(material.taxonomy)}


def gold_labels(material: Material, chosen: Iterable[Context]) -> dict[str, str]:
    """Return the digest of the strategies that the supporter is given; nothing if it is given none."""
    if material.recipe.settings.response.strategy != "gold":
        return {}
    labels = {context.id: context.reference.strategy for context in chosen if context.reference is not None}
    return {GOLD_LABELS: digest(labels)}


def _conditions(material: Material, cases: Mapping[str, str]) -> dict[str, Any]:
    recipe = material.recipe
    return {
        "settings": recipe.settings.response.model_dump(mode="json"),
        "tokenisation": TOKENISATION,
        "scorer": played_by(recipe, "scorer"),
        **cases,
        **gold_conditions(material),
    }


RESPONSE = Suite(
    name="response",
    roles=lambda recipe: (*speakers(recipe), "scorer"),
    files=(
        CaseFile(
            name="response",
            kind=ResponseCase,
            work=response_work,
            prepare=response_player,
            metrics=lambda recipe, strategies: response_metrics(scorer=recipe.models.scorer is not None),
            rows=lambda recipe, strategies, cases, measurement: response_rows(
                cases, measurement, scorer=recipe.models.scorer is not None
            ),
        ),
    ),
    conditions=_conditions,
    optional=("scorer",),
    sources=lambda recipe: {"predictions": recipe.predictions},
    reads_labels=lambda recipe: recipe.settings.response.strategy == "gold",
)
