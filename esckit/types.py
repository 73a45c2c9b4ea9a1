"""The nouns of esckit: what a conversation is, and what a run writes to disk.

Records that touch disk are frozen pydantic models which refuse unknown keys; those that stand alone on a line of a file
carry a ``SCHEMA`` (see :mod:`esckit.records`). What only lives in memory is a frozen slotted dataclass. Collections are
tuples. ``None`` means "the source may lack it", never "not computed yet".

In order: the base of everything that is stored; scenario, turns, dialogue, and a context taken from one; what chat
models are asked, answer and cost; what roles say and critics read, with the simulated futures made of it; search trees,
flat as on disk, where a node holds its parent's id and its own turns; their root-to-leaf paths, derived and never
stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from esckit.errors import NOT_FINITE, BackendError, DataError


class Record(BaseModel):
    """Base of everything that is stored: frozen, no unknown keys, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


Speaker = Literal["seeker", "supporter"]


class Scenario(Record):
    """The seeker's private situation."""

    id: str
    situation: str = ""
    emotion_type: str | None = None
    problem_type: str | None = None
    experience_type: str | None = None


class TurnPart(Record):
    """One utterance inside a merged turn."""

    text: str
    strategy: str | None = None
    source_strategy: str | None = None
    feedback: int | None = None


class Turn(Record):
    """One speaker's utterance, or several merged ones.

    Attributes:
        strategy: The support strategy in the dialogue's taxonomy, None where unlabelled.
        source_strategy: The label exactly as the source has it.
        feedback: Rating 1-5 on the seeker turn that carries it; it rates supporter turns *before* it.
        parts: The pieces of a merged turn in order; empty if the turn is a single utterance.
    """

    speaker: Speaker
    text: str
    strategy: str | None = None
    source_strategy: str | None = None
    feedback: int | None = None
    parts: tuple[TurnPart, ...] = ()


class Survey(Record):
    """What seeker and supporter answered after the conversation; ratings 1-5, never filled in."""

    initial_intensity: int | None = None
    final_intensity: int | None = None
    empathy: int | None = None
    relevance: int | None = None
    supporter_relevance: int | None = None
    answers: dict[str, str | None] = Field(default_factory=dict)


class Source(Record):
    """Where a dialogue came from: base name of the file and 0-based record index."""

    corpus: str
    format: str
    file: str
    record: int
    split: str | None = None


class Dialogue(Record):
    """One conversation of a corpus.

    Attributes:
        taxonomy: The taxonomy that ``Turn.strategy`` is in.
        mapping: The mapping by which the strategies got there, None if the corpus uses the taxonomy itself.
    """

    SCHEMA: ClassVar[str] = "esckit.dialogue/1"

    scenario: Scenario
    turns: tuple[Turn, ...]
    survey: Survey | None = None
    source: Source | None = None
    taxonomy: str | None = None
    mapping: str | None = None

    @property
    def id(self) -> str:
        """The dialogue's id, which is its scenario's."""
        return self.scenario.id


class Context(Record):
    """A prefix taken from a corpus, ready for a supporter's answer.

    Attributes:
        turns: The prefix, oldest turn first.
        n_dropped_turns: Turns cut from the front of the prefix.
        reference: The supporter turn that followed in the corpus.
    """

    SCHEMA: ClassVar[str] = "esckit.context/1"

    id: str
    dialogue_id: str
    scenario: Scenario
    turns: tuple[Turn, ...]
    n_dropped_turns: int = 0
    reference: Turn | None = None


Role = Literal["system", "user", "assistant"]


_ROUNDING = 1e-3
"""How far a probability may be above 1 and a log-probability above 0: what low precision makes of a sure thing."""


_Price = Annotated[float, Field(ge=0.0, le=1e9)]

_Amount = Annotated[float, Field(gt=0.0)]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: Role
    content: str


class Sampling(Record):
    """Decoding settings of one role.

    Attributes:
        temperature: Divides the logits before a token is drawn; 0 always takes the likeliest token.
        top_p: Draw from the fewest likeliest tokens whose probabilities sum to this; 1 keeps all.
        top_k: Draw from so many likeliest tokens; None or 0 keeps all.
        max_tokens: Longest output, in tokens.
        repetition_penalty: Above 1 makes tokens that stand in the text already less likely; 1 changes nothing.
        stop: Texts at which an output ends.
    """

    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=0)
    max_tokens: int = Field(default=128, ge=1)
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    stop: tuple[str, ...] = ()


