"""Corpora from the Hugging Face hub, named ``hub:OWNER/NAME[@REVISION]``; the only loader that may use the network.

``datasets`` is imported when such a path is read and not before.
"""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from esckit.datasets.archives import plain_row
from esckit.datasets.containers import RawRecord
from esckit.datasets.text import listed, quoted
from esckit.errors import DataError

PREFIX = "hub:"
SPLITS: Mapping[str, str] = {"train": "train", "validation": "valid", "valid": "valid", "dev": "valid", "test": "test"}
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
    known = [name for name in SPLITS if name in loaded]
    others = tuple(sorted(str(name) for name in loaded if name not in SPLITS))
    ours = [SPLITS[name] for name in known]
    if not known or len(set(ours)) < len(ours):
        raise DataError(
            f"the splits {listed(str(name) for name in loaded)}",
            path=path,
            expected="train, validation and test, each at most once",
            whole_file=True,
        )
    return tuple(_split(path, name, loaded[name]) for name in known), others


def _split(path: str, name: str, rows: Any) -> HubSplit:
    kept = tuple(dict(row) for row in rows)
    if not kept:
        raise DataError("a split that holds no dialogue", path=f"{path}/{name}", whole_file=True)
    digest = sha256()
    for row in kept:
        text = row["text"] if row.keys() == {"text"} else json.dumps(row, ensure_ascii=True, default=str)
        digest.update(f"{text}\n".encode("utf-8", errors="replace"))
    return HubSplit(name, SPLITS[name], digest.hexdigest(), kept)


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
    return DataError(
        f"no data set that can be loaded from the hub ({reason})",
        path=path,
        hint="Check name and network; HF_HUB_OFFLINE=1 uses what is cached; docs/data.md says how to get the files",
        whole_file=True,
    )
