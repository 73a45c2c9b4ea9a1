"""A chat as it goes on: a talk, its run folder, and what a user can do with it. Knows no terminal.

::

    runs/chat-NAME/manifest.json    the recipe, the models, what was spent
    runs/chat-NAME/dialogue.jsonl   the conversation, which every other command reads
    runs/chat-NAME/entries.jsonl    the same with reasoning, probabilities, notices and failures

Both files are written anew whenever something was said, before a model is asked: nothing is lost with a failure.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from esckit.chat.crisis import CrisisScreen, Notice
from esckit.chat.partner import Hear, Partner, check, seated
from esckit.chat.recipe import ChatRecipe
from esckit.chat.talk import Entry, Talk, talk_id
from esckit.errors import ConfigError, DataError
from esckit.play.runner import playing
from esckit.records import read_records, write_records
from esckit.roles.pool import ModelPool
from esckit.runs import RunFolder
from esckit.types import Dialogue, Failure, Scenario, Score

DIALOGUE, ENTRIES = "dialogue.jsonl", "entries.jsonl"


@dataclass(slots=True)
class Session:
    """A chat.

    Attributes:
        partner: Who answers.
        folder: Where it is kept.
        screen: Looks for words of a crisis.
        talk: What was said.
        forced: The strategy of the next reply, as the user wants it; None leaves it to the strategist.
    """

    partner: Partner
    folder: RunFolder
    screen: CrisisScreen
    talk: Talk
    forced: str | None = None

    @property
    def last(self) -> Entry | None:
        """The latest entry; None at the beginning."""
        return self.talk.last

    def say(self, text: str) -> Notice | None:
        """Take what the user says, and return the notice to show before the reply, if there is one.

        Raises:
            ConfigError: If the text is blank.
            StorageError: If the conversation cannot be kept.
        """
        if not text.strip():
            raise ConfigError("nothing was said", expected="some words")
        notice = self.screen.notice(text)
        self.talk = self.talk.heard(text.strip(), notice.marks if notice else ())
        self._keep()
        return notice

    async def answer(self, hear: Hear | None = None) -> Entry:
        """Have what was said last answered; a failure stands in the entry that is returned.

        Raises:
            EsckitError: If no further reply can come: the budget is used up, or a server is gone.
        """
        forced, self.forced = self.forced, None
        entry = await self.partner.answer(self.talk, strategy=forced, hear=hear)
        self._replace_last(entry)
        return entry

    def stop(self) -> None:
        """Note that the user stopped the reply."""
        last = self.talk.last
        if last is not None and last.supporter is None and last.failure is None:
            stopped = Failure(stage="supporter", turn=last.t, kind="stopped", attempts=1, message="stopped by the user")
            self._replace_last(last.model_copy(update={"failure": stopped}))

    def again(self) -> None:
        """Open the latest reply again, to be drawn anew.

        Raises:
            ConfigError: If nothing was said yet.
        """
        self._require_some()
        self.talk = self.talk.asked_again()
        self._keep()

    def undo(self) -> Entry:
        """Take back the latest exchange, and return it.

        Raises:
            ConfigError: If nothing was said yet.
        """
        last = self._require_some()
        self.talk = self.talk.without_last()
        self._keep()
        return last

    def force(self, label: str | None) -> str | None:
        """Want a strategy for the next reply, and return its name; None leaves it to the strategist again.

        Raises:
            EsckitError: If this chat knows no strategies, or not this one.
        """
        self.forced = None if label is None else self.partner.strategy_named(label)
        return self.forced

    async def read(self) -> Score:
        """Return the critic's reading of the conversation as it stands.

        Raises:
            ConfigError: If nothing was said yet, or there is no critic.
            ModelError: If the critic gave no readable answer.
        """
        last = self._require_some()
        if last.supporter is None:
            raise ConfigError("there is no reply yet that the critic could read")
        return await self.partner.read(self.talk)

    def save(self, path: Path) -> None:
        """Write the conversation as a dialogue of its own file.

        Raises:
            ConfigError: If nothing was said yet, or the file is there and holds something else.
            StorageError: If it cannot be written.
        """
        self._require_some()
        if path.exists() and not _holds(path, self.talk.scenario.id):
            raise ConfigError(f"{path} is there already", expected="a new file, or an earlier save of this chat")
        write_records(path, [self.talk.dialogue()])

    def _require_some(self) -> Entry:
        if self.talk.last is None:
            raise ConfigError("nothing was said yet")
        return self.talk.last

    def _replace_last(self, entry: Entry) -> None:
        self.talk = self.talk.with_last(entry)
        self._keep()

    def _keep(self) -> None:
        write_records(self.folder.file(ENTRIES), self.talk.entries)
        # A dialogue has at least one turn.
        write_records(self.folder.file(DIALOGUE), [self.talk.dialogue()] if self.talk.entries else [])


def _holds(path: Path, talk: str) -> bool:
    try:
        return path.is_file() and [dialogue.id for dialogue in read_records(Dialogue, path)] == [talk]
    except DataError:
        return False


@asynccontextmanager
async def opened(recipe: ChatRecipe, out: Path, screen: CrisisScreen) -> AsyncIterator[Session]:
    """Hold a chat: its models, and its run folder, which is created, or continued if it is this recipe's.

    Raises:
        EsckitError: If something that the recipe names is not there, or the folder is another run's.
    """
    check(recipe)
    async with ModelPool(recipe.executor, recipe.budget, recipe.cache) as pool:
        partner = await seated(pool, recipe)
        taxonomy, players = partner.taxonomy, recipe.models.bindings().values()
        async with playing(recipe, out, pool, bindings=players, inputs={}, taxonomy=taxonomy) as folder:
            scenario = Scenario(id=talk_id(out.resolve().name), **recipe.scenario.model_dump())
            talk = Talk(scenario, tuple(_entries(out)), taxonomy.name if taxonomy else None)
            folder.begin_attempt()
            yield Session(partner, folder, screen, talk)


def _entries(out: Path) -> Iterator[Entry]:
    """Yield what was said so far; a reply that was awaited when the process died is marked as stopped."""
    if not (out / ENTRIES).is_file():
        return
    for entry in read_records(Entry, out / ENTRIES):
        is_open = entry.supporter is None and entry.failure is None
        lost = Failure(stage="supporter", turn=entry.t, kind="stopped", attempts=1, message="the program ended")
        yield entry.model_copy(update={"failure": lost}) if is_open else entry


def fresh_folder_of(wanted: Path) -> Path:
    """Return a folder that is not there yet: the wanted one, or the same with a number."""
    n, folder = 2, wanted
    while folder.exists():
        folder, n = wanted.with_name(f"{wanted.name}-{n}"), n + 1
    return folder
