"""The ``data:`` section: which dialogues of which corpus a run uses."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from esckit.config.recipe import Section

Format = Literal["auto", "esconv", "esconv-hub", "ppdpp", "extes", "jsonl"]
Scheme = Literal["hub", "ppdpp", "ratio", "files"]
Split = Literal["train", "valid", "test"]


def _as_tuple(value: object) -> object:
    """Return a lone name as a tuple of one."""
    return (value,) if isinstance(value, str) else value


def _sum_to_one(ratios: tuple[float, float, float]) -> tuple[float, float, float]:
    if not math.isclose(sum(ratios), 1.0, abs_tol=1e-9):
        raise ValueError(f"the three ratios must sum to 1, not {sum(ratios):g}")
    return ratios


Ratios = Annotated[tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat], AfterValidator(_sum_to_one)]
"""Shares of train, valid and test."""


class DataConfig(Section):
    """Which dialogues to read and how.

    Attributes:
        dataset: Name of the loader in the data set registry, or ``module:attr``.
        path: File, folder, ``sample:NAME`` (the corpus that ships) or ``hub:OWNER/NAME[@REVISION]``.
        split: The parts of ``scheme`` to use, a name or several; None uses the whole corpus.
        scheme: How the corpus is split; None does not split it.
        seed: Of ``scheme: ratio``.
        ratios: Of ``scheme: ratio``: train, valid, test.
        limit: Number of dialogues, counted after the split in load order; None uses all.
        merge: Join adjacent turns of one speaker.
        merge_label: Which label a merged turn takes.
        skip_invalid: Skip and count records that are refused, instead of stopping.
        blank_as: Strategy that a missing label stands for; None leaves it missing.
        mapping: Name or file of a strategy mapping into another taxonomy.
        allow_overlap: Evaluate on dialogues that a model was trained on, and flag every row.
        allow_cross_family: Evaluate under a split scheme of another family than that of training, and flag every row.
    """

    dataset: str
    path: str
    format: Format = "auto"
    split: Annotated[tuple[Split, ...] | None, BeforeValidator(_as_tuple)] = None
    scheme: Scheme | None = None
    seed: int = Field(default=13, ge=0)
    ratios: Ratios = (0.8, 0.1, 0.1)
    limit: PositiveInt | None = None
    merge: bool = False
    merge_label: Literal["first", "last"] = "first"
    skip_invalid: bool = False
    unknown_strategy: Literal["refuse", "keep"] = "refuse"
    blank_as: str | None = None
    mapping: str | None = None
    allow_overlap: bool = False
    allow_cross_family: bool = False

    @model_validator(mode="after")
    def _split_needs_scheme(self) -> Self:
        if self.split is not None and (not self.split or len(set(self.split)) < len(self.split)):
            raise ValueError("split must name different parts, at least one")
        if self.split is not None and self.scheme is None:
            raise ValueError("split needs a scheme (hub, ppdpp, ratio or files)")
        return self


class AlternatingData(DataConfig):
    """``data:`` of the commands whose contexts alternate and end in a seeker turn: runs of one speaker are merged."""

    merge: bool = True

    @field_validator("merge")
    @classmethod
    def _always(cls, merge: bool) -> bool:
        if not merge:
            raise ValueError("must be true here: contexts alternate between the speakers")
        return merge
