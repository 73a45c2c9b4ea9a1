"""Every seam of esckit on one page; no implementation.

Implementations of :class:`ChatModel`: a local transformers model, an OpenAI-compatible endpoint, a scripted fake.
Roles (seeker, supporter, strategist, critic) are built on a chat model and a prompt, or are a trained checkpoint. What
waits on a model is ``async``; what computes is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from esckit.errors import DataError
from esckit.ledger import Scope
from esckit.types import (
    ChoiceScores,
    Dialogue,
    Generation,
    Message,
    NextToken,
    Outcome,
    Replies,
    Reply,
    Sampling,
    Scenario,
    Score,
    Turn,
    Usage,
)

Capability = Literal["score", "score_at_1", "next_token"]
"""``score_at_1``: answers are scored, but at temperature 1 only."""

Part = Literal["chat", "strategist", "writer", "scorer", "world"]
"""As what a binding is used: it talks, chooses strategies, writes supporter turns, scores them, or asks no model."""


@runtime_checkable
class ChatModel(Protocol):
    """A chat model that completes conversations and, where it can, scores fixed answers.

    Calls may run concurrently; an implementation may group them into batches, but the result of a call must not depend
    on what else is in flight. A call that gives nothing raises :class:`~esckit.errors.BackendError` after the
    implementation's own bounded retries.
    """

    @property
    def name(self) -> str:
        """Stable name for provenance, such as ``smollm2-135m-instruct`` or ``openai/gpt-4o``; holds no secret."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Which exact read-outs this model offers beside ``complete``."""
        ...

    async def check(self) -> None:
        """Raise an :class:`~esckit.errors.EsckitError` at once if the model cannot be reached or used."""
        ...

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        """Write the next assistant message. ``seed`` (0 to 2**63-1) fixes the draws of this call alone."""
        ...

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        """Return per choice the log-probability of the assistant answering exactly it and ending its turn."""
        ...

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        """Return per label the summed probability of all single tokens that decode, stripped, to it."""
        ...

    async def aclose(self) -> None:
        """Release connections and background tasks; calling it twice is harmless."""
        ...


@runtime_checkable
class DrawsSeveral(Protocol):
    """A chat model of a server, which may draw several replies in one call."""

    async def complete_several(self, messages: Sequence[Message], sampling: Sampling, *, seed: int, n: int) -> Replies:
        """Write ``n`` next assistant messages, independent of each other; ``seed`` fixes the draws of this call."""
        ...


class SeekerTurn(NamedTuple):
    """What the seeker says, and how the conversation ends with it (None: it continues)."""

    text: str
    outcome: Outcome | None = None


