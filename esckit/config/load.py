"""Recipes: the shipped ones by name, the class of each command, and the way from a YAML file to a validated recipe.

Every key of a recipe's YAML knows its line (:mod:`esckit.documents` says what is refused), and ``--set a.b=c`` changes
single fields. What is wrong with a recipe is reported all at once, one line each: dotted path, line, what to do;
secrets are never quoted. Not here: the earlier runs that a recipe names (:mod:`esckit.lineage`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from esckit.config.sections import Page, WorldBinding
from esckit.documents import Place, complaint, dotted, parse_yaml, parse_yaml_lines, read_text
from esckit.errors import ConfigError, DataError
from esckit.registry import Registry, did_you_mean, expand_home, nearest, shipped_dir
from esckit.runs import MANIFEST

SUFFIX = ".yaml"

_COMMAND = re.compile(r"^command:\s*([\w-]+)", re.MULTILINE)

RECIPES = Registry(
    "command",
    {
        "simulate": "esckit.simulate.run:SimulateRecipe",
        "search": "esckit.search.recipe:SearchRecipe",
        "train-flow": "esckit.flow.recipe:TrainFlowRecipe",
        "train-reward": "esckit.reward.recipe:TrainRewardRecipe",
        "train-sft": "esckit.sft.recipe:TrainSftRecipe",
        "train-rl": "esckit.rl.recipe:TrainRlRecipe",
        "evaluate": "esckit.evaluate.recipe:EvaluateRecipe",
        "predict": "esckit.predict.run:PredictRecipe",
        "chat": "esckit.chat.recipe:ChatRecipe",
        "run": "esckit.pipeline.page:PipelineRecipe",
    },
)
"""The recipe class of every command; of ``run`` a page of several recipes."""


class RecipeFile(NamedTuple):
    """A recipe's name and file; of one that ships also its command and its first comment line."""

    name: str
    path: Path
    command: str = ""
    title: str = ""


def shipped_recipes() -> tuple[RecipeFile, ...]:
    """Return the shipped recipes, sorted by name."""
    folder = shipped_dir("recipes")
    found = []
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        relative = path.relative_to(folder)
        if relative.parts[0] == "scripted":  # scripts of fake models
            continue
        text = path.read_text(encoding="utf-8")
        command = _COMMAND.search(text)
        title = text.partition("\n")[0].removeprefix("#").strip() if text.startswith("#") else ""
        name = relative.with_suffix("").as_posix()
        found.append(RecipeFile(name, path, command.group(1) if command else "", title))
    return tuple(found)


def find_recipe(ref: str) -> RecipeFile:
    """Return the recipe that a user named: a file, or the name of a shipped one.

    Raises:
        ConfigError: If there is neither; the message names the nearest one.
    """
    folder = shipped_dir("recipes")
    path = Path(ref)
    if path.is_file():
        real, shipped_in = path.resolve(), folder.resolve()
        inside = real.is_relative_to(shipped_in)
        return RecipeFile(real.relative_to(shipped_in).with_suffix("").as_posix() if inside else path.stem, path)
    if path.is_dir():
        is_run = (path / MANIFEST).is_file()
        raise ConfigError(
            f"{ref} is a {'run folder' if is_run else 'folder'}",
            expected="a recipe's name or file",
            hint=f"What the run is: esckit runs show {ref}"
            if is_run
            else "'esckit recipes list' shows the shipped ones",
        )
    name = ref.removesuffix(SUFFIX)
    shipped = {recipe.name: recipe for recipe in shipped_recipes()}
    if name in shipped:
        return shipped[name]
    close = nearest(name, shipped)
    raise ConfigError(
        f"no recipe {ref!r}",
        expected="a YAML file or the name of a shipped recipe",
        hint=f"Did you mean {close!r}?" if close else "'esckit recipes list' shows them",
    )


