"""Ranking pairs and their losses, and both forms of the KL term."""

import pytest
import torch

from esckit.flow.objectives import (
    RankPairs,
    decision_losses,
    hinge,
    kl_full,
    kl_taken,
    low_prior_pairs,
    preference,
    rank_pairs,
    state_losses,
    visited_pairs,
)

# Four strategies at three states: two visited, one visited and good, one visited and poor.
CHILD_VALUE = torch.tensor([[0.8, 0.5, 0.0, 0.0], [0.0, 0.7, 0.0, 0.0], [0.0, 0.0, 0.4, 0.0]])
VISITED = torch.tensor([[True, True, False, False], [False, True, False, False], [False, False, True, False]])
PRIOR = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.3, 0.5], [0.25, 0.25, 0.25, 0.25]])
ROOT_VALUE = torch.tensor([0.6, 0.6, 0.6])


def pairs_of(negatives: str, min_gap: float = 0.0) -> RankPairs:
    return rank_pairs(CHILD_VALUE, VISITED, PRIOR, ROOT_VALUE, negatives=negatives, min_gap=min_gap)


def where(table: torch.Tensor) -> set[tuple[int, int]]:
    return {(winner, loser) for winner, loser in table.nonzero().tolist()}


def test_the_hinge_of_the_worked_example() -> None:
    values = torch.tensor([[1.4, 0.9, 0.0, 0.0]])
    pairs = rank_pairs(CHILD_VALUE[:1], VISITED[:1], PRIOR[:1], ROOT_VALUE[:1], negatives="visited", min_gap=0.0)
    losses = hinge(values, margin=1.0)
    assert state_losses(losses, pairs, VISITED[:1]).item() == pytest.approx(0.5)
    zero = torch.tensor([[0]])
    assert decision_losses(losses, pairs, zero, zero).item() == pytest.approx(0.5)


def test_visited_pairs_need_two_tried_strategies_and_a_gap() -> None:
    assert [where(table) for table in visited_pairs(CHILD_VALUE, VISITED, min_gap=0.0)] == [{(0, 1)}, set(), set()]
    assert not visited_pairs(CHILD_VALUE, VISITED, min_gap=0.31).any()
    tie = torch.tensor([[0.5, 0.5]])
    assert not visited_pairs(tie, torch.ones(1, 2, dtype=torch.bool), min_gap=0.0).any()


def test_unvisited_values_do_not_matter() -> None:
    garbage = torch.where(VISITED, CHILD_VALUE, torch.nan)
    assert torch.equal(visited_pairs(garbage, VISITED, min_gap=0.0), visited_pairs(CHILD_VALUE, VISITED, min_gap=0.0))


def test_low_prior_losers_are_the_three_least_likely_others() -> None:
    prior = torch.tensor([[0.30, 0.05, 0.20, 0.10, 0.15, 0.20]])
    table = low_prior_pairs(prior, torch.ones(1, 6, dtype=torch.bool))[0]
    assert where(table[:1]) == {(0, 1), (0, 3), (0, 4)}
    assert {loser for winner, loser in where(table) if winner == 1} == {3, 4, 2}
    assert not table.diagonal().any()


def test_equal_priors_count_in_taxonomy_order() -> None:
    table = low_prior_pairs(torch.full((1, 6), 1 / 6), torch.ones(1, 6, dtype=torch.bool))[0]
    assert {loser for winner, loser in where(table) if winner == 0} == {1, 2, 3}


def test_low_prior_holds_every_winner_up() -> None:
    pairs = pairs_of("low_prior")
    assert not pairs.by_state.any()
    assert {loser for winner, loser in where(pairs.by_winner[1]) if winner == 1} == {0, 2, 3}


def test_without_visited_pairs_good_winners_beat_untried_losers() -> None:
    pairs = pairs_of("visited_then_low_prior")
    assert [where(table) for table in pairs.by_state] == [{(0, 1)}, set(), set()]
    assert where(pairs.by_winner[1]) == {(1, 0), (1, 2), (1, 3)}
    assert where(pairs.by_winner[2]) == set(), "a strategy worse than the root is no winner"


def test_decisions_average_their_pairs() -> None:
    losses = hinge(torch.tensor([[1.4, 0.9, 0, 0], [0, 0.5, 0.2, 0.9], [0, 0, 0, 0]]), margin=1.0)
    state, action = torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[0, 1, 2], [1, 1, 2]])
    found = decision_losses(losses, pairs_of("visited_then_low_prior"), state, action)
    fallback = (0.5 + 0.7 + 1.4) / 3
    assert found[0].tolist() == pytest.approx([0.5, fallback, 0.0])
    assert found[1].tolist() == pytest.approx([0.5, fallback, 0.0])
    assert decision_losses(losses, pairs_of("visited"), state, action)[0].tolist() == pytest.approx([0.5, 0.0, 0.0])


def test_states_average_their_winners() -> None:
    losses = hinge(torch.tensor([[1.4, 0.9, 0, 0], [0, 0.5, 0.2, 0.9], [0, 0, 0, 0]]), margin=1.0)
    found = state_losses(losses, pairs_of("low_prior"), VISITED)
    first = ((0.5 + 0 + 0) / 3 + (1.5 + 0.1 + 0.1) / 3) / 2
    assert found[0].item() == pytest.approx(first)


def test_preference_is_the_logistic_loss_of_log_ratios() -> None:
    log_pi, log_ref = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = -torch.log(torch.sigmoid(torch.tensor(0.6 / 0.4).log()))
    assert preference(log_pi, log_ref)[0, 0, 1].item() == pytest.approx(expected.item())
    assert preference(log_ref, log_ref)[0, 0, 1].item() == pytest.approx(0.693147, abs=1e-6)


def test_the_taken_form_of_the_worked_example() -> None:
    log_pi = torch.tensor([[0.5, 0.25, 0.4, torch.nan]], dtype=torch.float64).log()
    log_ref = torch.tensor([[0.20, 0.25, 0.40, torch.nan]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, True, False]])
    assert kl_taken(log_pi, log_ref, mask).item() == pytest.approx(0.305430, abs=5e-7)


def test_the_taken_form_is_never_negative() -> None:
    log_pi, log_ref = torch.tensor([[0.1]]).log(), torch.tensor([[0.9]]).log()
    assert kl_taken(log_pi, log_ref, torch.ones(1, 1, dtype=torch.bool)).item() == 0.0


def test_the_full_form_is_the_divergence() -> None:
    pi, ref = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.2, 0.5, 0.3]])
    assert kl_full(pi.log(), ref.log()).item() == pytest.approx(torch.sum(pi * (pi / ref).log()).item(), rel=1e-6)
    assert kl_full(pi.log(), pi.log()).item() == 0.0
