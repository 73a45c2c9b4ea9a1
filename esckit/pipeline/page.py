"""A pipeline: one page that lists the stages of a method, each a recipe with some fields changed.

::

    command: run
    stages:
      search: {recipe: aflow/search, about: "strategy trees", set: {data.limit: 100}}
      train:  {recipe: aflow/train_flow, set: {data.trees: [stage:search]}}

Stages run in the order of the page, each in a folder of its own name below the pipeline's folder; ``stage:NAME`` as a
value stands for the folder of an earlier stage. Everything wrong with a page is reported at once, before anything
starts. Not here: how stages are run (:mod:`esckit.pipeline.sequence`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from esckit.config.load import RecipeFile, find_recipe, load_any_recipe, load_recipe, shipped_recipes
from esckit.config.sections import Page, Recipe, Section
from esckit.documents import parse_yaml, strings_in
from esckit.errors import ConfigError, EsckitError
from esckit.lineage import PIPELINES, named_runs
from esckit.registry import did_you_mean, nearest

REFERENCE = "stage:"
"""What a value begins with that stands for the run folder of an earlier stage."""

_NO_STAGES = {"run": "is a pipeline itself", "chat": "is a chat, which waits for a person"}

_FIELD = re.compile(r"^([A-Za-z][\w-]*)\.(.+?)=(.*)$", re.DOTALL)


class StageSection(Section):
    """One stage of a pipeline.

    Attributes:
        recipe: Name of a shipped recipe, or a file: beside the page, or from where esckit is called.
        about: What it does, in a sentence.
        set: Fields of the recipe with their values; ``stage:NAME`` stands for the folder of an earlier stage.
        show: Which numbers are shown when it is done: the name of a metric, or a value of ``summary.json``, after what
            to call it; none shows the headline metrics, or the numbers at the top of the summary and on held-out data.
    """

    recipe: str = Field(min_length=1)
    about: str = ""
    set: dict[str, Any] = Field(default_factory=dict)
    show: dict[str, str] = Field(default_factory=dict)


_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_-]*$")


class PipelineRecipe(Page):
    """The page of ``esckit run``.

    Attributes:
        stages: The stages by name, in the order in which they run.
    """

    command: Literal["run"]
    stages: dict[str, StageSection] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _can_be_folders(cls, stages: dict[str, StageSection]) -> dict[str, StageSection]:
        wrong = [name for name in stages if not _NAME.match(name)]
        if wrong:
            raise ValueError(f"must have names of letters, digits, _ and -, unlike {', '.join(map(repr, wrong))}")
        return stages


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage, ready to run.

    Attributes:
        name: Its name on the page.
        section: What the page says of it.
        recipe: Its recipe, with the fields of the page and of ``--set`` changed.
        recipe_name: Name or file of the recipe, as its command is given it.
        changes: What is changed, ``field=value`` each.
        out: Its run folder.
        reads: Names of the earlier stages that it refers to.
    """

    name: str
    section: StageSection
    recipe: Recipe
    recipe_name: str
    changes: tuple[str, ...]
    out: Path
    reads: tuple[str, ...]

    @property
    def trains(self) -> bool:
        """Whether several processes may share it."""
        return self.recipe.command.startswith("train-")

    def words(self, *more: str) -> tuple[str, ...]:
        """Return the words of its command, with some more options."""
        sets = (word for change in self.changes for word in ("--set", change))
        return (self.recipe.command, self.recipe_name, *sets, "--out", str(self.out), *more)

    def line(self, *more: str) -> str:
        """Return its command as a user types it."""
        return shlex.join(("esckit", *self.words(*more)))


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline, ready to run.

    Attributes:
        name: What a user calls it by.
        out: Its folder.
        stages: In the order in which they run.
    """

    name: str
    out: Path
    stages: tuple[Stage, ...]


def load_pipeline(ref: str, *, out: Path | None = None, changes: Sequence[str] = ()) -> Pipeline:
    """Load a pipeline with the recipes of all its stages.

    Args:
        ref: Name of a shipped one, or a file.
        out: Its folder; None takes ``runs/NAME``.
        changes: ``STAGE.field=value`` each, after what the page changes.

    Raises:
        ConfigError: If there is no such pipeline, a recipe is wrong, or a stage refers to one that is not earlier; all
            problems are named.
    """
    page = _find(ref)
    loaded = load_recipe(str(page.path) if Path(ref).is_file() else page.name, PipelineRecipe)
    name = page.name.removeprefix(PIPELINES)
    folder = out or Path("runs") / name
    sections = loaded.recipe.stages
    problems: list[str] = []
    own = _own_changes(sections, changes, problems)
    reads = {key: _references([*section.set.values(), *own[key].values()]) for key, section in sections.items()}
    folders = {f"{REFERENCE}{key}": str(folder / key) for key in sections}
    stages: list[Stage] = []
    for key, section in sections.items():
        line = loaded.lines.get(("stages", key))
        where = f"stages.{key}" + (f" (line {line})" if line else "")
        problems += [f"{where}: {told}" for told in _wrong_references(key, reads)]
        fields = {**section.set, **own[key]}.items()
        texts = tuple(f"{field}={as_yaml(_filled(value, folders))}" for field, value in fields)
        recipe_name = _beside(section.recipe, page.path)
        try:
            recipe = _load_stage(recipe_name, texts)
        except EsckitError as error:
            problems.append(f"{where}: {error}")
        else:
            earlier = {str(stage.out): stage for stage in stages}
            problems += [f"{where}: {told}" for told in _wrong_kinds(recipe, earlier)]
            stages.append(Stage(key, section, recipe, recipe_name, texts, folder / key, tuple(sorted(reads[key]))))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n  ".join([f"pipeline {name}: {count}", *problems]))
    return Pipeline(name, folder, tuple(stages))


def _find(ref: str) -> RecipeFile:
    """Return the page that a user named.

    Raises:
        ConfigError: If there is none; names the nearest.
    """
    names = {page.name.removeprefix(PIPELINES) for page in shipped_recipes() if page.name.startswith(PIPELINES)}
    if Path(ref).exists():
        return find_recipe(ref)
    known = ref.removesuffix(".yaml")
    try:
        return find_recipe(PIPELINES + known if known in names else ref)
    except ConfigError as error:
        close = nearest(known, names)
        raise ConfigError(
            f"no pipeline {ref!r}",
            expected=f"one of {', '.join(sorted(names))}, or a YAML file",
            hint=f"Did you mean {close!r}?" if close else None,
        ) from error


def _load_stage(ref: str, texts: Sequence[str]) -> Recipe:
    """Return the recipe of a stage.

    Raises:
        ConfigError: If it is wrong, or its command writes no run folder.
    """
    recipe = load_any_recipe(ref, overrides=texts).recipe
    if not isinstance(recipe, Recipe) or recipe.command in _NO_STAGES:
        raise ConfigError(f"recipe {ref} {_NO_STAGES[recipe.command]}", expected="a command that writes a run folder")
    return recipe


def _beside(ref: str, page: Path) -> str:
    """Return a recipe's name, or its file where one lies beside the page."""
    beside = page.parent / ref
    return str(beside) if beside.is_file() else ref