@dataclass(frozen=True, slots=True)
class Source:
    """A recipe as it was written.

    Attributes:
        origin: What to call it in messages.
        data: Its content; YAML lists are tuples, and ``~`` at the beginning of a path is written out.
        lines: 1-based line of every key and list item, by path.
    """

    origin: str
    data: dict[str, Any]
    lines: dict[Place, int] = field(default_factory=dict)


def parse_source(text: str, origin: str) -> Source:
    """Parse a recipe.

    Raises:
        ConfigError: If it is not YAML, holds a key twice, or is not a mapping.
    """
    data, lines = parse_yaml_lines(text, origin)
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: no mapping", expected="a recipe: 'command:', 'seed:' and its sections")
    return Source(origin, _frozen(data), lines)


def _frozen(value: Any) -> Any:
    """Return a value with tuples for lists, as strict validation wants them, and every path under ``~`` written out.

    Only paths begin with ``~`` in a recipe.
    """
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, str):
        return expand_home(value)
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


_FIELD = re.compile(r"^[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*$")


def apply_overrides(source: Source, overrides: Sequence[str]) -> tuple[Source, frozenset[Place]]:
    """Return a recipe with some fields replaced, and the paths that were.

    Args:
        source: The recipe as it was written.
        overrides: ``a.b=c`` each; ``c`` is YAML (nothing is None), and replaces the whole of ``a.b``. Later ones win.

    Raises:
        ConfigError: If any of them is not of this form; all of them are named.
    """
    data, changed, problems = source.data, set(), []
    for text in overrides:
        try:
            name, equals, written = (part.strip() for part in text.partition("="))
            if not equals or not _FIELD.match(name):
                raise ConfigError(f"--set {name!r} names no field" if equals else f"--set {text!r} has no '='")
            path = tuple(name.split("."))
            data = _replaced(data, path, _frozen(parse_yaml(written, f"--set {name}")), name)
        except ConfigError as error:
            problems.append(str(error))
        else:
            changed.add(path)
    if problems:
        raise ConfigError("\n  ".join(problems), hint="Write --set section.field=value")
    return Source(source.origin, data, source.lines), frozenset(changed)


def _replaced(data: Mapping[str, Any], path: tuple[str, ...], value: Any, name: str) -> dict[str, Any]:
    """Return a copy of nested mappings with one value replaced; missing sections are made."""
    head, *rest = path
    if not rest:
        return {**data, head: value}
    inner = data.get(head)
    if inner is not None and not isinstance(inner, Mapping):
        raise ConfigError(f"--set {name}: {head!r} is a value, not a section")
    return {**data, head: _replaced(inner or {}, tuple(rest), value, name)}


_NEVER_QUOTED = frozenset({"api_key_env", "base_url"})

_QUOTED_NAME = re.compile(r"'([^']*)'")


def describe_problems(
    error: ValidationError, kind: type[BaseModel], source: Source, changed: frozenset[Place]
) -> list[str]:
    """Return one line for every problem that validation found, in the order of the recipe class."""
    lines: list[str] = []
    details = error.errors(include_url=False, include_context=True)
    with_wrong_items = {detail["loc"][:-1] for detail in details}
    for detail in details:
        if detail["type"] == "too_short" and detail["loc"] in with_wrong_items:
            continue
        path = tuple(part for part in detail["loc"] if not _is_tag(part))
        where = _where(path, source, changed)
        lines.append(f"{dotted(path)}{where}: {_what(detail, kind)}" if path else _what(detail, kind))
    return lines


def _where(path: Place, source: Source, changed: frozenset[Place]) -> str:
    """Return where a field was written: on the command line, or in which line of the file."""
    above = any(path[: len(given)] == given for given in changed)
    below = any(given[: len(path)] == path for given in changed)
    if above or (below and path not in source.lines):
        return " (--set)"
    enclosing = (path[:length] for length in range(len(path), 0, -1))
    line = next((source.lines[part] for part in enclosing if part in source.lines), None)
    return f" (line {line})" if line else ""


