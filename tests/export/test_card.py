"""The card of an export: front matter as the hub reads it, licences, and metrics from an evaluation alone."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from esckit.export.card import read_evaluation, write_text
from esckit.export.source import ExportSource, find_source
from esckit.models.backbones import find_backbone
from tests.export.export_runs import OLD


def card_of(source: ExportSource, **options: Any) -> tuple[dict[str, Any], str]:
    text = write_text(source, name="mine", notes=[], **{"adapter": False, "measured": None, **options})
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def source_of(name: str, backbone: str | None = None, ids: tuple[str, ...] | None = None) -> ExportSource:
    found = find_source(OLD / name, adapter=False)
    metadata = found.metadata if ids is None else found.metadata.model_copy(update={"dialogue_ids": ids})
    return replace(found, metadata=metadata, backbone=found.backbone if backbone is None else find_backbone(backbone))


def test_what_is_unknown_is_not_in_the_front_matter() -> None:
    head, body = card_of(source_of("rl-grpo", ids=("mine-1",)))
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "tags": ["esckit", "emotional-support", "train-rl"],
    }
    assert "Unknown: no evaluation was given" in body
    assert "unknown origin" in body


def test_the_front_matter_names_base_data_and_language() -> None:
    head, body = card_of(source_of("rl-grpo", "qwen2.5-7b-instruct", ("esconv-0123456789ab",)), adapter=True)
    assert head["base_model"] == "Qwen/Qwen2.5-7B-Instruct"
    assert (head["base_model_relation"], head["library_name"]) == ("adapter", "peft")
    assert (head["datasets"], head["language"], head["license"]) == (["thu-coai/esconv"], ["en"], "other")
    assert "CC BY-NC 4.0" in body


def test_the_sample_is_not_taken_for_esconv() -> None:
    source = source_of("rl-grpo", "qwen2.5-7b-instruct")
    head, body = card_of(source)
    assert source.corpora == ("sample:esconv",)
    assert (head.get("datasets"), head["license"]) == (None, "apache-2.0")
    assert "CC0 1.0" in body
    assert "BY-NC" not in body


def test_metrics_with_intervals_are_those_of_the_evaluation() -> None:
    source = source_of("reward-classifier")
    measured = read_evaluation(OLD / "evaluate", source)
    head, body = card_of(source, measured=measured)
    name, results = model_index_to_eval_results(head["model-index"])
    assert name == "mine"
    by_name = {row["name"]: row for row in measured.rows}
    assert {each.metric_type for each in results} == set(by_name)
    for each in results:
        row = by_name[each.metric_type]
        assert each.metric_value == row["value"]
        assert each.metric_args["n"] == row["n"]
        assert each.metric_args.get("interval") == row["interval"]
        assert f"| {row['name']} | {row['value']:.4g} |" in body
    assert any(row["interval"] for row in measured.rows)


def test_the_card_keeps_what_the_training_said() -> None:
    for name in ("rl-grpo", "reward-classifier", "flow"):
        _, body = card_of(source_of(name))
        own = (OLD / name / "checkpoint" / "README.md").read_text()
        assert own.partition("\n## Use\n")[0].strip() in body
        assert "checkpoint: RUN" not in body
        assert body.count("```python") == 1


def test_a_run_that_moved_is_still_the_one_that_was_evaluated(tmp_path: Path) -> None:
    moved = Path(shutil.copytree(OLD / "reward-classifier", tmp_path / "elsewhere"))
    assert read_evaluation(OLD / "evaluate", find_source(moved, adapter=False)).rows


@pytest.mark.parametrize(("adapter", "now"), [(True, "quantised as well"), (False, "unquantised weights")])
def test_the_card_says_that_a_backbone_was_quantised(adapter: bool, now: str) -> None:
    source = source_of("rl-grpo", "qwen2.5-7b-instruct")
    assert "nf4" not in card_of(source, adapter=adapter)[1]
    quantised = replace(source, metadata=source.metadata.model_copy(update={"frozen_as": "nf4"}))
    assert re.search(rf"quantised to nf4.*{now}", card_of(quantised, adapter=adapter)[1])
