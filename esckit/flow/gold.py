"""How well a policy foretells the gold strategies of a corpus, on valid while it trains and on test at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from esckit.flow.batch import FlowBatch
from esckit.flow.trainer import Metrics, confusions
from esckit.metrics.confusion import accuracy, f1_by_class, macro_f1, weighted_f1

KEY = "valid/macro_f1"


def log_shares(counts: Sequence[int]) -> Tensor:
    """Return the log of each class's share, one imaginary decision added to each."""
    smoothed = torch.tensor(counts, dtype=torch.float32) + 1.0
    return (smoothed / smoothed.sum()).log()


def scores(confusion: Any) -> Metrics:
    """Return accuracy, macro-F1 and weighted F1, in [0, 1], of a matrix of predicted rows and gold columns."""
    matrix = np.asarray(confusion, dtype=np.float64)[None]
    return {
        "accuracy": float(accuracy(matrix)[0]),
        "macro_f1": float(macro_f1(matrix)[0]),
        "weighted_f1": float(weighted_f1(matrix)[0]),
    }


class GoldValidation:
    """Validation on gold strategies; also chooses how far logits are moved towards rare strategies.

    Args:
        passes: Forward passes of this process.
        taus: Values of τ to try; −τ·log(share in training) is added to the logits.
        shares: Log-shares of the strategies in training (A,).
        device: Where to compute.
        reduce: Sums a tensor over processes.
    """

    def __init__(
        self,
        passes: Sequence[FlowBatch],
        *,
        taus: Sequence[float],
        shares: Tensor,
        device: torch.device,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        self._passes, self._device, self._reduce = passes, device, reduce
        self._taus = tuple(taus)
        self._offsets = -torch.tensor(self._taus).unsqueeze(1) * shares

    def __call__(self, model: nn.Module) -> Metrics:
        """Return the scores at the τ of the best macro-F1, the smallest of equals, and macro-F1 and accuracy of all."""
        counts = self._reduce(confusions(model, self._passes, self._offsets, self._device)).cpu().numpy()
        found = [scores(matrix) for matrix in counts]
        best = max(range(len(found)), key=lambda way: (found[way]["macro_f1"], -abs(self._taus[way])))
        metrics = {f"valid/{name}": value for name, value in found[best].items()}
        metrics["valid/tau"] = self._taus[best]
        for tau, values in zip(self._taus, found, strict=True):
            metrics |= {f"valid/{name}@{tau:g}": value for name, value in values.items()}
        return metrics

    def offset(self, metrics: Metrics) -> Tensor:
        """Return what to add to the strategy head's bias (A,), for the τ that was chosen."""
        return self._offsets[self._taus.index(metrics["valid/tau"])]


def test_report(confusion: Tensor, strategies: Sequence[str], train_counts: Sequence[int]) -> dict[str, Any]:
    """Return the scores on test, by class, and beside guessing.

    Args:
        confusion: Predicted rows, gold columns (A, A).
        strategies: The taxonomy in order.
        train_counts: How often each strategy occurs in training, from which guesses are made.
    """
    matrix = confusion.double().cpu().numpy()
    gold = matrix.sum(axis=0)
    n = gold.sum()
    majority = np.zeros_like(matrix)
    majority[int(np.argmax(train_counts))] = gold
    shares = np.asarray(train_counts, dtype=np.float64) / sum(train_counts)
    by_class = f1_by_class(matrix[None])[0]
    return {
        "n": int(n),
        **scores(matrix),
        "by_class": {
            name: {
                "f1": None if np.isnan(by_class[index]) else float(by_class[index]),
                "gold": int(gold[index]),
                "predicted": int(matrix[index].sum()),
                "right": int(matrix[index, index]),
            }
            for index, name in enumerate(strategies)
        },
        "majority": scores(majority),
        # In expectation over guesses drawn with the frequencies of training.
        "frequency_guessing": scores(shares[:, None] * gold[None, :]),
        "confusion": {"predicted_rows_gold_columns": matrix.astype(int).tolist()},
    }
