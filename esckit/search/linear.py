"""A corpus dialogue as a tree without branches: what AFlow (arXiv 2602.08826) trains on without a search.

Where the values of that ablation come from is not published. Here the critic scores every supporter turn, and the value
of the node after turn t is the mean of R_t … R_{t+L}, cut at the end of the dialogue: the same return as in a search,
on the reference path. The root's value is the mean over the supporter turns of the path. Supporter turns without a
strategy stay in the text, are scored, and are no decisions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import NamedTuple, TypeVar

from esckit.errors import DataError
from esckit.ledger import Scope
from esckit.protocols import Critic, Decision, StrategyPolicy
from esckit.roles.asking import gather_all
from esckit.search.expansion import CallFailed, recorded, rubric_ratings, smoothed
from esckit.search.recipe import Mcts
from esckit.search.tree import Node, Provenance, Task, Tree
from esckit.types import Failure, FailureStage, Score, SearchTree, Turn

T = TypeVar("T")


class _ScoredTurn(NamedTuple):
    """A supporter turn: the node it stands in or after, its number there, and the dialogue up to it."""

    node: Node
    step: int
    dialogue: tuple[Turn, ...]
    on_path: bool


async def score_linear(
    task: Task, *, critic: Critic, strategist: StrategyPolicy, knobs: Mcts, provenance: Provenance
) -> SearchTree:
    """Return a dialogue as a tree of one path, status ``linear``, or ``failed`` if any call gave nothing usable.

    Args:
        task: The dialogue.
        critic: Scores each supporter turn, given the dialogue up to it.
        strategist: Gives the priors of the decisions.
        knobs: Most decisions taken from a dialogue (``max_depth``), supporter turns L after a decision whose scores
            enter its value (``rollout_turns``), and the smoothing of priors.
        provenance: What the record says about its origin.

    Raises:
        DataError: If a turn has a strategy of another taxonomy.
    """
    tree = Tree(task, provenance)
    spoken = _lay_out(tree, knobs)
    deciding = tree.nodes[:-1]

    async def score(turn: _ScoredTurn) -> Score | Failure:
        scope = tree.ledger.at(turn.node.id, turn.step)
        return await _answer("critic", scope, critic.score(task.scenario, turn.dialogue, scope))

    async def decide(node: Node) -> Decision | Failure:
        scope = tree.ledger.at(node.id, 0)
        return await _answer("strategist", scope, strategist.decide(task.scenario, node.dialogue(), scope))

    scores, decisions = await gather_all(gather_all(*map(score, spoken)), gather_all(*map(decide, deciding)))
    tree.failures += [answer for answer in (*scores, *decisions) if isinstance(answer, Failure)]
    if not tree.failures:
        for node, decision in zip(deciding, decisions, strict=True):
            node.prior = smoothed(decision.probabilities, knobs.prior_smoothing)
        _set_values(tree, spoken, scores, knobs.rollout_turns)
    mcts = knobs.model_dump(include={"max_depth", "rollout_turns", "prior_smoothing"})
    return tree.record("failed" if tree.failures else "linear", mcts)


def _lay_out(tree: Tree, knobs: Mcts) -> list[_ScoredTurn]:
    """Make the nodes; return the supporter turns to score."""
    dialogue = tree.task.opening
    node = tree.add(dialogue)
    spoken: list[_ScoredTurn] = []
    on_path = True
    for turn in tree.task.rest:
        dialogue = (*dialogue, turn)
        if turn.speaker == "supporter":
            if turn.strategy is not None and node.depth == knobs.max_depth:
                on_path = False
            elif turn.strategy is not None:
                node = tree.add((), (node, _index(tree, turn.strategy)))
            if node.depth > 0:
                step = sum(1 for earlier in spoken if earlier.node is node)
                spoken.append(_ScoredTurn(node, step, dialogue, on_path))
        if on_path:
            node.turns = (*node.turns, turn)
    last = max((number for number, turn in enumerate(spoken) if turn.step == 0), default=-1)
    return [turn for number, turn in enumerate(spoken) if turn.on_path or number <= last + knobs.rollout_turns]


def _index(tree: Tree, strategy: str) -> int:
    names = tree.provenance.taxonomy.names
    if strategy not in names:
        raise DataError(
            f"strategy {strategy!r}",
            field="strategy",
            expected=f"one of {', '.join(names)}",
            hint="Set data.mapping to one that leads to the search's taxonomy",
        )
    return names.index(strategy)


def _set_values(tree: Tree, spoken: Sequence[_ScoredTurn], scores: Sequence[Score], horizon: int) -> None:
    rewards = [score.reward for score in scores]
    for number, (turn, score) in enumerate(zip(spoken, scores, strict=True)):
        if turn.step == 0:
            ahead = rewards[number : number + horizon + 1]
            turn.node.reward, turn.node.ratings = score.reward, rubric_ratings(score)
            turn.node.visits, turn.node.value = 1, sum(ahead) / len(ahead)
            turn.node.first_return = turn.node.value
    if spoken:
        on_path = [reward for turn, reward in zip(spoken, rewards, strict=True) if turn.on_path]
        tree.root.visits, tree.root.value = 1, sum(on_path) / len(on_path)


async def _answer(stage: FailureStage, scope: Scope, call: Awaitable[T]) -> T | Failure:
    try:
        return await recorded(stage, scope, call)
    except CallFailed as failed:
        return failed.failure
