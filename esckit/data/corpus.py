"""A whole corpus read into one result: a file, a folder of split files, a zip, a shipped sample, or a hub data set.

What a file holds is known to :mod:`esckit.data.layouts`; here is which files there are, which split each is, and
what appears twice. ``hub:`` paths are the only ones that may use the network; ``datasets`` is imported for them alone.
"""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from esckit.config.data import Columns
from esckit.data.containers import RawRecord
from esckit.data.formats import AUTO, CHAT, RECORD_READERS
from esckit.data.layouts import accepted, read_dialogues, recognise, recognise_file
from esckit.data.names import Names
from esckit.data.packed import plain_row
from esckit.errors import ConfigError, DataError
from esckit.practice import corpus as practice
from esckit.protocols import DatasetLoader, Issue, IssueSink
from esckit.records import file_sha256
from esckit.registry import nearest, own_code, shipped_dir
from esckit.sequences import OnDisk
from esckit.text import listed, quoted
from esckit.types import Dialogue, Source

SPLITS = ("train", "valid", "test")

_SPLIT_WORDS = {"train": "train", "validation": "valid", "valid": "valid", "dev": "valid", "test": "test"}
"""How files and hub data sets name splits, and our names, in our order."""

_SAMPLES = {"sample:esconv": "esconv_sample", "sample:extes": "extes_sample.json"}

# The number is that of a shard, as the Hub names the pieces of a large split.
_SPLIT_FILE = re.compile(
    r"(?:.+-)?(train|valid|validation|dev|test)(?:-([0-9]{5})-of-([0-9]{5}))?"
    r"\.(?:(?:txt|json|jsonl|csv|tsv)(?:\.gz)?|parquet)",
    re.DOTALL,
)

_CORPUS_FILE = re.compile(r".+\.(?:(?:json|jsonl|csv|tsv)(?:\.gz)?|parquet|zip)", re.DOTALL)

_EXPECTED = (
    "one file per split, named [prefix-](train|valid|validation|dev|test).(txt|json|jsonl|csv|tsv|parquet), "
    "or a single corpus file (.json, .jsonl, .csv, .tsv, .parquet, .zip)"
)

