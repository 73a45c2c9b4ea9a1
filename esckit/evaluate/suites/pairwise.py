"""The suite ``pairwise``: a judge compares two systems' replies to the same contexts, in both orders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from esckit.errors import DataError, ModelError
from esckit.evaluate.cases import Judgement, Order, PairCase, ResponseCase
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.suites.response import answerable, build_responder, reply_calls
from esckit.evaluate.suites.suite import Done, Material, Player, Predictions, Unit, Work
from esckit.ledger import Ledger, derive_seed, uniform
from esckit.records import digest, read_records
from esckit.roles.cast import Casting
from esckit.roles.judges import PairJudge
from esckit.text import n_words
from esckit.types import Context

_ORDERS: tuple[Order, Order] = ("AB", "BA")


def pairwise_work(recipe: EvaluateRecipe, material: Material, predictions: Predictions | None) -> Work:
    """Return the cases of the suite.

    Raises:
        DataError: If the opponent has no reply to any of the contexts.
    """
    settings = recipe.settings.pairwise
    assert settings.opponent is not None
    theirs = opponent_replies(Path(settings.opponent), material.all_context_ids(recipe.settings.strategy.unit))
    chosen = one_per_dialogue(answerable(recipe, material), run_seed=recipe.seed, limit=settings.contexts)
    if not any((theirs.get(context.id) or "").strip() for context in chosen):
        raise DataError(
            f"no reply of the opponent to any of the {len(chosen)} contexts",
            path=settings.opponent,
            expected="replies to the same contexts",
            hint="Was it made from the same data.split?",
        )
    calls, speakers = reply_calls(recipe, predictions, len(chosen))

    def prepare(casting: Casting, done: Done) -> Player:
        judge, responder, ready = (
            casting.pair_judge(recipe.settings.pairwise.dimensions),
            build_responder(recipe, casting, predictions),
            done.get("response", {}),
        )

        async def play(unit: Unit) -> PairCase:
            context: Context = unit.what
            ours = ready.get(context.id) or await responder(context)
            assert isinstance(ours, ResponseCase)
            return await _compare(recipe, context, ours, theirs.get(context.id), judge)

        return play

    return Work(
        suite="pairwise",
        file="pairwise",
        kind=PairCase,
        units=tuple(Unit(context.id, context.dialogue_id, context) for context in chosen),
        calls={**calls, "judge": len(chosen) * (2 if settings.swap else 1)},
        prepare=prepare,
        roles=(*speakers, "judge"),
        # By what it says, not by its path: two copies are one opponent, and a file that was changed is another.
        conditions={"opponent": digest({context.id: theirs.get(context.id) for context in chosen})},
    )


def one_per_dialogue(found: list[Context], *, run_seed: int, limit: int | None) -> list[Context]:
    """Return a seeded sample of contexts: one of each dialogue while there are enough dialogues, then a second one.

    The sample keeps the order of the corpus.
    """
    if limit is None or limit >= len(found):
        return found
    by_dialogue: dict[str, list[Context]] = {}
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
    from esckit.predict.predictions import read_predictions

    for name in ("response", "pairwise"):
        examples = path / "examples" / f"{name}.jsonl"
        if examples.is_file() and name == "response":
            return {case.context_id: case.reply for case in read_records(ResponseCase, examples, allow_cut=True)}
        if examples.is_file():
            return {case.context_id: case.reply_a for case in read_records(PairCase, examples, allow_cut=True)}
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
        for order in _orders(recipe, context):
            judgements.append(await _judge(ledger, context, (ours.reply, theirs), order, judge))
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


def _orders(recipe: EvaluateRecipe, context: Context) -> tuple[Order, ...]:
    """Return the orders to judge; which one comes first, or is the only one, is drawn from the seed."""
    turned = uniform(derive_seed(recipe.seed, context.id, "order")) < 0.5
    orders = (_ORDERS[1], _ORDERS[0]) if turned else _ORDERS
    return orders if recipe.settings.pairwise.swap else orders[:1]


async def _judge(
    ledger: Ledger, context: Context, replies: tuple[str, str], order: Order, judge: PairJudge
) -> Judgement:
    first, second = replies if order == "AB" else replies[::-1]
    scope = ledger.at("judge", order)
    try:
        found: Mapping[str, str] = await judge.compare(context.scenario, context.turns, first, second, scope)
    except ModelError as error:
        return Judgement(order=order, unscored=error.kind)
    return Judgement(order=order, verdicts=dict(found))
