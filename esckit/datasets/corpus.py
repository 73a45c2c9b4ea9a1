"""A whole corpus: one file, a folder of split files, a zip or a hub data set, read into one result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from esckit.datasets.folders import find_files
from esckit.datasets.formats import AUTO, LOADERS, RECORD_READERS, check_format, recognise, recognise_file
from esckit.datasets.hub import PREFIX, hub_splits
from esckit.datasets.reading import accepted, dialogues_of
from esckit.datasets.text import quoted
from esckit.errors import DataError
from esckit.protocols import DatasetLoader, Issue, IssueSink
from esckit.records import file_sha256
from esckit.registry import own_code
from esckit.types import Dialogue, Source


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of a corpus: base name, hex digest of its bytes, split by its name, records it holds."""

    name: str
    sha256: str
    split: str | None
    n_records: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus as it was read.

    Attributes:
        path: As the user gave it.
        format: Name of the format, or ``module:attr`` of a user's loader.
        dialogues: In file order (train, valid, test), duplicates dropped; ``source_strategy`` is set and ``strategy``
            is not, but for ``jsonl``, which keeps what the record says.
        files: The files in the same order.
        ignored_files: Names of files in the folder that were not read.
        n_records: Records in all files, refused ones and duplicates included.
        n_refused: Records refused.
    """

    path: str
    format: str
    dialogues: tuple[Dialogue, ...]
    files: tuple[CorpusFile, ...]
    ignored_files: tuple[str, ...]
    n_records: int
    n_refused: int


@dataclass(frozen=True, slots=True)
class _Part:
    """One file to read: where it lies (also for messages), its digest and split, and what reads it into a sink."""

    path: Path
    sha256: str
    split: str | None
    read: Callable[..., Iterator[Dialogue]]


def read_corpus(path: str | Path, *, format: str = AUTO, sink: IssueSink, max_refused_share: float = 0.5) -> Corpus:
    """Read a corpus.

    Args:
        path: File, folder, zip, ``sample:NAME`` or ``hub:OWNER/NAME[@REVISION]``.
        format: Name of a format, ``auto``, or ``module:attr`` of a :class:`~esckit.protocols.DatasetLoader`.
        sink: Takes what is noted, and decides whether a refused record ends the reading.
        max_refused_share: Share of records, in [0, 1], that may be refused where the sink goes on; ``data inspect``
            asks for all.

    Raises:
        DataError: If the corpus cannot be read, a record is refused and the sink raises, or too many are refused.
        ConfigError: If the format is unknown.
    """
    given = str(path)
    if format != AUTO:
        LOADERS.resolve(format)
    name, parts, ignored = _hub_parts(given, format) if given.startswith(PREFIX) else _file_parts(given, format)
    tally = _Tally(sink)
    gathering = _Gathering(tally, name)
    files = tuple(gathering.read(part) for part in parts)
    n_records = sum(file.n_records for file in files)
    tally.check(given, n_records, max_refused_share)
    return Corpus(given, name, tuple(gathering.dialogues), files, ignored, n_records, tally.n_refused)


# ---------------------------------------------------------------- where the parts come from


def _file_parts(given: str, format: str) -> tuple[str, list[_Part], tuple[str, ...]]:
    """Return format, parts and ignored names of files on disk."""
    found = find_files(given)
    paths = [file.path for file in found.files]
    if format == AUTO:
        name = _common_format(given, [(path.name, recognise_file(path)) for path in paths])
    else:
        name = format
        for path in paths if format in LOADERS.targets else ():
            check_format(format, path)
    loader: DatasetLoader = LOADERS.resolve(name)
    if name not in LOADERS.targets:
        loader = _own_loader(name, loader)
    parts = [_Part(file.path, _sha256(file.path), file.split, partial(loader, file.path)) for file in found.files]
    return name, parts, found.ignored


def _own_loader(name: str, load: DatasetLoader) -> DatasetLoader:
    """Return a user's loader whose faults are told as such."""

    def loader(path: Path, *, sink: IssueSink) -> Iterator[Dialogue]:
        with own_code(f"the loader {name!r}"):
            yield from load(path, sink=sink)

    return loader


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"a file that cannot be read ({error.strerror})", path=str(path), whole_file=True) from error


