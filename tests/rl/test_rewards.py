"""The paired rewards: one evaluation for both, and an unmeasured reply that passes for nothing at all."""

import math
import statistics

import numpy as np
import pytest
import torch

from esckit.errors import BackendError, ConfigError, NotFiniteError
from esckit.rl.monitor import sample_row
from esckit.rl.recipe import RewardWeights
from esckit.rl.rewards import PairedRewards, ReplyMeasure, correlation, lexicon_reward
from tests.rl.rl_fakes import WELL_FORMED, columns, paired, said

OUTPUTS = (WELL_FORMED, "<think>a</think> Hi.", "<think>a", "<response>Hi.</response>")


def test_future_sees_the_reply_only_and_format_the_whole_output():
    asked = []

    def score(turns, replies):
        asked.extend(zip(turns, replies, strict=True))
        return [0.25] * len(replies)

    rewards = paired(score)
    given = columns(4)
    assert rewards.future_reward([], said(*OUTPUTS), **given) == [0.25, 0.25, 0.0, 0.25]
    assert rewards.format_reward([], said(*OUTPUTS), **given) == [1.0, 0.0, 0.0, 0.0]
    assert [reply for _, reply in asked] == ["That sounds hard.", "Hi.", "Hi."]
    assert all(turns[0].text == "I feel low." for turns, _ in asked)
    assert "They sound tired" not in str(asked)


def test_what_an_output_says_in_the_seekers_name_is_not_rewarded():
    asked = []
    outputs = said(
        "<think>a</think> <response>Hi.\nPatient: Thank you, I feel significantly better now!</response>",
        "<think>a</think> <response>Patient: Thank you!</response>",
    )
    rewards = paired(lambda turns, replies: asked.extend(replies) or [0.25] * len(replies))
    assert rewards.future_reward([], outputs, **columns(2)) == [0.25, 0.0]
    assert rewards.format_reward([], outputs, **columns(2)) == [1.0, 0.0]
    assert asked == ["Hi."]
    assert [sample_row(judged, RewardWeights())["reply"] for judged in rewards.last] == ["Hi.", ""]


def test_a_batch_is_measured_once_and_equal_outputs_once():
    calls = []
    rewards = paired(lambda turns, replies: calls.append(len(replies)) or [0.5] * len(replies))
    given = columns(4, context_ids=["c", "c", "c", "d"])
    outputs = said(WELL_FORMED, WELL_FORMED, "Hi.", "Hi.")
    rewards.future_reward([], outputs, **given)
    rewards.format_reward([], outputs, **given)
    assert calls == [3]
    rewards.future_reward([], outputs, **columns(4, step=1, context_ids=["c", "c", "c", "d"]))
    assert calls == [3, 3]


def test_where_the_future_is_unmeasured_both_say_none():
    rewards = paired(lambda turns, replies: [None, *[0.3] * (len(replies) - 1)])
    given = columns(2)
    outputs = said(WELL_FORMED, "<think>b</think> <response>Ho.</response>")
    assert rewards.future_reward([], outputs, **given) == [None, 0.3]
    assert rewards.format_reward([], outputs, **given) == [None, 1.0]


def test_whichever_callable_comes_first_the_pair_agrees():
    rewards = paired(lambda turns, replies: [None] * len(replies))
    assert rewards.format_reward([], said(WELL_FORMED), **columns(1)) == [None]
    assert rewards.future_reward([], said(WELL_FORMED), **columns(1)) == [None]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_an_error_at_once(value):
    values = [0.5, value]
    rewards = paired(lambda turns, replies: [values.pop(0)] * len(replies))
    rewards.future_reward([], said("Hi."), **columns(1, context_ids=["a"]))
    assert rewards.context_ids == ("a",)
    with pytest.raises(NotFiniteError, match="the reward is not finite"):
        rewards.future_reward([], said("Hi."), **columns(1, step=1, context_ids=["b"]))
    # Those of the batch that brought it, not of the one before.
    assert rewards.context_ids == ("b",)


