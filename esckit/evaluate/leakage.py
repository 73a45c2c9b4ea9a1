"""What a trained model has seen, read from the run folders that made it, and two rules against testing on it.

Rule 1: no evaluated dialogue was used for training, tuning or search. Rule 2: training and evaluation use one family of
splits, even where they share no dialogue. ``hub`` valid and ``ppdpp`` test, for example, share 65 dialogues, and such
pairs are easily overlooked. A user may allow either; then every row of the metrics carries a flag.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from esckit.errors import DataError
from esckit.runs import MANIFEST, read_manifest

log = logging.getLogger(__name__)


LOST_INPUT = "lost_input"

_DIGITS = re.compile(r"[0-9a-f]{12}$")

# What names a run that another one is made from, wherever it stands in a recipe.
_INPUT_FIELDS = frozenset({"checkpoint", "inputs", "trees", "opponent", "predictions"})

_SEES_NOTHING = ("evaluate", "predict")


class Seen(NamedTuple):
    """What a model has seen, itself or through its inputs.

    Attributes:
        model: Name of the model in messages.
        ids: Dialogue ids.
        corpus: Name of the corpus; the schemes of two corpora are not compared.
        scheme: Split scheme with all that decides it, see :func:`family_of`.
    """

    model: str
    ids: frozenset[str]
    corpus: str | None
    scheme: str | None


def leakage_flags(
    evaluated: Collection[str],
    scheme: str | None,
    runs: Mapping[str, Path],
    *,
    allow_overlap: bool = False,
    allow_cross_family: bool = False,
) -> tuple[str, ...]:
    """Return the flags that every row must carry.

    Args:
        evaluated: Ids of the dialogues to be evaluated.
        scheme: Family of splits that they were chosen by, see :func:`family_of`.
        runs: Run folder per role that a trained model plays, or whose predictions are read.
        allow_overlap: Flag what breaks rule 1 instead of raising.
        allow_cross_family: Flag what breaks rule 2 instead of raising.

    Raises:
        DataError: If a rule is broken and not allowed to be, or a run does not say what it has seen.
    """
    seen = [one for role, run in runs.items() for one in seen_by(role, run)]
    flags = dict.fromkeys(
        broken_rules(
            evaluated,
            seen,
            scheme=scheme,
            corpora=corpora_of(evaluated),
            allow_overlap=allow_overlap,
            allow_cross_family=allow_cross_family,
        )
    )
    for role, run in runs.items():
        if lost := lost_inputs(run):
            names = ", ".join(lost)
            log.warning(
                "the %s (%s): made from %s, not there any more; what that has seen is unknown", role, run, names
            )
            flags[LOST_INPUT] = None
    return tuple(flags)


def broken_rules(
    evaluated: Collection[str],
    seen: Iterable[Seen],
    *,
    scheme: str | None,
    corpora: Collection[str],
    allow_overlap: bool = False,
    allow_cross_family: bool = False,
) -> Iterator[str]:
    """Yield ``overlap`` where rule 1 is broken and ``cross_family`` where rule 2 is.

    Raises:
        DataError: If a rule is broken and not allowed to be.
    """
    for model in seen:
        shared = sorted(model.ids.intersection(evaluated))
        if shared and not allow_overlap:
            raise DataError(
                f"{len(shared)} dialogues in both training (scheme {model.scheme or 'none'}) and evaluation "
                f"(scheme {scheme or 'none'}), such as {', '.join(shared[:3])}",
                expected="none",
                hint="Evaluate on another split; allow_overlap: true runs all the same and marks every row",
            )
        if shared:
            yield "overlap"
        if model.ids and model.corpus in corpora and model.scheme != scheme:
            if not allow_cross_family:
                raise DataError(
                    f"{model.model} was made with scheme {model.scheme or 'none'}, the evaluation has scheme "
                    f"{scheme or 'none'}",
                    expected="one scheme for both",
                    hint="data.allow_cross_family: true runs all the same and marks every row",
                )
            yield "cross_family"


def lost_inputs(run: Path) -> list[str]:
    """Return what a run, or anything that it was made from, names as its origin and that is not there any more."""
    names = {name for _, manifest in _lineage(run) for name in _named(_origin(manifest))}
    return sorted(name for name in names if run_folder(name) is None and not Path(name).exists())


def _origin(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a recipe that says what the run is made from; what an evaluation tests on is not among it."""
    recipe: Mapping[str, Any] = manifest["recipe"]
    if manifest["command"] != "evaluate":
        return recipe
    models, played = recipe.get("models") or {}, manifest.get("roles")
    spoke = {role: binding for role, binding in models.items() if played is None or role in played}
    return {"models": spoke, "predictions": recipe.get("predictions")}


