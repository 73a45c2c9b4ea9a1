"""What an evaluation will do, before any model is loaded: cases, leakage, flags, and the conditions of comparisons."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from esckit.config.sections import Binding
from esckit.errors import ConfigError, DataError
from esckit.evaluate.own import metrics_of
from esckit.evaluate.recipe import SUITES, EvaluateRecipe
from esckit.evaluate.suite import CaseFile, Material, Suite, Work, family_of, model_fields, run_folder, run_of
from esckit.evaluate.suites.dialogue import critic_prompts, supporter_prompt
from esckit.lineage import require_runs
from esckit.metrics.metric import Facts
from esckit.records import digest, file_sha256
from esckit.report.compared import GOLD_LABELS
from esckit.roles.cast import role_prompt
from esckit.roles.pool import checkpoint_ids, look_up, part_of, trained_run
from esckit.runs import read_manifest
from esckit.strategies.kept import taxonomy_inputs
from esckit.strategies.taxonomy import Taxonomy

log = logging.getLogger(__name__)

SELF_JUDGED = "self_judged"

SHOWN_DIFFERENCES = 5

_DIGITS = re.compile(r"[0-9a-f]{12}$")

# What names a run that another one is made from, wherever it stands in a recipe.
_INPUT_FIELDS = frozenset({"checkpoint", "inputs", "trees", "opponent", "predictions"})


class Part(NamedTuple):
    """One file of cases of an evaluation: the suite that it belongs to, and what is to be played."""

    suite: Suite
    file: CaseFile
    work: Work


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that is known of an evaluation before it begins.

    Attributes:
        parts: The files of cases, in the order in which they are played.
        taxonomy: Of the strategies that are predicted; None where no suite has any.
        flags: Per suite, what every one of its rows carries.
        conditions: Per suite, what must be equal for two runs to be compared.
        inputs: Identity of everything that the cases depend on beside the recipe.
    """

    recipe: EvaluateRecipe
    material: Material
    parts: tuple[Part, ...]
    taxonomy: Taxonomy | None
    flags: dict[str, tuple[str, ...]]
    conditions: dict[str, dict[str, Any]]
    inputs: dict[str, Any]

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of the strategies in taxonomy order; empty without a taxonomy."""
        return self.taxonomy.names if self.taxonomy is not None else ()

    @property
    def case_counts(self) -> dict[str, int]:
        """Number of cases by the name of their file."""
        return {part.file.name: len(part.work.units) for part in self.parts}

    @property
    def playing(self) -> set[str]:
        """The roles that are asked anything."""
        return {role for part in self.parts for role in (*part.work.roles, *part.work.calls)}


def known_metrics(recipe: EvaluateRecipe, strategies: Sequence[str]) -> dict[str, Facts]:
    """Return the facts of every whole-suite metric by name, before any case exists."""
    return {
        metric.name: metric.facts
        for suite in recipe.chosen
        for file in suite.files
        if file.is_wanted(recipe)
        for metric in metrics_of(file, recipe, strategies)
    }


def set_up(recipe: EvaluateRecipe) -> Setup:
    """Return what an evaluation will do.

    Raises:
        EsckitError: If data, predictions or checkpoints are wrong or not there, or a leakage rule is broken.
    """
    idle = {f"settings.{suite.name}" for suite in SUITES if suite not in recipe.chosen}
    require_runs(recipe, idle=idle | {f"models.{role}" for role in recipe.models.bindings().keys() - recipe.roles()})
    look_up(recipe.roles().values())
    material = Material(recipe)
    parts = tuple(
        Part(suite, file, file.work(material))
        for suite in recipe.chosen
        for file in suite.files
        if file.is_wanted(recipe)
    )
    own = next((found for suite in recipe.chosen if (found := suite.taxonomy(material)) is not None), None)
    taxonomy = own or material.taxonomy
    reads_labels = any(suite.reads_labels(recipe) for suite in recipe.chosen)
    if taxonomy is None and ("strategist" in recipe.roles() or reads_labels):
        raise ConfigError("strategies of an unknown taxonomy", expected="taxonomy: NAME, or a labelled corpus")
    cases: dict[str, dict[str, str]] = {suite.name: {} for suite in recipe.chosen}
    for suite, file, work in parts:
        cases[suite.name] |= {f"{file.name}_cases": digest([unit.id for unit in work.units]), **work.conditions}
    data = {"data": material.merged.facts()} if recipe.data is not None else {}
    setup = Setup(
        recipe=recipe,
        material=material,
        parts=parts,
        taxonomy=taxonomy,
        flags=_flags(material, parts),
        conditions={suite.name: suite.conditions(material, cases[suite.name]) for suite in recipe.chosen},
        inputs={
            **data,
            "prompts": _prompts(recipe, taxonomy),
            "inputs": _inputs(recipe, parts),
            **taxonomy_inputs(taxonomy),
        },
    )
    _warn_of_idle(setup)
    return setup


def _warn_of_idle(setup: Setup) -> None:
    """Warn about roles and files that no suite uses."""
    recipe = setup.recipe
    idle = [f"models.{role}" for role in sorted(recipe.models.bindings().keys() - setup.playing)]
    if recipe.predictions is not None and not any("predictions" in suite.sources(recipe) for suite in recipe.chosen):
        idle.append("predictions")
    if idle:
        log.warning("%s: no part in the suites %s", ", ".join(idle), ", ".join(recipe.suites))


# ---------------------------------------------------------------- flags


def _flags(material: Material, parts: Sequence[Part]) -> dict[str, tuple[str, ...]]:
    """Return per suite what every row carries; broken leakage rules raise."""
    found: dict[str, dict[str, None]] = {}
    for part in parts:
        flags = found.setdefault(part.suite.name, {})
        flags |= dict.fromkeys(_leakage(material, part))
        if _is_self_judged(material.recipe, part):
            flags[SELF_JUDGED] = None
    return {suite: tuple(flags) for suite, flags in found.items()}


def _leakage(material: Material, part: Part) -> tuple[str, ...]:
    """Return the leakage flags of a file of cases; probes are in no corpus."""
    if part.suite.family is None:
        return ()
    recipe, bindings = material.recipe, material.recipe.roles()
    runs = {role: run_of(run) for role in part.work.roles if (run := trained_run(bindings.get(role))) is not None}
    data = recipe.data
    evaluated = {unit.dialogue_id for unit in part.work.units}
    return leakage_flags(
        evaluated,
        part.suite.family(material),
        runs | _runs_read(recipe, part.suite),
        allow_overlap=data is not None and data.allow_overlap,
        allow_cross_family=data is not None and data.allow_cross_family,
    )


def _runs_read(recipe: EvaluateRecipe, suite: Suite) -> dict[str, Path]:
    """Return the runs whose strategies or replies a suite reads; a file outside a run says nothing of its making."""
    named = suite.sources(recipe)
    return {role: run for role, name in named.items() if name and (run := run_folder(name)) is not None}


def _is_self_judged(recipe: EvaluateRecipe, part: Part) -> bool:
    """Return whether the judge of a suite is also the critic, or wrote the replies that it judges."""
    bindings = recipe.models.bindings()
    judge = bindings.get(part.suite.judge or "")
    if judge is None:
        return False
    # Replies from a file are not the bound supporter's.
    roles = ("critic", "supporter") if "supporter" in part.work.roles else ("critic",)
    players = {_model_of(bindings[role]) for role in roles if role in bindings}
    for run in _runs_read(recipe, part.suite).values():
        players |= set(_writers(run))
    return _model_of(judge) in players


def _model_of(binding: Binding) -> str:
    """Return a digest of which model a binding names, however it is sampled."""
    return digest(model_fields(binding.model_dump(mode="json")))


def _writers(run: Path) -> Iterator[str]:
    """Yield which models wrote the replies of a run, those included that it only read."""
    theirs = read_manifest(run)["recipe"]
    if (supporter := (theirs.get("models") or {}).get("supporter")) is not None:
        yield digest(model_fields(supporter))
    earlier = theirs.get("predictions")
    if earlier and (source := run_folder(earlier)) is not None:
        yield from _writers(source)


# ---------------------------------------------------------------- leakage


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

    Rule 1: no evaluated dialogue was used for training, tuning or search. Rule 2: training and evaluation use one
    family of splits, even where they share no dialogue. ``hub`` valid and ``ppdpp`` test, for example, share 65
    dialogues, and such pairs are easily overlooked.

    Args:
        evaluated: Ids of the dialogues to be evaluated.
        scheme: Family of splits that they were chosen by, see :func:`family_of`.
        runs: Run folder per role that a trained model plays, or whose predictions are read.
        allow_overlap: Flag what breaks rule 1 instead of raising.
        allow_cross_family: Flag what breaks rule 2 instead of raising.

    Raises:
        DataError: If a rule is broken and not allowed to be, or a run does not say what it has seen.
    """
    flags: dict[str, None] = {}
    corpora = corpora_of(evaluated)
    for model in (model for role, run in runs.items() for model in seen_by(role, run)):
        shared = sorted(model.ids.intersection(evaluated))
        if shared and not allow_overlap:
            raise DataError(
                f"{len(shared)} dialogues in both training (scheme {model.scheme or 'none'}) and evaluation "
                f"(scheme {scheme or 'none'}), such as {', '.join(shared[:3])}",
                expected="none",
                hint="Evaluate on another split; allow_overlap: true runs all the same and marks every row",
            )
        is_crossed = model.corpus in corpora and model.scheme != scheme
        if is_crossed and not allow_cross_family:
            raise DataError(
                f"{model.model} was made with scheme {model.scheme or 'none'}, the evaluation has scheme "
                f"{scheme or 'none'}",
                expected="one scheme for both",
                hint="data.allow_cross_family: true runs all the same and marks every row",
            )
        flags |= dict.fromkeys(["overlap"] * bool(shared) + ["cross_family"] * is_crossed)
    for role, run in runs.items():
        if lost := lost_inputs(run):
            names = ", ".join(lost)
            log.warning(
                "the %s (%s): made from %s, not there any more; what that has seen is unknown", role, run, names
            )
            flags["lost_input"] = None
    return tuple(flags)


