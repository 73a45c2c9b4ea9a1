"""Turn rewards, strategy entropy, words and cost of self-played dialogues."""

import math

import pytest
from pydantic import ValidationError

from esckit.evaluate.suites.critics import CriticScale, Episode
from esckit.evaluate.suites.dialogue import (
    dialogue_rows,
    malformed_share,
    reply_words,
    strategy_entropy,
    turn_reward,
    turn_reward_jump,
    usage,
)
from esckit.metrics.metric import Metric, collect
from esckit.types import Failure, TurnRatings, Usage
from tests.evaluate.casefakes import episode, measurement, quarters, turn

EIGHT = tuple("ABCDEFGH")


def rated(*ratings: tuple[int, int, int, int]) -> list[TurnRatings]:
    names = ("empathy", "information", "humanlikeness", "strategic")
    return [TurnRatings(**dict(zip(names, found, strict=True))) for found in ratings]


@pytest.mark.parametrize(("ratings", "reward"), [((4, 3, 5, 4), 0.8), ((1, 1, 1, 1), 0.2), ((5, 5, 5, 5), 1.0)])
def test_turn_reward(ratings: tuple[int, int, int, int], reward: float) -> None:
    assert rated(ratings)[0].reward == pytest.approx(reward)


def test_ratings_outside_the_scale_are_refused() -> None:
    with pytest.raises(ValidationError):
        rated((0, 1, 1, 1))


def test_entropy_of_chosen_strategies() -> None:
    turns = [turn(t, {}, strategy=name) for t, name in enumerate("AABC", start=1)]
    played = [episode("d", {}, turns=turns)]
    values = [
        metric.finish(collect(metric, played).stats)
        for metric in (
            strategy_entropy(EIGHT),
            strategy_entropy(EIGHT, normalised=True),
            strategy_entropy(EIGHT, within=True),
        )
    ]
    assert values == pytest.approx([1.039721, 0.5, 0.5 * math.log(8)], abs=5e-7)
    assert strategy_entropy(EIGHT, t=1).finish(collect(strategy_entropy(EIGHT, t=1), played).stats) == 0.0


def test_rewards_are_means_of_dialogue_means() -> None:
    good, bad = rated((5, 5, 5, 5), (1, 1, 1, 1))
    long = episode("a", {}, turns=[turn(t, {}, ratings=bad) for t in (1, 2, 3)])
    short = episode("b", {}, turns=[turn(1, {}, ratings=good)])
    mixed = episode("c", {}, turns=[turn(1, {}, ratings=good), turn(2, {}, ratings=bad)])
    cases = [long, short, mixed]

    def value(metric: Metric[Episode]) -> float | None:
        return metric.finish(collect(metric, cases).stats)

    assert value(turn_reward()) == pytest.approx((0.2 + 1 + 0.6) / 3)
    assert value(turn_reward_jump()) == pytest.approx(0.4)
    assert value(turn_reward(stage="Comforting")) == pytest.approx(0.2)


def test_an_unreadable_turn_judge_is_counted_and_never_a_number() -> None:
    silent = turn(1, {}).model_copy(update={"ratings_unscored": "unparsed"})
    found = collect(turn_reward(), [episode("a", {}, turns=[silent])])
    assert (found.n, found.unscored) == (0, {"unparsed": 1})


GOOD = rated((5, 5, 5, 5))[0]


def failure(t: int, stage: str, kind: str = "unparsed") -> Failure:
    return Failure.model_validate({"stage": stage, "turn": t, "kind": kind, "attempts": 2, "message": "no"})


def test_an_unrated_turn_leaves_turn_and_dialogue_unscored() -> None:
    turns = [turn(t, {}, ratings=GOOD) for t in (1, 2, 3)]
    turns[1] = turn(2, {}).model_copy(update={"ratings_unscored": "unparsed"})
    played = [episode("a", {}, turns=turns, max_turns=3)]
    for metric in (turn_reward(), turn_reward_jump(), turn_reward(stage="Comforting"), turn_reward(t=2)):
        found = collect(metric, played)
        assert (found.n, found.unscored) == (0, {"unparsed": 1}), metric.name
    for metric in (turn_reward(t=1), turn_reward(t=3), turn_reward(stage="Exploration")):
        assert collect(metric, played).n == 1


def test_a_dialogue_that_was_cut_short_enters_no_value() -> None:
    turns = [turn(t, {}, strategy="A", ratings=GOOD) for t in (1, 2)]
    broken = episode("a", {}, turns=turns, failure=failure(3, "supporter", "blank"))
    unread = episode("b", {}, turns=turns).model_copy(update={"critic_failures": {"rlff7": failure(2, "critic")}})
    at_once = episode("c", {}, turns=[], failure=failure(1, "strategist"))
    for metric in (
        *(turn_reward(), turn_reward_jump(), turn_reward(stage="Action")),
        *(strategy_entropy(EIGHT), strategy_entropy(EIGHT, within=True), reply_words(), malformed_share("untagged")),
    ):
        found = collect(metric, [broken, unread, at_once])
        assert (found.n, found.unscored) == (0, {"blank": 1, "unscored_critic": 1, "unparsed": 1}), metric.name
    for metric in (turn_reward(t=1), strategy_entropy(EIGHT, t=1)):
        assert (collect(metric, [broken, at_once]).n, collect(metric, [broken, at_once]).n_unscored) == (1, 1)


def test_a_critic_that_fails_while_another_listens_cuts_nothing() -> None:
    turns = [turn(t, {}) for t in (1, 2, 3)]
    played = episode("a", {}, turns=turns).model_copy(update={"critic_failures": {"rlff7": failure(2, "critic")}})
    assert collect(reply_words(), [played]).n == 1
    last = episode("b", {}, turns=turns, max_turns=3)
    assert collect(reply_words(), [last.model_copy(update={"critic_failures": {"x": failure(3, "critic")}})]).n == 1


def test_plain_text_is_malformed_only_where_tags_were_agreed() -> None:
    plain = [turn(t, {}).supporter.model_copy(update={"parse_kind": "untagged", "format_ok": t == 1}) for t in (1, 2)]
    turns = [turn(t, {}).model_copy(update={"supporter": said}) for t, said in enumerate(plain, start=1)]
    metric = malformed_share("untagged")
    assert metric.finish(collect(metric, [episode("a", {}, turns=turns)]).stats) == 0.5


def test_all_rows_state_value_or_reason() -> None:
    episodes = [
        episode(f"d{index}", {"rlff7": quarters(*range(index, index + 8))}).model_copy(
            update={"usage": {"seeker": Usage(calls=8, prompt_tokens=100, completion_tokens=20)}}
        )
        for index in range(6)
    ]
    rows = dialogue_rows(episodes, [CriticScale("rlff7")], measurement("dialogue", [case.id for case in episodes]))
    assert all(row.value is not None or row.reason for row in rows)
    assert all(row.interval is not None or row.reason for row in rows)
    calls = next(row for row in rows if row.name == "dialogue.usage" and (row.group or {})["item"] == "calls")
    assert calls.value == 48
    words = next(row for row in rows if row.name == reply_words().name)
    assert words.value == 3.0


def test_usage_that_is_not_known_has_no_value() -> None:
    unknown = Usage(calls=8, prompt_tokens=100, completion_tokens=20, unknown_calls=3)
    episodes = [episode("a", {}).model_copy(update={"usage": {"seeker": unknown}})]
    assert collect(usage("seeker", "prompt_tokens"), episodes).unscored == {"usage_unknown": 1}
    assert usage("seeker", "calls").finish(collect(usage("seeker", "calls"), episodes).stats) == 8
