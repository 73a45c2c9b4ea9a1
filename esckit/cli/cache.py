"""``esckit cache``: what the response cache holds, what to delete of it, and whether it is whole.

Not here: the cache itself (:mod:`esckit.models.cache`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esckit.cli.common import JsonOption, echo, echo_facts, echo_json
from esckit.cli.forecast import duration, echo_table, number, readable_size
from esckit.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Look at, prune and verify the file with the answers of servers, which a run asks for once.",
    pretty_exceptions_enable=False,
)

FileArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", show_default=False, help="The file; by default the one that ESCKIT_CACHE names."),
]


def _named(file: Path | None) -> Path:
    from esckit.models.cache import VARIABLE, cache_path

    path = cache_path(str(file) if file is not None else None)
    if path is None:
        raise ConfigError("no cache is named", expected=f"a file, or the environment variable {VARIABLE}")
    return path


@app.command()
def info(file: FileArgument = None, as_json: JsonOption = False) -> None:
    """Print the size of a cache, and how many answers of which models it holds, for what and how old."""
    from esckit.models.cache import CacheFile

    with CacheFile(_named(file)) as cache:
        facts = cache.facts()
    if as_json:
        echo_json(facts)
        return
    models = facts["models"]
    echo_facts(
        {"file": facts["file"], "size": readable_size(facts["bytes"]), "answers": facts["answers"]}, as_json=False
    )
    if not models:
        return
    kinds = [kind for kind in _KINDS if any(kind in one for one in models.values())]
    rows = [
        (
            name,
            *(number(one.get(kind, 0)) for kind in ("answers", *kinds, "characters")),
            *(_age(one[end]) if one["answers"] else "–" for end in ("newest_days", "oldest_days")),
        )
        for name, one in models.items()
    ]
    echo("")
    echo_table(("model", "answers", *(_KINDS[kind] for kind in kinds), "characters", "newest", "oldest"), rows)


_KINDS = {
    "complete": "replies",
    "complete_several": "groups of replies",
    "score": "scores",
    "next_token": "next tokens",
}
"""What an answer is, by what was asked for."""


def _age(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else duration(days * 86_400)


@app.command()
def prune(
    file: FileArgument = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", min=0.0, show_default=False, help="Answers older than this."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", show_default=False, help="Answers of this model, as info names it."),
    ] = None,
    max_size: Annotated[
        float | None,
        typer.Option(
            "--max-size", metavar="MB", min=0.0, show_default=False, help="The oldest answers, until the rest fits."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Delete answers from a cache, and give their space back.

    With --older-than and --model together, the old answers of this model are deleted.
    """
    from esckit.models.cache import CacheFile

    if older_than is None and model is None and max_size is None:
        raise ConfigError("nothing to prune", expected="--older-than, --model or --max-size")
    max_bytes = None if max_size is None else int(max_size * 1_000_000)
    with CacheFile(_named(file)) as cache:
        if model is not None and model not in (known := cache.facts()["models"]):
            raise ConfigError(f"no answers of {model!r}", expected=f"one of {', '.join(known) or 'no model'}")
        facts = cache.prune(older_than_days=older_than, model=model, max_bytes=max_bytes)
    if as_json:
        echo_json(facts)
        return
    answers = {name: f"{facts[name]:,} answers" for name in ("deleted", "left")}
    echo_facts({"file": facts["file"], **answers, "size": readable_size(facts["bytes"])}, as_json=False)


@app.command()
def verify(file: FileArgument = None, as_json: JsonOption = False) -> None:
    """Check a whole cache: SQLite's own check, and every answer against its digest. Exits with 1 if one is wrong."""
    from esckit.models.cache import CacheFile

    with CacheFile(_named(file)) as cache:
        faults = cache.faults()
        facts = {"file": str(cache.path), "faults": faults} if faults else {**cache.facts(), "faults": []}
    if as_json:
        echo_json(facts)
    else:
        for fault in faults:
            echo(f"fault: {fault}", err=True)
        echo_facts({"file": facts["file"], "faults": len(faults)}, as_json=False)
    if faults:
        raise typer.Exit(1)