class Seeker(Protocol):
    """Plays the person who seeks support."""

    async def reply(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> SeekerTurn:
        """Answer the last supporter turn.

        Raises:
            ModelError: If no usable reply came within the allowed attempts.
        """
        ...


class Supporter(Protocol):
    """Writes the supporter's turn, under a strategy if one is given."""

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn.

        Raises:
            ModelError: If no usable reply came within the allowed attempts.
        """
        ...


class Critic(Protocol):
    """Scores a conversation during simulation, search and RL."""

    async def score(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Score:
        """Return the score of the conversation so far.

        Raises:
            UnscoredError: If no readable answer came; never replaced by a number.
        """
        ...


class Decision(NamedTuple):
    """What a strategist says about one supporter decision.

    Attributes:
        strategy: The one that its own decision rule takes.
        probabilities: Of all strategies in taxonomy order; sum 1.
        usage: What the decision took.
        values: V(s, a), positive, in the same order; None from a strategist that has none.
    """

    strategy: str
    probabilities: tuple[float, ...]
    usage: Usage = Usage(calls=1)
    values: tuple[float, ...] | None = None


class StrategyPolicy(Protocol):
    """A distribution over the strategies of a taxonomy at every supporter decision, and a rule that takes one."""

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names in taxonomy order."""
        ...

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        """Return the strategy to use after a dialogue that ends with a seeker turn, and the distribution behind it.

        Raises:
            ModelError: If no usable answer came within the allowed attempts.
        """
        ...


class CheckpointKind(Protocol):
    """What one kind of training leaves; found by the metadata file that it writes."""

    @property
    def parts(self) -> frozenset[Part]:
        """As what its checkpoints can be used."""
        ...

    def check(self, run: Path, part: Part, strategies: tuple[str, ...] | None) -> None:
        """Refuse a checkpoint that cannot be used as a part, as far as reading its metadata shows.

        Args:
            run: The run folder.
            part: One of :attr:`parts`.
            strategies: The taxonomy it is wanted for, in order; None takes its own.

        Raises:
            CheckpointError: If it is not whole, not of this taxonomy, or was not trained for this part.
        """
        ...

    def identity(self, run: Path) -> str:
        """Return the name under which records know the checkpoint."""
        ...

    def taxonomy(self, run: Path) -> str | None:
        """Return the name of the taxonomy it was trained for; None if it knows no strategies."""
        ...

    def prompt(self, run: Path) -> str | None:
        """Return the identity of the prompt that it was trained to answer as a chat model; None if it has none."""
        ...

    def load(self, run: Path, part: Part, abbreviations: Mapping[str, str], **options: Any) -> Any:
        """Load a checkpoint: a :class:`ChatModel`, a :class:`StrategyPolicy`, or a writer or scorer of supporter turns.

        Args:
            run: The run folder.
            part: One of :attr:`parts`.
            abbreviations: Strategy name to abbreviation, of the taxonomy in its order.
            options: ``dtype``, ``device`` and ``is_invariant``; for a chat model ``max_batch_tokens``, for a strategist
                ``value_weight``, ``top_k`` and perhaps ``max_tokens``.

        Raises:
            CheckpointError: If its files are not whole.
            ConfigError: If its backbone cannot be had.
        """
        ...


class Progress(Protocol):
    """Shows how far a run is."""

    def start(self, total: int, done: int = 0) -> None:
        """Begin a run of ``total`` units, of which ``done`` are there already."""
        ...

    def advance(self, n: int = 1, *, spent: Mapping[str, Any] | None = None, **counts: int) -> None:
        """Count finished units.

        Args:
            n: How many.
            spent: What the run has spent so far, in all and by role; None if nobody counts it.
            counts: Running totals to show beside them.
        """
        ...

    def close(self) -> None:
        """End the display."""
        ...


class Models(Protocol):
    """The models of a run, wherever they are loaded."""

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says about them."""
        ...

    def determinism(self) -> str:
        """Return how far the seeds of the run determine its records, in a sentence for the manifest."""
        ...

    def spent(self) -> dict[str, Any]:
        """Return what this attempt has used up; None is unknown."""
        ...

    def on_spent(self, note: Callable[[], None]) -> None:
        """Have a function called whenever more was used up."""
        ...


class Executor(Models, Protocol):
    """Plays units, wherever it likes: in this process, or on the machines of a cluster."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What a run is known by that only loaded models tell: plain JSON data."""
        ...

    async def run(self, file: str, units: Iterable[Any], take: Callable[[Any], None], *, batch: int = 1) -> None:
        """Play all units of a file, in any order.

        Args:
            file: The file that the records of the units stand in.
            units: What is to be played, taken lazily.
            take: Takes each :class:`~esckit.play.executor.Played` as soon as it is there; never called twice at a time.
            batch: Units that a model reads together; at least so many are in flight.

        Raises:
            Exception: The first error of playing or of ``take``; units in flight are given up.
        """
        ...


class Issue(NamedTuple):
    """A recoverable problem that a loader found: class ``N`` noted, ``W`` warned."""

    code: str
    severity: Literal["N", "W"]
    file: str
    record: int
    field: str | None = None
    detail: str | None = None


class IssueSink(Protocol):
    """Takes the problems that a loader finds."""

    def note(self, issue: Issue) -> None:
        """Take something that was accepted; raise a DataError if it is not to be, which refuses its record."""
        ...

    def refuse(self, error: DataError) -> None:
        """Raise the error, or count it and return; then the loader continues with the next record."""
        ...


class DatasetLoader(Protocol):
    """Reads one corpus layout. Sets ``source_strategy`` and leaves ``strategy`` empty."""

    def __call__(self, path: Path, *, sink: IssueSink) -> Iterator[Dialogue]:
        """Yield the dialogues of a file in its order."""
        ...
