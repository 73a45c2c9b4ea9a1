"""The report of a ``simulate`` run: outcomes, rewards, the critic over the exchanges, and the futures themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from esckit.report.blocks import ABSENT, Bars, Block, Lines, Note, Section, Table, Tile, Tiles
from esckit.report.explorers import futures_explorer
from esckit.report.numbers import number, share
from esckit.report.source import Run, section
from esckit.report.spread import bin_of, bins, mean_and_quartiles
from esckit.types import Context, Future, Outcome

_ENDS = (Outcome.RESOLVED, Outcome.MAX_TURNS)


def simulate_sections(run: Run, other: Run | None) -> list[Section]:
    """Return what a run's futures look like, and the futures; those of another run beside them."""
    contexts = run.records(Context, "contexts.jsonl")
    futures = run.records(Future, "futures.jsonl")
    if not futures:
        return [Section("Futures", (Note("The run has no futures yet.", "warning"),))]
    scored = [future for future in futures if future.reward is not None]
    return [
        Section("Outcome", (_tiles(run, contexts, futures, scored), *_charts(scored), _by_candidate(futures))),
        Section("Futures", (futures_explorer(run, contexts, futures, other),)),
    ]


def _tiles(run: Run, contexts: Sequence[Context], futures: Sequence[Future], scored: Sequence[Future]) -> Tiles:
    summary = section({"s": run.json("summary.json")}, "s")
    resolved = sum(future.outcome is Outcome.RESOLVED for future in scored)
    rewards = [future.reward for future in scored if future.reward is not None]
    dialogues = len({context.dialogue_id for context in contexts})
    return Tiles(
        (
            Tile("futures", number(len(futures)), f"{number(len(contexts))} contexts of {number(dialogues)} dialogues"),
            Tile("resolved", share(resolved / len(scored) if scored else None), f"of {number(len(scored))} scored"),
            Tile("mean reward", number(sum(rewards) / len(rewards) if rewards else None), f"n {number(len(rewards))}"),
            Tile("mean exchanges", number(sum(future.k for future in scored) / len(scored) if scored else None),
                 "after the first"),
            Tile("failed", number(len(futures) - len(scored)), f"of {number(len(futures))} futures"),
            Tile("exact form", share(summary.get("format_ok_share")), "of supporter outputs"),
        )
    )  # fmt: skip


def _charts(scored: Sequence[Future]) -> list[Block]:
    if not scored:
        return []
    return [_histogram(scored), *_curves(scored)]


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


def _curves(scored: Sequence[Future]) -> list[Block]:
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
    rows = []
    for candidate in sorted({future.candidate for future in futures}):
        here = [future for future in futures if future.candidate == candidate]
        rewards = [future.reward for future in here if future.reward is not None]
        rows.append(
            (
                f"c{candidate}",
                number(len(here)),
                *(number(sum(future.outcome is outcome for future in here)) for outcome in (*_ENDS, Outcome.FAILED)),
                number(sum(rewards) / len(rewards)) if rewards else ABSENT,
            )
        )
    columns = ("candidate", "n", *(outcome.value for outcome in (*_ENDS, Outcome.FAILED)), "mean reward")
    return Table(columns, tuple(rows), title="Outcome by candidate")
