"""Corpora and run folders of any size, and what a command on them takes in memory."""

import multiprocessing
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from esckit.records import write_lines, write_records
from esckit.types import Dialogue, Scenario, Turn

N_CONTEXTS = 10
"""Contexts of each dialogue."""


def dialogues(n: int) -> Iterator[Dialogue]:
    """Yield dialogues of 21 turns, no two alike."""
    for number in range(n):
        texts = (f"Turn {at} of talk {number}: every week it got worse, and I saw it coming." for at in range(21))
        turns = tuple(Turn(speaker="supporter" if at % 2 else "seeker", text=text) for at, text in enumerate(texts))
        situation = f"In case {number} they ended my contract without a word, and I cannot tell my family."
        yield Dialogue(scenario=Scenario(id=f"talk-{number:06}", situation=situation), turns=turns)


def write_corpus(path: Path, n: int) -> str:
    """Write a corpus of so many dialogues, and return what ``data`` is then in a recipe."""
    write_records(path, dialogues(n))
    return f"data={{dataset: jsonl, path: {path}, merge: true}}"


def write_finished(path: Path, ids: Sequence[str]) -> None:
    """Write one line for every unit, each a copy of the first line of the file under another id."""
    with path.open("rb") as source:
        first = source.readline()
    head, _, rest = first.partition(b'"id":"')
    end = rest.index(b'"')
    write_lines(path, (head + b'"id":"' + name.encode() + rest[end:] for name in ids))


def peak_mb(command: str, *changes: str, out: Path) -> float:
    """Run a recipe in a process of its own, and return its peak resident memory in MB.

    Args:
        command: A command that plays; its smoke recipe with scripted models is run.
        changes: Fields of the recipe, as for ``--set``.
        out: The run folder.
    """
    return _peak_mb(_play, command, changes, out)


def inspect_mb(corpus: Path) -> float:
    """Return the peak resident memory of ``data inspect`` in MB."""
    return _peak_mb(_inspect, corpus)


def _peak_mb(work: Callable[..., None], *given: Any) -> float:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(send, work, *given))
    process.start()
    send.close()
    try:
        found: float = receive.recv()
    except EOFError:
        raise AssertionError(f"{work.__name__} of {given[0]} failed") from None
    finally:
        process.join()
    return found


def _measured(send: "multiprocessing.connection.Connection", work: Callable[..., None], *given: Any) -> None:
    from esckit.cli.app import main  # noqa: F401 - what a command has loaded anyway

    work(*given)
    send.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _play(command: str, changes: Sequence[str], out: Path) -> None:
    from importlib import import_module

    from esckit.config.load import RECIPES, load_recipe

    kind = RECIPES.resolve(command)
    recipe = load_recipe(f"smoke/{command}_scripted", kind, overrides=list(changes)).recipe
    import_module(f"esckit.{command}.run").run(recipe, out=out)


def _inspect(corpus: Path) -> None:
    from esckit.data.conversion import Access, inspect_corpus

    inspect_corpus(Access(str(corpus)))