class StopReason(StrEnum):
    """Why a model stopped writing."""

    STOP = "stop"
    LENGTH = "length"


_RARE = ("unknown_calls", "reasoned", "only_reasoned")


class Usage(Record):
    """What was asked of a model: calls, tokens in and out, and turns left out because they did not fit.

    Attributes:
        unknown_calls: Calls whose tokens the server did not count; while there are any, the tokens are a lower bound.
            Records hold this field and the next two only where they are not 0.
        reasoned: Replies with reasoning before, or in place of, an answer.
        only_reasoned: Those of them that ended inside the reasoning and have no answer.
        cached_tokens: Those prompt tokens that the server had read before and bills at another price; None where it
            does not say. It depends on what else the server has read, so no record holds it.
    """

    calls: NonNegativeInt = 0
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt = 0
    dropped_turns: NonNegativeInt = 0
    unknown_calls: NonNegativeInt = 0
    reasoned: NonNegativeInt = 0
    only_reasoned: NonNegativeInt = 0
    cached_tokens: NonNegativeInt | None = Field(default=None, exclude=True)

    def __add__(self, other: Usage) -> Usage:
        """Return the sum."""
        theirs = dict(other)
        summed = {name: n + theirs[name] for name, n in self if name != "cached_tokens"}
        cached = [n for n in (self.cached_tokens, other.cached_tokens) if n is not None]
        return Usage(**summed, cached_tokens=sum(cached) if cached else None)

    def facts(self) -> dict[str, int | None]:
        """Return the counts for a summary: tokens are None where the server did not count them all."""
        known = self.model_dump()
        return known | dict.fromkeys(("prompt_tokens", "completion_tokens")) if self.unknown_calls else known

    @model_serializer(mode="wrap")
    def _without_rare_zeros(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return {name: n for name, n in fields.items() if n or name not in _RARE}


class Prices(Record):
    """Cost of a model per million tokens, in any one currency.

    Attributes:
        prompt: Price of a million prompt tokens.
        completion: Price of a million tokens that the model writes.
        cached: Price of a million prompt tokens that the server had read before; None takes ``prompt``.
    """

    prompt: _Price
    completion: _Price
    cached: _Price | None = None

    def cost(self, usage: Usage) -> float | None:
        """Return the cost of some usage; None where the tokens are unknown and not free."""
        if usage.unknown_calls and (self.prompt or self.completion):
            return None
        cached = usage.cached_tokens or 0
        read = (usage.prompt_tokens - cached) * self.prompt
        reread = cached * (self.prompt if self.cached is None else self.cached)
        return (read + reread + usage.completion_tokens * self.completion) / 1_000_000


FREE = Prices(prompt=0.0, completion=0.0)


class Limits(Record):
    """What a run may use up, the ``budget`` of a recipe; None means no limit.

    Attributes:
        max_calls: Most calls to models.
        max_tokens: Most tokens, those of prompts and answers together.
        max_cost: Most that the models may cost, in the currency of their prices.
        max_hours: Most wall-clock hours of one go.
    """

    max_calls: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    max_cost: _Amount | None = None
    max_hours: _Amount | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote; backends make it with :func:`esckit.models.chat.make_reply`.

    Attributes:
        text: The answer, without any reasoning; blank if the model wrote none.
        reasoning: What the model thought before it answered, None if it did not; never an utterance or a verdict.
        raw: Reasoning and answer together with the marks between them; None if that is the text.
    """

    text: str
    stop_reason: StopReason
    usage: Usage
    reasoning: str | None = None
    raw: str | None = None

    @property
    def whole(self) -> str:
        """Reasoning and answer as the model wrote them."""
        return self.text if self.raw is None else self.raw

    @property
    def only_reasoned(self) -> bool:
        """Whether the model stopped, or was cut, inside its reasoning: there is no answer."""
        return self.reasoning is not None and not self.text.strip()


@dataclass(frozen=True, slots=True)
class Replies:
    """Several replies to one prompt, drawn in one call; the first one's usage is that of the call."""

    replies: tuple[Reply, ...]

    @property
    def usage(self) -> Usage:
        """What the call used."""
        return sum((reply.usage for reply in self.replies), Usage())


class Thought(Record):
    """The reasoning of one reply.

    Attributes:
        role: Who thought, with the number of the sample where several are asked for (``critic.3``).
        place: Where in the unit of work, as seeds name it: ``0/1`` is candidate 0, exchange 1 of a future.
        text: The reasoning; never shown to another role.
    """

    role: str
    place: str
    text: str


class Reasoned(Record):
    """Base of records of a unit of work in which models may have reasoned.

    Attributes:
        reasoning: By place and role, in the order of the attempts; records hold the field only where it is not empty.
    """

    reasoning: tuple[Thought, ...] = ()

    @model_serializer(mode="wrap")
    def _without_empty_reasoning(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return fields if self.reasoning else {name: value for name, value in fields.items() if name != "reasoning"}


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """Log-probability (natural log) of one fixed answer, end-of-turn token included, and its number of tokens.

    Raises:
        BackendError: ``not_finite`` if it is no finite number of at most 0.
    """

    log_p: float
    n_tokens: int

    def __post_init__(self) -> None:
        """Refuse what is no log-probability, whichever model gave it."""
        if not -math.inf < self.log_p <= _ROUNDING:
            raise BackendError(f"a log-probability of {self.log_p}", kind=NOT_FINITE, expected="a finite number")


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """Scores of several fixed answers to one prompt, in the order asked for."""

    choices: tuple[ChoiceScore, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class NextToken:
    """Next-token probability of each label, in the order asked for; ``label_mass`` is their sum, in [0, 1].

    Raises:
        BackendError: ``not_finite`` if one of them is no probability.
    """

    probabilities: tuple[float, ...]
    label_mass: float
    usage: Usage

    def __post_init__(self) -> None:
        """Refuse what is no probability, whichever model gave it."""
        for p in (*self.probabilities, self.label_mass):
            if not 0.0 <= p <= 1.0 + _ROUNDING:
                raise BackendError(f"a probability of {p}", kind=NOT_FINITE, expected="a number from 0 to 1")


ParseKind = Literal["ok", "closed_response", "open_response", "untagged", "blank"]

FailureStage = Literal["candidate", "supporter", "seeker", "critic", "strategist"]


class Generation(Record):
    """A supporter's output, taken apart.

    Attributes:
        raw: The text as the model wrote it.
        reasoning: The text inside ``<think>``, None if there is none; never shown to another role.
        response: The reply itself.
        format_ok: True if the output has exactly the agreed form.
        parse_kind: How the reply was found.
    """

    raw: str
    reasoning: str | None
    response: str
    format_ok: bool
    parse_kind: ParseKind


class Failure(Record):
    """A model failure, recorded in place of what it prevented."""

    stage: FailureStage
    turn: int
    kind: str
    attempts: int
    message: str
    place: str | None = None


class CriticReading(Record):
    """One reading of the resolution critic.

    Attributes:
        readout: ``sampled`` or ``expected``.
        critic: Preset and prompt digest, ``rlff7/<digest>``.
        counts: Parsed answers per level in preset order; None for ``expected``.
        weights: Probability per level in preset order; None for ``sampled``.
        name_mass: Probability that the critic answers one of the level names; None for ``sampled``.
        num: Numerator of the value as an exact fraction.
        den: Denominator of the value.
        value: The same as a float in [-1, 1], for reading only.
        compat_zero: True if nothing was parsed and the PPDPP rule put 0 in place.
    """

    readout: Literal["sampled", "expected"]
    critic: str
    counts: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    name_mass: float | None = None
    n_parsed: int = 0
    n_unparsed: int = 0
    unparsed: tuple[str, ...] = ()
    num: int
    den: int
    value: float
    attempts: int = 1
    compat_zero: bool = False

    @property
    def fraction(self) -> Fraction:
        """The value, exactly."""
        return Fraction(self.num, self.den)

    @property
    def is_mostly_unparsed(self) -> bool:
        """Whether half of the answers or more were unreadable; a zero that the recipe asked for is not meant."""
        return not self.compat_zero and 0 < self.n_unparsed >= self.n_parsed


class RubricReading(Record):
    """One reading of the AFlow rubric: ratings 1-5 per criterion (real-valued with ``expected``)."""

    readout: Literal["sampled", "expected", "reward_model"]
    critic: str
    ratings: dict[str, float] | None
    label_mass: float | None = None


class Score(Record):
    """A critic's numbers per criterion, and the one number after weighting."""

    values: dict[str, float]
    reward: float
    reading: CriticReading | RubricReading


class Outcome(StrEnum):
    """How an episode, a future or a path ended."""

    RESOLVED = "RESOLVED"
    DISENGAGED = "DISENGAGED"
    MAX_TURNS = "MAX_TURNS"
    FAILED = "FAILED"


class Exchange(Record):
    """One supporter turn, the seeker's answer to it, and the critic's reading after it.

    Attributes:
        k: 0 for the exchange that holds the candidate, then 1, 2, …
        strategy: The strategy that the supporter was given, None without a strategist.
        seeker: The seeker's answer; None if it failed.
        reading: None where the critic was not asked, or failed.
    """

    k: int
    supporter: Generation
    strategy: str | None = None
    seeker: str | None = None
    reading: CriticReading | None = None


class TurnRatings(Record):
    """The turn judge's four ratings, integers 1-5 (AFlow, arXiv 2602.08826)."""

    empathy: int = Field(ge=1, le=5)
    information: int = Field(ge=1, le=5)
    humanlikeness: int = Field(ge=1, le=5)
    strategic: int = Field(ge=1, le=5)

    @property
    def reward(self) -> float:
        """R = (0.1·E + 0.1·I + 0.1·H + 0.2·S)/2.5, in [0.2, 1]."""
        return (self.empathy + self.information + self.humanlikeness + 2 * self.strategic) / 25


class EpisodeTurn(Record):
    """One exchange of self-play and what critics and the turn judge said after it.

    Attributes:
        t: 1-based turn.
        strategy: The strategy that the supporter was given, None without a strategist.
        seeker: The seeker's answer; None if it failed.
        readings: One reading per critic preset that was still asked.
        ratings: The turn judge's ratings; None without a judge, or where it gave no readable answer.
        ratings_unscored: Why an asked judge gave none.
    """

    t: int = Field(ge=1)
    supporter: Generation
    strategy: str | None = None
    seeker: str | None = None
    readings: dict[str, CriticReading] = Field(default_factory=dict)
    ratings: TurnRatings | None = None
    ratings_unscored: str | None = None


class Future(Reasoned):
    """The simulated continuation of one candidate.

    Attributes:
        exchanges: The whole future; exchange 0 holds the candidate.
        k: Exchanges played after the first and scored.
        reward_num: Numerator of the reward as an exact fraction; None if the future failed.
        reward_den: Denominator of the reward.
        reward: The same as a float, for reading only.
        usage: Calls and tokens per role.
    """

    SCHEMA: ClassVar[str] = "esckit.future/1"

    id: str
    context_id: str
    dialogue_id: str
    candidate: int
    run_seed: int
    outcome: Outcome
    k: int
    reward_num: int | None = None
    reward_den: int | None = None
    reward: float | None = None
    exchanges: tuple[Exchange, ...] = ()
    failure: Failure | None = None
    usage: dict[str, Usage] = Field(default_factory=dict)

    @property
    def fraction(self) -> Fraction | None:
        """The reward, exactly; None if the future failed."""
        if self.reward_num is None or self.reward_den is None:
            return None
        return Fraction(self.reward_num, self.reward_den)


class TreeNode(Record):
    """A node of a search tree; the edge into it lives on it.

    Attributes:
        id: Path from the root: ``r``, then ``r.EV``, ``r.EV.Cla`` …
        strategy: Name of the strategy on the edge into the node; None at the root.
        turns: The node's own turns only.
        prior: Smoothed strategist probabilities at this node in taxonomy order; None if terminal.
        visits: Visits of the edge into the node; at the root, simulations backed up.
        value: Mean return of those visits, in [0, 1]; None without any, as at the root where every simulation failed.
        reward: Reward of the node's own supporter turn; None at the root.
        first_return: Return of the simulation that created the node; None at the root.
    """

    id: str
    parent: str | None
    depth: int
    strategy: str | None
    turns: tuple[Turn, ...]
    prior: tuple[float, ...] | None
    visits: int
    value: float | None
    reward: float | None = None
    ratings: dict[str, float] | None = None
    first_return: float | None = None
    outcome: Outcome | None = None

    @property
    def mean_return(self) -> float:
        """The value of a node that was visited.

        Raises:
            DataError: If it was not.
        """
        if self.value is None:
            raise DataError(f"node {self.id} without a value", expected="a node that was visited")
        return self.value


class SearchTree(Reasoned):
    """One search tree with everything needed to train from it.

    Attributes:
        id: ``{scenario id}#{k}``.
        prior_source: Digest of the prompt or the checkpoint that gave the priors.
        readout: How the critic was read; trees of different readouts do not mix.
        status: ``complete``, ``failed`` (not used for training) or ``linear`` (a corpus dialogue as a tree).
        nodes: In creation order; the first is the root.
    """

    SCHEMA: ClassVar[str] = "esckit.tree/1"

    id: str
    scenario: Scenario
    split: str | None
    run_seed: int
    taxonomy: str
    strategies: tuple[str, ...]
    round: int
    prior_source: str
    readout: str
    prompts: dict[str, str]
    mcts: dict[str, float | int | bool]
    status: Literal["complete", "failed", "linear"]
    nodes: tuple[TreeNode, ...]
    failures: tuple[Failure, ...] = ()
    usage: dict[str, Usage] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One decision of a trajectory.

    Attributes:
        state: The node at which the strategy was chosen.
        action: Index of the strategy in taxonomy order.
    """

    state: TreeNode
    action: int


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A root-to-leaf path.

    Attributes:
        id: ``{run seed}/{tree id}/{leaf id}``.
        steps: The decisions, root first.
        leaf: The node in which it ends, terminal or never expanded.
    """

    id: str
    steps: tuple[Step, ...]
    leaf: TreeNode

    @property
    def leaf_value(self) -> float:
        """Search value of the leaf, in [0, 1]."""
        return self.leaf.mean_return

    @property
    def outcome(self) -> Outcome | None:
        """How the path ended; None for a leaf that was never expanded."""
        return self.leaf.outcome


def children_of(tree: SearchTree) -> dict[str, tuple[TreeNode, ...]]:
    """Return the children of every node in taxonomy order, keyed by node id; leaves have an empty tuple.

    Raises:
        DataError: If a node's parent is missing or its strategy is not of the tree's taxonomy.
    """
    order = {name: index for index, name in enumerate(tree.strategies)}
    found: dict[str, list[TreeNode]] = {node.id: [] for node in tree.nodes}
    for node in tree.nodes:
        if node.parent is None:
            continue
        if node.parent not in found:
            raise DataError(f"node {node.id} of tree {tree.id} without its parent {node.parent}")
        if node.strategy not in order:
            raise DataError(f"strategy {node.strategy!r} in tree {tree.id}", expected=f"one of {tree.strategies}")
        found[node.parent].append(node)
    return {
        node_id: tuple(sorted(nodes, key=lambda node: order[node.strategy or ""])) for node_id, nodes in found.items()
    }


def main_line(tree: SearchTree) -> list[TreeNode]:
    """Return the path from the root along the most visited child; of equals the higher value, then the older one."""
    children: dict[str | None, list[TreeNode]] = {}
    for node in tree.nodes:
        children.setdefault(node.parent, []).append(node)
    line = [tree.nodes[0]]
    while below := children.get(line[-1].id):
        # Nodes of a failed tree may have no value; they come last.
        line.append(max(below, key=lambda node: (node.visits, -1.0 if node.value is None else node.value)))
    return line


def trajectories(tree: SearchTree, *, min_actions: int) -> tuple[Trajectory, ...]:
    """Return every root-to-leaf path with at least ``min_actions`` actions.

    Depth first, children in taxonomy order. Nothing is filtered by reward (arXiv 2602.08826).

    Raises:
        DataError: If the tree is not whole.
    """
    children = children_of(tree)
    found: list[Trajectory] = []
    stack: list[tuple[TreeNode, tuple[Step, ...]]] = [(tree.nodes[0], ())]
    while stack:
        node, steps = stack.pop()
        if not children[node.id] and len(steps) >= min_actions:
            found.append(Trajectory(f"{tree.run_seed}/{tree.id}/{node.id}", steps, node))
        # A stack reverses, and the first child has to come out first.
        for child in reversed(children[node.id]):
            action = tree.strategies.index(child.strategy or "")
            if node.prior is None or not node.prior[action] > 0.0:
                raise DataError(f"node {node.id} of tree {tree.id} has a child but no positive prior of its strategy")
            stack.append((child, (*steps, Step(node, action))))
    return tuple(found)


def child_values(
    tree: SearchTree, state: TreeNode, children: Mapping[str, tuple[TreeNode, ...]]
) -> tuple[float | None, ...]:
    """Return the search values Q(state, a) in taxonomy order, None where the strategy was never tried."""
    values: list[float | None] = [None] * len(tree.strategies)
    for child in children[state.id]:
        values[tree.strategies.index(child.strategy or "")] = child.value
    return tuple(values)
