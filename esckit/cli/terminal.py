"""A chat on a terminal, or read from a pipe: what is typed, and how what is said is shown.

Not here: what a chat is and does (:mod:`esckit.chat.session`), and its words (:mod:`esckit.chat.wording`).

A terminal shows a reply word by word, wrapped at its width. Where stdin or stdout is none, lines are read as they come,
and replies are printed whole and plain. What models and users write is only ever shown as text: markup in it means
nothing, and characters that a terminal acts on are written out (:func:`esckit.cli.common.printable`).
"""

from __future__ import annotations

import asyncio
import io
import shutil
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from esckit.chat.crisis import Notice
from esckit.chat.session import Session
from esckit.chat.talk import Entry
from esckit.chat.unfinished import Reveal
from esckit.chat.wording import (
    COMMANDS,
    failed,
    folded,
    heading,
    help_lines,
    score_lines,
    strategy_lines,
    why_lines,
)
from esckit.cli.common import echo, printable
from esckit.errors import ConfigError, DataError, EsckitError, ModelError, StorageError
from esckit.records import dump_line
from esckit.registry import did_you_mean, expand_home
from esckit.strategies.taxonomy import Taxonomy

T = TypeVar("T")

S = TypeVar("S")

_PROMPT = "you> "

_NARROWEST = 20


class Wrapped:
    """Wraps a text that comes in pieces, between words; a word that is wider than a line is broken.

    Args:
        write: Takes what is to be written next, line ends included.
        width: Cells of a line.
    """

    def __init__(self, write: Callable[[str], None], width: int) -> None:
        self._write, self._width = write, width
        self._column, self._word, self._blank = 0, "", ""

    def add(self, text: str) -> None:
        """Take the next piece; a word that it begins waits for its end."""
        for char in text:
            if char == "\n":
                self._put()
                self._break()
            elif char.isspace():
                self._put()
                self._blank = " " if self._column else ""
            else:
                self._word += char
                # Scripts without spaces may break anywhere; so must a word that is wider than a line.
                if cell_len(char) > 1 or cell_len(self._word) >= self._width:
                    self._put()

    def end(self) -> None:
        """Write what still waits, and end the line."""
        self._put()
        self._break()

    def _put(self) -> None:
        word, self._word = self._word, ""
        if not word:
            return
        if self._column and self._column + len(self._blank) + cell_len(word) > self._width:
            self._break()
        self._write(self._blank + word)
        self._column += len(self._blank) + cell_len(word)
        self._blank = ""

    def _break(self) -> None:
        self._write("\n")
        self._column, self._blank = 0, ""


class View:
    """Shows a chat.

    Args:
        is_terminal: Whether somebody sits there; else what is printed is plain and whole.
        as_json: Print each exchange as one line of JSON instead.
    """

    def __init__(self, *, is_terminal: bool, as_json: bool = False) -> None:
        self.is_terminal, self.as_json = is_terminal, as_json
        self._console = Console(highlight=False, emoji=False, markup=False)

    @property
    def bar(self) -> str:
        """What bars are made of."""
        return "█" if self._console.encoding.startswith("utf") else "#"

    def lines(self, *lines: str, style: str = "") -> None:
        """Show lines of ours, wrapped at the terminal's width."""
        for line in lines:
            if self.is_terminal:
                self._console.print(Text(printable(line), style), width=_width())
            else:
                echo(line, err=self.as_json)

    def aside(self, *lines: str) -> None:
        """Show what is said about the chat and is no part of it: on stderr where nobody sits at a terminal."""
        for line in lines:
            if self.is_terminal:
                self.lines(line, style="dim")
            else:
                echo(line, err=True)

    def replay(self, session: Session) -> None:
        """Show again what was said before, where a chat goes on."""
        for entry in session.talk.entries if self.is_terminal else ():
            self.lines(f"{_PROMPT}{entry.seeker}", style="dim")
            self.entry(entry, is_shown=False, taxonomy=session.partner.taxonomy)

    def notice(self, notice: Notice) -> None:
        """Show the notice on crises."""
        self.lines(*notice.locale.lines(), "", style="bold")

    def reply(self) -> Wrapped | None:
        """Return what shows a reply while it is written; None where it is printed whole."""
        return Wrapped(self._write, _width()) if self.is_terminal else None

    def entry(self, entry: Entry, *, is_shown: bool, taxonomy: Taxonomy | None) -> None:
        """Show what came of an exchange, but for a reply that was shown already."""
        if self.as_json:
            echo(dump_line(entry))
            return
        if entry.supporter is not None and not is_shown:
            self.lines(entry.supporter.response)
        if entry.failure is not None:
            self.aside(failed(entry))
            return
        about = [f"strategy: {named}"] if (named := heading(entry, taxonomy)) else []
        if thought := folded(entry):
            about.append(thought)
        if about:
            self.aside(" ".join(about))

    def _write(self, text: str) -> None:
        self._console.print(Text(printable(text)), end="", soft_wrap=True)


