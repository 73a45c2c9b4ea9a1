"""What every recipe may say is what it was: its fields, their types, defaults and limits."""

import pytest

from tests.pins import schemas
from tests.pins.pinned import kept_names, require_same


@pytest.mark.parametrize("command", schemas.COMMANDS)
def test_the_fields_of_a_recipe_are_as_pinned(command: str) -> None:
    require_same(f"schemas/{command}.yaml", schemas.fields(command))


@pytest.mark.parametrize("command", schemas.COMMANDS)
def test_the_shipped_recipes_resolve_as_pinned(command: str) -> None:
    require_same(f"schemas/shipped/{command}.yaml", schemas.shipped(command))


def test_every_pinned_schema_is_compared() -> None:
    compared = [f"{folder}{command}.yaml" for folder in ("", "shipped/") for command in schemas.COMMANDS]
    assert kept_names("schemas") == sorted(compared)
