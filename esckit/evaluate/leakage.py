"""Two rules against testing on what a model has seen.

Rule 1: no evaluated dialogue was trained, tuned or searched on. Rule 2: training and evaluation use one family of
splits, even where they share no dialogue, because tuning on ``hub`` valid and testing on ``ppdpp`` test share 65
dialogues and such pairs creep in unnoticed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from esckit.datasets.splits import shared_ids
from esckit.errors import DataError


@dataclass(frozen=True, slots=True)
class Seen:
    """What a used model has seen, itself or inherited.

    Attributes:
        model: Name of the model in messages.
        ids: Dialogue ids.
        corpus: Name of the corpus; the schemes of two corpora are not compared.
        scheme: Split scheme with all that decides it, such as ``hub`` or ``ratio/13/0.8,0.1,0.1``.
    """

    model: str
    ids: frozenset[str]
    corpus: str | None
    scheme: str | None


@dataclass(frozen=True, slots=True)
class LeakageRules:
    """What the user allows.

    Attributes:
        allow_overlap: Run in spite of rule 1, flagging every row ``overlap``.
        allow_cross_family: Run in spite of rule 2, flagging every row ``cross_family``.
    """

    allow_overlap: bool = False
    allow_cross_family: bool = False

    def flags(
        self, evaluated: Collection[str], *, corpus: str | None, scheme: str | None, seen: Iterable[Seen]
    ) -> tuple[str, ...]:
        """Return the flags of an evaluation.

        Raises:
            DataError: If a rule is broken and not allowed.
        """
        flags: dict[str, None] = {}
        for model in seen:
            if shared_ids(
                evaluated, model.ids, scheme=scheme, trained_scheme=model.scheme, allow_overlap=self.allow_overlap
            ):
                flags["overlap"] = None
            if model.ids and model.corpus == corpus and model.scheme != scheme:
                if not self.allow_cross_family:
                    raise DataError(
                        f"{model.model} was made with scheme {model.scheme or 'none'}, the evaluation has scheme "
                        f"{scheme or 'none'}",
                        expected="one scheme for both",
                        hint="data.allow_cross_family: true runs all the same and marks every row",
                    )
                flags["cross_family"] = None
        return tuple(flags)
