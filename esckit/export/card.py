"""The model card of an export: the hub's YAML front matter, the training's own card, licences, and code to use it.

What is unknown is left out of the front matter. Metrics come from an evaluation that is named, and from nowhere else.
Loads nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from esckit.documents import read_json_object, read_text
from esckit.errors import DataError
from esckit.export.source import ExportSource
from esckit.runs import read_manifest

_TASKS = {
    "train-rl": ("policy", "text-generation", "Supporter replies"),
    "train-sft": ("policy", "text-generation", "Supporter replies"),
    "train-reward": ("reward", "text-classification", "Reward of supporter replies"),
    "train-flow": ("flow", "feature-extraction", "Choice of support strategies"),
}
"""By command: the module of plain code, the hub's pipeline tag, and the task in words."""

_HUB_DATASETS = {"esconv": "thu-coai/esconv"}

_ENGLISH = frozenset({"esconv", "extes", "sample:esconv", "sample:extes"})

_OPEN_DATA = frozenset({"sample:esconv", "sample:extes"})

_HUB_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Gemma": "gemma",
    "Llama-3.1": "llama3.1",
    "Llama-3.2": "llama3.2",
}

_DATA_NOTES = {
    "esconv": "Trained on dialogues of ESConv (arXiv 2106.01144), which its owners license under CC BY-NC 4.0, for "
    "academic research only: do not use this model commercially.",
    "extes": "Trained on dialogues of ExTES (arXiv 2308.11584), whose owners state no licence; they were written with "
    "ChatGPT, so its terms may apply.",
    "sample:esconv": "Trained on sample dialogues that ship with esckit (CC0 1.0): far too few to learn from.",
    "sample:extes": "Trained on sample dialogues that ship with esckit (CC0 1.0): far too few to learn from.",
    "unknown": "Trained on dialogues of unknown origin: esckit does not know their licence.",
}

_USES = {
    "policy": """\
policy = load(".")  # this folder, or the model's id on the hub
print(reply(policy, [("seeker", "I failed my exam and feel lost.")]))
""",
    "reward": """\
tokenizer, model = load(".")  # this folder, or the model's id on the hub
print(score(tokenizer, model, [("seeker", "I failed my exam and feel lost.")], "That sounds hard. What happened?"))
""",
    "flow": """\
policy = load(".")  # this folder, or the model's id on the hub
print(read(policy, [("seeker", "I failed my exam and feel lost.", None)]))
""",
}