def seen_by(role: str, run: Path) -> list[Seen]:
    """Return what a run has seen by itself and through its inputs.

    An evaluation has seen nothing by itself: only what it evaluated has.

    Raises:
        DataError: If a run folder does not say which dialogues it used.
    """
    found: list[Seen] = []
    for folder, manifest in _lineage(run):
        if manifest["command"] in _SEES_NOTHING:
            continue
        own = frozenset(_ids(manifest.get("data")))
        if not own and not any(map(run_folder, _named(manifest["recipe"]))):
            raise DataError(
                "a run that does not say which dialogues it used", path=str(folder), expected="data.ids in its manifest"
            )
        # A run that only inherits has no family of its own: its inputs speak for it.
        parts = [part for part in _mappings(manifest["recipe"]) if "scheme" in part and "path" in part]
        cuts: set[str | None] = {family_of(part) for part in parts} or {None}
        for corpus in sorted(corpora_of(own)):
            of_corpus = frozenset(name for name in own if corpora_of([name]) == {corpus})
            found += [
                Seen(f"the {role} ({folder})", of_corpus, corpus if cut else None, cut) for cut in sorted(cuts, key=str)
            ]
    return found


def _lineage(run: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield a run and everything that it was made from, each once, with its manifest."""
    waiting, done = [run], set[Path]()
    while waiting:
        folder = waiting.pop()
        if folder.resolve() in done:
            continue
        done.add(folder.resolve())
        manifest = read_manifest(folder)
        yield folder, manifest
        waiting += [path for path in map(run_folder, _named(manifest["recipe"])) if path is not None]


def _mappings(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every mapping of a recipe, from the outside in."""
    if isinstance(node, Mapping):
        yield node
        node = tuple(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            yield from _mappings(value)


def _named(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a recipe names as an input."""
    for mapping in _mappings(recipe):
        for field in (field for field in mapping if field in _INPUT_FIELDS):
            value = mapping[field]
            yield from (
                name for name in (value if isinstance(value, list | tuple) else [value]) if isinstance(name, str)
            )


def run_folder(name: str) -> Path | None:
    """Return the run folder that a path lies in, itself or as a file or checkpoint of it; None if there is none."""
    path = Path(name)
    return next((folder for folder in (path, *list(path.parents)[:2]) if (folder / MANIFEST).is_file()), None)


def run_of(name: str) -> Path:
    """Return the run folder of a checkpoint.

    Raises:
        DataError: If the path lies in no run folder.
    """
    folder = run_folder(name)
    if folder is None:
        raise DataError("no run folder (it holds no manifest.json)", path=name, expected="a finished training run")
    return folder


def _ids(data: Any) -> Iterator[str]:
    """Yield the dialogue ids that the data section of a manifest names; a part for testing alone was not used."""
    if not isinstance(data, Mapping):
        return
    for key, value in data.items():
        if key == "ids" and isinstance(value, list):
            yield from map(str, value)
        elif key != "test":
            yield from _ids(value)


def family_of(data: Mapping[str, Any]) -> str:
    """Return the family of splits of a ``data:`` section: its scheme, for ``ratio`` with what fixes the cut."""
    scheme = data.get("scheme")
    if scheme != "ratio":
        return str(scheme or "none")
    ratios = ",".join(f"{float(ratio):g}" for ratio in data.get("ratios") or ())
    return f"ratio {ratios} seed {data.get('seed')}"


def family_of_runs(folders: Iterable[str]) -> str | None:
    """Return the family of splits of the runs whose dialogues are evaluated."""
    recipes = [read_manifest(run_of(name))["recipe"] for name in folders]
    return " and ".join(sorted({family_of(recipe.get("data") or {}) for recipe in recipes})) or None


def corpora_of(ids: Iterable[str]) -> set[str]:
    """Return the corpora that dialogue ids belong to: what stands before the digits of an id, "" without digits."""
    return {_DIGITS.sub("", dialogue_id) if _DIGITS.search(dialogue_id) else "" for dialogue_id in ids}
