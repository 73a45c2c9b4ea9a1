"""What ``esckit train-flow`` learns from: search trees of earlier runs, or the gold strategies of a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.config.sections import DataConfig
from esckit.data.selection import Selection, select_dialogues
from esckit.errors import ConfigError, DataError
from esckit.flow.recipe import FlowData, GoldData, TrainFlowRecipe
from esckit.records import file_sha256, read_records
from esckit.runs import refuse_links
from esckit.strategies.taxonomy import Taxonomy, kept_taxonomy, load_taxonomy
from esckit.trees import trajectories
from esckit.types import Dialogue, SearchTree

if TYPE_CHECKING:
    from esckit.flow.text import FlowText
    from esckit.flow.trees import FlowTree


TREES = "trees.jsonl"


@dataclass(frozen=True, slots=True)
class Part:
    """One split of the material: search trees or dialogues."""

    trees: tuple[SearchTree, ...] = ()
    dialogues: tuple[Dialogue, ...] = ()


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that a training reads.

    Attributes:
        labels: The taxonomy.
        parts: By use: ``train``, ``valid``, ``test``.
        inputs: Digest per input file.
        round: Of the trees; 0 for a corpus.
        facts: For the manifest.
    """

    labels: Taxonomy
    parts: dict[str, Part]
    inputs: dict[str, str]
    round: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def taxonomy(self) -> str:
        """Name of the taxonomy."""
        return self.labels.name

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of the strategies in order."""
        return self.labels.names

    @property
    def abbreviations(self) -> dict[str, str]:
        """Strategy name to abbreviation."""
        return dict(zip(self.labels.names, self.labels.abbrs, strict=True))


def collect(data: FlowData) -> Material:
    """Return what a recipe's ``data:`` section names.

    Raises:
        DataError: If trees or corpus cannot be read, do not fit together, or leave nothing to learn from.
    """
    return _gold_material(data.gold) if data.gold is not None else _tree_material(data)


def counts(material: Material, recipe: TrainFlowRecipe) -> dict[str, Any]:
    """Return how much there is of everything."""
    data = recipe.data
    found: dict[str, Any] = {"taxonomy": material.taxonomy}
    for use, part in material.parts.items():
        if data.gold is not None:
            decisions = sum(turn.strategy is not None for one in part.dialogues for turn in one.turns)
            found[use] = {"dialogues": len(part.dialogues), "decisions": decisions}
            continue
        paths = [path for tree in part.trees for path in trajectories(tree, min_actions=data.min_actions)]
        if not paths:
            raise DataError(
                f"no path in {use}", expected=f"at least data.min_actions: {data.min_actions} actions on some path"
            )
        decisions = sum(len(path.steps) for path in paths)
        found[use] = {"trees": len(part.trees), "paths": len(paths), "decisions": decisions}
    return found


def flow_trees(material: Material, use: str, recipe: TrainFlowRecipe, text: FlowText) -> list[FlowTree]:
    """Return one part of the material as token ids.

    Raises:
        DataError: If nothing is left of it.
    """
    from esckit.flow.trees import flow_tree, gold_trees

    part, limit = material.parts[use], recipe.encoding.max_path_tokens
    if recipe.data.gold is not None:
        found = [
            tree
            for dialogue in part.dialogues
            for tree in gold_trees(dialogue, text, material.strategies, max_tokens=limit, window=use != "train")
        ]
    else:
        made = (
            flow_tree(
                tree,
                text,
                min_actions=recipe.data.min_actions,
                max_path_tokens=limit,
                responses=recipe.response_weight > 0,
            )
            for tree in part.trees
        )
        found = _told_apart(tree for tree in made if tree is not None)
    if not found:
        raise DataError(
            f"nothing to learn from in {use}",
            expected="paths of at least data.min_actions actions within encoding.max_path_tokens",
        )
    return found


def _told_apart(trees: Iterable[FlowTree]) -> list[FlowTree]:
    """Number trees of one id: two rounds of search may grow the same seed dialogue under the same seed."""
    seen: Counter[str] = Counter()
    found = []
    for tree in trees:
        seen[tree.id] += 1
        again = seen[tree.id]
        found.append(tree if again == 1 else replace(tree, id=f"{tree.id}~{again}"))
    return found


# ---------------------------------------------------------------- a corpus


def _gold_material(gold: GoldData) -> Material:
    uses = {"train": gold.split, "valid": gold.valid_split, "test": gold.test_split}
    selections = {use: _select(gold, split) for use, split in uses.items() if split is not None}
    first = selections["train"]
    if first.taxonomy is None:
        raise DataError("no strategy label", path=gold.path, expected="dialogues with strategies")
    return Material(
        labels=first.strategies or load_taxonomy(first.taxonomy),
        parts={use: Part(dialogues=selection.dialogues) for use, selection in selections.items()},
        inputs=first.files,
        # With all ids: whoever evaluates the policy must know what it has seen.
        facts={use: selection.facts() for use, selection in selections.items()},
    )


def _select(gold: GoldData, split: str) -> Selection:
    wanted = gold.model_dump(exclude={"split", "valid_split", "test_split", "unit", "taxonomy"})
    data = DataConfig.model_validate({**wanted, "split": split, "merge": gold.unit == "turn"})
    return select_dialogues(data, taxonomy=gold.taxonomy)


# ---------------------------------------------------------------- search trees


def _tree_material(data: FlowData) -> Material:
    files = [_tree_file(Path(name)) for name in data.trees]
    if len({file.resolve() for file in files}) < len(files):
        raise DataError("the same trees twice in data.trees", expected="every run once")
    trees = [tree for file in files for tree in _read_trees(file)]
    usable = [tree for tree in trees if tree.status != "failed"]
    if not usable:
        raise DataError("no finished tree", path=", ".join(map(str, files)), expected="at least one")
    _check_alike(usable)
    _check_splits(trees)
    uses = {"train": data.split} | ({"valid": data.valid_split} if data.valid_split else {})
    parts = {use: Part(trees=tuple(t for t in usable if t.split == split)) for use, split in uses.items()}
    for use, part in parts.items():
        if not part.trees:
            found = Counter(str(tree.split) for tree in usable)
            shown = ", ".join(f"{name} {n}" for name, n in sorted(found.items()))
            raise DataError(
                f"no tree in split {uses[use]!r} (found: {shown})",
                expected="trees of both splits",
                hint="Search both (data.split: [train, valid]), or set data.split and data.valid_split",
            )
    first = usable[0]
    return Material(
        labels=_labels(first, files),
        parts=parts,
        inputs={str(file): file_sha256(file) for file in files},
        round=max(tree.round for tree in usable),
        facts={
            "readout": first.readout,
            "rounds": sorted({tree.round for tree in usable}),
            "n_failed_trees": len(trees) - len(usable),
        },
    )


def _tree_file(path: Path) -> Path:
    file = path / TREES if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"no {TREES}" if path.is_dir() else "no such file or folder",
            path=str(path),
            expected="a run folder of 'esckit search', or its trees.jsonl",
        )
    if path.is_dir():
        refuse_links([file])
    return file


def _read_trees(file: Path) -> Iterable[SearchTree]:
    """Read a file of trees, refusing one whose last line was cut by a crash."""
    with file.open("rb") as lines:
        size = lines.seek(0, 2)
        lines.seek(max(0, size - 1))
        is_cut = size > 0 and lines.read(1) != b"\n"
    if is_cut:
        raise DataError(
            "an unfinished last line", path=str(file), hint="The search was cut off: run it again, it will go on"
        )
    return read_records(SearchTree, file)


def _check_alike(trees: Sequence[SearchTree]) -> None:
    """Refuse trees whose values or strategies do not mean the same."""
    for what, kinds in (
        ("read-outs", {tree.readout for tree in trees}),
        ("taxonomies", {f"{tree.taxonomy} ({', '.join(tree.strategies)})" for tree in trees}),
    ):
        if len(kinds) > 1:
            raise DataError(f"trees of different {what}: {'; '.join(sorted(kinds))}", expected="one for all of them")


def _check_splits(trees: Sequence[SearchTree]) -> None:
    """Refuse a scenario in two splits: its prefixes would be on both sides."""
    splits: dict[str, set[str]] = {}
    for tree in trees:
        splits.setdefault(tree.scenario.id, set()).add(str(tree.split))
    torn = {scenario: found for scenario, found in splits.items() if len(found) > 1}
    if torn:
        scenario, found = sorted(torn.items())[0]
        raise DataError(
            f"{len(torn)} scenarios in more than one split, the first {scenario} in {', '.join(sorted(found))}",
            expected="every scenario in one split",
            hint="Search all rounds under one split scheme and seed",
        )


def _labels(tree: SearchTree, files: Sequence[Path]) -> Taxonomy:
    """Return the taxonomy that the trees were grown with."""
    taxonomy = kept_taxonomy(tree.taxonomy, *(file.parent for file in files))
    if taxonomy.names != tree.strategies:
        raise ConfigError(
            f"taxonomy {tree.taxonomy} has changed since tree {tree.id} was grown",
            expected=", ".join(tree.strategies),
        )
    return taxonomy
