"""Model cards: a template that ships, filled with what the run knows."""

from importlib import resources
from pathlib import Path
from string import Template

from esckit.training.checkpoint import metrics_table, write_card


def test_metrics_stand_side_by_side():
    table = metrics_table({"ours": {"auc": 0.61234, "n": 3}, "majority": {"auc": 0.5}}, ["auc", "n"])
    assert table.splitlines() == [
        "| metric | ours | majority |",
        "|---|---|---|",
        "| auc | 0.6123 | 0.5000 |",
        "| n | 3 | – |",
    ]


def test_a_card_names_what_it_is_for(tmp_path: Path):
    template = resources.files("esckit.training").joinpath("cards", "reward_model.md").read_text(encoding="utf-8")
    names = set(Template(template).get_identifiers())
    assert {"backbone", "label", "delta", "metrics", "warnings"} <= names
    write_card(tmp_path, "reward_model", dict.fromkeys(names, "X"))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "no clinical measure" in card
    assert "$" not in card