def _width() -> int:
    """Return the cells of a line, also of a terminal that can do nothing."""
    return max(_NARROWEST, shutil.get_terminal_size().columns - 1)


class Chat:
    """A chat as one goes through it: lines in, replies out.

    Args:
        session: What was said, and who answers.
        steps: Runs what waits for a model.
        view: Shows it.

    Attributes:
        n_failed: Replies that failed.
    """

    def __init__(self, session: Session, steps: Steps, view: View) -> None:
        self._session, self._steps, self._view = session, steps, view
        self.n_failed = 0

    def take(self, line: str) -> bool:
        """Do what a line says; return False if it says to leave.

        Raises:
            EsckitError: If no further reply can come.
        """
        text = line.strip()
        if not text:
            return True
        try:
            if text.startswith("/") and not text.startswith("//"):
                name, _, argument = text.partition(" ")
                _require_alone(name, argument.strip())
                return self._command(name, argument.strip())
            self._say(text.removeprefix("/") if text.startswith("//") else text)
        except (ConfigError, DataError, ModelError) as error:
            self._complain(error)
        return True

    def _say(self, text: str) -> None:
        notice = self._session.say(text)
        if notice is not None:
            self._view.notice(notice)
        self._reply()

    def _reply(self) -> None:
        """Have the last thing answered; Ctrl-C stops the reply and keeps the conversation."""
        wrapped = self._view.reply()
        reveal = None if wrapped is None else Reveal(self._session.partner.settled, wrapped.add)
        try:
            entry = self._steps.run(self._session.answer(reveal.hear if reveal else None))
        except KeyboardInterrupt:
            self._session.stop()
            if wrapped is not None and reveal is not None and reveal.shown:
                wrapped.end()
            if self._is_ended_by_ctrl_c:
                raise
            self._view.aside("The reply was stopped. /again asks for it once more.")
            return
        self.n_failed += entry.failure is not None
        is_shown = False
        if wrapped is not None and reveal is not None:
            is_shown = entry.supporter is not None and reveal.finish(entry.supporter.response)
            if reveal.shown:
                wrapped.end()
            if reveal.shown and entry.supporter is not None and not is_shown:
                self._view.aside("The reply is another one than what began:")
        self._view.entry(entry, is_shown=is_shown, taxonomy=self._session.partner.taxonomy)

    @property
    def _is_ended_by_ctrl_c(self) -> bool:
        return not self._view.is_terminal or self._steps.is_ending

    def _command(self, name: str, argument: str) -> bool:
        session, view = self._session, self._view
        match name:
            case "/quit" | "/exit":
                return False
            case "/help":
                view.lines(*help_lines())
            case "/strategy":
                self._strategy(argument)
            case "/why":
                last = session.last
                lines = why_lines(last, session.partner.taxonomy, bar=view.bar) if last else ["Nothing was said yet."]
                view.lines(*lines)
            case "/critic":
                self._read()
            case "/undo":
                taken = session.undo()
                view.aside(f"Taken back: {taken.seeker}")
            case "/again":
                session.again()
                self._reply()
            case "/save" if argument:
                self._save(argument)
            case "/save":
                raise ConfigError("/save without a file", expected="/save FILE")
            case _:
                hint = did_you_mean(name, COMMANDS) or "/help lists the commands"
                raise ConfigError(f"no command {name}", hint=hint)
        return True

    def _read(self) -> None:
        try:
            score = self._steps.run(self._session.read())
        except KeyboardInterrupt:
            if self._is_ended_by_ctrl_c:
                raise
            self._view.aside("The critic was stopped.")
        else:
            self._view.lines(*score_lines(score))

    def _strategy(self, argument: str) -> None:
        session, view = self._session, self._view
        if argument:
            named = session.force(None if argument.casefold() == "none" else argument)
            view.aside(f"The next reply's strategy: {named or 'chosen by the strategist'}.")
            return
        taxonomy = session.partner.taxonomy
        if taxonomy is None:
            session.partner.strategy_named("")
        else:
            view.lines(*strategy_lines(session.last, taxonomy, session.forced, bar=view.bar))

    def _save(self, file: str) -> None:
        try:
            self._session.save(Path(expand_home(file)))
        except StorageError as error:  # of a file that the user named; the chat's own folder is another matter
            self._complain(error)
        else:
            self._view.aside(f"Saved in {file}: a dialogue that every esckit command reads.")

    def _complain(self, error: EsckitError) -> None:
        said = [f"expected: {error.expected}"] if error.expected else []
        self._view.aside(error.headline, *said, *([error.hint] if error.hint else []))


