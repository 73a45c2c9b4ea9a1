"""Paths as users give them: a file, a folder of split files or of one file, or the name of a shipped sample.

Corpora from the Hugging Face hub, named ``hub:OWNER/NAME[@REVISION]``; the only loader that may use the network.

``datasets`` is imported when such a path is read and not before.

A whole corpus: one file, a folder of split files, a zip or a hub data set, read into one result.
"""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from esckit.data.containers import RawRecord
from esckit.data.decoding import plain_row
from esckit.data.layouts import (
    AUTO,
    RECORD_READERS,
    accepted,
    check_format,
    read_dialogues,
    recognise,
    recognise_file,
)
from esckit.errors import DataError
from esckit.protocols import DatasetLoader, Issue, IssueSink
from esckit.records import file_sha256
from esckit.registry import nearest, own_code, shipped_dir
from esckit.text import listed, quoted
from esckit.types import Dialogue, Source

SAMPLE_PREFIX = "sample:"

SPLITS = ("train", "valid", "test")

_SAMPLES = {"esconv": "esconv_sample", "extes": "extes_sample.json"}

# The number is that of a shard, as the Hub names the pieces of a large split.
_SPLIT_FILE = re.compile(
    r"(?:.+-)?(train|valid|validation|dev|test)(?:-([0-9]{5})-of-([0-9]{5}))?"
    r"\.(?:(?:txt|json|jsonl)(?:\.gz)?|parquet)",
    re.DOTALL,
)

_CORPUS_FILE = re.compile(r".+\.(?:(?:json|jsonl)(?:\.gz)?|parquet|zip)", re.DOTALL)

_EXPECTED = (
    "one file per split, named [prefix-](train|valid|validation|dev|test).(txt|json|jsonl|parquet), "
    "or a single corpus file (.json, .jsonl, .parquet, .zip)"
)


class SplitFile(NamedTuple):
    """A file of a corpus, and the split that its name gives it."""

    path: Path
    split: str | None


class Found(NamedTuple):
    """The files of a corpus in the order train, valid, test, and the names of the others in its folder."""

    files: tuple[SplitFile, ...]
    ignored: tuple[str, ...] = ()


def find_files(given: str) -> Found:
    """Return the files behind a path.

    Raises:
        DataError: If there are none, or a folder's names do not say which split is which.
    """
    path = _sample(given) if given.startswith(SAMPLE_PREFIX) else Path(given)
    try:
        if path.is_dir():
            return _files_of(path)
        if path.exists() and not path.is_file():
            raise DataError.of_file(given, "neither a file nor a folder")
        if path.exists():
            return Found((SplitFile(path, None),))
    except OSError as error:
        raise DataError.of_file(given, f"a path that cannot be read ({error.strerror})") from error
    raise _missing(given, path)


def _sample(given: str) -> Path:
    name = given.removeprefix(SAMPLE_PREFIX)
    if name not in _SAMPLES:
        raise DataError.of_file(
            given, "no sample of this name", expected=" or ".join(SAMPLE_PREFIX + n for n in _SAMPLES)
        )
    return shipped_dir("data") / _SAMPLES[name]


def _files_of(folder: Path) -> Found:
    """Return a folder's split files by their names or, where there are none, the only corpus file in it."""
    by_split: dict[str, list[Path]] = {split: [] for split in SPLITS}
    others = []
    for path in sorted(folder.iterdir()):
        named = _SPLIT_FILE.fullmatch(path.name)
        if named and path.is_file():
            word = named.group(1)
            by_split["valid" if word in ("validation", "dev") else word].append(path)
        else:
            others.append(path)
    for split, paths in by_split.items():
        _check_one_file(folder, split, paths)
    files = tuple(SplitFile(path, split) for split, paths in by_split.items() for path in paths)
    if not files:
        files = (SplitFile(_only_file(folder, others), None),)
    read = {file.path for file in files}
    return Found(files, tuple(path.name for path in others if path not in read))


def _check_one_file(folder: Path, split: str, paths: list[Path]) -> None:
    """Refuse several files for one split, unless they are all its shards."""
    shards = [named.group(2, 3) for path in paths if (named := _SPLIT_FILE.fullmatch(path.name)) and named.group(2)]
    whole = shards == [(f"{number:05}", f"{len(paths):05}") for number in range(len(paths))]
    if whole or (len(paths) < 2 and not shards):
        return
    found = f"{len(paths)} files for the split {split}: {listed(path.name for path in paths)}"
    expected = f"all shards of the split {split}, from 00000 on" if len(shards) == len(paths) else _EXPECTED
    raise DataError.of_file(folder, found, expected=expected)


def _only_file(folder: Path, others: list[Path]) -> Path:
    """Return the only file of a folder that can be a corpus."""
    found = [path for path in others if path.is_file() and _CORPUS_FILE.fullmatch(path.name)]
    if len(found) == 1:
        return found[0]
    holds = listed(path.name for path in found or others)
    raise DataError.of_file(
        folder,
        f"a folder with {len(found)} corpus files and no split files; it holds {holds}",
        expected=_EXPECTED,
        hint=f"Name the one you mean, such as {found[0]}" if found else "docs/data.md says what the files are called",
    )


def _missing(given: str, path: Path) -> DataError:
    """Say that there is nothing, and what may have been meant."""
    try:
        siblings = [sibling.name for sibling in path.parent.iterdir()]
    except OSError:
        siblings = []
    close = nearest(path.name, siblings)
    return DataError.of_file(
        given,
        "no such file or folder",
        expected="a corpus file or folder" + (f"; did you mean {str(path.parent / close)!r}?" if close else ""),
        hint="docs/data.md says how to get the corpora",
    )


PREFIX = "hub:"

