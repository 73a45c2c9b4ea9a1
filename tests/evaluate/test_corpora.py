"""Golden numbers of cases on the real corpora."""

from pathlib import Path

import pytest

from esckit.evaluate.run import plan
from tests.evaluate.evalrecipes import evaluation


def test_the_published_test_of_esconv_has_2895_decisions(corpora: Path) -> None:
    data = {"path": str(corpora / "esconv"), "scheme": "hub"}
    wide = {"strategy": {"unit": "utterance", "include_openings": True}}
    found = plan(evaluation("strategy", data=data, settings=wide))
    assert (found.cases["strategy"], found.dialogues, found.left_out) == (2895, 195, {})


@pytest.mark.parametrize(("scheme", "n"), [("hub", 195), ("ppdpp", 130)])
def test_self_play_has_one_case_a_dialogue(corpora: Path, scheme: str, n: int) -> None:
    data = {"path": str(corpora / "esconv"), "scheme": scheme}
    found = plan(evaluation("dialogue", data=data, settings={"dialogue": {"max_turns": 8}}))
    assert found.cases == {"dialogue": n}
    assert found.calls_at_most == {"supporter": 8 * n, "seeker": 8 * n, "critic": 80 * n}


def test_extes_opens_with_its_description() -> None:
    data = {"dataset": "extes", "path": "sample:extes", "scheme": None, "split": None}
    found = plan(evaluation("dialogue", data=data, taxonomy=None))
    assert found.cases == {"dialogue": 8}