def seen_by(role: str, run: Path) -> Iterator[Seen]:
    """Yield what a run has seen by itself and through its inputs.

    An evaluation has seen nothing by itself: only what it evaluated has.

    Raises:
        DataError: If a run folder does not say which dialogues it used.
    """
    for folder, manifest in _lineage(run):
        if manifest["command"] in ("evaluate", "predict"):
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
            for cut in sorted(cuts, key=str):
                yield Seen(f"the {role} ({folder})", of_corpus, corpus if cut else None, cut)


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
    bindings = {role: binding for role, binding in models.items() if played is None or role in played}
    return {"models": bindings, "predictions": recipe.get("predictions")}


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
        for value in (mapping[field] for field in mapping if field in _INPUT_FIELDS):
            names = value if isinstance(value, list | tuple) else [value]
            yield from (name for name in names if isinstance(name, str))


def _ids(data: Any) -> Iterator[str]:
    """Yield the dialogue ids that the data section of a manifest names; a part for testing alone was not used."""
    if not isinstance(data, Mapping):
        return
    for key, value in data.items():
        if key == "ids" and isinstance(value, list):
            yield from map(str, value)
        elif key != "test":
            yield from _ids(value)


def corpora_of(ids: Iterable[str]) -> set[str]:
    """Return the corpora that dialogue ids belong to: what stands before the digits of an id, "" without digits."""
    return {_DIGITS.sub("", dialogue_id) if _DIGITS.search(dialogue_id) else "" for dialogue_id in ids}


