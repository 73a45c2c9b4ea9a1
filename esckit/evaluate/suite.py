"""What a suite is, and what the suites share: the corpus, the predictions and the runs that an evaluation reads.

A :class:`Suite` holds every fact of one suite; each module in ``suites/`` defines one. Set-up, playing, measuring and
comparing loop over suites and know none by name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from esckit.config.sections import Checkpoint
from esckit.data.contexts import contexts
from esckit.data.selection import Selection, select_dialogues
from esckit.errors import DataError
from esckit.metrics.metric import Metric
from esckit.play.futures import RewardInputs, read_inputs
from esckit.predict.run import Prediction, read_predictions
from esckit.prompts.prompt import load_prompt
from esckit.records import read_records
from esckit.roles.cast import Casting
from esckit.runs import MANIFEST, read_manifest
from esckit.strategies.kept import find_kept, kept_taxonomy, require_same
from esckit.strategies.taxonomy import Taxonomy, load_taxonomy
from esckit.types import Context, Dialogue, ParseKind, Reasoned, SearchTree, main_line

if TYPE_CHECKING:
    from esckit.evaluate.recipe import EvaluateRecipe
    from esckit.metrics.rows import Measurement, MetricRow

_MODEL_FIELDS = frozenset({"backbone", "endpoint", "model", "checkpoint", "scripted", "world", "policy"})


Stage = Literal["Exploration", "Comforting", "Action"]

STAGES: tuple[Stage, ...] = ("Exploration", "Comforting", "Action")
"""The stages of a supportive conversation, by position (AFlow, arXiv 2602.08826)."""

MALFORMED: tuple[ParseKind, ...] = ("closed_response", "open_response", "untagged")
"""How a reply was found in a malformed output; an output without any reply is unscored as ``blank``."""


def stage_of(index: int, n_turns: int) -> Stage:
    """Return the stage of the 0-based supporter turn ``index`` of ``n_turns`` (T').

    Exploration if 3i < T' − 1, Comforting if 3i < 2(T' − 1), else Action; the only turn of a dialogue is Exploration.
    """
    if n_turns == 1 or 3 * index < n_turns - 1:
        return "Exploration"
    return "Comforting" if 3 * index < 2 * (n_turns - 1) else "Action"


class Case(Reasoned):
    """Base of every case.

    Attributes:
        ANSWERS: The role whose answer the case holds: it failed if the case is unscored.
        READS: The role that reads the answer.
        unscored: Why the case has no value (``backend``, ``blank``, ``unparsed``, ``missing`` …); None if scored.
        statistics: Per-case numbers for readers; metrics never read them.
    """

    ANSWERS: ClassVar[str] = "supporter"
    READS: ClassVar[str] = "judge"

    id: str
    dialogue_id: str
    unscored: str | None = None
    statistics: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    def failures(self) -> Iterator[tuple[str, str]]:
        """Yield which role failed, and how; nothing if everything is scored."""
        if self.unscored is not None:
            yield self.ANSWERS, self.unscored
        for kind in self._unread():
            if kind is not None:
                yield self.READS, kind

    def _unread(self) -> Iterable[str | None]:
        """Return why the reader gave no value, once for each time; None where it did."""
        return ()


@dataclass(frozen=True, slots=True)
class Unit:
    """One case to be played.

    Attributes:
        id: Stable id, also of its seeds.
        dialogue_id: The resampling unit.
        what: What the suite needs to play it: plain data.
    """

    id: str
    dialogue_id: str
    what: Any = None


Done = Mapping[str, Mapping[str, Case]]
"""Cases of this run that are on disk already, by file and id."""

Files = Mapping[str, Sequence[Any]]
"""Cases by the name of their file."""

Player = Callable[[Unit], Awaitable[Case]]


@dataclass(frozen=True, slots=True)
class Work:
    """The cases of one file: what is to be played, and at what cost.

    Attributes:
        units: In the order of the file.
        calls: Calls to models per role at most; retries are not included.
        given: What :attr:`CaseFile.prepare` needs beside the recipe: plain data.
        completed: Adds to a unit what the cases of other files say, just before it is played.
        roles: Roles whose models it needs; without any, no model is loaded for it.
        left_out: Number of contexts that are no case, by reason.
        conditions: What else must be equal for two runs to be compared on this file.
    """

    units: tuple[Unit, ...]
    calls: dict[str, int]
    given: Any = None
    completed: Callable[[Unit, Done], Unit] | None = None
    roles: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CaseFile:
    """One file of cases and everything that is computed from it; most suites have one.

    Attributes:
        name: Of the file under ``examples/``, without ending.
        kind: Class of its cases.
        work: What is to be played.
        prepare: Returns what plays a case, given the recipe, the roles and :attr:`Work.given`. Cases may be played on
            other machines, so it reads no data: what it needs is in the units.
        metrics: The metrics over all cases, on which runs are gated and compared; given the names of the strategies.
        rows: All rows of ``metrics.json``, given the names of the strategies as well.
        stands_in: Where its cases stand in a run folder, if not in ``examples/<name>.jsonl``.
        example: What ``examples/<name>.jsonl`` holds of a case, if its cases stand elsewhere.
        is_wanted: Whether a recipe asks for this file.
        batch: Cases that are read together; at least so many are in flight.
    """

    name: str
    kind: type[Case]
    work: Callable[[Material], Work]
    prepare: Callable[[EvaluateRecipe, Casting, Any], Player]
    metrics: Callable[[EvaluateRecipe, Sequence[str]], Sequence[Metric[Any]]]
    rows: Callable[[EvaluateRecipe, Sequence[str], Sequence[Any], Measurement], list[MetricRow]]
    stands_in: str | None = None
    example: Callable[[Any], Any] | None = None
    is_wanted: Callable[[EvaluateRecipe], bool] = lambda recipe: True
    batch: int = 1

    @property
    def path(self) -> str:
        """Where its cases stand, relative to the run folder."""
        return self.stands_in or f"examples/{self.name}.jsonl"


def family_of_data(material: Material) -> str | None:
    """Return the family of splits of the recipe's corpus; None without one."""
    data = material.recipe.data
    return family_of(data.model_dump()) if data is not None else None


