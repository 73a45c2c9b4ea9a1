"""A user's own taxonomy travels with what is made with it: a copy in the run folder and in the checkpoint.

So trees, predictions and policies can be used where the user's file is gone, and a file that has changed since is told
apart. Shipped taxonomies are known by their names, and no copy of them is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from esckit.errors import ConfigError
from esckit.records import write_atomic
from esckit.runs import MANIFEST, read_manifest
from esckit.strategies.files import shipped_names
from esckit.strategies.taxonomy import KEPT, Strategy, Taxonomy, load_taxonomy, read_taxonomy

_SHOWN_DIFFERENCES = 6


def is_shipped(taxonomy: Taxonomy) -> bool:
    """Return whether a taxonomy is one that ships, rather than a user's own."""
    return taxonomy.name in shipped_names("taxonomy") and load_taxonomy(taxonomy.name) == taxonomy


def as_yaml(taxonomy: Taxonomy) -> str:
    """Return a taxonomy as the text of a YAML file."""
    return yaml.safe_dump(taxonomy.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def keep_taxonomy(taxonomy: Taxonomy | None, folder: Path) -> None:
    """Write a user's own taxonomy beside what is made with it, where :func:`kept_taxonomy` finds it by its name."""
    if taxonomy is not None and not is_shipped(taxonomy):
        write_atomic(folder / KEPT, as_yaml(taxonomy))


def taxonomy_inputs(taxonomy: Taxonomy | None) -> dict[str, str]:
    """Return what a run is known by beside its recipe, which names the file of a user's own taxonomy only."""
    return {} if taxonomy is None or is_shipped(taxonomy) else {"taxonomy": taxonomy.digest}


def find_kept(name: str, folders: Iterable[Path]) -> Taxonomy | None:
    """Return the copy of a user's own taxonomy of a name that the folders keep, None if none does.

    Raises:
        ConfigError: If two folders keep different ones, or a copy cannot be read.
    """
    found: tuple[Path, Taxonomy] | None = None
    for folder in folders:
        if not (folder / KEPT).is_file():
            continue
        kept = read_taxonomy(str(folder / KEPT))
        if kept.name != name:
            continue
        _require_unchanged(kept, folder)
        if found is not None:
            require_same(kept, found[1], here=str(folder), there=str(found[0]))
        found = found or (folder, kept)
    return found[1] if found is not None else None


def _require_unchanged(kept: Taxonomy, run: Path) -> None:
    """Refuse a copy that was changed after its run began; folders without a manifest say nothing of that."""
    known = read_manifest(run).get("taxonomy") if (run / MANIFEST).is_file() else None
    if known is not None and known != kept.digest:
        raise ConfigError(
            f"{run / KEPT} was changed after the run: its digest is {kept.digest}, and {MANIFEST} says {known}",
            expected="the taxonomy that the run was made with",
            hint="Bring it back as it was, or make the run again",
        )


def kept_taxonomy(name: str, *folders: Path) -> Taxonomy:
    """Return the taxonomy of a name: the copy in one of the folders, else the shipped one.

    Raises:
        ConfigError: If there is neither, or as :func:`find_kept`.
    """
    return find_kept(name, folders) or load_taxonomy(name)


def require_same(ours: Taxonomy, theirs: Taxonomy, *, here: str, there: str) -> None:
    """Refuse two taxonomies of one name and different contents.

    Args:
        ours: One of them.
        theirs: The other.
        here: Where ``ours`` is from, for the message.
        there: Where ``theirs`` is from.

    Raises:
        ConfigError: If they differ; the message says in what.
    """
    if ours == theirs:
        return
    found = differences(ours, theirs)
    shown = [*found[:_SHOWN_DIFFERENCES], *([f"{len(found)} in all"] if len(found) > _SHOWN_DIFFERENCES else [])]
    raise ConfigError(
        f"two taxonomies called {ours.name!r}, {here} and {there}, differ: {'; '.join(shown)}",
        expected="one content for one name",
        hint="Name the run in place of the file (taxonomy: RUN), or give the changed one a name of its own",
    )


def differences(ours: Taxonomy, theirs: Taxonomy) -> list[str]:
    """Return what differs between two taxonomies, as short clauses; the strategies are told by their names."""
    found = [field for field in ("name", "title", "source", "stages") if getattr(ours, field) != getattr(theirs, field)]
    found += [f"{name!r} is only in the first" for name in ours.names if name not in theirs.names]
    found += [f"{name!r} is only in the second" for name in theirs.names if name not in ours.names]
    shared = [name for name in ours.names if name in theirs.names]
    if shared != [name for name in theirs.names if name in ours.names]:
        found.append("the order of the strategies")
    for name in shared:
        mine, other = ours.by_name(name), theirs.by_name(name)
        fields = [field for field in Strategy.model_fields if getattr(mine, field) != getattr(other, field)]
        found += [f"{field} of {name!r}" for field in fields]
    return found
