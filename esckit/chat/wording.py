"""What a chat says about itself, as lines of plain text: the notice at its start, strategies, reasons and readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from esckit.chat.recipe import ChatRecipe
from esckit.chat.talk import Entry
from esckit.config.sections import EndpointAddress, EndpointBinding, ManagedServer
from esckit.roles.verdicts import load_preset
from esckit.strategies.taxonomy import Taxonomy
from esckit.text import n_words
from esckit.types import CriticReading, Score

NOTICE = (
    "This is a research tool. A language model answers here: it is no therapist, no doctor and no crisis service. "
    "It can say wrong and hurtful things, and nobody reads along. If you need help, talk to a person."
)

_BAR = 12


def privacy(recipe: ChatRecipe, kept_in: str | None) -> str:
    """Return where the words of a chat go.

    Args:
        recipe: Who takes part.
        kept_in: The folder that keeps them; None if nothing keeps them.
    """
    servers = dict.fromkeys(filter(None, map(_server, recipe.models.bindings().values())))
    sent = f"It is sent to {', '.join(servers)}, and nowhere else" if servers else "It is sent nowhere"
    kept = f"is kept in {kept_in} on this machine" if kept_in else "is not kept"
    return f"What you write {kept}. {sent}."


def _server(binding: object) -> str | None:
    if not isinstance(binding, EndpointBinding):
        return None
    match binding.endpoint:
        case EndpointAddress(base_url=address):
            return address
        case ManagedServer():
            return "a server that this run starts"
        case name:
            return f"the server of {name}"


class Command(NamedTuple):
    """A command of the terminal: how it is written, and what it does."""

    usage: str
    does: str


COMMANDS = {
    "/strategy": Command(
        "/strategy [NAME]", "show the strategies, or name that of the next reply ('none' takes it back)"
    ),
    "/why": Command("/why", "show the reasoning, the strategies' probabilities and values behind the last reply"),
    "/critic": Command("/critic", "have the critic read the conversation now"),
    "/undo": Command("/undo", "take back the last exchange"),
    "/again": Command("/again", "ask for the last reply anew"),
    "/save": Command("/save FILE", "write the conversation as a dialogue that every command reads"),
    "/help": Command("/help", "show this list"),
    "/quit": Command("/quit", "leave, as Ctrl-D does; the conversation is kept"),
}
"""What a user can type beside words for the supporter."""


def help_lines() -> list[str]:
    """Return the list of commands."""
    width = max(len(command.usage) for command in COMMANDS.values())
    listed = [f"{command.usage:<{width}}  {command.does}" for command in COMMANDS.values()]
    return [*listed, "Ctrl-C stops a reply. Two slashes at the beginning (//) say one."]


def heading(entry: Entry, taxonomy: Taxonomy | None) -> str | None:
    """Return what stands above a reply: its strategy with the policy's probability and value; None without one."""
    if entry.strategy is None:
        return None
    about = ["named by you"] if entry.is_forced else []
    if taxonomy is not None and entry.probabilities is not None:
        index = taxonomy.index(entry.strategy)
        about.append(f"probability {entry.probabilities[index]:.2f}")
        if entry.values is not None:
            about.append(f"value {entry.values[index]:.2f}")
    return entry.strategy + (f" ({', '.join(about)})" if about else "")


def folded(entry: Entry) -> str | None:
    """Return the line that stands for the reasoning of a reply; None if there is none."""
    reasoning = entry.supporter.reasoning if entry.supporter else None
    if not reasoning:
        return None
    n = n_words(reasoning)
    return f"(reasoned {n} {'word' if n == 1 else 'words'}; /why shows them)"


def why_lines(entry: Entry, taxonomy: Taxonomy | None, *, bar: str = "█") -> list[str]:
    """Return what stands behind a reply."""
    lines = []
    if entry.strategy is not None:
        lines.append(f"strategy: {heading(entry, taxonomy)}")
    if taxonomy is not None and entry.probabilities is not None:
        lines += bar_lines(taxonomy.names, entry.probabilities, entry.values, bar=bar)
    if not lines:
        lines.append("No strategy was named for this reply.")
    reasoning = entry.supporter.reasoning if entry.supporter else None
    lines.append(f"reasoning: {reasoning}" if reasoning else "The supporter wrote no reasoning.")
    if entry.failure is not None:
        lines.append(failed(entry))
    return lines


def bar_lines(
    names: Sequence[str], probabilities: Sequence[float], values: Sequence[float] | None, *, bar: str = "█"
) -> list[str]:
    """Return a line for each strategy: its probability as number and bar, and its value if there is one."""
    width = max(map(len, names))
    lines = []
    for index, (name, p) in enumerate(zip(names, probabilities, strict=True)):
        value = f"  value {values[index]:.2f}" if values is not None else ""
        lines.append(f"  {name:<{width}}  {p:.2f} {bar * round(p * _BAR):<{_BAR}}{value}".rstrip())
    return lines


def strategy_lines(entry: Entry | None, taxonomy: Taxonomy, forced: str | None, *, bar: str = "█") -> list[str]:
    """Return the strategies: with the last decision's probabilities, or before there is one with what they mean."""
    if entry is not None and entry.probabilities is not None:
        lines = ["At the last reply:", *bar_lines(taxonomy.names, entry.probabilities, entry.values, bar=bar)]
    else:
        lines = [f"  {strategy.name}: {strategy.definition}" for strategy in taxonomy.strategies]
    return [*lines, f"Next: {forced}, as you said." if forced else "/strategy NAME names that of the next reply."]


def score_lines(score: Score) -> list[str]:
    """Return a critic's reading."""
    numbers = ", ".join(f"{name} {value:.2f}" for name, value in score.values.items())
    reading = score.reading
    lines = [f"critic {reading.critic}: {numbers}"]
    if isinstance(reading, CriticReading):
        preset = load_preset(reading.critic.partition("/")[0])
        shares = reading.weights or [n / reading.n_parsed for n in reading.counts or ()]
        lines += [f"  {level}: {share:.2f}" for level, share in zip(preset.levels, shares, strict=False) if share > 0]
    return lines


def failed(entry: Entry) -> str:
    """Return what to say of a reply that did not come."""
    failure = entry.failure
    if failure is None:
        return "There is no reply yet."
    if failure.kind == "stopped":
        return "The reply was stopped. /again asks for it once more."
    return f"No reply: the {failure.stage} failed ({failure.message}). What you said is kept; /again asks once more."