@dataclass(frozen=True, slots=True)
class Suite:
    """Everything that an evaluation asks about a suite; its settings are a section of the same module.

    Attributes:
        name: As recipes, files and metrics name it.
        roles: The roles that take part under a recipe, whether they are bound or not.
        optional: Those of its roles that may be unbound.
        fields: Other fields that a recipe must give for it, by dotted path.
        files: Its files of cases.
        conditions: What must be equal for two runs to be compared, given the digests of its cases.
        family: Family of splits of the evaluated dialogues; None if the suite uses no corpus.
        sources: Files and runs whose answers it reads, by what they are.
        taxonomy: Taxonomy of the strategies that are predicted; None if it predicts none.
        reads_labels: Whether it reads the strategies of the corpus.
        judge: The role that judges what others wrote.
        judge_prompts: Fields of ``prompts`` with the judge's prompts.
    """

    name: str
    roles: Callable[[EvaluateRecipe], tuple[str, ...]]
    files: tuple[CaseFile, ...]
    conditions: Callable[[Material, Mapping[str, str]], dict[str, Any]]
    optional: tuple[str, ...] = ()
    fields: Callable[[EvaluateRecipe], tuple[str, ...]] = lambda recipe: ("data",)
    family: Callable[[Material], str | None] | None = family_of_data
    sources: Callable[[EvaluateRecipe], dict[str, str | None]] = lambda recipe: {}
    taxonomy: Callable[[Material], Taxonomy | None] = lambda material: None
    reads_labels: Callable[[EvaluateRecipe], bool] = lambda recipe: False
    judge: str | None = None
    judge_prompts: tuple[str, ...] = ()

    def needs(self, recipe: EvaluateRecipe) -> list[str]:
        """Return the fields that a recipe must give for the suite; a file may take the place of those who answer."""
        from_file = recipe.predictions is not None and "predictions" in self.sources(recipe)
        optional = {*self.optional, *(("strategist", "supporter") if from_file else ())}
        return [*(f"models.{role}" for role in self.roles(recipe) if role not in optional), *self.fields(recipe)]


# ---------------------------------------------------------------- what suites read


