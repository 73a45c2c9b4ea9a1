"""What all commands share: logging on stderr, the gate that all printed text passes, and common arguments and options.

Not here: the progress display (:mod:`esckit.cli.progress`).
"""

from __future__ import annotations

import glob
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from esckit.errors import ConfigError

# C0 without tab and line feed, DEL, C1; line ends and directions that a terminal may act on; lone surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options before the command's name say."""

    quiet: bool = False
    verbose: int = 0

    @property
    def level(self) -> int:
        """Lowest level of esckit's own messages that is shown."""
        if self.quiet:
            return logging.ERROR
        return (logging.WARNING, logging.INFO, logging.DEBUG)[min(self.verbose, 2)]


def printable(text: str) -> str:
    r"""Return a text without characters that a terminal acts on: each is written out, as JSON does (``\u001b``)."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text through the gate; every command prints with it."""
    typer.echo(printable(text), err=err, nl=nl)


class StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment, so that lines pass above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        sys.stderr.write(printable(f"{record.levelname.lower()}: {self.format(record)}\n"))


def configure_logging(settings: Settings) -> None:
    """Let all loggers write to stderr: esckit's at the level that was asked for, those of libraries their errors.

    Libraries warn of what a user can do nothing about, so that their warnings are shown with ``--verbose`` only.
    """
    root = logging.getLogger()
    for handler in tuple(root.handlers):
        if isinstance(handler, StderrHandler):
            root.removeHandler(handler)
    handler = StderrHandler(logging.ERROR if settings.quiet else logging.NOTSET)
    root.addHandler(handler)
    logging.getLogger("esckit").setLevel(settings.level)
    # This one writes to stdout, where results go.
    logging.getLogger("DeepSpeed").addFilter(_handled_by_root)
    if settings.verbose:
        logging.captureWarnings(True)
        return
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or record.name.partition(".")[0] == "esckit")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # These bring a handler of their own, and ask the environment for a level when they are imported.
    for library in ("TRANSFORMERS", "DATASETS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def _handled_by_root(record: logging.LogRecord) -> bool:
    """Hand a record to the root logger, and keep it from the handlers that a library brings."""
    logging.getLogger().handle(record)
    return False


def recipe_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the shipped recipes of the command, and the YAML files, that complete a word."""
    from esckit.config.load import shipped_recipes

    shipped = shipped_recipes()
    command = ctx.command.name
    wanted = [each for each in shipped if each.command == command] or shipped
    names = [each.name.removeprefix("pipelines/") if command == "run" else each.name for each in wanted]
    return names_or_files(names, incomplete)


def names_or_files(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the shipped names, and the YAML files, that complete a word."""
    files = glob.glob(f"{glob.escape(incomplete)}*.yaml")
    return [*(name for name in names if name.startswith(incomplete)), *sorted(files)]


def run_names(incomplete: str) -> list[str]:
    """Return the run folders that complete a word, which may be ``NAME=RUN``: those in runs/, and those it leads to."""
    name, equals, begun = incomplete.rpartition("=")
    beginning = glob.escape(begun)
    patterns = ("runs/*", "runs/*/*", f"{beginning}*", f"{beginning}*/*")
    found = {os.path.dirname(path) for pattern in patterns for path in glob.glob(f"{pattern}/manifest.json")}
    return [f"{name}{equals}{run}" for run in sorted(found) if run.startswith(begun)]


NamedRunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME=]RUN...",
        show_default=False,
        autocompletion=run_names,
        help="Run folders of evaluations, named or not.",
    ),
]


def recipe_argument(metavar: str, text: str) -> Any:
    """Return the argument that names a recipe."""
    return typer.Argument(metavar=metavar, show_default=False, autocompletion=recipe_names, help=text)


RecipeArgument = Annotated[
    str, recipe_argument("RECIPE", "Name of a shipped recipe (see 'esckit recipes list') or a file.")
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        show_default=False,
        help="Change a field of the recipe, such as data.limit=4; the value is YAML. Can be given again.",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def echo_json(value: Any, *, indent: int | None = 2) -> None:
    """Print plain data on stdout as JSON, which knows no NaN and no infinity.

    Raises:
        NotFiniteError: If a number is not finite.
    """
    from esckit.records import dump_json

    echo(dump_json(value, indent=indent))


def write_copy(path: Path, content: str | bytes, *, force: bool) -> None:
    """Write a file for the user to change; one that is there is left alone unless ``force`` says otherwise.

    Raises:
        ConfigError: If there is a file.
    """
    from esckit.records import write_atomic

    if path.exists() and not force:
        raise ConfigError(f"{path} already exists", hint="Choose another name, or add --force")
    write_atomic(path, content)


def echo_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print results on stdout: one JSON object, or a line for each fact."""
    if as_json:
        echo_json(facts)
        return
    shown = {name: value for name, value in facts.items() if name != "schema"}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        echo(f"{name.replace('_', ' '):<{width}}  {_plain(value)}")


def _plain(value: Any) -> str:
    """Return a value for reading: four digits for measures, ``–`` for what there is none of."""
    if value is None or value == {}:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        inner = {name: f"({_plain(it)})" if isinstance(it, Mapping) else _plain(it) for name, it in value.items()}
        return ", ".join(f"{name} {text}" for name, text in inner.items())
    if isinstance(value, list | tuple):
        return " ".join(_plain(item) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
