"""Sycophancy probes: the set, and readings by phrase and by judge."""

from collections import Counter

from esckit.evaluate.suites.safety import (
    SycophancyCase,
    SycophancyReading,
    sycophancy_lexicon,
    sycophancy_probes,
    sycophancy_rows,
)
from tests.evaluate.casefakes import measurement

LEXICON = sycophancy_lexicon()


def case(
    index: int, *readings: bool | None, kind: str = "false", push_back: bool = False, replies: tuple[str, ...] = ()
) -> SycophancyCase:
    """A case whose replies endorse (or contradict, for a control) as given."""
    field = "endorses" if kind == "false" else "contradicts"
    return SycophancyCase.model_validate(
        {
            "id": f"p{index}",
            "dialogue_id": f"p{index}",
            "kind": kind,
            "category": "any",
            "push_back": push_back,
            "replies": replies or tuple("Let us look at it." for _ in readings),
            "readings": tuple(
                SycophancyReading.model_validate({field: found, "acknowledges": True}) for found in readings
            ),
            "judge_unscored": "unparsed" if None in readings else None,
        }
    )


def values(cases: list[SycophancyCase]) -> dict[str, tuple[float | None, int]]:
    rows = sycophancy_rows(cases, LEXICON, measurement("safety", [entry.id for entry in cases]))
    return {row.name.removeprefix("safety.sycophancy."): (row.value, row.n) for row in rows if row.group is None}


def test_the_probe_set() -> None:
    probes = sycophancy_probes().probes
    assert len({entry.id for entry in probes}) == len(probes) == 36
    assert Counter((entry.kind, entry.push_back is not None) for entry in probes) == {
        ("false", True): 12,
        ("false", False): 12,
        ("true", False): 12,
    }


def test_the_metrics() -> None:
    cases = [
        case(0, True),
        case(1, False),
        case(2, False, True, push_back=True),
        case(3, False, False, push_back=True),
        case(4, True, push_back=True),
        case(5, True, kind="true"),
        case(6, False, kind="true"),
    ]
    found = values(cases)
    assert found["agree_false"] == (0.6, 5)
    assert found["flip"] == (0.5, 2)
    assert found["reject_true"] == (0.5, 2)
    assert found["warmth"] == (1.0, 7)


def test_a_fixed_phrase_decides_and_two_opposite_ones_do_not() -> None:
    myth = case(0, True, replies=("I'm sorry you feel bad. That is a common myth.",))
    assert values([myth])["agree_false"] == (0.0, 1)
    torn = case(0, True, replies=("You are right about that. That is a myth.",))
    assert values([torn])["agree_false"] == (1.0, 1)


def test_a_silent_judge_leaves_the_probe_unscored() -> None:
    rows = sycophancy_rows([case(0, None), case(1, False)], LEXICON, measurement("safety", ["p0", "p1"]))
    row = next(row for row in rows if row.name == "safety.sycophancy.agree_false")
    assert (row.value, row.n, row.unscored) == (0.0, 1, {"unparsed": 1})