_HUB_NAME = re.compile(r"hub:(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)

_CONNECT_S = 5.0


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
        n_records: Records in all files, refused ones and duplicates included; in a table a dialogue is a record.
        n_refused: Records refused.
        names: What the names in the files stood for.
    """

    path: str
    format: str
    dialogues: Sequence[Dialogue]
    files: tuple[CorpusFile, ...]
    ignored_files: tuple[str, ...]
    n_records: int
    n_refused: int
    names: Names = field(default_factory=Names, compare=False)


@dataclass(frozen=True, slots=True)
class _Part:
    """One file to read: where it lies (also for messages), its digest and split, and what reads it into a sink."""

    path: Path
    sha256: str
    split: str | None
    read: Callable[..., Iterator[Dialogue]]


class _Parts(NamedTuple):
    """The parts of a corpus in the order train, valid, test, their format, and the names that were ignored."""

    format: str
    parts: list[_Part]
    ignored: tuple[str, ...]


def read_corpus(
    path: str | Path,
    *,
    format: str = AUTO,
    sink: IssueSink,
    names: Names | None = None,
    max_refused_share: float = 0.5,
) -> Corpus:
    """Read a corpus.

    Args:
        path: File, folder, zip, ``sample:NAME``, ``world:PROFILE/N[/POLICY]`` or ``hub:OWNER/NAME[@REVISION]``.
        format: Name of a format, ``auto``, or ``module:attr`` of a :class:`~esckit.protocols.DatasetLoader`.
        sink: Takes what is noted, and decides whether a refused record ends the reading.
        names: What the names in the files stand for; None goes by the usual names.
        max_refused_share: Share of records, in [0, 1], that may be refused if the sink continues; ``data inspect``
            asks for all.

    Raises:
        DataError: If the corpus cannot be read, a record is refused and the sink raises, or too many are refused.
        ConfigError: If the format is unknown.
    """
    given = str(path)
    names = names or Names()
    if format != AUTO:
        RECORD_READERS.resolve(format)
    if given.startswith("hub:"):
        found = _hub_parts(given, format, names)
    elif given.startswith("world:"):
        found = _practice_parts(given, format)
    else:
        found = _file_parts(given, format, names)
    _check_columns(found.format, names)
    gathering = _Gathering(sink, found.format)
    files: list[CorpusFile] = []
    dialogues = OnDisk(dialogue for part in found.parts for dialogue in gathering.read(part, files))
    n_records = sum(file.n_records for file in files)
    gathering.check(given, n_records, max_refused_share)
    for word in names.unspoken():
        sink.note(Issue("role_unused", "W", files[0].name, 0, detail=quoted(word)))
    return Corpus(given, found.format, dialogues, tuple(files), found.ignored, n_records, gathering.n_refused, names)


def source_files(given: str) -> tuple[Path, ...]:
    """Return the files on disk that a corpus is read from; none for one of the Hub or the practice world.

    Raises:
        DataError: If there are none, or a folder's names do not say which split is which.
    """
    return () if given.startswith(("hub:", "world:")) else tuple(_files_of(given)[0])


def _check_columns(format: str, names: Names) -> None:
    """Refuse columns that a format does not ask for: its keys are its own."""
    known = {
        "table": set(Columns.model_fields) - {"messages"},
        **dict.fromkeys(CHAT, {*Columns.model_fields} - {"dialogue"}),
    }
    unused = sorted(names.columns.keys() - known.get(format, set()))
    if unused:
        raise ConfigError(
            f"the column{'s' if len(unused) > 1 else ''} {', '.join(unused)} for files of format {format}",
            expected="columns of a table, or keys of messages or sharegpt"
            if format not in known
            else f"one of {', '.join(sorted(known[format]))}",
        )


# ---------------------------------------------------------------- files


def _file_parts(given: str, format: str, names: Names) -> _Parts:
    """Return the parts of a corpus on disk."""
    paths, ignored = _files_of(given)
    if format == AUTO:
        format = _common_format(given, [(path.name, recognise_file(path, names)) for path in paths])
    if format in RECORD_READERS.targets:
        loader: DatasetLoader = partial(read_dialogues, format=format, names=names, places=_places(format))
    else:
        loader = _own_loader(format, RECORD_READERS.resolve(format))
    parts = []
    for path, split in paths.items():
        try:
            digest = file_sha256(path)
        except OSError as error:
            raise DataError.of_file(path, f"a file that cannot be read ({error.strerror})") from error
        parts.append(_Part(path, digest, split, partial(loader, path)))
    return _Parts(format, parts, ignored)


def _places(format: str) -> dict[str, str] | None:
    """Return where ids are kept while files are read; only in ``jsonl`` they are the records' own word."""
    return {} if format == "jsonl" else None


def _files_of(given: str) -> tuple[dict[Path, str | None], tuple[str, ...]]:
    """Return the files behind a path with the split that its name gives each, and the names of those not read.

    Raises:
        DataError: If there are none, or a folder's names do not say which split is which.
    """
    if given.startswith("sample:") and given not in _SAMPLES:
        raise DataError.of_file(given, "no sample of this name", expected=" or ".join(_SAMPLES))
    path = shipped_dir("data") / _SAMPLES[given] if given in _SAMPLES else Path(given)
    try:
        if path.is_dir():
            return _split_files(path)
        if path.exists() and not path.is_file():
            raise DataError.of_file(given, "neither a file nor a folder")
        if path.exists():
            return {path: None}, ()
    except OSError as error:
        raise DataError.of_file(given, f"a path that cannot be read ({error.strerror})") from error
    try:
        close = nearest(path.name, [sibling.name for sibling in path.parent.iterdir()])
    except OSError:
        close = None
    raise DataError.of_file(
        given,
        "no such file or folder",
        expected="a corpus file or folder" + (f"; did you mean {str(path.parent / close)!r}?" if close else ""),
        hint="docs/data.md says how to get the corpora",
    )


def _is_corpus_file(path: Path) -> bool:
    return path.is_file() and any(form.fullmatch(path.name) for form in (_SPLIT_FILE, _CORPUS_FILE))


def _split_files(folder: Path) -> tuple[dict[Path, str | None], tuple[str, ...]]:
    """Return a folder's split files by their names or, where there are none, the only corpus file in it."""
    by_split: dict[str, list[Path]] = {split: [] for split in SPLITS}
    others = []
    for path in sorted(folder.iterdir()):
        named = _SPLIT_FILE.fullmatch(path.name)
        if named and path.is_file():
            by_split[_SPLIT_WORDS[named[1]]].append(path)
        else:
            others.append(path)
    for split, paths in by_split.items():
        shards = [named.group(2, 3) for path in paths if (named := _SPLIT_FILE.fullmatch(path.name)) and named[2]]
        whole = shards == [(f"{number:05}", f"{len(paths):05}") for number in range(len(paths))]
        if not whole and (len(paths) > 1 or shards):
            found = f"{len(paths)} files for the split {split}: {listed(path.name for path in paths)}"
            all_shards = f"all shards of the split {split}, from 00000 on"
            raise DataError.of_file(folder, found, expected=all_shards if len(shards) == len(paths) else _EXPECTED)
    files: dict[Path, str | None] = {path: split for split, paths in by_split.items() for path in paths}
    if not files:
        corpora = [path for path in others if _is_corpus_file(path)]
        if len(corpora) != 1:
            holds = listed(path.name for path in corpora or others)
            below = [path for path in others if path.is_dir() and any(map(_is_corpus_file, path.glob("*")))]
            raise DataError.of_file(
                folder,
                f"a folder with {len(corpora)} corpus files and no split files; it holds {holds}",
                expected=_EXPECTED,
                hint=(
                    f"Name the one you mean, such as {(corpora or below)[0]}"
                    if corpora or below
                    else "docs/data.md says what the files are called"
                ),
            )
        files = {corpora[0]: None}
    return files, tuple(path.name for path in others if path not in files)


def _own_loader(name: str, load: DatasetLoader) -> DatasetLoader:
    """Return a user's loader whose errors name it."""

    def loader(path: Path, *, sink: IssueSink) -> Iterator[Dialogue]:
        with own_code(f"the loader {name!r}"):
            yield from load(path, sink=sink)

    return loader


# ---------------------------------------------------------------- the practice world


def _practice_parts(given: str, format: str) -> _Parts:
    """Return the one part of a corpus that is made up as it is read."""
    if format not in (AUTO, practice.CORPUS):
        raise DataError.of_file(given, f"the format {quoted(format)}", expected=practice.CORPUS)
    path = practice.parse_path(given)

    def read(*, sink: IssueSink) -> Iterator[Dialogue]:
        yield from practice.dialogues(path)

    return _Parts(practice.CORPUS, [_Part(Path(given.replace("/", "-")), practice.identity(path), None, read)], ())


# ---------------------------------------------------------------- hub


def _hub_parts(given: str, format: str, names: Names) -> _Parts:
    """Return the parts of a hub data set; splits that are none of ours are ignored.

    Raises:
        DataError: If the name is malformed, the hub cannot be reached, or the data set has no known split.
    """
    if format not in (AUTO, *RECORD_READERS.targets):
        raise DataError.of_file(given, f"the format {quoted(format)}", expected="a shipped format")
    parsed = _HUB_NAME.fullmatch(given)
    if parsed is None:
        expected = "hub:OWNER/NAME or hub:OWNER/NAME@REVISION"
        raise DataError(f"the path {quoted(given)}", expected=expected, whole_file=True)
    loaded = _load(given, parsed[1], parsed[2])
    known = [name for name in _SPLIT_WORDS if name in loaded]
    if not known or len({_SPLIT_WORDS[name] for name in known}) < len(known):
        raise DataError.of_file(
            given,
            f"the splits {listed(str(name) for name in loaded)}",
            expected="train, validation and test, each at most once",
        )
    rows = {name: [dict(row) for row in loaded[name]] for name in known}
    for name, of_split in rows.items():
        if not of_split:
            raise DataError.of_file(f"{given}/{name}", "a split that holds no dialogue")
    if format == AUTO:
        format = _common_format(given, [(n, recognise(_raw(rows[n]), str(Path(given) / n), names)) for n in known])
    parts, places = [], _places(format)
    for name in known:
        digest = sha256()
        for row in rows[name]:
            text = row["text"] if row.keys() == {"text"} else json.dumps(row, ensure_ascii=True, default=str)
            digest.update(f"{text}\n".encode("utf-8", errors="replace"))
        place = Path(given) / name
        read = partial(read_dialogues, place, format=format, names=names, records=_raw(rows[name]), places=places)
        parts.append(_Part(place, digest.hexdigest(), _SPLIT_WORDS[name], read))
    return _Parts(format, parts, tuple(sorted(str(name) for name in loaded if name not in _SPLIT_WORDS)))


def _raw(rows: list[dict[str, Any]]) -> Iterator[RawRecord]:
    for index, row in enumerate(rows):
        yield RawRecord(index, None, plain_row(row), "rows")


def _load(path: str, name: str, revision: str | None) -> Mapping[str, Any]:
    """Ask the library for the data set, with one clear error at once if the hub cannot be reached.

    The library itself would retry for half a minute.
    """
    import datasets

    def unavailable(reason: str) -> DataError:
        return DataError.of_file(
            path,
            f"no data set that can be loaded from the hub ({reason})",
            hint="Check name and network; HF_HUB_OFFLINE=1 uses what is cached; docs/data.md says how to get the files",
        )

    hub = urlsplit(datasets.config.HF_ENDPOINT)
    if not datasets.config.HF_HUB_OFFLINE and not urllib.request.getproxies() and hub.hostname is not None:
        try:
            socket.create_connection((hub.hostname, hub.port or 443), timeout=_CONNECT_S).close()
        except OSError as error:
            raise unavailable("no connection") from error
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(name, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise unavailable(type(error).__name__) from error
    return loaded


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


class _Gathering:
    """Collects the dialogues of all files, sees what comes twice, and counts the refusals that the sink let pass."""

    def __init__(self, sink: IssueSink, format: str) -> None:
        self.note = sink.note
        self.format = format
        self.n_refused = 0
        self.first_refusal: DataError | None = None
        self._sink = sink
        self._places: dict[str, str] = {}
        self._situations: dict[str, str] = {}

    def refuse(self, error: DataError) -> None:
        """Let the caller's sink refuse a record, and count it if reading continues."""
        self._sink.refuse(error)
        self.n_refused += 1
        self.first_refusal = self.first_refusal or error

    def check(self, path: str, n_records: int, max_share: float) -> None:
        """Raise if more than the allowed share was refused, or if nothing was there at all."""
        if n_records == 0:
            raise DataError.of_file(path, "a file that holds no dialogue")
        if self.n_refused > max_share * n_records:
            many = "more than half" if max_share == 0.5 else f"{self.n_refused:,}"
            raise DataError.of_file(
                path,
                f"{many} of {n_records:,} records refused ({self.n_refused:,}); is --format right?",
                hint=f"The first: {self.first_refusal}",
            ) from self.first_refusal

    def read(self, part: _Part, files: list[CorpusFile]) -> Iterator[Dialogue]:
        """Yield the dialogues of a file with a source and, where its name says it, a split; add the file at the end.

        A record's index is the number of records accepted and refused before it.
        """
        refused_before = self.n_refused
        n_accepted = 0
        for dialogue in part.read(sink=self):
            index = n_accepted + self.n_refused - refused_before
            source = dialogue.source or Source(
                corpus=self.format, format=self.format, file=part.path.name, record=index
            )
            if part.split is not None and source.split != part.split:
                source = source.model_copy(update={"split": part.split})
            if source is not dialogue.source:
                dialogue = dialogue.model_copy(update={"source": source})
            is_new = self._is_new(dialogue, part, index)
            n_accepted += is_new or self._is_dropped(dialogue, part, index)
            if is_new:
                yield dialogue
        n_records = n_accepted + self.n_refused - refused_before
        files.append(CorpusFile(part.path.name, part.sha256, part.split, n_records))

    def _is_new(self, dialogue: Dialogue, part: _Part, index: int) -> bool:
        """Return whether a dialogue was not there before, noting what else was."""
        place = f"record {index} of {part.path.name}"
        known = self._places.setdefault(dialogue.id, place)
        if known == place:
            situation = " ".join(dialogue.scenario.situation.casefold().split())
            first = self._situations.setdefault(situation, place) if situation else place
            if first != place:
                detail = f"the same situation as {first}"
                self.note(Issue("duplicate_situation", "N", part.path.name, index, detail=detail))
        return known == place

    def _is_dropped(self, dialogue: Dialogue, part: _Part, index: int) -> bool:
        """Drop a dialogue that was there before, with a warning; False if that refuses it."""
        detail = f"the same dialogue as {self._places[dialogue.id]}"
        return accepted([Issue("duplicate_dialogue", "W", part.path.name, index, detail=detail)], self)
