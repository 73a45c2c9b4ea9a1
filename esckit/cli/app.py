"""The ``esckit`` command: a table of lazily imported commands, logging, and errors as messages."""

from __future__ import annotations

import copy
import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import esckit
from esckit.cli.common import Settings, configure_logging, echo, printable
from esckit.cli.launch import note_exit_code
from esckit.errors import ConfigError, EsckitError, StorageError
from esckit.registry import expand_home, load_attr
from esckit.storage import refusal

INTERRUPTED = 130

READER_GONE = 141
"""What a shell shows for a program whose reader went away (128 + SIGPIPE): neither success nor a finding."""


GROUPS = {
    "Methods": {
        "run": "esckit.cli.pipeline:run",
        "search": "esckit.cli.runs:search",
        "train-flow": "esckit.cli.runs:train_flow",
        "simulate": "esckit.cli.runs:simulate",
        "train-reward": "esckit.cli.runs:train_reward",
        "train-sft": "esckit.cli.runs:train_sft",
        "train-rl": "esckit.cli.runs:train_rl",
    },
    "Judging": {
        "evaluate": "esckit.cli.runs:evaluate",
        "predict": "esckit.cli.runs:predict",
        "report": "esckit.cli.runs:report",
        "table": "esckit.cli.table:table",
        "study": "esckit.cli.study:app",
    },
    "Data": {
        "data": "esckit.cli.data:app",
        "strategies": "esckit.cli.strategies:app",
    },
    "Models": {
        "chat": "esckit.cli.chat:chat",
        "serve": "esckit.cli.chat:serve",
        "backbones": "esckit.cli.shipped:backbones",
        "export": "esckit.cli.export:export",
    },
    "Helpers": {
        "recipes": "esckit.cli.shipped:recipes",
        "prompts": "esckit.cli.prompts:app",
        "runs": "esckit.cli.runfolders:app",
        "cache": "esckit.cli.cache:app",
        "doctor": "esckit.cli.doctor:doctor",
    },
}
"""The names on the command line by what they are for, each with its function or Typer app.

A function is imported when its command is called, or when the help of all is shown.
"""

COMMANDS = {name: target for commands in GROUPS.values() for name, target in commands.items()}
"""The same without the groups."""


class LazyGroup(TyperGroup):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; an unknown name makes all known, so that the nearest can be suggested."""
        for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.commands[name] = built = _build(name)
                _take_log_options(built, [param for param in self.params if param.name in ("quiet", "verbose")])
        return self.commands.get(cmd_name)

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse the words of a call; a path that begins with ``~``, also after ``=``, is one under a home folder."""
        return super().parse_args(ctx, [_at_home(word) for word in args])


def _at_home(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + expand_home(value)


def _take_log_options(command: Any, options: Sequence[Any]) -> None:
    """Let a command and those below it take the root's options of logging as well."""
    for option in options:
        mine = copy.copy(option)
        mine.expose_value = False
        mine.callback = _set_logging
        command.params.append(mine)
    for inner in getattr(command, "commands", {}).values():
        _take_log_options(inner, options)


def _set_logging(ctx: Any, param: Any, value: Any) -> Any:
    """Add an option that stands after a command's name to the settings of the whole call."""
    if value and not ctx.resilient_parsing:
        settings = replace(ctx.find_root().obj, **{param.name: value})
        configure_logging(settings)
        place = ctx
        while place is not None:
            place.obj, place = settings, place.parent
    return value


class OnceCommand(TyperCommand):
    """A command that refuses a second value of an option that takes one, where only the last would count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            ConfigError: If an option that takes one value is given again.
        """
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for param in given:
            adds_up = isinstance(param, TyperOption) and (param.multiple or param.is_flag or param.count)
            if given.count(param) > 1 and isinstance(param, TyperOption) and not adds_up:
                raise ConfigError(f"{param.opts[0]} given {given.count(param)} times", expected="once")
        return super().parse_args(ctx, args)


def _build(name: str) -> Any:
    """Import a command and return it as an object of Typer's."""
    target = load_attr(COMMANDS[name])
    if isinstance(target, typer.Typer):
        commands = target
    else:
        commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        commands.command(name)(target)
    for each in commands.registered_commands:
        each.cls = OnceCommand
    built: Any = typer.main.get_command(commands)
    built.name = name
    built.rich_help_panel = next(group for group, names in GROUPS.items() if name in names)
    return built


app = typer.Typer(
    name="esckit",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"esckit {esckit.__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log more; twice for everything.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and only errors in the log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Search, training and evaluation for emotional support conversation research.

    Results go to stdout, progress and logs to stderr.

    Exit codes: 0 done; 1 a check found something; 2 wrong input; 3 too many failures, a dead server, or
    the budget is used up; 130 interrupted. After 3 and 130 the same command goes on where it stopped.
    """
    ctx.obj = Settings(quiet=quiet, verbose=verbose)
    configure_logging(ctx.obj)


def main() -> None:
    """Run the command line and leave with the exit code."""
    # A user's own module:attr lies where the user works; last, so that it hides nothing.
    sys.path.append(os.getcwd())
    _interrupt_on_signals()
    try:
        app()
    except EsckitError as error:
        _report(error)
        code: int | str | None = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as leaving:
        # Typer gives 1 when a reader (``| head``) went away, which is what a check gives that found something.
        code = READER_GONE if isinstance(leaving.__context__, BrokenPipeError) else leaving.code
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        told = refusal(error)
        if told is not None:
            told.__cause__ = error
            _report(told)
            code = told.exit_code
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            # What is left without a name is a stdout that takes no more.
            code = _report_full()
        else:
            raise
    finally:
        # What is left takes no time, and a second Ctrl-C would end it halfway.
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.SIG_IGN)
        # Only now: Typer sets its own.
        sys.excepthook = _show_bug
    if code == INTERRUPTED:
        with suppress(OSError):
            sys.stderr.write("Interrupted.\n")
    note_exit_code(code)
    sys.exit(_flushed(code))


def _interrupt_on_signals() -> None:
    """Let SIGTERM (a scheduler's) and SIGHUP (a terminal that is gone) end a command as Ctrl-C does."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(ending, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C would at this moment; while asyncio runs, it handles that signal itself."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # a shell starts a command in the background with SIGINT ignored
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def _report(error: EsckitError) -> None:
    """Print an error as what was found, what was expected, what to do; markup in it is text."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)
    with suppress(OSError):  # a stderr that takes nothing, such as a log on a full disk
        console.print("error: ", style="bold red", end="")
        console.print(printable(error.headline))
        if error.expected:
            console.print(printable(f"  expected: {error.expected}"))
        if error.hint:
            console.print(printable(f"  {error.hint}"))
        if error.__cause__ is not None and logging.getLogger("esckit").isEnabledFor(logging.INFO):
            sys.stderr.write(printable("".join(traceback.format_exception(error.__cause__))))


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug as Python does, through the gate: its message may quote foreign text."""
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def _report_full() -> int:
    """Say that stdout goes to a full disk, and write nothing to it any more."""
    _report(StorageError("cannot write the results to stdout: the disk is full"))
    sys.stdout = None
    return StorageError.exit_code


def _flushed(code: int | str | None) -> int | str | None:
    """Flush stdout; a reader that went away (``| head``) is no error worth a message."""
    if sys.stdout is None:
        return code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain when it flushes again on its way out.
        sys.stdout = None
        return code or READER_GONE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _report_full()
    return code
