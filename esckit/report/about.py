"""The sections that the report of every run has.

They say first what was run and what to be careful about, last what models reasoned before they answered, what failed,
what the run cost, and what it takes to do it again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from esckit.report.blocks import Block, Code, Facts, Note, Section, Table
from esckit.report.source import ABSENT, Run, number, plain, section
from esckit.runs import attempts_of
from esckit.text import n_words

_KNOWN = {
    "schema", "command", "recipe", "recipe_digest", "created", "status", "versions", "data", "prompts",
    "determinism", "models", "notes", "spent", "roles", "attempts",
}  # fmt: skip

_SPEAKING = ("simulate", "search", "evaluate")

_REASONED = ("futures.jsonl", "trees.jsonl", "episodes.jsonl")

_MOST_THOUGHTS = 60

_STATUS = {
    "running": "The run is not finished, or was killed: numbers are of what is done so far.",
    "stopped": "The run was stopped: numbers are of what is done so far. The same command goes on with it.",
}


def what_was_run(run: Run) -> Section:
    """Return the opening section of a run: what it is, and what to be careful about."""
    manifest, recipe = run.manifest, run.recipe
    data, settings = section(manifest, "data"), section(recipe, "settings")
    rewarded = section(recipe, "reward") if recipe.get("algorithm") == "grpo" else {}
    one_seed = " (one seed: intervals cover cases, not training runs)" if run.command == "evaluate" else ""
    pairs = [
        ("recipe digest", str(manifest["recipe_digest"])),
        ("created", str(manifest.get("created", ABSENT))),
        ("seed", f"{recipe['seed']}{one_seed}" if "seed" in recipe else ABSENT),
        ("data", _data(recipe, data)),
        ("taxonomy", plain(recipe.get("taxonomy") or data.get("taxonomy"))),
        (
            "model",
            _chosen(section(recipe, "model"), ("backbone", "init", "start", "trainable", "pooling", "precision")),
        ),
        ("algorithm", plain(recipe.get("algorithm"))),
        ("episode", plain(recipe.get("episode"))),
        ("reward", _chosen(rewarded, ("kind", "weights", "shuffled"))),
        ("objective", plain(section(recipe, "objective").get("name") or section(recipe, "objective").get("kind"))),
        ("critic", _critic(recipe, rewarded)),
        ("suites", plain(recipe.get("suites"))),
        *((f"{name} suite", plain(settings[name])) for name in recipe.get("suites") or () if settings.get(name)),
        ("inputs", plain(recipe.get("inputs"))),
        ("predictions", plain(recipe.get("predictions"))),
        ("determinism", str(manifest.get("determinism", ABSENT))),
    ]
    return Section(
        "What was run",
        (
            Facts(tuple((name, value) for name, value in pairs if value != ABSENT)),
            *_models(run),
            *_warnings(run),
        ),
    )


def _data(recipe: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return where the dialogues or trees come from and which part of them; train-flow's corpus is ``data.gold``."""
    asked = section(recipe, "data")
    asked = section(asked, "gold") or asked
    splits = (data.get("splits") or asked.get("split"), asked.get("valid_split"), asked.get("test_split"))
    found = section(data, "counts").get("n_dialogues")
    pieces = {
        "{}": plain(asked.get("path") or asked.get("trees")),
        "scheme {}": plain(asked.get("scheme")),
        "split {}": ", ".join(plain(split) for split in splits if split) or ABSENT,
        "{} dialogues": number(found),
    }
    return " · ".join(shape.format(piece) for shape, piece in pieces.items() if piece != ABSENT) or ABSENT


def _critic(recipe: Mapping[str, Any], rewarded: Mapping[str, Any]) -> str:
    """Return how the critic is read; that of ``train-rl`` plays where its reward is ``online``."""
    online = section(recipe, "online") if rewarded.get("kind") == "online" else {}
    critic = section(recipe, "critic") or section(online, "critic")
    counted = ("samples",) if critic.get("readout") == "sampled" else ()
    return _chosen(critic, ("preset", "rubric", "readout", *counted, "threshold"))