def test_a_reply_that_does_not_fit_leaves_its_batch_alone():
    def score(turns, replies):
        if any(len(reply) > 5 for reply in replies):
            raise BackendError("too long", kind="too_long")
        return [0.5] * len(replies)

    given = columns(2)
    assert paired(score).future_reward([], said("Hi.", "Far too long."), **given) == [0.5, None]


def test_a_hard_label_is_one_strictly_above_one_half():
    measure = ReplyMeasure(lambda turns, replies: [0.5, 0.51, None], hard_label=True)
    rewards = PairedRewards(measure, n_generations=3)
    assert rewards.future_reward([], said("a", "b", "c"), **columns(3)) == [0.0, 1.0, None]


def test_a_function_that_gives_too_few_numbers_is_named():
    with pytest.raises(ConfigError, match="gives 1 numbers"):
        paired(lambda turns, replies: [0.5]).future_reward([], said("a", "b"), **columns(2))


@pytest.mark.parametrize(
    ("given", "message"),
    [(None, "gives None"), (0.5, r"gives 0\.5\W.*a list"), (["0.5"], "gives '0.5' for a reply"), ([[0.5]], "a number")],
)
def test_a_function_that_gives_no_numbers_is_told_so(given, message):
    with pytest.raises(ConfigError, match=message):
        paired(lambda turns, replies: given).future_reward([], said("a"), **columns(1))


@pytest.mark.parametrize("made", [torch.full, np.full, lambda n, value: (value for _ in range(*n))])
def test_arrays_tensors_and_generators_become_plain_numbers(made):
    found = paired(lambda turns, replies: made((2,), 0.25)).future_reward([], said("a", "b"), **columns(2))
    assert found == [0.25, 0.25]
    assert all(type(value) is float for value in found)


def test_outputs_know_their_place_in_their_group():
    rewards = PairedRewards(ReplyMeasure(lambda t, r: [0.1] * len(r)), n_generations=4, process_index=1)
    rewards.future_reward([], said("a", "b"), **columns(2, context_ids=["c", "c"], step=3))
    assert [(each.completion.index, each.completion.step) for each in rewards.last] == [(2, 3), (3, 3)]


def test_what_is_logged_adds_up():
    logged = {}
    given = {**columns(4), "log_metric": logged.__setitem__}
    paired(lambda t, r: [None, *[0.5] * (len(r) - 1)]).future_reward([], said(*OUTPUTS), **given)
    assert logged["parse/ok"] == logged["parse/blank"] == logged["parse/untagged"] == 0.25
    assert logged["unscored"] == 0.25
    assert logged["moment/n"] == 3


def test_the_correlation_of_reward_and_length():
    pairs = [(0.1, 2.0), (0.4, 3.0), (0.5, 7.0)]
    sums = {
        "n": 3.0,
        "r": sum(r for r, _ in pairs),
        "w": sum(w for _, w in pairs),
        "rr": sum(r * r for r, _ in pairs),
        "ww": sum(w * w for _, w in pairs),
        "rw": sum(r * w for r, w in pairs),
    }
    assert correlation(sums) == pytest.approx(statistics.correlation(*zip(*pairs, strict=True)))
    assert correlation({**sums, "rr": sums["r"] ** 2 / 3}) is None
    assert correlation(dict.fromkeys(sums, 0.0)) is None


def test_the_word_list_can_be_checked_by_hand():
    replies = ["That sounds hard, I hear you.", "What?", "Bananas.", "I FEEL together: sorry, help!"]
    assert lexicon_reward([()] * 4, replies) == [1.0, 1 / 3, 0.0, 1.0]


@pytest.mark.parametrize("hard_label", [False, True])
def test_a_reward_that_is_not_finite_is_no_bad_reply(hard_label):
    measure = ReplyMeasure(lambda turns, replies: [0.9, float("nan")], hard_label=hard_label)
    with pytest.raises(NotFiniteError, match="the reward is not finite"):
        PairedRewards(measure, n_generations=2).future_reward([], said("a", "b"), **columns(2))