HUB_SPLITS: Mapping[str, str] = {
    "train": "train",
    "validation": "valid",
    "valid": "valid",
    "dev": "valid",
    "test": "test",
}
"""Names of splits on the hub to ours, in our order."""


_NAME = re.compile(r"hub:(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)

_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class HubSplit:
    """One split of a hub data set.

    Attributes:
        name: The split's name on the hub.
        split: ``train``, ``valid`` or ``test``.
        sha256: Hex digest over the rows: their ``text`` column, or their JSON, one a line.
        rows: The rows.
    """

    name: str
    split: str
    sha256: str
    rows: tuple[Mapping[str, Any], ...]

    def records(self) -> Iterator[RawRecord]:
        """Yield the rows as raw records."""
        for index, row in enumerate(self.rows):
            yield RawRecord(index, None, plain_row(dict(row)), "rows")


def hub_splits(path: str) -> tuple[tuple[HubSplit, ...], tuple[str, ...]]:
    """Return the splits of a hub data set in our order, and the names of those that are no split of ours.

    Raises:
        DataError: If the name is malformed, the hub cannot be reached, or the data set has no known split.
    """
    parsed = _NAME.fullmatch(path)
    if parsed is None:
        raise DataError(
            f"the path {quoted(path)}", expected="hub:OWNER/NAME or hub:OWNER/NAME@REVISION", whole_file=True
        )
    loaded = _load(path, parsed.group(1), parsed.group(2))
    known = [name for name in HUB_SPLITS if name in loaded]
    others = tuple(sorted(str(name) for name in loaded if name not in HUB_SPLITS))
    ours = [HUB_SPLITS[name] for name in known]
    if not known or len(set(ours)) < len(ours):
        raise DataError.of_file(
            path,
            f"the splits {listed(str(name) for name in loaded)}",
            expected="train, validation and test, each at most once",
        )
    return tuple(_split(path, name, loaded[name]) for name in known), others


def _split(path: str, name: str, rows: Any) -> HubSplit:
    kept = tuple(dict(row) for row in rows)
    if not kept:
        raise DataError.of_file(f"{path}/{name}", "a split that holds no dialogue")
    digest = sha256()
    for row in kept:
        text = row["text"] if row.keys() == {"text"} else json.dumps(row, ensure_ascii=True, default=str)
        digest.update(f"{text}\n".encode("utf-8", errors="replace"))
    return HubSplit(name, HUB_SPLITS[name], digest.hexdigest(), kept)


def _load(path: str, name: str, revision: str | None) -> Mapping[str, Any]:
    """Ask the library for the data set; one clear error at once if there is no way to the hub."""
    import datasets

    if not datasets.config.HF_HUB_OFFLINE:
        _check_reachable(path, datasets.config.HF_ENDPOINT)
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(name, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(path, type(error).__name__) from error
    return loaded


def _check_reachable(path: str, endpoint: str) -> None:
    """Try to connect once; the library itself would retry for half a minute."""
    parts = urlsplit(endpoint)
    if urllib.request.getproxies() or parts.hostname is None:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=_CONNECT_S).close()
    except OSError as error:
        raise _unavailable(path, "no connection") from error


def _unavailable(path: str, reason: str) -> DataError:
    return DataError.of_file(
        path,
        f"no data set that can be loaded from the hub ({reason})",
        hint="Check name and network; HF_HUB_OFFLINE=1 uses what is cached; docs/data.md says how to get the files",
    )


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
        RECORD_READERS.resolve(format)
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
        format = _common_format(given, [(path.name, recognise_file(path)) for path in paths])
    elif format in RECORD_READERS.targets:
        for path in paths:
            check_format(format, path)
    loader: DatasetLoader = partial(read_dialogues, format=format)
    if format not in RECORD_READERS.targets:
        loader = _own_loader(format, RECORD_READERS.resolve(format))
    parts = [_Part(file.path, _sha256(file.path), file.split, partial(loader, file.path)) for file in found.files]
    return format, parts, found.ignored


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
        raise DataError.of_file(path, f"a file that cannot be read ({error.strerror})") from error


def _hub_parts(given: str, format: str) -> tuple[str, list[_Part], tuple[str, ...]]:
    """Return format, parts and ignored splits of a hub data set."""
    if format not in (AUTO, *RECORD_READERS.targets):
        raise DataError.of_file(given, f"the format {quoted(format)}", expected="a shipped format")
    splits, ignored = hub_splits(given)
    base = Path(given)
    if format == AUTO:
        format = _common_format(given, [(s.name, recognise(s.records(), str(base / s.name))) for s in splits])
    return format, [_hub_part(base / split.name, split, format) for split in splits], ignored


def _hub_part(place: Path, split: HubSplit, format: str) -> _Part:
    def read(*, sink: IssueSink) -> Iterator[Dialogue]:
        return read_dialogues(place, format=format, sink=sink, records=split.records())

    return _Part(place, split.sha256, split.split, read)


def _common_format(given: str, found: list[tuple[str, str]]) -> str:
    """Return the one format of all files.

    Raises:
        DataError: If they differ.
    """
    formats = {format for _, format in found}
    if len(formats) == 1:
        return formats.pop()
    raise DataError.of_file(
        given,
        f"several formats: {', '.join(f'{name} is {format}' for name, format in found)}",
        expected="one format in all files",
        hint="Name the format with --format if one is mistaken",
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
            raise DataError.of_file(path, "a file that holds no dialogue")
        if self.n_refused > max_share * n_records:
            many = "more than half" if max_share == 0.5 else f"{self.n_refused:,}"
            raise DataError.of_file(
                path,
                f"{many} of {n_records:,} records refused ({self.n_refused:,}); is --format right?",
                hint=f"The first: {self.first}",
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
