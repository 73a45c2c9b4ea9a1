"""What a model's numbers may be, whichever model gave them."""

import math

import pytest

from esckit.errors import ModelError
from esckit.roles.rubric import weighted_reward
from esckit.types import ChoiceScore, NextToken, Usage


@pytest.mark.parametrize("log_p", [math.nan, math.inf, -math.inf, 0.5])
def test_what_is_no_log_probability_is_a_typed_failure(log_p: float) -> None:
    with pytest.raises(ModelError) as caught:
        ChoiceScore(log_p, 1)
    assert caught.value.kind == "not_finite"


@pytest.mark.parametrize("p", [math.nan, math.inf, -0.1, 1.5])
def test_what_is_no_probability_is_a_typed_failure(p: float) -> None:
    for found in ((0.2, p), 0.2), ((0.2, 0.3), p):
        with pytest.raises(ModelError) as caught:
            NextToken(*found, Usage())
        assert caught.value.kind == "not_finite"


def test_rounding_above_one_is_let_pass() -> None:
    assert NextToken((1.0000004,), 1.0000004, Usage()).label_mass > 1
    assert ChoiceScore(1e-6, 1).log_p > 0


def test_a_rating_that_is_not_finite_is_no_perfect_reward() -> None:
    with pytest.raises(ModelError) as caught:
        weighted_reward({"a": math.nan}, {"a": 1.0})
    assert caught.value.kind == "not_finite"
