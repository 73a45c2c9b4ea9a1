"""What ``simulate`` and ``search`` played: futures and trees in numbers, then the records to walk through."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from esckit.report.blocks import (
    Bars,
    Block,
    Lines,
    Note,
    Section,
    Table,
    Tile,
    Tiles,
    bin_of,
    bins,
    flow_of,
    mean_and_quartiles,
)
from esckit.report.explorers import futures_explorer, trees_explorer
from esckit.report.source import Run, number, share
from esckit.types import Context, Future, Outcome, SearchTree, main_line


def search_sections(run: Run) -> list[Section]:
    """Return what a run's trees look like, and the trees."""
    trees = run.records(SearchTree, "trees.jsonl")
    if not trees:
        return [Section("Forest", (Note("The run has no trees yet.", "warning"),))]
    usable = [tree for tree in trees if tree.status != "failed"]
    blocks: list[Block | None] = [_tiles(trees, usable)]
    if usable:
        bars, table = _strategies(usable)
        paths = [[node.strategy for node in main_line(tree)[1:] if node.strategy] for tree in usable]
        flow = flow_of("strategy_flow", "Strategies along the most visited path of every tree", paths)
        blocks += [bars, _by_depth(usable), flow, table, _ends(usable), *_by_split(usable)]
    shown = tuple(block for block in blocks if block is not None)
    return [Section("Forest", shown), Section("Trees", (trees_explorer(run, trees),))]


def _tiles(trees: Sequence[SearchTree], usable: Sequence[SearchTree]) -> Tiles:
    returns = [value for tree in usable if (value := tree.nodes[0].value) is not None]
    nodes = [len(tree.nodes) for tree in usable]
    ends = Counter(node.outcome for tree in usable for node in tree.nodes if node.outcome)
    depths = [max(node.depth for node in tree.nodes) for tree in usable]
    return Tiles(
        (
            Tile("trees", number(len(trees)), f"{number(len(trees) - len(usable))} failed"),
            Tile("simulations", number(sum(tree.nodes[0].visits for tree in usable)), "backed up in all"),
            Tile("mean return", number(_mean(returns)), f"n {number(len(returns))} trees"),
            Tile("nodes per tree", number(_mean(nodes)), "mean"),
            Tile("depth", number(_mean(depths)), "deepest leaf, mean over trees"),
            Tile("resolved", share(ends[Outcome.RESOLVED] / ends.total() if ends else None),
                 f"of {number(ends.total())} ended paths"),
        )
    )  # fmt: skip


def _strategies(trees: Sequence[SearchTree]) -> tuple[Bars, Table]:
    names = list(dict.fromkeys(name for tree in trees for name in tree.strategies))
    visits: Counter[str] = Counter()
    prior = dict.fromkeys(names, 0.0)
    n_priors = 0
    for tree in trees:
        for node in tree.nodes:
            if node.strategy is not None:
                visits[node.strategy] += node.visits
            if node.prior is not None:
                n_priors += 1
                for name, p in zip(tree.strategies, node.prior, strict=True):
                    prior[name] += p
    rows = tuple(
        (name, number(visits[name]), share(visits[name] / (visits.total() or 1)), share(prior[name] / (n_priors or 1)))
        for name in names
    )
    chart = Bars(
        "strategy_visits",
        "Visits by strategy",
        "strategy",
        "visits",
        tuple(names),
        (("visits", tuple(float(visits[name]) for name in names)),),
    )
    table = Table(("strategy", "visits", "share of visits", "mean prior"), rows, title="What search does to the prior")
    return chart, table


def _by_depth(trees: Sequence[SearchTree]) -> Lines:
    values: dict[int, list[float]] = defaultdict(list)
    for tree in trees:
        for node in tree.nodes:
            if node.reward is not None:
                values[node.depth].append(node.reward)
    return Lines(
        "reward_by_depth",
        "Critic reward by depth",
        "depth in the tree",
        "reward of the node's turn",
        (mean_and_quartiles("mean", values),),
        band="middle half of the nodes",
    )


def _ends(trees: Sequence[SearchTree]) -> Table:
    ends = [node for tree in trees for node in tree.nodes if node.outcome]
    rows = []
    for outcome in (Outcome.RESOLVED, Outcome.DISENGAGED, Outcome.MAX_TURNS):
        here = [node for node in ends if node.outcome is outcome]
        returns = [node.mean_return for node in here]
        depths = [node.depth for node in here]
        of_all = share(len(here) / len(ends) if ends else None)
        rows.append((outcome.value, number(len(here)), of_all, number(_mean(returns)), number(_mean(depths))))
    columns = ("outcome", "n", "share of ended paths", "mean return", "mean depth")
    return Table(columns, tuple(rows), title="How paths end")