_INPUTS = {
    "policy": """\
The prompt is the system prompt below, then the conversation through the chat template of the tokenizer. `esckit.json`
{config}holds the system prompt as `system_prompt`; `system_role` says whether the template takes a system
message, or the system prompt stands at the head of the first user message. esckit also breaks up control strings of the
tokenizer in what a seeker says.

```text
{system}
```
""",
    "reward": """\
The text is `head`, one line `LABEL: text` for each turn, `middle`, the reply, and `tail` (`reward_template.json`, and
`config.esckit["template"]`). **Every piece is tokenised by itself** and the ids are joined; a tokenizer that reads the
whole text at once may give other ids at the joints. p is the sigmoid of the only logit. esckit also breaks up control
strings of the tokenizer, and lines inside a turn that begin with a speaker's label.

```text
{template}
```
""",
    "flow": """\
`config.esckit` holds the strategies in the order of the heads, and how a dialogue is read. **Every piece is tokenised
by itself** and the ids are joined. π is the softmax of a linear head on the state of the last token, V the softplus of
a head of two layers (`heads.safetensors`). esckit also breaks up control strings of the tokenizer, and lines inside a
turn that begin with a speaker's label.
""",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What an evaluation found about this model.

    Attributes:
        run: Name of its run folder.
        dataset: Path of the corpus, as its recipe names it; None where it has none.
        split: Parts of the corpus.
        rows: Metrics of whole suites that have a value, as ``metrics.json`` holds them.
    """

    run: str
    dataset: str | None
    split: str | None
    rows: tuple[dict[str, Any], ...]


def read_evaluation(run: Path, source: ExportSource) -> Measured:
    """Return the metrics of an evaluation.

    Raises:
        DataError: If it is no finished evaluation, or none of this model.
    """
    manifest = read_manifest(run)
    if manifest["command"] != "evaluate":
        raise DataError(f"a run of {manifest['command']!r}", path=str(run), expected="one of 'evaluate'")
    if not (run / "metrics.json").is_file():
        raise DataError(
            "an evaluation that is not finished",
            path=str(run),
            expected="metrics.json in it",
            hint="Give the same `esckit evaluate` command again",
        )
    known = [value for value in (manifest.get("inputs") or {}).values() if isinstance(value, str)]
    if not any(value.startswith(f"{source.identity},") for value in known):
        raise DataError(
            "an evaluation of other models",
            path=str(run),
            field="models",
            expected=f"one whose recipe names {{checkpoint: {source.run}}}",
        )
    data = manifest["recipe"].get("data") or {}
    splits = (manifest.get("data") or {}).get("splits")
    rows = read_json_object(run / "metrics.json")["metrics"]
    kept = tuple(row for row in rows if row["group"] is None and row["value"] is not None)
    return Measured(run.resolve().name, data.get("path"), "+".join(splits) if splits else None, kept)


def write_text(source: ExportSource, *, name: str, adapter: bool, measured: Measured | None, notes: list[str]) -> str:
    """Return the card.

    Args:
        source: What is exported.
        name: Of the model.
        adapter: Whether only the adapter is exported.
        measured: What an evaluation found; None is unknown.
        notes: What else a user must know, each a sentence.
    """
    module = _TASKS[source.command][0]
    head = yaml.safe_dump(_front_matter(source, name, adapter, measured), sort_keys=False, allow_unicode=True)
    own = read_text(source.checkpoint / "README.md").partition("\n## Use\n")[0].strip()
    code = resources.files("esckit.export.plain").joinpath(f"{module}.py").read_text(encoding="utf-8")
    parts = [
        f"---\n{head}---\n\n{own}",
        f"## Evaluation\n\n{_evaluation(measured)}",
        _quantised(source, adapter=adapter),
        f"## Input\n\n{_input(module, source, adapter=adapter)}",
        "## Use without esckit\n\nNo library runs code of this folder (`trust_remote_code` stays off).\n\n"
        f"```python\n{code}\n\n{_USES[module]}```",
        "## Checked\n\n" + "\n".join(f"- {note}" for note in notes) if notes else "",
        f"## Licence\n\n{_licence(source)}",
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _front_matter(source: ExportSource, name: str, adapter: bool, measured: Measured | None) -> dict[str, Any]:
    _, tag, _ = _TASKS[source.command]
    found: dict[str, Any] = {}
    if source.backbone is not None and source.backbone.hub is not None:
        found["base_model"] = source.backbone.hub
        found["base_model_relation"] = "adapter" if adapter else "finetune"
    if datasets := [_HUB_DATASETS[corpus] for corpus in source.corpora if corpus in _HUB_DATASETS]:
        found["datasets"] = datasets
    if source.corpora and set(source.corpora) <= _ENGLISH:
        found["language"] = ["en"]
    found |= {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": tag,
        "license": _hub_licence(source),
    }
    found["tags"] = ["esckit", "emotional-support", source.command]
    if measured is not None and measured.rows:
        found["model-index"] = [{"name": name, "results": _results(source, measured)}]
    return found


def _results(source: ExportSource, measured: Measured) -> list[dict[str, Any]]:
    """Return one result a suite, as the hub's ``model-index`` takes them; intervals stand in ``args``."""
    _, tag, task = _TASKS[source.command]
    dataset: dict[str, Any] = {"name": measured.dataset or "unknown", "type": measured.dataset or "unknown"}
    if measured.split is not None:
        dataset["split"] = measured.split
    suites: dict[str, list[dict[str, Any]]] = {}
    for row in measured.rows:
        interval = row["interval"]
        args = {"n": row["n"], "n_unscored": row["n_unscored"]}
        if interval is not None:
            args["interval"] = interval
        metric = {"type": row["name"], "name": row["name"], "value": row["value"], "args": args}
        suites.setdefault(row["name"].partition(".")[0], []).append(metric)
    return [
        {"task": {"type": tag, "name": f"{task} ({suite})"}, "dataset": dataset, "metrics": metrics}
        for suite, metrics in suites.items()
    ]


def _evaluation(measured: Measured | None) -> str:
    if measured is None or not measured.rows:
        return "Unknown: no evaluation was given to `esckit export`."
    lines = [
        f"By `esckit evaluate` (run `{measured.run}`) on {measured.dataset or 'an unnamed corpus'}"
        f"{f', {measured.split}' if measured.split else ''}.",
        "",
        "| metric | value | interval | n | unscored |",
        "|---|---|---|---|---|",
    ]
    for row in measured.rows:
        found = row["interval"]
        between = (
            f"[{found['low']:.4g}, {found['high']:.4g}] ({found['level']:.0%}, {found['method']})" if found else "–"
        )
        lines.append(f"| {row['name']} | {row['value']:.4g} | {between} | {row['n']} | {row['n_unscored']} |")
    return "\n".join(lines)


def _quantised(source: ExportSource, *, adapter: bool) -> str:
    """Return what a user of an adapter must know that was trained on quantised weights."""
    held = source.metadata.frozen_as
    if held != "nf4":
        return ""
    now = (
        "Load the backbone quantised as well: on other weights its outputs differ a little."
        if adapter
        else "Here it is merged into the unquantised weights, and its outputs differ a little."
    )
    return f"## Backbone\n\nThe adapter was trained on a backbone quantised to {held}. {now}"


def _input(module: str, source: ExportSource, *, adapter: bool) -> str:
    config = "" if adapter else "and `config.esckit` "
    template = getattr(source.metadata, "template", None)
    shown = (
        ""
        if template is None
        else (
            f"{template.head}{template.seeker}: …\n{template.supporter}: …\n{template.seeker}: …{template.middle}REPLY"
            f"{template.tail}"
        )
    )
    return (
        _INPUTS[module]
        .replace("{config}", config)
        .replace("{system}", source.system_prompt)
        .replace("{template}", shown)
    )


def _hub_licence(source: ExportSource) -> str:
    """Return the hub's word for the backbone's licence where nothing else binds; ``other`` is explained in the card."""
    entry = None if source.backbone is None else source.backbone.backbone
    is_open = bool(source.corpora) and set(source.corpora) <= _OPEN_DATA
    return _HUB_LICENCES.get(entry.licence, "other") if entry is not None and is_open else "other"


def _licence(source: ExportSource) -> str:
    entry = None if source.backbone is None else source.backbone.backbone
    licence = entry.licence if entry else "its licence is unknown to esckit"
    own = f"Weights derived from {source.metadata.backbone}: {licence}."
    notes = [_DATA_NOTES.get(corpus, f"Trained on dialogues of {corpus}.") for corpus in source.corpora]
    return "\n".join(f"- {note}" for note in dict.fromkeys([own, *(notes or [_DATA_NOTES["unknown"]])]))