def _what(detail: ErrorDetails, kind: type[BaseModel]) -> str:
    """Return what is wrong and, if there is a near match, what was probably meant."""
    *section, field = detail["loc"] or ("",)
    value = detail["input"]
    if detail["type"] == "extra_forbidden":
        if field == "trust_remote_code":
            return "no such field: esckit never runs code that comes with weights"
        known = known_fields(kind, tuple(section))
        deeper = _deeper(kind, tuple(part for part in section if not _is_tag(part)), str(field))
        hint = f"did you mean {deeper}?" if deeper else did_you_mean(str(field), known)
        hint = hint or f"known here: {', '.join(sorted(known))}"
        return f"unknown field; {hint}"
    text = complaint(detail)
    if (
        detail["type"] in {"missing", "too_short", "value_error", "binding_kind", "endpoint_kind"}
        or field in _NEVER_QUOTED
    ):
        return text
    if detail["type"] == "executor_kind" and isinstance(value, dict):
        value = value.get("kind")
    hint = ""
    if detail["type"] in ("literal_error", "executor_kind") and isinstance(value, str):
        hint = did_you_mean(value, _QUOTED_NAME.findall(str(detail.get("ctx", {}).get("expected", text))))
    return f"{text}, not {_shown(value)}" + (f"; {hint}" if hint else "")


def _shown(value: Any) -> str:
    """Return a value as it may stand in a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, tuple | list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[-1:]


def _is_tag(part: str | int) -> bool:
    """Return whether a part of pydantic's location names a member of a union, not a field."""
    return isinstance(part, str) and part.startswith("<")


def _deeper(kind: type[BaseModel], path: Place, field: str) -> str | None:
    """Return the one place below a section where a field of this name may stand, dotted; None if none or several."""
    found = set[str]()
    level = [(path, model) for model in _sections(kind, path)]
    while level:
        level = [
            ((*place, name), inner)
            for place, model in level
            for name, info in model.model_fields.items()
            for _, inner in _models(info.annotation)
        ]
        found |= {dotted((*place, field)) for place, model in level if field in model.model_fields}
    return found.pop() if len(found) == 1 else None


def known_fields(kind: type[BaseModel], path: Place) -> frozenset[str]:
    """Return the fields of the section at a location of pydantic's, union tags included."""
    return frozenset(name for model in _sections(kind, path) for name in model.model_fields)


def _sections(kind: type[BaseModel], path: Place) -> list[type[BaseModel]]:
    """Return the classes that the section at a location of pydantic's may have."""
    here: list[tuple[str | None, type[BaseModel]]] = [(None, kind)]
    for part in path:
        if _is_tag(part):
            here = [(tag, model) for tag, model in here if tag == part]
            continue
        inner = [model.model_fields[part] for _, model in here if part in model.model_fields]
        here = [pair for info in inner for pair in _models(info.annotation)] or here
    return [model for _, model in here]


def _models(annotation: Any, tag: str | None = None) -> Iterator[tuple[str | None, type[BaseModel]]]:
    """Yield the section classes inside an annotation, each with its union tag."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        tag = next((extra.tag for extra in args[1:] if isinstance(extra, Tag)), tag)
        yield from _models(args[0], tag)
    elif origin in (Union, UnionType, tuple, dict):
        for arg in args:
            yield from _models(arg, tag)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield tag, annotation


RecipeT = TypeVar("RecipeT", bound=Page)


@dataclass(frozen=True, slots=True)
class LoadedRecipe(Generic[RecipeT]):
    """A validated recipe and the name it goes by.

    Attributes:
        lines: 1-based line of every key and list item of its file, by path.
    """

    name: str
    recipe: RecipeT
    lines: Mapping[Place, int] = field(default_factory=dict)

    def default_out(self) -> Path:
        """Return ``runs/<command>-<name>``; the command's word is not repeated.

        ``smoke/simulate`` runs in ``runs/simulate-smoke``, ``mine.yaml`` in ``runs/simulate-mine``.
        """
        return default_out(self.recipe.command, self.name)


def default_out(command: str, name: str) -> Path:
    """Return the run folder of a recipe's name, see :meth:`LoadedRecipe.default_out`."""
    words = [part for part in name.replace("/", "-").split("-") if part]
    own = command.replace("-", "_")
    kept = [word.removeprefix(own).strip("_") for word in words]
    return Path("runs") / "-".join([command, *(word for word in kept if word)])


