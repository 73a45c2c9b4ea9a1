"""Tiny trainings, and what uses their checkpoints: every number that they write, and which files they leave."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.pins.runs import PREDICT, SEARCH, SIMULATE, made, shell

# Each stage needs what the one before it wrote.
STAGES = (
    (made("simulate", SIMULATE), made("simulate-test", SIMULATE, "data.split=test"), made("search", SEARCH)),
    (
        made("reward", ("train-reward", "smoke/train_reward_scripted"), "inputs=[runs/simulate]"),
        made("flow", ("train-flow", "smoke/train_flow_tiny"), "data.trees=[runs/search]"),
        made("dpo", ("train-rl", "smoke/train_rl_dpo"), "inputs=[runs/simulate]"),
    ),
    (
        made(
            "grpo", ("train-rl", "smoke/train_rl_scripted"), "models.reward.checkpoint=runs/reward", "optim.max_steps=2"
        ),
        made(
            "evaluate", ("evaluate", "smoke/evaluate_scripted"), "suites=[response, reward]", "data.limit=2",
            "models.reward.checkpoint=runs/reward", "settings.reward.inputs=[runs/simulate-test]",
        ),
        made("predict", PREDICT, "models.strategist={checkpoint: runs/flow}", "data.limit=1"),
    ),
)  # fmt: skip
NAMES = tuple(run.name for stage in STAGES[1:] for run in stage)

_READ = (".json", ".jsonl")
_SKIPPED = ("manifest.json", "failures.jsonl")
# What libraries write.
_FOREIGN = ("tokenizer", "backbone", "adapter")
_VARYING = ("_s", ".manifest")


def play(folder: Path, hash_seed: str | None = None) -> dict[str, str]:
    """Run all trainings in a new folder and return the pinned texts by their file's name."""
    folder.mkdir()
    with ThreadPoolExecutor(2) as pool:
        for stage in STAGES:
            list(pool.map(lambda run: shell(folder, run, hash_seed), stage))
    found = {f"{name}.yaml": "".join(_lines(folder / "runs" / name)) for name in NAMES}
    names = sorted(
        path.relative_to(folder).as_posix() for name in NAMES for path in (folder / "runs" / name).rglob("*")
        if path.is_file()
    )  # fmt: skip
    return found | {"files.txt": "".join(f"{name}\n" for name in names)}


def _lines(folder: Path) -> Iterator[str]:
    """Yield a line for every value of a run's own JSON files, in which nothing is a matter of time."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix not in _READ or path.name in _SKIPPED or any(part in _FOREIGN for part in name.parts):
            continue
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        if any("seconds" in row for row in rows):
            continue
        for number, row in enumerate(rows):
            place = name.as_posix() if path.suffix == ".json" else f"{name.as_posix()}#{number}"
            for field, value in _leaves(row, ""):
                shown = "varies" if field.endswith(_VARYING) else value
                yield f"{place}:{field}: {json.dumps(shown, ensure_ascii=False)}\n"


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from _leaves(value, f"{path}.{name}".lstrip("."))
    elif isinstance(data, list) and any(isinstance(each, dict | list) for each in data):
        for number, value in enumerate(data):
            yield from _leaves(value, f"{path}[{number}]")
    else:
        yield path, data


def close(kept: str, found: str, rel: float = 1e-4, abs_: float = 1e-6) -> list[str]:
    """Return the lines that differ: another field, another value, or a number that is further off than ``rel``."""
    ours, theirs = (dict(line.split(": ", 1) for line in text.splitlines()) for text in (kept, found))
    wrong = [f"gone: {place}" for place in ours.keys() - theirs.keys()]
    wrong += [f"new: {place}: {theirs[place]}" for place in theirs.keys() - ours.keys()]
    for place in ours.keys() & theirs.keys():
        if not _same(json.loads(ours[place]), json.loads(theirs[place]), rel, abs_):
            wrong.append(f"{place}: {ours[place]}, now {theirs[place]}")
    return sorted(wrong)


def _same(kept: Any, found: Any, rel: float, abs_: float) -> bool:
    if isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        return all(_same(one, other, rel, abs_) for one, other in zip(kept, found, strict=True))
    if isinstance(kept, float) and isinstance(found, float):
        return abs(kept - found) <= max(abs_, rel * abs(kept))
    return type(kept) is type(found) and bool(kept == found)
