"""The suite ``safety``: crisis probes and sycophancy probes, answered by the supporter and read by the judge.

Both are small screening sets in our own wording, not validations.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from esckit.errors import BACKEND_KINDS, ModelError
from esckit.evaluate.cases import ProbeCase, SycophancyCase, SycophancyReading
from esckit.evaluate.probes import CrisisProbe, SycophancyProbe, crisis_probes, sycophancy_probes
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.suites.suite import Done, Player, Unit, Work
from esckit.ledger import Ledger, Scope
from esckit.roles.cast import Casting
from esckit.roles.judges import CONTROL_QUESTION, CRISIS_QUESTIONS, SYCOPHANCY_QUESTIONS, ReplyJudge
from esckit.roles.judges import Answer as Said
from esckit.types import Scenario, Turn

Answer = Callable[[Scenario, Sequence[Turn], Scope], Awaitable[str]]


_ASKED = {"false": ("endorses",), "true": ("contradicts",)}


def safety_work(recipe: EvaluateRecipe) -> list[Work]:
    """Return the cases of the suite, one file for each set of probes."""
    found = []
    if recipe.settings.safety.crisis:
        found.append(_crisis_work(recipe))
    if recipe.settings.safety.sycophancy:
        found.append(_sycophancy_work(recipe))
    return found


def _speakers(recipe: EvaluateRecipe) -> tuple[str, ...]:
    return tuple(role for role in recipe.roles_of("safety") if role != "judge")


def _answerer(recipe: EvaluateRecipe, casting: Casting) -> Answer:
    """Return what answers a probe; a strategist speaks along where it does in the other suites."""
    supporter = casting.supporter()
    strategist = casting.strategist() if "strategist" in _speakers(recipe) else None

    async def answer(scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> str:
        strategy = None
        if strategist is not None:
            strategy = (await strategist.decide(scenario, turns, scope)).strategy
        return (await supporter.reply(turns, scope, strategy=strategy)).response

    return answer


# ---------------------------------------------------------------- crisis


def _crisis_work(recipe: EvaluateRecipe) -> Work:
    probes = crisis_probes().probes
    n_crisis = sum(probe.kind == "crisis" for probe in probes)
    asked = n_crisis * len(CRISIS_QUESTIONS) + (len(probes) - n_crisis) * len(CONTROL_QUESTION)

    def prepare(casting: Casting, done: Done) -> Player:
        from esckit.metrics.crisis import crisis_rules

        answer, judge = _answerer(recipe, casting), casting.reply_judge()
        rules = crisis_rules(recipe.settings.safety.resources)

        async def play(unit: Unit) -> ProbeCase:
            ledger = Ledger(recipe.seed, unit.id)
            case = await _play_crisis(unit.what, answer, judge, ledger)
            case = case.model_copy(update={"reasoning": ledger.thoughts()})
            if case.kind == "control" or case.reply is None:
                return case
            kept = {rule: (float(holds),) for rule, holds in rules.read(case.reply).items()}
            return case.model_copy(update={"statistics": kept})

        return play

    return Work(
        suite="safety",
        file="safety",
        kind=ProbeCase,
        units=tuple(Unit(probe.id, probe.id, probe) for probe in probes),
        calls={**dict.fromkeys(_speakers(recipe), len(probes)), "judge": asked},
        prepare=prepare,
        roles=(*_speakers(recipe), "judge"),
    )


async def _play_crisis(probe: CrisisProbe, answer: Answer, judge: ReplyJudge, ledger: Ledger) -> ProbeCase:
    try:
        reply = await answer(Scenario(id=probe.id), probe.turns, ledger.at(1))
    except ModelError as error:
        return ProbeCase(
            id=probe.id, dialogue_id=probe.id, unscored=error.kind, kind=probe.kind, category=probe.category
        )
    questions = CRISIS_QUESTIONS if probe.kind == "crisis" else CONTROL_QUESTION
    answers = await judge.answer(probe.turns, reply, questions, ledger.at(1))
    return ProbeCase(
        id=probe.id,
        dialogue_id=probe.id,
        kind=probe.kind,
        category=probe.category,
        reply=reply,
        judge=_read(answers),
        judge_unscored=_reason(answers),
    )


def _read(answers: Mapping[str, Said]) -> dict[str, bool]:
    return {name: answer.said for name, answer in answers.items() if answer.said is not None}


def _reason(answers: Mapping[str, Said]) -> str | None:
    """Return why an answer is missing; a backend's failure is named before what could not be read."""
    kinds = {answer.unscored for answer in answers.values() if answer.unscored}
    return min(kinds, key=lambda kind: (kind not in BACKEND_KINDS, kind), default=None)


# ---------------------------------------------------------------- sycophancy


def _sycophancy_work(recipe: EvaluateRecipe) -> Work:
    probes = sycophancy_probes().probes
    replies = len(probes) + sum(probe.push_back is not None for probe in probes)

    def prepare(casting: Casting, done: Done) -> Player:
        answer, judge = _answerer(recipe, casting), casting.reply_judge()

        async def play(unit: Unit) -> SycophancyCase:
            ledger = Ledger(recipe.seed, f"sycophancy/{unit.id}")
            case = await _play_sycophancy(unit.what, answer, judge, ledger)
            return case.model_copy(update={"reasoning": ledger.thoughts()})

        return play

    return Work(
        suite="safety",
        file="sycophancy",
        kind=SycophancyCase,
        units=tuple(Unit(probe.id, probe.id, probe) for probe in probes),
        # Every reply is asked about the claim, the last one about the feeling as well.
        calls={**dict.fromkeys(_speakers(recipe), replies), "judge": replies + len(probes)},
        prepare=prepare,
        roles=(*_speakers(recipe), "judge"),
    )


async def _play_sycophancy(probe: SycophancyProbe, answer: Answer, judge: ReplyJudge, ledger: Ledger) -> SycophancyCase:
    talk = [Turn(speaker="seeker", text=probe.message)]
    pushes = [probe.push_back] if probe.push_back is not None else []
    replies: list[str] = []
    readings: list[SycophancyReading] = []
    reasons: list[str] = []
    for t in range(1, len(pushes) + 2):
        try:
            reply = await answer(Scenario(id=probe.id), tuple(talk), ledger.at(t))
        except ModelError as error:
            return _sycophancy_case(probe, replies, readings, unscored=error.kind)
        asked = (*_ASKED[probe.kind], *(("acknowledges",) if t > len(pushes) else ()))
        questions = {name: SYCOPHANCY_QUESTIONS[name].format(claim=probe.claim) for name in asked}
        answers = await judge.answer(tuple(talk), reply, questions, ledger.at(t))
        replies.append(reply)
        readings.append(SycophancyReading(**_read(answers)))
        reasons += [reason] if (reason := _reason(answers)) else []
        talk.append(Turn(speaker="supporter", text=reply))
        talk += [Turn(speaker="seeker", text=push) for push in pushes[t - 1 : t]]
    return _sycophancy_case(probe, replies, readings, judge_unscored=next(iter(reasons), None))


def _sycophancy_case(
    probe: SycophancyProbe,
    replies: Sequence[str],
    readings: Sequence[SycophancyReading],
    *,
    unscored: str | None = None,
    judge_unscored: str | None = None,
) -> SycophancyCase:
    return SycophancyCase(
        id=probe.id,
        dialogue_id=probe.id,
        unscored=unscored,
        kind=probe.kind,
        category=probe.category,
        push_back=probe.push_back is not None,
        replies=tuple(replies),
        readings=tuple(readings),
        judge_unscored=judge_unscored,
    )
