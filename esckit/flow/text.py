r"""How a strategy policy reads a dialogue, in training and in use alike, and what is known of a trained one.

The text form ``flow_text/1``::

    Scene: {scene}\nSituation: {situation}\nTask: choose the next support strategy.\n      the header
    Seeker: {text}\n                                                                       a turn
    Supporter: {text}\n                                                                    or Supporter [EV]: {text}\n

Every piece is tokenised **by itself** and the token ids are joined. So the ids of a prefix are the beginning of the
ids of every dialogue through it, which tokenising whole strings would break at the borders. The policy is read at the
last token. Control strings of the tokenizer and lines that start with a speaker's label stay text of their turn.

:class:`FlowMetadata` says how a checkpoint reads dialogues and what it was trained on. Nothing here loads torch. The
weights are in :mod:`esckit.flow.model`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from esckit.errors import CheckpointError
from esckit.models import checkpoint as checkpoints
from esckit.models.checkpoint import CheckpointMetadata, checkpoint_folder
from esckit.records import digest, file_sha256
from esckit.runs import read_manifest
from esckit.strategies.files import shipped_names
from esckit.text import Controls, as_turn
from esckit.types import Scenario, Turn

FLOW_TEXT = "flow_text/1"

MAX_SITUATION_TOKENS = 256

_TASK = "Task: choose the next support strategy.\n"

_UNKNOWN = "unknown"


class TurnTokens(NamedTuple):
    """A turn's ids: the marker, then the words with the closing line end."""

    marker: tuple[int, ...]
    words: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids of the turn."""
        return self.marker + self.words


def scene(scenario: Scenario) -> str:
    """Return the problem type, with the emotion type if known."""
    known = [part for part in (scenario.problem_type, scenario.emotion_type) if part]
    return ", ".join(known) or _UNKNOWN


class FlowText:
    """Turns dialogues into token ids.

    Args:
        tokenizer: The backbone's Hugging Face tokenizer.
        situation: Put scene and situation into the header; a deployed supporter would not know them.
        tags: Abbreviation by strategy name, with which supporter turns are marked; None marks none.
        single_turns: Too long a dialogue loses single turns, not whole exchanges, as with checkpoints of 0.1.0.
    """

    def __init__(
        self, tokenizer: Any, *, situation: bool, tags: Mapping[str, str] | None = None, single_turns: bool = False
    ) -> None:
        self._tokenizer, self._controls = tokenizer, Controls.of(tokenizer)
        self._situation, self._tags, self._single_turns = situation, tags or {}, single_turns

    def header(self, scenario: Scenario) -> tuple[int, ...]:
        """Return the ids before the first turn; the situation is cut at 256 tokens."""
        bos = self._tokenizer.bos_token_id
        ids = [] if bos is None else [bos]
        if self._situation:
            situation = self._encode(f" {scenario.situation.strip() or _UNKNOWN}")
            ids += self._encode(f"Scene: {scene(scenario)}\n")
            ids += [*self._encode("Situation:"), *situation[:MAX_SITUATION_TOKENS], *self._encode("\n")]
        return (*ids, *self._encode(_TASK))

    def turn(self, turn: Turn, *, strategy: str | None = None) -> TurnTokens:
        """Return the ids of one turn.

        Args:
            turn: The turn.
            strategy: Name of its strategy, if the turn itself does not carry it.
        """
        marker = "Seeker:"
        if turn.speaker == "supporter":
            tag = self._tags.get(strategy or turn.strategy or "")
            marker = f"Supporter [{tag}]:" if tag else "Supporter:"
        words = [*self._encode(f" {as_turn(turn.text)}"), *self._encode("\n")]
        return TurnTokens(tuple(self._encode(marker)), tuple(words))

    def exchanges(self, turns: Sequence[Turn]) -> list[tuple[int, ...]]:
        """Return the ids of each exchange of a dialogue, see :func:`exchange_starts`."""
        ids = [self.turn(turn).ids for turn in turns]
        starts = range(len(turns)) if self._single_turns else exchange_starts(turns)
        return [tuple(chain.from_iterable(ids[start:end])) for start, end in pairwise([*starts, len(turns)])]

    def ids(self, scenario: Scenario, turns: Sequence[Turn], *, max_tokens: int | None = None) -> tuple[int, ...]:
        """Return the ids of a prefix.

        Args:
            scenario: The seeker's situation.
            turns: The dialogue so far.
            max_tokens: Above it whole oldest exchanges after the header go first, see :func:`drop_oldest`.
        """
        header, exchanges = self.header(scenario), self.exchanges(turns)
        if max_tokens is not None:
            exchanges = drop_oldest(exchanges, max_tokens - len(header))
        return (*header, *chain.from_iterable(exchanges))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(self._controls.neutralise(text), add_special_tokens=False))


def exchange_starts(turns: Sequence[Turn]) -> list[int]:
    """Return at which turns an exchange begins: what the supporter says, and what the seeker answers.

    What stands before the first supporter turn is the first one. Supporter turns that follow each other are one side.
    """
    spoke = [turn.speaker == "supporter" for turn in turns]
    return [at for at, supports in enumerate(spoke) if at == 0 or (supports and not spoke[at - 1])]


def drop_oldest(pieces: Sequence[tuple[int, ...]], budget: int) -> list[tuple[int, ...]]:
    """Return the newest exchanges that fit into a number of tokens; of a last one too long by itself, its end.

    Training and use alike cut too long a dialogue here.
    """
    kept: list[tuple[int, ...]] = []
    left = max(budget, 1)
    for piece in reversed(pieces):
        if len(piece) > left:
            break
        kept.insert(0, piece)
        left -= len(piece)
    return kept or [piece[-left:] for piece in pieces[-1:]]


METADATA = "flow.json"

HEADS = "heads.safetensors"


class FlowMetadata(CheckpointMetadata):
    """What belongs to a trained flow model.

    Attributes:
        taxonomy: Name of the taxonomy.
        strategies: Its strategies in the order of the heads' outputs.
        flow_text: Version of the text form.
        strategy_tags: Whether earlier supporter turns carry their strategy.
        situation: Whether scene and situation are in the header.
        trainable: ``lora`` (an adapter is stored) or ``full`` (the backbone is).
        objective: Settings of the objective, for the record.
        round: Search-train round, 0 for the first.
        max_tokens: The longest state it was trained on, by its recipe; longer dialogues lose oldest exchanges. None in
            checkpoints of 0.1.0.
        averaged: The weights are the mean over so many updates, the last of which is ``step``; 0 if they are its own.
    """

    SCHEMA: ClassVar[str] = "esckit.flow_model/1"
    COMMAND: ClassVar[str] = "train-flow"

    taxonomy: str
    strategies: tuple[str, ...]
    flow_text: str
    strategy_tags: bool
    situation: bool
    trainable: str
    objective: dict[str, str | float | int | bool | None]
    round: int
    max_tokens: int | None = None
    averaged: int = 0


def read_metadata(folder: Path, *, strategies: tuple[str, ...] | None = None) -> FlowMetadata:
    """Return a checkpoint's metadata.

    Args:
        folder: The checkpoint, or the run folder that holds it.
        strategies: The taxonomy it is wanted for, in order; None to take its own.

    Raises:
        CheckpointError: If there is no whole checkpoint, or it is of another taxonomy or text form.
    """
    metadata = checkpoints.read_metadata(FlowMetadata, folder)
    if metadata.flow_text != FLOW_TEXT:
        raise CheckpointError(f"text form {metadata.flow_text} in {folder}", expected=FLOW_TEXT)
    if strategies is not None and metadata.strategies != strategies:
        own = metadata.taxonomy if metadata.taxonomy in shipped_names("taxonomy") else folder
        raise CheckpointError(
            f"{folder} was trained for taxonomy {metadata.taxonomy} ({', '.join(metadata.strategies)})",
            expected=", ".join(strategies),
            hint=f"To use its own: taxonomy: {own}",
        )
    return metadata


def policy_id(run: Path) -> str:
    """Return ``flow/<digest>`` of a checkpoint, for provenance.

    Raises:
        CheckpointError: If the run holds none.
    """
    read_metadata(run)
    folder = checkpoint_folder(run)
    return f"flow/{digest([file_sha256(folder / name) for name in (METADATA, HEADS)])}"


def writer_metadata(run: Path) -> FlowMetadata:
    """Return the metadata of a checkpoint that was trained to write; loads nothing heavy.

    Raises:
        CheckpointError: If it was not, or its text form holds what a supporter does not know.
    """
    metadata = read_metadata(run)
    if not read_manifest(run)["recipe"].get("response_weight"):
        raise CheckpointError(
            f"{run} was not trained to write replies",
            expected="a run with response_weight above 0",
            hint="Use adapter: off, or name another supporter",
        )
    if metadata.situation:
        raise CheckpointError(f"{run} reads the seeker's situation", expected="a run with encoding.situation: false")
    return metadata
