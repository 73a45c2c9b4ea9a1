"""The pinned texts of the scripted runs: digests of their records, and what everything else that they write says."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.pins import normal
from tests.pins.runs import Said

# Reports kept line by line; of the others, which show much the same, a digest of each section is enough.
_WHOLE = (
    "simulate", "simulate-guided", "simulate-failing", "search", "search-expected", "search-linear", "search-failing",
    "predict", "evaluate", "evaluate-predictions", "evaluate-utterances", "evaluate-trees", "evaluate-failing",
)  # fmt: skip


def pages(folder: Path, said: Sequence[Said]) -> dict[str, str]:
    """Return every pinned text by its file's name."""
    versions = json.loads((folder / "runs/simulate/manifest.json").read_text(encoding="utf-8"))["versions"]
    found = {
        "digests.yaml": "".join(_digests(folder)),
        "files.txt": "".join(f"{name}\n" for name, _ in _files(folder)),
        "timings.yaml": "".join(_timings(folder)),
        "printed.txt": "\n".join(map(_printed, said)),
        "pages.yaml": "".join(_html(folder, versions)),
        "plots.yaml": "".join(
            f"{name}: {normal.drawing(path.read_text(encoding='utf-8'))}\n"
            for name, path in _files(folder)
            if path.suffix == ".svg"
        ),
    }
    for kind in ("manifest", "summary"):
        for command in ("simulate", "search", "predict", "evaluate"):
            files = {
                path.parent.name: json.loads(path.read_text(encoding="utf-8"))
                for path in folder.glob(f"runs/*/{kind}.json")
                if path.parent.name.startswith(command)
            }
            if files:
                found[f"{kind}/{command}.yaml"] = normal.by_value(files)
    return found | dict(_markdown(folder, versions))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for top in ("pages", "runs"):
        for path in sorted((folder / top).rglob("*")):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _digests(folder: Path) -> Iterator[str]:
    """Yield a line for every file whose bytes must stay: all records, and the metrics of evaluations."""
    for name, path in _files(folder):
        if path.name == "metrics.json" or (path.suffix == ".jsonl" and path.name != "metrics.jsonl"):
            data = path.read_bytes()
            n_lines = data.count(b"\n")
            if path.name == "metrics.json":  # sums of floats may end in other bits on another processor
                rounded = json.loads(data, parse_float=lambda number: f"{float(number):.12g}")
                data = json.dumps(rounded, ensure_ascii=False).encode()
            yield f"{name}: {{lines: {n_lines}, sha256: {hashlib.sha256(data).hexdigest()}}}\n"


def _timings(folder: Path) -> Iterator[str]:
    """Yield a line for every log of times: its units in any order, without the times."""
    for name, path in _files(folder):
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            kept = sorted(json.dumps(row | {"seconds": None}, sort_keys=True) for row in rows)
            keys = sorted({key for row in rows for key in row})
            facts: dict[str, Any] = {"lines": len(rows), "keys": keys, "digest": normal.digest("\n".join(kept))}
            yield f"{name}: {json.dumps(facts)}\n"


def _printed(said: Said) -> str:
    lines = [f"$ esckit {' '.join(said.words)}", f"exit code {said.code}"]
    text = "\n".join([*lines, said.stdout.strip("\n"), *(["stderr:", said.stderr.strip("\n")] if said.stderr else [])])
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _html(folder: Path, versions: Mapping[str, str]) -> Iterator[str]:
    for name, path in _files(folder):
        if path.suffix == ".html":
            parts = normal.page(path.read_text(encoding="utf-8"), versions)
            yield f"{name}:\n" + "".join(f"  - {json.dumps(line, ensure_ascii=False)}\n" for line in parts.splitlines())


def _markdown(folder: Path, versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    sections = []
    for name, path in _files(folder):
        if path.suffix == ".md":
            text = normal.markdown(path.read_text(encoding="utf-8"), versions)
            if path.parent.name in _WHOLE:
                yield f"report/{path.parent.name}.md", text
            else:
                sections.append(f"== {name}\n{normal.headings(text)}")
    yield "report/sections.txt", "\n".join(sections)
