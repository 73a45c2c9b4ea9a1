"""Published numbers: complete, with caveats, and equal to the papers' tables."""

import pytest

from esckit.errors import ConfigError
from esckit.report.metric_rows import load_references


def test_every_table_loads_with_its_caveats() -> None:
    references = load_references()
    for table in references.tables:
        assert all(references.caveats[name] for name in table.caveats), table.id
        assert table.rows
    used = {name for table in references.tables for name in table.caveats}
    assert used == set(references.caveats)


@pytest.mark.parametrize(
    ("table", "row", "column", "value"),
    [
        ("aflow.table1.esconv", "PPL", "AFlow", 8.95),
        ("aflow.table1.esconv", "F1", "Claude-3.5", 59.5),
        ("aflow.table1.extes", "Acc", "AFlow", 64.50),
        ("aflow.table1.extes", "PPL", "GPT-4o", None),
        ("aflow.table2", "GPT-4o / Qwen-2.5", "B-2", 22.45),
        ("aflow.table2", "Gemini-1.5 / LLaMA-3.1", "F1", 61.2),
        ("aflow.table3", "Claude-3.5 (human)", "Overall lose", 15.5),
        ("aflow.table4", "w/o MCTS", "D-2", 10.20),
        ("rlff.table1", "RLFF-ESC", "ESConv Qwen2.5-7B SR", 41.5),
        ("rlff.table1", "PPDPP", "ExTES LLaMA SR", None),
        ("rlff.lenient", "Qwen", "RLFF-ESC", 75.4),
        ("rlff.table2", "EmoDynamiX", "Overall", 98),
        ("rlff.types", "ongoing depression", "ICL-AIF", 3),
        ("rlff.reliability", "critic against human majority", "Krippendorff alpha", 0.786),
        ("gold.hub", "macro F1", "EmoDynamiX", 27.70),
        ("principles.critic", "GPT-4o critic", "ESConv SR", 0.5583),
    ],
)
def test_cells(table: str, row: str, column: str, value: float | None) -> None:
    found = load_references().table(table)
    entry = next(entry for entry in found.rows if entry.name == row)
    assert entry.values[found.columns.index(column)] == value


def test_aflows_column_of_extes_is_a_cell_of_table_2() -> None:
    references = load_references()
    extes = references.table("aflow.table1.extes")
    ours = [row.values[-1] for row in extes.rows if row.name != "PPL"]
    assert ours == list(references.table("aflow.table2").rows[0].values)


def test_shares_of_judged_pairs_sum_to_one_hundred() -> None:
    for row in load_references().table("aflow.table3").rows:
        shares = [value or 0.0 for value in row.values]
        assert [sum(shares[start : start + 3]) for start in range(0, 15, 3)] == pytest.approx([100] * 5)


def test_every_table_of_rlff_carries_the_caveats_of_its_tests() -> None:
    """Test set, seeds, strictness, failures in AT, critic and missing ablations: wherever these numbers are shown."""
    references = load_references()
    tables = [table for table in references.tables if table.id.startswith("rlff.")]
    assert len(tables) == 7
    for table in tables:
        assert {"critic", "strict", "n130", "average_turn", "one_seed", "no_ablation"} <= set(table.caveats), table.id
    assert "13 of 18" in references.caveats["n130"]
    assert "126" in references.caveats["n130"]


@pytest.mark.parametrize("name", ["gold.hub", "aflow.table1.esconv", "aflow.table1.extes"])
def test_a_table_that_takes_our_values_says_of_which_test(name: str) -> None:
    table = load_references().table(name)
    for path in table.same:
        if path != "settings.strategy.include_openings":
            less = {key: value for key, value in table.same.items() if key != path}
            with pytest.raises(ValueError, match="of which test"):
                type(table).model_validate(table.model_dump() | {"same": less})


def test_no_run_of_ours_is_on_the_search_trees_of_aflow() -> None:
    """Accuracy and F1 of AFlow are of dialogues that its own search expanded, which nobody else has."""
    metrics = {row.metric for table in load_references().tables for row in table.rows if row.metric}
    assert {name.partition(".")[0] for name in metrics} == {"response", "strategy"}


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"rlff\.table1"):
        load_references().table("rlff.tabel1")
