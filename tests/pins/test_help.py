"""The help of every command is what it was."""

import pytest

from tests.pins import helps
from tests.pins.pinned import made_with, pinned, require_same


def test_the_help_of_every_command_is_as_pinned() -> None:
    drawn_by = made_with("typer", "rich")
    if drawn_by != pinned("versions/help.txt").strip():
        pytest.skip(f"the pinned pages were drawn by other versions than {drawn_by}")
    require_same("help/help.txt", helps.text())
