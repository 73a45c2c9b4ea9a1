"""Our metrics load as modules of the `evaluate` library, without a network, and give our numbers."""

from pathlib import Path

import pytest

from esckit.errors import ConfigError
from esckit.evaluate.hf_metrics import MODULES, module_path
from esckit.evaluate.suites.strategy import StrategyScale, strategy_metrics


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    evaluate = pytest.importorskip("evaluate")

    def loaded(name: str) -> object:
        return evaluate.load(module_path(name), cache_dir=str(tmp_path), experiment_id=name)

    return loaded


def test_overlap(load: object) -> None:
    found = load("esc_response").compute(  # type: ignore[operator]
        predictions=["I hear how tired you are.", "Have you told your manager?", " "],
        references=["I can hear how very tired you are.", "Have you talked to your manager yet?", "Hello."],
    )
    assert found["bleu_2"] == pytest.approx(52.1638, abs=5e-5)
    assert found["distinct_1"] == pytest.approx(92.3077, abs=5e-5)
    assert found["n_unscored"] == 1


def test_strategies(load: object) -> None:
    names = ["Question", "Comfort", "Advice"]
    matrix = [[20, 9, 6], [3, 15, 4], [2, 1, 10]]
    cells = [(i, j) for i in range(3) for j in range(3) for _ in range(matrix[i][j])]
    found = load("esc_strategy").compute(  # type: ignore[operator]
        predictions=[names[i] for i, _ in cells], references=[names[j] for _, j in cells], strategies=names
    )
    assert found["bias_b"] == pytest.approx(0.609586, abs=5e-7)
    assert found["correct_of_all"] == found["accuracy"] == pytest.approx(0.642857, abs=5e-7)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_nothing_predicted_is_nothing_measured() -> None:
    assert all(metric.finish(()) is None for metric in strategy_metrics(StrategyScale((), merged=False)))


def test_names() -> None:
    assert all(module_path(name).endswith(f"{name}.py") for name in MODULES)
    with pytest.raises(ConfigError, match="esc_response"):
        module_path("bleu")