# ---------------------------------------------------------------- inputs


def _inputs(recipe: EvaluateRecipe, parts: Sequence[Part]) -> dict[str, str]:
    """Return the identity of trained models, predictions and opponents that the cases depend on."""
    found = checkpoint_ids(recipe.roles().values())
    if recipe.predictions is not None:
        path = Path(recipe.predictions)
        path = path / "predictions.jsonl" if path.is_dir() else path
        if not path.is_file():
            raise DataError("no such file or run folder", path=str(path), expected="predictions, or a run folder")
        found[recipe.predictions] = file_sha256(path)
    for suite, _, work in parts:
        sources = suite.sources(recipe)
        found |= {str(sources[name]): identity for name, identity in work.conditions.items() if name in sources}
    return found


def _prompts(recipe: EvaluateRecipe, taxonomy: Taxonomy | None) -> dict[str, str]:
    """Return the identity of every role's prompts."""
    prompts = recipe.prompts
    roles = {role: binding for role, binding in recipe.roles().items() if part_of(role, binding) != "world"}
    shown: dict[str, str] = {}
    if "supporter" in roles:
        # Self-play has a prompt of its own under its compatibility switch.
        used = (role_prompt("supporter", prompts.supporter), *([supporter_prompt(recipe)] if "seeker" in roles else []))
        shown["supporter"] = ", ".join(dict.fromkeys(prompt.identity for prompt in used))
    shown |= {
        role: role_prompt(role, name).identity
        for role, name in (("seeker", prompts.seeker), ("turn_judge", prompts.turn_judge))
        if role in roles
    }
    if "strategist" in roles and part_of("strategist", roles["strategist"]) == "chat" and taxonomy is not None:
        shown["strategist"] = role_prompt("strategist", prompts.strategist, taxonomy=taxonomy).identity
    if "critic" in roles:
        shown["critic"] = ", ".join(critic_prompts(recipe).values())
    if "judge" in roles:
        judging = dict.fromkeys(name for suite in recipe.chosen for name in suite.judge_prompts)
        shown["judge"] = ", ".join(role_prompt(name, getattr(prompts, name)).identity for name in judging)
    return shown


