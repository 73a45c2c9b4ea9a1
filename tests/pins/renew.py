"""Write every pinned text anew: ``python -m tests.pins.renew [help|schemas|records|trainings]...``."""

import shutil
import sys
from collections.abc import Callable, Mapping

from tests.pins import helps, schemas
from tests.pins.pinned import FOLDER, made_with


def _help() -> Mapping[str, str]:
    return {"help.txt": helps.text(), "versions.txt": made_with("typer", "rich") + "\n"}


def _schemas() -> Mapping[str, str]:
    found = {f"{command}.yaml": schemas.fields(command) for command in schemas.COMMANDS}
    return found | {f"shipped/{command}.yaml": schemas.shipped(command) for command in schemas.COMMANDS}


KINDS: dict[str, Callable[[], Mapping[str, str]]] = {"help": _help, "schemas": _schemas}


def renew(kind: str) -> None:
    """Make one kind of pins anew, and drop those that nothing makes any more."""
    found = KINDS[kind]()
    shutil.rmtree(FOLDER / kind, ignore_errors=True)
    for name, text in found.items():
        path = FOLDER / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{kind}: {len(found)} files in {FOLDER / kind}\n")


if __name__ == "__main__":
    for kind in sys.argv[1:] or KINDS:
        renew(kind)
