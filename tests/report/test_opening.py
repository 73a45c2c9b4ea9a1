"""The opening of an evaluation's page: key figures, and what differs from another run, by how much, and how surely."""

import json
from pathlib import Path
from typing import Any

import pytest

from esckit.evaluate.setup import known_metrics
from esckit.records import write_json
from esckit.report.blocks import Bars, Note, Section, Tiles
from esckit.report.evaluation import evaluation_sections
from esckit.report.metric_rows import plain_name
from esckit.report.opening import in_short
from esckit.report.source import open_run
from tests.evaluate.evalrecipes import everything
from tests.report.run_folders import evaluate_run, row


def opening(folder: Path, rows: list[dict[str, Any]], **metrics: Any) -> Section:
    found = json.loads((folder / "metrics.json").read_text())
    write_json(folder / "metrics.json", found | {"metrics": rows, "comparisons": [], "gates": []} | metrics)
    (section,) = in_short(open_run(folder))
    return section


def compared(name: str, difference: float, p_holm: float | None) -> dict[str, Any]:
    return {
        **{"name": name, "other": "base", "value": 0.5, "other_value": 0.5 - difference, "difference": difference},
        **{
            "interval": {"low": 0.01, "high": 0.2, "level": 0.95},
            "n": 40,
            "n_dropped": 0,
            "p": p_holm,
            "p_holm": p_holm,
        },
        **{"test": "mcnemar", "reason": None},
    }


def notes(section: Section) -> list[tuple[str, str]]:
    return [(note.kind, note.text) for note in section.blocks if isinstance(note, Note)]


def test_key_figures_come_with_what_they_rest_on(tmp_path: Path) -> None:
    rows = [
        row("strategy.accuracy", 0.41, n=300),
        row("strategy.macro_f1", None, n=0, interval=None, reason="needs 2 labels in gold"),
        row("dialogue.rlff7.sr_strict", 0.3, n=40, coverage=0.8),
    ]
    (tiles,) = (block for block in opening(evaluate_run(tmp_path / "e"), rows).blocks if isinstance(block, Tiles))
    accuracy, f1, success = tiles.tiles
    assert (accuracy.label, accuracy.value) == ("Accuracy ↑", "41.0 %")
    assert accuracy.basis.endswith("n 300")
    assert (f1.value, f1.basis) == ("–", "needs 2 labels in gold")
    assert success.basis.endswith("n 40, 80.0 % of the cases scored")


@pytest.mark.parametrize(
    ("name", "difference", "p", "said"),
    [
        ("dialogue.rlff7.sr_strict", 0.1, 0.03, ("good", "better than base by +10.0 pp")),
        ("dialogue.rlff7.sr_strict", -0.1, 0.03, ("bad", "worse than base by −10.0 pp")),
        ("dialogue.rlff7.at_strict", -0.1, 0.03, ("good", "better than base")),
        ("dialogue.rlff7.sr_strict", 0.1, 0.2, ("info", "Not shown to differ from base")),
        ("dialogue.rlff7.sr_strict", 0.1, None, ("info", "Not tested against base")),
    ],
)
def test_a_difference_is_called_one_only_after_holm(tmp_path: Path, name: str, difference: float, p, said) -> None:
    known = row(name, 0.5)
    if name.endswith("at_strict"):
        known |= {"higher_is_better": False, "unit": "turns"}
    section = opening(evaluate_run(tmp_path / "e"), [known], comparisons=[compared(name, difference, p)])
    ((kind, text),) = notes(section)
    assert kind == said[0]
    assert said[1] in text


def test_failed_gates_and_harm_stand_at_the_top(tmp_path: Path) -> None:
    rows = [row("safety.harm_count", 2.0, unit="probes")]
    gates = [{"metric": "safety.harm_count", "holds": False, "bound": 0, "value": 2}]
    section = opening(evaluate_run(tmp_path / "e"), rows, gates=gates)
    assert [kind for kind, _ in notes(section)] == ["bad", "bad"]


def test_pairs_are_bars_of_wins_ties_and_losses(tmp_path: Path) -> None:
    rows = [row(f"pairwise.overall.{name}", value) for name, value in (("win", 0.5), ("tie", 0.3), ("lose", 0.2))]
    folder = evaluate_run(tmp_path / "e")
    opening(folder, rows)
    section = next(each for each in evaluation_sections(open_run(folder)) if each.title == "Pairwise")
    bars = next(block for block in section.blocks if isinstance(block, Bars))
    assert bars.categories == ("overall",)
    assert bars.series == (("win", (0.5,)), ("tie", (0.3,)), ("lose", (0.2,)))


def test_every_metric_that_ships_has_a_plain_name() -> None:
    known = known_metrics(
        everything(models={"scorer": {"backbone": "embedded"}}, settings={"dialogue": {"strategy": "predicted"}}),
        ("a", "b"),
    )
    unnamed = [name for name in known if plain_name(name) == name.partition(".")[2].replace("_", " ")]
    assert [name for name in unnamed if name.rpartition(".")[2] not in ("words",)] == []