def _by_split(trees: Sequence[SearchTree]) -> list[Table]:
    """Return the mean return by split: another round is worth it while that of the validation trees rises."""
    returns: dict[str, list[float]] = defaultdict(list)
    for tree in trees:
        if tree.split is not None and (value := tree.nodes[0].value) is not None:
            returns[tree.split].append(value)
    rows = tuple((split, number(len(values)), number(_mean(values))) for split, values in sorted(returns.items()))
    return [Table(("split", "trees", "mean return"), rows, title="Return by split")] if rows else []


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


# ---------------------------------------------------------------- simulate


_ENDS = (Outcome.RESOLVED, Outcome.MAX_TURNS)


def simulate_sections(run: Run, other: Run | None) -> list[Section]:
    """Return what a run's futures look like, and the futures; those of another run beside them."""
    contexts = run.records(Context, "contexts.jsonl")
    futures = run.records(Future, "futures.jsonl")
    if not futures:
        return [Section("Futures", (Note("The run has no futures yet.", "warning"),))]
    scored = [future for future in futures if future.reward is not None]
    charts: list[Block] = [_histogram(scored), *_critic_by_exchange(scored)] if scored else []
    return [
        Section("Outcome", (_outcome_tiles(run, contexts, futures, scored), *charts, _by_candidate(futures))),
        Section("Futures", (futures_explorer(run, contexts, futures, other),)),
    ]


def _outcome_tiles(run: Run, contexts: Sequence[Context], futures: Sequence[Future], scored: Sequence[Future]) -> Tiles:
    resolved = sum(future.outcome is Outcome.RESOLVED for future in scored)
    rewards = [future.reward for future in scored if future.reward is not None]
    dialogues = len({context.dialogue_id for context in contexts})
    exact = run.object("summary.json").get("format_ok_share")
    return Tiles(
        (
            Tile("futures", number(len(futures)), f"{number(len(contexts))} contexts of {number(dialogues)} dialogues"),
            Tile("resolved", share(resolved / len(scored) if scored else None), f"of {number(len(scored))} scored"),
            Tile("mean reward", number(_mean(rewards)), f"n {number(len(rewards))}"),
            Tile("mean exchanges", number(_mean([future.k for future in scored])), "after the first"),
            Tile("failed", number(len(futures) - len(scored)), f"of {number(len(futures))} futures"),
            Tile("exact form", share(exact), "of supporter outputs"),
        )
    )


def _histogram(scored: Sequence[Future]) -> Bars:
    rewarded = [(future.outcome, future.reward) for future in scored if future.reward is not None]
    rewards = [reward for _, reward in rewarded]
    start, width = bins(rewards)
    counts = {end: Counter(bin_of(each, start, width) for how, each in rewarded if how is end) for end in _ENDS}
    n_bins = max(bin_of(reward, start, width) for reward in rewards) + 1
    return Bars(
        "rewards",
        "Rewards of futures, by outcome",
        f"reward (bins of {number(width)})",
        "futures",
        tuple(f"{start + index * width:.4g}" for index in range(n_bins)),
        tuple((end.value, tuple(float(counts[end][index]) for index in range(n_bins))) for end in _ENDS),
    )


def _critic_by_exchange(scored: Sequence[Future]) -> list[Block]:
    by_exchange: dict[int, list[float]] = defaultdict(list)
    for future in scored:
        for exchange in future.exchanges:
            if exchange.reading is not None:
                by_exchange[exchange.k].append(exchange.reading.value)
    if not by_exchange:
        return []
    return [
        Lines(
            "critic_by_exchange",
            "Critic value by exchange",
            "exchange",
            "critic value",
            (mean_and_quartiles("mean", by_exchange),),
            band="middle half of the futures still running",
            marks=(("1/2", 0.5),),
        )
    ]


def _by_candidate(futures: Sequence[Future]) -> Table:
    ends = (*_ENDS, Outcome.FAILED)
    rows = []
    for candidate in sorted({future.candidate for future in futures}):
        here = [future for future in futures if future.candidate == candidate]
        rewards = [future.reward for future in here if future.reward is not None]
        counts = [sum(future.outcome is end for future in here) for end in ends]
        rows.append((f"c{candidate}", *map(number, (len(here), *counts, _mean(rewards)))))
    columns = ("candidate", "n", *(end.value for end in ends), "mean reward")
    return Table(columns, tuple(rows), title="Outcome by candidate")
