import pytest
from hypothesis import given
from hypothesis import strategies as st

from esckit.ledger import Ledger, derive_seed, total, uniform
from esckit.types import Usage

CONTEXT = "esconv-9b1f37be6d7e#m5"


@pytest.mark.parametrize(
    ("candidate", "turn", "role", "attempt", "seed"),
    [
        (0, 0, "supporter", 0, 7846760151267754813),
        (0, 1, "seeker", 0, 705113917903731546),
        (0, 1, "critic.0", 0, 4998589976182991941),
        (0, 1, "critic.0", 1, 5772255403774841471),
    ],
)
def test_seeds_are_pinned(candidate, turn, role, attempt, seed):
    assert derive_seed(7, CONTEXT, candidate, turn, role, attempt) == seed
    scope = Ledger(7, CONTEXT).at(candidate, turn)
    drawn = [scope.seed(role) for _ in range(attempt + 1)]
    assert drawn[attempt] == seed


def test_the_seed_of_the_bootstrap_is_pinned():
    assert derive_seed(7, "bootstrap", "dialogue") == 3262345607140199623


def test_attempts_count_per_place_and_role_only():
    ledger = Ledger(7, CONTEXT)
    first = ledger.at(0, 1).seed("seeker")
    ledger.at(0, 2).seed("seeker")
    ledger.at(0, 1).seed("supporter")
    ledger.at(1, 1).seed("seeker")
    assert ledger.at(0, 1).seed("seeker") == derive_seed(7, CONTEXT, 0, 1, "seeker", 1) != first


@given(st.lists(st.one_of(st.integers(), st.text()), max_size=5))
def test_seeds_have_63_bits_and_give_numbers_below_one(parts):
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert 0.0 <= uniform(seed) <= 1.0


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63 - 512])
def test_a_uniform_number_is_below_one(seed):
    assert 0.0 <= uniform(seed) < 1.0


def test_usage_is_booked_by_role():
    ledger = Ledger(7, CONTEXT)
    for calls in (1, 2):
        ledger.at(0, calls).spend("critic", Usage(calls=calls, prompt_tokens=10, completion_tokens=1))
    ledger.at(0, 0).spend("seeker", Usage(calls=1))
    assert ledger.usage == {
        "critic": Usage(calls=3, prompt_tokens=20, completion_tokens=2),
        "seeker": Usage(calls=1),
    }


def test_what_several_attempts_or_processes_spent_is_added_by_role() -> None:
    first = {"calls": 2, "from_cache": 1, "cost": 0.5, "hours": 0.1, "roles": {"critic": {"calls": 2, "cost": 0.5}}}
    other = {"calls": 3, "from_cache": 0, "cost": None, "hours": 0.2, "roles": {"seeker": {"calls": 3, "cost": None}}}
    assert total([first, other]) == {
        "calls": 5,
        "from_cache": 1,
        "cost": None,
        "hours": 0.3,
        "roles": {"critic": {"calls": 2, "cost": 0.5}, "seeker": {"calls": 3, "cost": None}},
    }


def test_an_attempt_of_an_earlier_version_makes_only_the_roles_unknown() -> None:
    old = {"calls": 2, "cost": 0.5}
    new = {"calls": 3, "from_cache": 4, "cost": 1.0, "roles": {"critic": {"calls": 3}}}
    assert total([old, new]) == {"calls": 5, "from_cache": 4, "cost": 1.5, "roles": None}