def load_recipe(ref: str, kind: type[RecipeT], *, overrides: Sequence[str] = ()) -> LoadedRecipe[RecipeT]:
    """Load a recipe for one command.

    Args:
        ref: Name of a shipped recipe, or a YAML file.
        kind: Recipe class of the command that is to run it.
        overrides: ``a.b=c`` each, see :func:`apply_overrides`.

    Raises:
        ConfigError: If there is no such recipe, it is for another command, or anything in it is wrong.
    """
    name, source, changed, named = _read(ref, overrides)
    (wanted,) = get_args(kind.model_fields["command"].annotation)
    if named != wanted:
        raise ConfigError(
            f"recipe {ref} is for the command {named!r}",
            expected=f"a recipe for {wanted!r}",
            hint=f"Run: esckit {named} {shlex.quote(ref)}" if named in RECIPES.targets else None,
        )
    try:
        loaded = LoadedRecipe(name, kind.model_validate(source.data, strict=True), source.lines)
    except ValidationError as error:
        problems = describe_problems(error, kind, source, changed)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(
            "\n  ".join([f"recipe {source.origin}: {count}", *problems]),
            hint=f"'esckit recipes fields {named}' lists every field",
        ) from error
    _check_world(loaded)
    return loaded


_OF_A_PAPER = ("aflow/", "rlff/")


def _check_world(loaded: LoadedRecipe[Any]) -> None:
    """Refuse players of the practice world in a recipe that carries the name of a paper.

    Raises:
        ConfigError: If there are any.
    """
    models = getattr(loaded.recipe, "models", None)
    if not loaded.name.startswith(_OF_A_PAPER) or models is None:
        return
    worlds = [role for role, binding in models if isinstance(binding, WorldBinding)]
    if worlds:
        raise ConfigError(
            f"models.{worlds[0]} of the practice world in {loaded.name}, which is a paper's recipe",
            expected="the paper's kind of model",
            hint="The recipes practice/… play in the practice world; esckit recipes list shows them",
        )


def load_any_recipe(ref: str, *, overrides: Sequence[str] = ()) -> LoadedRecipe[Page]:
    """Load a recipe for whichever command it names.

    Raises:
        ConfigError: If there is no such recipe or command, or anything in it is wrong.
    """
    named = _read(ref, overrides)[3]
    if named not in RECIPES.targets:
        raise ConfigError(
            f"recipe {ref} is for the command {named!r}, which this version of esckit does not have",
            expected=f"one of {', '.join(RECIPES.names())}",
            hint=did_you_mean(named, RECIPES.targets).capitalize() or None,
        )
    return load_recipe(ref, RECIPES.resolve(named), overrides=overrides)


def _read(ref: str, overrides: Sequence[str]) -> tuple[str, Source, frozenset[Place], str]:
    """Return a recipe's name, its content, the fields that were set on the command line, and its command."""
    found = find_recipe(ref)
    try:
        text = read_text(found.path)
    except DataError as error:
        raise ConfigError(f"{ref}: {error.found}", expected="a recipe") from error
    source, changed = apply_overrides(parse_source(text, ref), overrides)
    command = source.data.get("command")
    if not isinstance(command, str):
        raise ConfigError(
            f"recipe {ref} does not say which command it is for", expected="a line such as 'command: simulate'"
        )
    return found.name, source, changed, command