def _hub_parts(given: str, format: str) -> tuple[str, list[_Part], tuple[str, ...]]:
    """Return format, parts and ignored splits of a hub data set."""
    if format not in (AUTO, *RECORD_READERS.targets):
        raise DataError(f"the format {quoted(format)}", path=given, expected="a shipped format", whole_file=True)
    splits, ignored = hub_splits(given)
    base = Path(given)
    if format == AUTO:
        format = _common_format(given, [(s.name, recognise(s.records(), str(base / s.name))) for s in splits])
    read = RECORD_READERS.resolve(format)
    parts = []
    for split in splits:
        place = base / split.name
        dialogues = partial(dialogues_of, split.records(), place, read, format=format)
        parts.append(_Part(place, split.sha256, split.split, dialogues))
    return format, parts, ignored


def _common_format(given: str, found: list[tuple[str, str]]) -> str:
    """Return the one format of all files.

    Raises:
        DataError: If they differ.
    """
    formats = {format for _, format in found}
    if len(formats) == 1:
        return formats.pop()
    raise DataError(
        f"several formats: {', '.join(f'{name} is {format}' for name, format in found)}",
        path=given,
        expected="one format in all files",
        hint="Name the format with --format if one is mistaken",
        whole_file=True,
    )


# ---------------------------------------------------------------- putting them together


class _Tally:
    """Passes everything on to the caller's sink, and counts the refusals that it let pass."""

    def __init__(self, sink: IssueSink) -> None:
        self.sink = sink
        self.n_refused = 0
        self.first: DataError | None = None

    def note(self, issue: Issue) -> None:
        self.sink.note(issue)

    def refuse(self, error: DataError) -> None:
        self.sink.refuse(error)
        self.n_refused += 1
        self.first = self.first or error

    def check(self, path: str, n_records: int, max_share: float) -> None:
        """Raise if more than the allowed share was refused, or if nothing was there at all."""
        if n_records == 0:
            raise DataError("a file that holds no dialogue", path=path, whole_file=True)
        if self.n_refused > max_share * n_records:
            many = "more than half" if max_share == 0.5 else f"{self.n_refused:,}"
            raise DataError(
                f"{many} of {n_records:,} records refused ({self.n_refused:,}); is --format right?",
                path=path,
                hint=f"The first: {self.first}",
                whole_file=True,
            ) from self.first


class _Gathering:
    """Collects the dialogues of all files, and sees what comes twice."""

    def __init__(self, tally: _Tally, format: str) -> None:
        self.tally = tally
        self.format = format
        self.dialogues: list[Dialogue] = []
        self._places: dict[str, str] = {}
        self._situations: dict[str, str] = {}

    def read(self, part: _Part) -> CorpusFile:
        """Take in one file. A record's index is the number of records accepted and refused before it."""
        refused_before = self.tally.n_refused
        n_accepted = 0
        for dialogue in part.read(sink=self.tally):
            index = n_accepted + self.tally.n_refused - refused_before
            n_accepted += self._take(_stamped(dialogue, self.format, part, index), part, index)
        n_records = n_accepted + self.tally.n_refused - refused_before
        return CorpusFile(part.path.name, part.sha256, part.split, n_records)

    def _take(self, dialogue: Dialogue, part: _Part, index: int) -> bool:
        """Keep a dialogue, or drop it with a warning if it was there before; False if it was refused."""
        place = f"record {index} of {part.path.name}"
        known = self._places.setdefault(dialogue.id, place)
        if known == place:
            self._note_situation(dialogue, part, index, place)
            self.dialogues.append(dialogue)
            return True
        if self.format == "jsonl":  # there an id is the record's own word, so that two can differ under one id
            found = f"the id {quoted(dialogue.id)} again, first in {known}"
            error = DataError(found, path=str(part.path), record=index, field="scenario.id", expected="every id once")
            self.tally.refuse(error)
            return False
        detail = f"the same dialogue as {known}"
        return accepted([Issue("duplicate_dialogue", "W", part.path.name, index, detail=detail)], self.tally)

    def _note_situation(self, dialogue: Dialogue, part: _Part, index: int, place: str) -> None:
        key = " ".join(dialogue.scenario.situation.casefold().split())
        if not key:
            return
        first = self._situations.setdefault(key, place)
        if first != place:
            detail = f"the same situation as {first}"
            self.tally.note(Issue("duplicate_situation", "N", part.path.name, index, detail=detail))


def _stamped(dialogue: Dialogue, format: str, part: _Part, index: int) -> Dialogue:
    """Return the dialogue with a source, and with the split that its file's name gives."""
    source = dialogue.source or Source(corpus=format, format=format, file=part.path.name, record=index)
    if part.split is not None and source.split != part.split:
        source = source.model_copy(update={"split": part.split})
    return dialogue if source is dialogue.source else dialogue.model_copy(update={"source": source})
