"""Text overlap of replies with references and diversity of replies, as esckit defines them, for ``evaluate.load``."""

from __future__ import annotations

import evaluate

from esckit.evaluate.hf_metrics import info, values
from esckit.evaluate.suites.response import ResponseCase, response_metrics

_DESCRIPTION = """Corpus BLEU-2 and BLEU-4, ROUGE-L, exact-match METEOR, Distinct-1 and -2 (all 0-100), mean words and
length ratio of replies. Blank replies are left out and counted in n_unscored; what is undefined is None."""


class EscResponse(evaluate.Metric):  # type: ignore[misc]
    """Overlap and diversity of replies."""

    def _info(self) -> evaluate.MetricInfo:
        return info(_DESCRIPTION, "predictions: replies; references: one gold reply each")

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float | None]:
        cases = [
            ResponseCase(
                id=str(index),
                dialogue_id=str(index),
                context_id=str(index),
                reply=reply,
                reference=reference,
                unscored=None if reply.strip() else "blank",
            )
            for index, (reply, reference) in enumerate(zip(predictions, references, strict=True))
        ]
        return values(response_metrics(), cases)
