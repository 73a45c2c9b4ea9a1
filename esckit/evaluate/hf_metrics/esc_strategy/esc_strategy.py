"""Next-strategy prediction as esckit defines it, preference bias B included, for ``evaluate.load``."""

from __future__ import annotations

import evaluate

from esckit.evaluate.hf_metrics import info, values
from esckit.evaluate.suites.strategy import StrategyCase, StrategyScale, strategy_metrics

_DESCRIPTION = """Accuracy, macro and weighted F1, preference bias B, entropy and KL of predicted strategies. An empty
prediction, or one outside `strategies`, is unscored: counted in n_unscored and against correct_of_all, no label of its
own."""


class EscStrategy(evaluate.Metric):  # type: ignore[misc]
    """Metrics of one confusion matrix."""

    def _info(self) -> evaluate.MetricInfo:
        return info(_DESCRIPTION, "predictions, references: strategy names; strategies: the taxonomy, in order")

    def _compute(
        self, predictions: list[str], references: list[str], strategies: list[str] | None = None
    ) -> dict[str, float | None]:
        names = tuple(strategies) if strategies else tuple(sorted({*references, *filter(None, predictions)}))
        cases = [
            StrategyCase(
                id=str(index),
                dialogue_id=str(index),
                gold=gold,
                predicted=predicted or None,
                unscored=None if predicted else "missing",
            )
            for index, (predicted, gold) in enumerate(zip(predictions, references, strict=True))
        ]
        return values(strategy_metrics(StrategyScale(names, merged=False)), cases)
