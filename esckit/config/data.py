"""The ``data:`` section of recipes: which dialogues of which corpus a run uses, and how a file of one's own is read.

``roles`` and ``columns`` say what a file's own names stand for; the options ``--role`` and ``--column`` of ``esckit
data`` say the same. What is left out goes by the usual names (:mod:`esckit.data.names`).
"""

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

from esckit.config.sections import Section, as_tuple

Format = Literal["auto", "esconv", "esconv-hub", "ppdpp", "multiesc", "extes", "jsonl", "messages", "sharegpt", "table"]

Scheme = Literal["hub", "ppdpp", "ratio", "files"]

Split = Literal["train", "valid", "test"]


def _sum_to_one(ratios: tuple[float, float, float]) -> tuple[float, float, float]:
    if not math.isclose(sum(ratios), 1.0, abs_tol=1e-9):
        raise ValueError(f"the three ratios must sum to 1, not {sum(ratios):g}")
    return ratios


Ratios = Annotated[tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat], AfterValidator(_sum_to_one)]
"""Shares of train, valid and test."""


Side = Literal["seeker", "supporter", "situation", "ignore"]
"""What becomes of what a speaker of a file says: a turn of one side, the seeker's situation, or nothing."""


class Columns(Section):
    """Which column of a table, or which key of a chat record, holds what; None takes the usual names.

    Attributes:
        dialogue: Column that tells the dialogues of a table apart.
        messages: Key of a chat record with the list of its messages.
        speaker: Column or key that says who speaks.
        text: Column or key with what is said.
        strategy: Column or key with the strategy label of a supporter's turn.
        situation: Column or key with the seeker's situation.
        emotion_type: Column or key with the seeker's emotion.
        problem_type: Column or key with the kind of problem.
        experience_type: Column or key that says whose experience it is.
    """

    dialogue: str | None = Field(default=None, min_length=1)
    messages: str | None = Field(default=None, min_length=1)
    speaker: str | None = Field(default=None, min_length=1)
    text: str | None = Field(default=None, min_length=1)
    strategy: str | None = Field(default=None, min_length=1)
    situation: str | None = Field(default=None, min_length=1)
    emotion_type: str | None = Field(default=None, min_length=1)
    problem_type: str | None = Field(default=None, min_length=1)
    experience_type: str | None = Field(default=None, min_length=1)

    def named(self) -> dict[str, str]:
        """Return the columns that are named, by what they hold."""
        return {what: name for what, name in self if name is not None}


class CorpusSource(Section):
    """A corpus, and how its files are read.

    Attributes:
        dataset: Name of the data set, which the format must fit: ``esconv``, ``extes``, ``multiesc``, ``practice`` (the
            practice world), ``jsonl`` (esckit's own format) or ``own`` (a table, chat records or ``jsonl``). ``auto``
            takes any, ``module:attr`` is a loader.
        path: File, folder, ``sample:NAME`` (the corpora that ship), ``hub:OWNER/NAME[@REVISION]``, or
            ``world:PROFILE/N`` (the first N dialogues of the practice world; ``world:PROFILE/N/POLICY`` has all of them
            led by ``random``, ``fixed``, ``novice``, ``rule`` or ``optimum``).
        format: Layout of the files; ``auto`` looks at their first records.
        roles: Names of speakers in the files, and the side that each stands for; None goes by the usual names.
        columns: Columns of a table, or keys of a chat record; None goes by the usual names.
    """

    dataset: str = "auto"
    path: str
    format: Format = "auto"
    roles: dict[str, Side] | None = None
    columns: Columns | None = None


class DataConfig(CorpusSource):
    """Which dialogues to read and how.

    Attributes:
        split: The parts of ``scheme`` to use, a name or several; None uses the whole corpus.
        scheme: How the corpus is split; None does not split it.
        seed: Seed of ``scheme: ratio``.
        ratios: Shares of train, valid and test in ``scheme: ratio``; they sum to 1.
        limit: Number of dialogues, counted after the split in load order; None uses all.
        merge: Join adjacent turns of one speaker.
        merge_label: Which label a merged turn takes.
        skip_invalid: Skip and count records that are refused, instead of stopping.
        unknown_strategy: Whether a label that the taxonomy does not have is an error (``refuse``) or leaves its turn
            unlabelled (``keep``).
        blank_as: Strategy that a missing label stands for; None leaves it missing.
        mapping: Name or file of a strategy mapping into another taxonomy.
    """

    split: Annotated[
        tuple[Split, ...] | None,
        BeforeValidator(as_tuple, json_schema_input_type=Split | tuple[Split, ...] | None),
    ] = None
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

    @model_validator(mode="after")
    def _split_needs_scheme(self) -> Self:
        if self.split is not None and (not self.split or len(set(self.split)) < len(self.split)):
            raise ValueError("split must name different parts, at least one")
        if self.split is not None and self.scheme is None:
            raise ValueError("split needs a scheme (hub, ppdpp, ratio or files)")
        return self


class AlternatingData(DataConfig):
    """Which dialogues to read and how; turns of one speaker are merged, since contexts alternate between speakers."""

    merge: bool = True

    @field_validator("merge")
    @classmethod
    def _always(cls, merge: bool) -> bool:
        if not merge:
            raise ValueError("must be true here: contexts alternate between the speakers")
        return merge
