"""Selection: the worked numbers, and that every distribution is one."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.ledger import Ledger, uniform
from esckit.search.expansion import smoothed
from esckit.search.mcts import draw, edge_scores, selection_distribution, uniform_share, without
from tests.search.fakes import settings as mcts

PRIOR = (0.20, 0.10, 0.25, 0.15, 0.10, 0.08, 0.07, 0.05)
VISITS = (3, 0, 4, 1, 0, 0, 2, 0)
VALUES = (0.70, 0, 0.62, 0.81, 0, 0, 0.55, 0)
U = (1.016228, 0.316228, 0.973553, 1.145410, 0.316228, 0.252982, 0.677802, 0.158114)
MU = (0.185163, 0.005168, 0.122581, 0.660677, 0.005168, 0.005091, 0.011112, 0.005038)


def test_the_worked_example_of_selection() -> None:
    assert uniform_share(10, 0.1) == pytest.approx(0.040034, abs=5e-7)
    assert edge_scores(PRIOR, VISITS, VALUES, exploration=1.0) == pytest.approx(U, abs=5e-7)
    mu = selection_distribution(PRIOR, VISITS, VALUES, mcts())
    assert mu == pytest.approx(MU, abs=5e-7)


def test_a_fresh_node_follows_the_prior() -> None:
    mu = selection_distribution(PRIOR, [0] * 8, [0.0] * 8, mcts())
    assert tuple(mu) == PRIOR


def test_without_kappa_there_is_no_uniform_part() -> None:
    mu = selection_distribution(PRIOR, VISITS, VALUES, mcts(uniform_kappa=0.0))
    total = sum(math.exp(u / 0.1) for u in U)
    assert mu == pytest.approx([math.exp(u / 0.1) / total for u in U], rel=1e-4)


def test_seeds_of_draws() -> None:
    def ledger() -> Ledger:
        return Ledger(7, "esconv-a2e71fab0cc9#0")

    select = ledger().at("r", 0).seed("select")
    assert (select, round(uniform(select), 6)) == (2917673373922315796, 0.316335)
    assert ledger().at("r.EV", 0).seed("supporter") == 887469357430612468
    assert ledger().at("r.EV", 0).seed("seeker") == 8926696551074973476
    critic = ledger().at("r.EV", 2)
    assert [critic.seed("critic"), critic.seed("critic")][1] == 5513019488434889211
    later = ledger().at("r.EV", 3).seed("select")
    assert (later, round(uniform(later), 6)) == (1016164172863719836, 0.110173)


def test_a_draw_maps_the_cumulative_sum_in_order() -> None:
    assert [draw(PRIOR, u) for u in (0.0, 0.199, 0.2, 0.299, 0.301, 0.949, 0.951)] == [0, 0, 1, 1, 2, 6, 7]
    assert draw((0.0, 0.5, 0.5, 0.0), 1.0) == 2
    assert draw((0.0, 1.0), 0.0) == 1


def test_blocked_strategies_are_never_drawn() -> None:
    rest = without(PRIOR, {0, 2})
    assert (rest[0], rest[2]) == (0.0, 0.0)
    assert rest[1] == pytest.approx(0.10 / 0.55)
    assert without((1.0, 0.0, 0.0), {0}) == [0.0, 0.5, 0.5]


def test_smoothing_keeps_the_sum_and_lifts_zeros() -> None:
    prior = smoothed((1.0, 0, 0, 0, 0, 0, 0, 0), 0.01)
    assert prior == pytest.approx((0.99125, *[0.00125] * 7))
    assert sum(prior) == pytest.approx(1.0)


edges = st.tuples(st.integers(0, 1000), st.floats(0, 1))


@given(
    st.lists(edges, min_size=2, max_size=8),
    st.floats(0, 100),
    st.floats(0, 10),
    st.floats(0.01, 10),
    st.floats(0, 1),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_selection_is_a_distribution(edges, exploration, kappa, temperature, number, data) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(edges), max_size=len(edges)))
    prior = [weight / sum(weights) for weight in weights]
    visits = [count for count, _ in edges]
    values = [value if count else 0.0 for count, value in edges]
    knobs = mcts(exploration=exploration, uniform_kappa=kappa, selection_temperature=temperature)
    mu = selection_distribution(prior, visits, values, knobs)
    assert math.fsum(mu) == pytest.approx(1.0)
    assert all(p >= 0 for p in mu)
    assert mu[draw(mu, number)] > 0
    blocked = data.draw(st.sets(st.integers(0, len(edges) - 1), max_size=len(edges) - 1))
    rest = without(mu, blocked)
    assert math.fsum(rest) == pytest.approx(1.0)
    assert draw(rest, number) not in blocked