def _chosen(of: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {plain(of[key])}" for key in keys if of.get(key) is not None) or ABSENT


def _models(run: Run) -> list[Block]:
    """Return who played which role, with what prompt and sampling."""
    prompts, names = section(run.manifest, "prompts"), section(run.manifest, "models")
    rows = [
        (role, _model_name(binding, names), plain(prompts.get(role)), _sampling(role, binding))
        for role, binding in _played(run).items()
    ]
    return [Table(("role", "model", "prompt", "sampling"), tuple(rows), title="Models")] if rows else []


def _played(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return the bindings of the roles that had a part, where the manifest says which; else all."""
    played = run.manifest.get("roles")
    return {
        role: binding
        for role, binding in section(run.recipe, "models").items()
        if isinstance(binding, Mapping) and (played is None or role in played)
    }


def _model_name(binding: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    """Return the name under which the manifest knows a binding, else the binding itself."""
    for key, facts in names.items():
        try:
            asked = json.loads(key)
        except ValueError:
            continue
        if isinstance(asked, Mapping) and all(binding.get(name) == value for name, value in asked.items()):
            return str(facts.get("name", key)) if isinstance(facts, Mapping) else key
    if "world" in binding:
        policy = f", policy {binding['policy']}" if binding.get("policy") else ""
        return f"practice world, profile {binding['world']}{policy}"
    return _chosen(binding, ("backbone", "endpoint", "model", "checkpoint", "scripted"))


def _sampling(role: str, binding: Mapping[str, Any]) -> str:
    """Return how a role speaks; a scorer, a reward model and a trained strategist only read."""
    is_trained = binding.get("checkpoint") and "endpoint" not in binding
    if role in ("scorer", "reward") or "world" in binding or (role == "strategist" and is_trained):
        return ABSENT
    sampling = section(binding, "sampling")
    short = {"temperature": "T", "top_p": "top-p", "top_k": "top-k", "max_tokens": "max tokens"}
    chosen = [f"{name} {sampling[key]}" for key, name in short.items() if sampling.get(key) is not None]
    return ", ".join(chosen) or ABSENT


def _warnings(run: Run) -> list[Block]:
    """Return what a reader has to know before any number: unfinished runs, refused settings, doubtful data."""
    manifest = run.manifest
    found: list[Block] = []
    if manifest.get("status") in _STATUS:
        found.append(Note(_STATUS[str(manifest["status"])], "warning"))
    notes = manifest.get("notes")
    found += [Note(str(note), "warning") for note in notes if note] if isinstance(notes, list) else []
    if any("scripted" in binding for binding in _played(run).values()):
        found.append(Note("Scripted models took part: what they say has no meaning as a score.", "warning"))
    issues = section(manifest, "data.issues")
    if issues:
        rows = tuple((str(code), number(count)) for code, count in issues.items())
        title = f"Notes on the data ({number(len(rows))} kind{'s' * (len(rows) > 1)})"
        found.append(Table(("what was noticed while reading", "times"), rows, title=title, folded=True))
    if not run.quotes and run.command in _SPEAKING:
        found.append(
            Note(
                "No text of a dialogue stands on this page, since its corpus may be for research use only: numbers of "
                "words stand in place of texts. Whoever may read the corpus gets them with --quotes."
            )
        )
    return found


def thoughts(run: Run) -> list[Section]:
    """Return the reasoning in a run's records, which no other role was shown; no section where there is none."""
    examples = sorted(path.relative_to(run.path).as_posix() for path in (run.path / "examples").glob("*.jsonl"))
    found = []
    for row in (row for name in (*_REASONED, *examples) for row in run.lines(name)):
        # A supporter's own reasoning stands on its turn, as a text.
        kept = row.get("reasoning")
        for thought in kept if isinstance(kept, list) else ():
            text = str(thought.get("text"))
            shown = text if run.quotes else f"{number(n_words(text))} words"
            found.append((str(row.get("id")), str(thought.get("place")), str(thought.get("role")), shown))
    if not found:
        return []
    rows = tuple(found[:_MOST_THOUGHTS])
    note = "" if len(rows) == len(found) else f"The first {number(len(rows))} of {number(len(found))}."
    text = f"{number(len(found))} replies hold reasoning. It is no part of any dialogue, verdict or value."
    table = Table(("unit", "place", "role", "reasoning"), rows, note=note, folded=True)
    return [Section("Reasoning", (Note(text), table))]


def failures(run: Run) -> list[Section]:
    """Return failures by stage and kind; no section where nothing failed or nothing is known."""
    if not (run.path / "failures.jsonl").is_file():
        return []
    counts: Counter[tuple[str, str]] = Counter()
    for row in run.lines("failures.jsonl"):
        failure = section(row, "failure") or row
        counts[str(failure.get("stage", "?")), str(failure.get("kind", "?"))] += 1
    if not counts:
        return [Section("Failures", (Note("No model call failed.", "good"),))]
    rows = tuple((stage, kind, number(count)) for (stage, kind), count in sorted(counts.items()))
    note = "A failure is recorded in place of what it prevented and never enters a value."
    return [Section("Failures", (Table(("stage", "kind", "times"), rows, note=note),))]


def cost(run: Run) -> list[Section]:
    """Return what the run used: calls, tokens, money and hours."""
    spent = section(run.manifest, "spent")
    usage = section(run.object("summary.json"), "usage")
    blocks: list[Block] = []
    if spent:
        amounts = {str(name): value for name, value in spent.items() if name != "roles"}
        blocks.append(Facts(tuple((name.replace("_", " "), _amount(value)) for name, value in amounts.items())))
        blocks += _by_role(section(spent, "roles"))
    if len(tried := attempts_of(run.manifest)) > 1:
        blocks.append(_attempts(tried))
    if usage:
        rare = ("unknown_calls", "reasoned", "only_reasoned")
        usual = ("calls", "prompt_tokens", "completion_tokens", "dropped_turns")
        keys = (*usual, *(key for key in rare if any(section(usage, role).get(key) for role in usage)))
        rows = tuple(
            (str(role), *(number(section(usage, role).get(key)) for key in keys))
            for role in usage
            if isinstance(usage[role], Mapping)
        )
        blocks.append(Table(("role", *(key.replace("_", " ") for key in keys)), rows))
    seconds = sorted(
        row["seconds"] for row in run.lines("metrics.jsonl") if isinstance(row.get("seconds"), int | float)
    )
    if seconds:
        pairs = (("units of work timed", number(len(seconds))), ("median seconds", number(seconds[len(seconds) // 2])))
        blocks.append(Facts((*pairs, ("longest", f"{number(seconds[-1])} s"))))
    return [Section("Cost", tuple(blocks))] if blocks else []


def _by_role(roles: Mapping[str, Any]) -> list[Table]:
    """Return what each role spent; nothing for a run that does not know."""
    known = {str(role): amounts for role, amounts in roles.items() if isinstance(amounts, Mapping)}
    # Seconds differ from run to run; those of units stand below.
    names = list(dict.fromkeys(name for amounts in known.values() for name in amounts if name != "seconds"))
    rows = tuple((role, *(_amount(amounts.get(name)) for name in names)) for role, amounts in known.items())
    return [Table(("role", *(str(name).replace("_", " ") for name in names)), rows)] if rows else []


def _amount(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else plain(value)


def _attempts(tried: Sequence[Mapping[str, Any]]) -> Table:
    """Return how often the run was begun, and what each attempt spent."""
    spent = [section(attempt, "spent") for attempt in tried]
    names = list(dict.fromkeys(name for amounts in spent for name in amounts if name != "roles"))
    rows = tuple(
        (
            *(plain(attempt.get(name)) for name in ("began", "ended", "status")),
            plain(section(attempt, "versions").get("esckit")),
            *(_amount(amounts.get(name)) for name in names),
        )
        for attempt, amounts in zip(tried, spent, strict=True)
    )
    keys = ("began", "ended", "status", "esckit", *(name.replace("_", " ") for name in names))
    return Table(keys, rows, title=f"The run took {number(len(tried))} attempts; the amounts above are their sums")


def provenance(run: Run) -> Section:
    """Return what it takes to do it again: the recipe, versions, digests."""
    manifest = run.manifest
    files = section(manifest, "data.files")
    blocks: list[Block] = []
    if files:
        rows = tuple((str(name), str(sha)) for name, sha in files.items())
        blocks.append(Table(("file", "SHA-256"), rows, title="Data files"))
    versions = section(manifest, "versions")
    if versions:
        rows = tuple((str(name), str(version)) for name, version in versions.items())
        blocks.append(Table(("package", "version"), rows, title="Versions", folded=True))
    further = {key: value for key, value in manifest.items() if key not in _KNOWN}
    if further:
        blocks.append(Code("Further facts of the manifest", _yaml(further)))
    blocks.append(Code("The whole recipe", _yaml(run.recipe)))
    return Section("Provenance", tuple(blocks))


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True, width=110)
