"""Write every pinned text anew: ``python -m tests.pins.renew [help|schemas|records|trainings]...``."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.pins import helps, records, runs, schemas, trainings
from tests.pins.pinned import FOLDER, made_with


def _help() -> Mapping[str, str]:
    return {"help/help.txt": helps.text(), "versions/help.txt": made_with("typer", "rich") + "\n"}


def _schemas() -> Mapping[str, str]:
    found = {f"schemas/{command}.yaml": schemas.fields(command) for command in schemas.COMMANDS}
    return found | {f"schemas/shipped/{command}.yaml": schemas.shipped(command) for command in schemas.COMMANDS}


def _records() -> Mapping[str, str]:
    found = _twice(lambda folder, seed: records.pages(folder, runs.play(folder, seed)))
    return {f"records/{name}": text for name, text in found.items()}


def _trainings() -> Mapping[str, str]:
    return {f"trainings/{name}": text for name, text in _twice(trainings.play).items()}


def _twice(make: Callable[[Path, str], dict[str, str]]) -> dict[str, str]:
    """Make texts in two folders and with two orders of sets, and refuse those that differ."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory(prefix="another") as second:
        once, again = make(Path(first) / "a", "1"), make(Path(second) / "other", "77")
    unlike = sorted(name for name in {*once, *again} if once.get(name) != again.get(name))
    if unlike:
        sys.exit(f"not the same in two runs: {', '.join(unlike)}")
    return once


KINDS: dict[str, Callable[[], Mapping[str, str]]] = {
    "help": _help,
    "schemas": _schemas,
    "records": _records,
    "trainings": _trainings,
}


def renew(kind: str) -> None:
    """Make one kind of pins anew, and drop those that nothing makes any more."""
    found = KINDS[kind]()
    shutil.rmtree(FOLDER / kind, ignore_errors=True)
    for name, text in found.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{kind}: {len(found)} files in {FOLDER}\n")


if __name__ == "__main__":
    for kind in sys.argv[1:] or KINDS:
        renew(kind)