def _require_alone(name: str, argument: str) -> None:
    """Refuse words after a command that takes none."""
    if argument and name in COMMANDS and COMMANDS[name].usage == name:
        raise ConfigError(f"{name} with {argument!r}", expected=f"{name} alone")


# ---------------------------------------------------------------- lines


def typed(steps: Steps) -> Iterator[str]:
    """Yield the lines that are typed, with a line editor and the history of this chat; no history is kept on disk."""
    import readline  # gives input() its line editor

    readline.set_auto_history(True)
    while True:
        try:
            yield steps.read(lambda: input(_PROMPT))
        except EOFError:
            echo("")
            return
        except KeyboardInterrupt:
            if steps.is_ending:
                raise
            echo("")
            echo("Ctrl-D or /quit leaves.", err=True)


def piped(steps: Steps, source: TextIO) -> Iterator[str]:
    """Yield the lines of a pipe or a file; bytes that are no text are replaced."""
    if isinstance(source, io.TextIOWrapper):
        source.reconfigure(errors="replace")
    yield from iter(lambda: steps.read(source.readline), "")


class Steps:
    """Runs what waits for a model or for the user, one call at a time.

    Ctrl-C ends the call that waits. Between two calls it interrupts nothing, so that what is being kept is kept whole:
    it ends the next call before that begins.

    Attributes:
        is_ending: Whether the program was told to end, by another signal than Ctrl-C.
    """

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._call: asyncio.Task[Any] | None = None
        self._is_reading = self._is_interrupted = False
        self.is_ending = False

    def run(self, call: Coroutine[Any, Any, T], *, heeds_earlier: bool = True) -> T:
        """Return what a call returns; Ctrl-C cancels it, and a second one leaves it at once.

        Args:
            call: What to run.
            heeds_earlier: Whether a Ctrl-C that came before it ends it too.

        Raises:
            KeyboardInterrupt: If it was cancelled so.
        """
        if not heeds_earlier:
            self._is_interrupted = False
        try:
            return self._runner.run(self._heeding(call))
        except asyncio.CancelledError:
            if not self._was_interrupted():
                raise
            raise KeyboardInterrupt from None
        except KeyboardInterrupt:
            self._is_interrupted = False
            raise
        finally:
            self._call = None

    def read(self, line: Callable[[], str]) -> str:
        """Return the user's next line.

        Raises:
            KeyboardInterrupt: On Ctrl-C.
            EOFError: If ``line`` does.
        """
        self._is_reading = True
        try:
            if self._was_interrupted():
                raise KeyboardInterrupt
            return line()
        finally:
            self._is_reading = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear Ctrl-C, and apart from it the signals that end the program, which esckit otherwise takes as Ctrl-C."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

        def end(number: int, frame: FrameType | None) -> None:
            self.is_ending = True
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)

        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, self._interrupt if number == signal.SIGINT else end)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_reading:
            raise KeyboardInterrupt
        if self._call is None:
            self._is_interrupted = True
            return
        if self._is_interrupted:
            raise KeyboardInterrupt
        self._is_interrupted = True
        self._call.cancel()
        self._runner.get_loop().call_soon_threadsafe(lambda: None)  # wakes a loop that waits

    def _was_interrupted(self) -> bool:
        found, self._is_interrupted = self._is_interrupted, False
        return found

    async def _heeding(self, call: Coroutine[Any, Any, T]) -> T:
        self._call = asyncio.current_task()
        if self._is_interrupted:
            call.close()
            raise asyncio.CancelledError
        return await call


@contextmanager
def stepwise(opened: AbstractAsyncContextManager[S]) -> Iterator[tuple[Steps, S]]:
    """Hold something asynchronous open between calls; its event loop runs only while something is waited for."""
    with asyncio.Runner() as runner:
        steps = Steps(runner)
        with steps.heard():
            held = steps.run(_enter(opened))
            try:
                yield steps, held
            except BaseException as error:
                if not steps.run(_leave(opened, error), heeds_earlier=False):
                    raise
            else:
                steps.run(_leave(opened, None), heeds_earlier=False)


async def _enter(opened: AbstractAsyncContextManager[S]) -> S:
    return await opened.__aenter__()


async def _leave(opened: AbstractAsyncContextManager[Any], error: BaseException | None) -> bool:
    traceback = None if error is None else error.__traceback__
    return bool(await opened.__aexit__(None if error is None else type(error), error, traceback))
