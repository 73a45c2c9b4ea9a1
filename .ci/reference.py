"""Write the generated part of ``docs/recipes.md``: every field of every recipe, as the recipe classes describe it.

``make reference`` writes the page; ``python .ci/reference.py --check`` exits with 1 if the page is not what it writes.
A section that several places have is described once, under the name of its class.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from esckit.config.load import RECIPES
from esckit.config.reference import Field, Form, recipe_fields

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"

MARK = "<!-- `make reference` writes what is below. -->\n"

HEAD = "| field | type | default | meaning |\n| --- | --- | --- | --- |\n"

LEAST = 3
"""Fields of a section that is not written out at each of its places."""

MOST = 3
"""Places of a section that are named one by one."""


def forms(fields: Sequence[Field]) -> Iterator[tuple[Field, Form]]:
    """Yield every section below some fields, with the field that it stands at."""
    for field in fields:
        for form in field.sections:
            yield field, form
            yield from forms(form.fields)


def shared_forms(commands: dict[str, tuple[Field, ...]]) -> dict[Form, dict[str, list[str]]]:
    """Return the sections that get a table of their own: for each, its fields by command."""
    found: dict[Form, dict[str, list[str]]] = {}
    several = set[Form]()
    for command, fields in commands.items():
        for field, form in forms(fields):
            alone = form.relative(field.path)
            places = found.setdefault(alone, {}).setdefault(command, [])
            if field.path not in places:
                places.append(field.path)
            if len(field.sections) > 1:
                several.add(alone)
    kept = {
        form: places
        for form, places in found.items()
        if form in several or (len(form.fields) >= LEAST and sum(map(len, places.values())) > 1)
    }
    names = [form.name for form in kept]
    if twice := {name for name in names if names.count(name) > 1}:
        sys.exit(f"error: two different sections are called {min(twice)}; give one of the classes another name")
    return dict(sorted(kept.items(), key=lambda each: each[0].name))


def table(fields: Sequence[Field], shared: dict[Form, dict[str, list[str]]]) -> str:
    """Return the rows of some fields; a section that is described elsewhere is a link."""
    return HEAD + "".join(rows(fields, shared))


def rows(fields: Sequence[Field], shared: dict[Form, dict[str, list[str]]]) -> Iterator[str]:
    """Yield a row for each field and for the fields of the sections that stand here only."""
    for field in fields:
        alone = [form.relative(field.path) for form in field.sections]
        linked = [form for form in alone if form in shared]
        kinds = list(field.words)
        if len(alone) > 1:
            kinds.append("a section with " + ", ".join(link(form, form.key) for form in linked))
        elif field.is_section:
            kinds.append(f"section {link(linked[0], linked[0].name)}" if linked else "section")
        default = "**required**" if field.default is None else f"`{field.default}`" if field.default else "–"
        meaning = field.meaning + (" *Operational.*" if field.operational else "")
        cells = (f"`{field.path}`", " or ".join(kinds), default, meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
        if len(alone) == 1 and not linked:
            yield from rows(field.sections[0].fields, shared)


def where(places: dict[str, list[str]]) -> str:
    """Return where a section stands; of many places only the recipes."""
    by_path: dict[str, list[str]] = {}
    for command, paths in places.items():
        for path in paths:
            by_path.setdefault(path, []).append(command)
    if len(by_path) > MOST:
        return f"In recipes of {', '.join(places)}."
    return "; ".join(f"`{path}` of {', '.join(commands)}" for path, commands in by_path.items()) + "."


def link(form: Form, words: str) -> str:
    """Return a link to a section's own table."""
    return f"[{words}](#{form.name.lower()})"


def page() -> str:
    """Return the generated part of the page."""
    commands = {name: recipe_fields(name) for name in RECIPES.targets}
    shared = shared_forms(commands)
    parts = [f"## {name}\n\n{table(fields, shared)}" for name, fields in commands.items()]
    parts.append("## Shared sections\n\nSections that several recipes have, or that are one of several kinds.\n")
    for form, places in shared.items():
        required_first = sorted(form.fields, key=lambda field: field.default is not None)
        parts.append(f"### {form.name}\n\n{form.meaning}\n\n{where(places)}\n\n{table(required_first, shared)}")
    return "\n".join(parts)


def main() -> None:
    """Write the page, or compare it."""
    written = PAGE.read_text(encoding="utf-8")
    wanted = written.partition(MARK)[0] + MARK + "\n" + page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != written:
        sys.exit("docs/recipes.md is not what the recipe classes say; write it anew with: make reference")


if __name__ == "__main__":
    main()
