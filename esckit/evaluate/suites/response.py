"""The suite ``response``: one reply to each gold context, from a supporter or from a file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from esckit.config.sections import BackboneBinding
from esckit.errors import ConfigError, DataError, ModelError
from esckit.evaluate.cases import ResponseCase
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.suites.suite import (
    Done,
    Material,
    Player,
    Predictions,
    Unit,
    Work,
    after_opening,
    has_replies,
    sampled,
)
from esckit.ledger import Ledger
from esckit.metrics.overlap import meteor_exact, rouge_l
from esckit.roles.cast import Casting
from esckit.text import tokenise
from esckit.types import Context

if TYPE_CHECKING:
    from esckit.models.local import Surprise
    from esckit.roles.pool import ModelPool


log = logging.getLogger(__name__)


Responder = Callable[[Context], Awaitable[ResponseCase]]


def response_work(recipe: EvaluateRecipe, material: Material, predictions: Predictions | None) -> Work:
    """Return the cases of the suite.

    Raises:
        DataError: If there is none.
    """
    found = answerable(recipe, material)
    kept = sampled(found, run_seed=recipe.seed, purpose="response", per_dialogue=recipe.settings.response.per_dialogue)
    calls, roles = reply_calls(recipe, predictions, len(kept))
    calls |= {"scorer": len(kept)} if recipe.models.scorer is not None else {}

    def prepare(casting: Casting, done: Done) -> Player:
        responder = build_responder(recipe, casting, predictions)
        surprise = _scorer(casting.pool, recipe.models.scorer)

        async def play(unit: Unit) -> ResponseCase:
            context: Context = unit.what
            case = await responder(context)
            if surprise is None or case.reply is None:
                return case
            try:
                found = await surprise(context, case.reply)
            except ModelError as error:
                # The reply stands; its perplexity is what is missing.
                return case.model_copy(update={"nll_unscored": error.kind})
            return case.model_copy(update={"nll": found.nll, "n_scorer_tokens": found.n_tokens})

        return play

    return Work(
        suite="response",
        file="response",
        kind=ResponseCase,
        units=tuple(Unit(context.id, context.dialogue_id, context) for context in kept),
        calls=calls,
        prepare=prepare,
        roles=roles,
        left_out={"without a strategy": sum(1 for _ in material.reply_contexts()) - len(found)},
    )


def answerable(recipe: EvaluateRecipe, material: Material) -> list[Context]:
    """Return the contexts that can be answered: with ``strategy: gold`` those whose gold turn has a label.

    Raises:
        DataError: If there is none.
    """
    needs_label = recipe.settings.response.strategy == "gold"
    found = [
        context
        for context in material.reply_contexts()
        if not needs_label or (context.reference is not None and context.reference.strategy is not None)
    ]
    if not found:
        raise DataError("no context to answer", expected="at least one supporter turn with a seeker turn before it")
    return found


def reply_calls(
    recipe: EvaluateRecipe, predictions: Predictions | None, n: int
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the calls that n replies take, and the roles that make them.

    Raises:
        ConfigError: If nothing gives replies.
    """
    if has_replies(predictions):
        return {}, ()
    if recipe.models.supporter is None:
        raise ConfigError("no reply in the predictions file", expected="models.supporter, or lines with a reply")
    if predictions is not None:
        log.warning("no reply in %s: models.supporter writes the replies", recipe.predictions)
    speakers = ("strategist", "supporter") if recipe.settings.response.strategy == "predicted" else ("supporter",)
    return dict.fromkeys(speakers, n), speakers


def build_responder(recipe: EvaluateRecipe, casting: Casting, predictions: Predictions | None) -> Responder:
    """Return what answers a context: the predictions file where it has replies, else the supporter."""
    if predictions is not None and has_replies(predictions):
        from esckit.metrics.metric import Unscored
        from esckit.predict.predictions import predicted_reply

        known = predictions

        async def look_up(context: Context) -> ResponseCase:
            entry = known.get(context.id)
            reply = predicted_reply(entry)
            if isinstance(reply, Unscored):
                return _case(context, reason=reply.reason)
            return _case(context, reply=reply, strategy=entry.strategy if entry else None)

        return look_up
    return _speaker(recipe, casting)


def _speaker(recipe: EvaluateRecipe, casting: Casting) -> Responder:
    kind = recipe.settings.response.strategy
    supporter = casting.supporter()
    strategist = casting.strategist() if kind == "predicted" else None

    async def speak(context: Context) -> ResponseCase:
        ledger = Ledger(recipe.seed, context.id)
        strategy = context.reference.strategy if kind == "gold" and context.reference else None
        try:
            if strategist is not None:
                # The same draws as in the suite `strategy`: one system predicts one thing.
                scope = ledger.at("strategy")
                strategy = (await strategist.decide(context.scenario, context.turns, scope)).strategy
            written = await supporter.reply(after_opening(context.turns), ledger.at("response"), strategy=strategy)
        except ModelError as error:
            case = _case(context, strategy=strategy, reason=error.kind)
            return case.model_copy(update={"reasoning": ledger.thoughts()})
        return _case(context, reply=written.response, strategy=strategy).model_copy(
            update={
                "parse_kind": written.parse_kind,
                "format_ok": written.format_ok,
                "reasoning": ledger.thoughts(),
            }
        )

    return speak


def _case(
    context: Context, *, reply: str | None = None, strategy: str | None = None, reason: str | None = None
) -> ResponseCase:
    assert context.reference is not None
    statistics = {}
    if reply is not None and reply.strip():
        tokens = tokenise(reply), tokenise(context.reference.text)
        statistics = {"rouge_l": (rouge_l(*tokens),), "meteor_exact": (meteor_exact(*tokens),)}
    return ResponseCase(
        id=context.id,
        dialogue_id=context.dialogue_id,
        unscored=reason,
        statistics=statistics,
        context_id=context.id,
        reply=reply,
        reference=context.reference.text,
        strategy=strategy,
    )


def _scorer(pool: ModelPool, binding: BackboneBinding | None) -> Callable[[Context, str], Awaitable[Surprise]] | None:
    """Return what measures how surprising a reply is; one reply at a time, beside the event loop."""
    if binding is None:
        return None
    scorer = pool.scorer(binding)
    turn = asyncio.Lock()

    async def surprise(context: Context, reply: str) -> Surprise:
        async with turn:
            return await asyncio.to_thread(scorer.score, context.turns, reply)

    return surprise