def _own_changes(
    sections: Mapping[str, StageSection], changes: Sequence[str], problems: list[str]
) -> dict[str, dict[str, Any]]:
    """Return what ``--set`` changes of each stage."""
    own: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for text in changes:
        found = _FIELD.match(text.strip())
        if found is None:
            problems.append(f"--set {text!r}; expected STAGE.field=value, such as {next(iter(sections))}.seed=2")
        elif found[1] not in own:
            hint = did_you_mean(found[1], own) or f"the stages are {', '.join(own)}"
            problems.append(f"--set {text!r}: no stage {found[1]!r}; {hint}")
        else:
            try:
                own[found[1]][found[2]] = parse_yaml(found[3], f"--set {found[1]}.{found[2]}")
            except ConfigError as error:
                problems.append(str(error))
    return own


def _references(values: Sequence[Any]) -> set[str]:
    """Return the names of the stages that some values stand for."""
    return {text.removeprefix(REFERENCE) for text in strings_in(values) if text.startswith(REFERENCE)}


def _wrong_references(name: str, reads: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield what is wrong with the stages that a stage refers to."""
    order = list(reads)
    for other in sorted(reads[name]):
        if other not in reads:
            hint = did_you_mean(other, reads) or f"the stages are {', '.join(order)}"
            yield f"{REFERENCE}{other} is no stage; {hint}"
        elif other == name:
            yield "refers to itself"
        elif order.index(other) > order.index(name):
            back = _path(other, name, reads)
            if back:
                yield f"a cycle: {' reads '.join((name, *back))}"
            else:
                yield f"reads {other}, which comes later; stages run in the order of the page, so move {other} up"


def _wrong_kinds(recipe: Recipe, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """Yield the fields of a stage's recipe that name an earlier stage whose command writes something else.

    Args:
        recipe: The recipe.
        earlier: The stages, by run folder.
    """
    for run in named_runs(recipe.resolved()):
        if run.path in earlier and (command := earlier[run.path].recipe.command) not in run.makers:
            expected = " or ".join(run.makers)
            yield f"{run.field}: {REFERENCE}{earlier[run.path].name} is a run of {command}; expected one of {expected}"


def _path(start: str, end: str, reads: Mapping[str, set[str]], seen: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Return the stages over which one reads another, both included; none if it does not."""
    if start == end:
        return (end,)
    for other in sorted(reads.get(start, set()) - seen):
        if rest := _path(other, end, reads, seen | {start}):
            return (start, *rest)
    return ()


def _filled(value: Any, folders: Mapping[str, str]) -> Any:
    """Return a value with the folders of stages in place of references; tuples become lists, as YAML knows them."""
    if isinstance(value, str):
        return folders.get(value, value)
    if isinstance(value, Mapping):
        return {key: _filled(inner, folders) for key, inner in value.items()}
    return [_filled(inner, folders) for inner in value] if isinstance(value, list | tuple) else value


def as_yaml(value: Any) -> str:
    """Return a plain value as it stands on a command line, to be read again as what it is."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...")
    try:
        # Ours reads some words as numbers that PyYAML writes without quotes.
        is_same = bool(parse_yaml(text, "value") == value)
    except ConfigError:
        is_same = False
    return text if is_same else json.dumps(value, ensure_ascii=False)