# ---------------------------------------------------------------- comparisons


def is_comparable(setup: Setup, other: Path) -> bool:
    """Return whether two runs may be tested against each other.

    Raises:
        DataError: If they may not, and the recipe does not force it.
    """
    manifest = read_manifest(other)
    if manifest["command"] != "evaluate":
        raise DataError(f"a run of {manifest['command']!r}", path=str(other), expected="one of 'evaluate'")
    theirs = manifest.get("conditions") or {}
    shared = [suite for suite in setup.conditions if suite in theirs]
    if not shared:
        raise DataError(
            f"none of the suites {', '.join(setup.conditions)} in it", path=str(other), expected="a suite in common"
        )
    ours = {"recipe": setup.recipe.resolved(), "cases": setup.case_counts}
    try:
        require_comparable(
            Conditions({suite: setup.conditions[suite] for suite in shared}, ours),
            Conditions({suite: theirs[suite] for suite in shared}, manifest),
            other=str(other),
        )
    except DataError:
        if not setup.recipe.statistics.force_compare:
            raise
        return False
    return True


class Conditions(NamedTuple):
    """What must be equal for a run to be compared with another one.

    Attributes:
        fields: Suite settings, digests of the cases, simulator, critic or judge (model, sampling, prompt digests),
            taxonomy and mapping, tokenisation; may be nested.
        manifest: Of the run, which says in words what a digest stands for.
    """

    fields: Mapping[str, Any]
    manifest: Mapping[str, Any]

    def in_words(self, name: str) -> str:
        """Return what the field of a digest of cases or labels stands for: corpus file, split, and number of cases."""
        data = self.manifest["recipe"].get("data") or {}
        ratios = ",".join(f"{ratio:g}" for ratio in data.get("ratios") or ())
        scheme = " ".join(filter(None, [data.get("scheme"), ratios if data.get("scheme") == "ratio" else ""]))
        split = data.get("split")
        n = (self.manifest.get("cases") or {}).get(name.rpartition(".")[2].removesuffix(_CASES))
        facts = (
            data.get("path"),
            f"split {split if isinstance(split, str) else ', '.join(split)}" if split else None,
            f"scheme {scheme}" if scheme else None,
            f"first {data['limit']} dialogues" if data.get("limit") else None,
            f"{n} cases" if n is not None else None,
        )
        return ", ".join(filter(None, facts)) or "cases of no corpus"


_CASES = "_cases"


def require_comparable(
    ours: Conditions,
    theirs: Conditions,
    *,
    other: str,
    hint: str = "statistics.force_compare: true prints both without tests",
) -> None:
    """Require identical conditions except for the system under test.

    Args:
        ours: Of the run under test.
        theirs: Of the other run. Gold labels that one of them does not tell are no difference.
        other: Name of the other run.
        hint: What the user can do where they differ.

    Raises:
        DataError: If anything differs; the message names what.
    """
    first, second = dict(_flat(ours.fields)), dict(_flat(theirs.fields))
    untold = {name for name in first.keys() ^ second.keys() if name.endswith(f".{GOLD_LABELS}")}
    names = [name for name in sorted({*first, *second} - untold) if first.get(name) != second.get(name)]
    other_cases = {name.partition(".")[0] for name in names if name.endswith(_CASES)}
    names = [name for name in names if not name.endswith(GOLD_LABELS) or name.partition(".")[0] not in other_cases]

    def difference(name: str) -> str:
        if name.endswith((_CASES, GOLD_LABELS)):
            what = "other gold labels" if name.endswith(GOLD_LABELS) else "other cases"
            here, there = ours.in_words(name), theirs.in_words(name)
            told = f"here {here}; there {there}" if here != there else f"{here}; the files differ"
            return f"{what} in {name.partition('.')[0]} ({told})"
        return f"{name} ({first.get(name)!r} here, {second.get(name)!r} there)"

    if names:
        shown = list(dict.fromkeys(map(difference, names[:SHOWN_DIFFERENCES])))
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        raise DataError(
            f"{other} was evaluated under other conditions: {', '.join(shown)}{more}",
            expected="runs that differ in the system under test alone",
            hint=hint,
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