@dataclass(frozen=True)
class Material:
    """The data of an evaluation; each part is read when a suite asks for it."""

    recipe: EvaluateRecipe

    @cached_property
    def merged(self) -> Selection:
        """The dialogues with runs of one speaker joined."""
        return self._select(merge=True)

    @cached_property
    def unmerged(self) -> Selection:
        """The dialogues utterance by utterance."""
        return self._select(merge=False)

    def _select(self, *, merge: bool) -> Selection:
        recipe = self.recipe
        assert recipe.data is not None
        data = recipe.data.model_copy(update={"merge": merge})
        with_labels = any(suite.reads_labels(recipe) for suite in recipe.chosen)
        return select_dialogues(data, taxonomy=recipe.taxonomy if with_labels else None)

    @cached_property
    def taxonomy(self) -> Taxonomy | None:
        """The taxonomy that the recipe names, else that of the corpus's labels, which a run that is read may keep."""
        if self.recipe.taxonomy is not None:
            named = load_taxonomy(self.recipe.taxonomy)
            kept = find_kept(named.name, self._runs_read)
            if kept is not None:
                require_same(named, kept, here="that of this recipe", there="that of a run that it reads")
            return named
        if self.recipe.data is None or self.merged.taxonomy is None:
            return None
        kept = find_kept(self.merged.taxonomy, self._runs_read) if self.merged.strategies is None else None
        return kept or self.merged.known_strategies()

    @property
    def _runs_read(self) -> list[Path]:
        """Folders that may keep the taxonomy of the strategies that the recipe reads."""
        recipe = self.recipe
        strategist = recipe.models.strategist
        named = [*recipe.settings.strategy.trees, *filter(None, [recipe.predictions])]
        named += [strategist.checkpoint] if isinstance(strategist, Checkpoint) else []
        return [path if path.is_dir() else path.parent for path in map(Path, named)]

    def labels(self, taxonomy: Taxonomy | None) -> dict[str, str | None]:
        """Return what strategies mean: their taxonomy, and the mapping by which the corpus's labels got into it."""
        mapping = self.merged.mapping if self.recipe.data is not None else None
        return {"taxonomy": taxonomy.digest if taxonomy else None, "mapping": mapping}

    @cached_property
    def trees(self) -> tuple[SearchTree, ...]:
        """The complete search trees that the suite ``strategy`` takes its decisions from."""
        sources = [
            path / "trees.jsonl" if path.is_dir() else path for path in map(Path, self.recipe.settings.strategy.trees)
        ]
        return tuple(
            tree for source in sources for tree in read_records(SearchTree, source) if tree.status == "complete"
        )

    @cached_property
    def tree_taxonomy(self) -> Taxonomy:
        """The taxonomy of the search trees.

        Raises:
            DataError: If there is no tree, or they have several taxonomies or another one than the recipe names.
        """
        paths, named = self.recipe.settings.strategy.trees, self.recipe.taxonomy
        folders = [path if path.is_dir() else path.parent for path in map(Path, paths)]
        names = {tree.taxonomy for tree in self.trees}
        if not names:
            raise DataError("no complete search tree", path=", ".join(paths), expected="a finished run of 'search'")
        ours = load_taxonomy(named) if named else None
        wanted = ours.name if ours else next(iter(names))
        if len(names) > 1 or wanted not in names:
            raise DataError(f"trees of taxonomy {', '.join(sorted(names))}", expected=named or "one taxonomy")
        theirs = kept_taxonomy(wanted, *folders)
        if ours is not None:
            require_same(ours, theirs, here="that of this recipe", there=f"that of {', '.join(paths)}")
        return theirs

    @cached_property
    def futures(self) -> RewardInputs:
        """The simulated futures of the suite ``reward``."""
        return read_inputs(self.recipe.settings.reward.inputs)

    @cached_property
    def predictions(self) -> dict[str, Prediction] | None:
        """The predictions file by case id; None where the recipe names none."""
        if self.recipe.predictions is None:
            return None
        known = {f"{tree.id}@{node.id}" for tree in self.trees for node in main_line(tree)[:-1]}
        known |= self.all_context_ids() if self.recipe.data is not None else set()
        path = Path(self.recipe.predictions)
        return read_predictions(path / "predictions.jsonl" if path.is_dir() else path, known)

    def reply_contexts(self) -> Iterator[Context]:
        """Yield the contexts that a supporter answers: each ends in a seeker turn."""
        for dialogue in self.merged.dialogues:
            yield from contexts(dialogue, merged=True)

    def all_context_ids(self) -> set[str]:
        """Return the ids that a predictions file may name."""
        merged = self.recipe.settings.strategy.unit == "turn"
        ids = {context.id for context in self.reply_contexts()}
        for dialogue in (self.merged if merged else self.unmerged).dialogues:
            ids |= {context.id for context in decisions(dialogue, merged=merged, openings=True)}
        return ids


def decisions(dialogue: Dialogue, *, merged: bool, openings: bool) -> Iterator[Context]:
    """Yield a context for every supporter turn; ``openings`` also for those without a turn before them."""
    if openings and dialogue.turns and dialogue.turns[0].speaker == "supporter":
        yield Context(
            id=f"{dialogue.id}{'#m' if merged else '#'}0",
            dialogue_id=dialogue.id,
            scenario=dialogue.scenario,
            turns=(),
            reference=dialogue.turns[0],
        )
    yield from contexts(dialogue, merged=merged)


# ---------------------------------------------------------------- where data come from


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


# ---------------------------------------------------------------- conditions of comparisons


def played_by(recipe: EvaluateRecipe, role: str) -> dict[str, Any]:
    """Return which model plays a role, and how it is sampled."""
    binding = recipe.models.bindings().get(role)
    if binding is None:
        return {"model": None}
    given = binding.model_dump(mode="json")
    return {"model": model_fields(given), "sampling": given["sampling"], "on_length": given["on_length"]}


def prompted(recipe: EvaluateRecipe, role: str, prompt: str) -> dict[str, Any]:
    """Return which model plays a role, with its prompt."""
    tries = recipe.settings.max_attempts
    return {**played_by(recipe, role), "prompt": load_prompt(prompt).identity, "max_attempts": tries}


def model_fields(binding: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a binding that say which model it is."""
    fields = {name: value for name, value in binding.items() if name in _MODEL_FIELDS}
    server = fields.get("endpoint")
    if isinstance(server, Mapping):
        fields["endpoint"] = {name: value for name, value in server.items() if name not in ("devices", "ready_s")}
    if server is not None and fields.get("checkpoint") is None:
        fields.pop("checkpoint", None)  # earlier versions did not have this field
    return fields
