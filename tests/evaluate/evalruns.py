"""Small evaluations, and what the tests read of them."""

import json
from pathlib import Path
from typing import Any

from esckit.evaluate.run import run
from esckit.metrics.rows import MetricsFile
from esckit.predict.run import run as run_predict
from tests.evaluate.evalrecipes import evaluation, prediction, scripted


def result(tmp_path: Path, *suites: str, name: str = "run", **sections: Any) -> MetricsFile:
    return run(evaluation(*suites, **sections), out=tmp_path / name).metrics


def opponent(tmp_path: Path, speaker: str = "other_supporter") -> str:
    out = tmp_path / f"opponent-{speaker}"
    run_predict(prediction(models={"supporter": scripted(speaker)}), out=out)
    return str(out)


def values(metrics: MetricsFile) -> dict[str, float | None]:
    return {row.name: row.value for row in metrics.metrics if row.group is None}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
