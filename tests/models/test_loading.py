"""Where and as what models run, and what is left of an adapter: a function of its training alone."""

import json
from pathlib import Path

import pytest
import torch

from esckit.errors import ConfigError
from esckit.flow.policy import CheckpointPolicy
from esckit.models.loading import exact_dtype, tidy_adapter
from esckit.models.local import PerplexityScorer


@pytest.mark.parametrize(
    ("targets", "kept"), [(["v_proj", "k_proj"], ["k_proj", "v_proj"]), ("all-linear", "all-linear")]
)
def test_an_adapter_names_its_layers_in_order_and_no_folder(tmp_path: Path, targets: object, kept: object) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"r": 4, "target_modules": targets, "base_model_name_or_path": "/some/cache"}))
    (tmp_path / "README.md").write_text("an empty form")
    tidy_adapter(tmp_path, "gpt2")
    assert json.loads(config.read_text()) == {"r": 4, "target_modules": kept, "base_model_name_or_path": "gpt2"}
    assert not (tmp_path / "README.md").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_policy_and_a_scorer_on_a_gpu_that_is_not_there_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        PerplexityScorer.load("tiny-random", device="cuda")
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        CheckpointPolicy.load(tmp_path, abbreviations={}, device="cuda")


def test_what_is_compared_in_its_last_digits_is_float32_on_a_processor() -> None:
    place = torch.device("cpu")
    assert exact_dtype("auto", place) == torch.float32
    assert exact_dtype("bfloat16", place) == torch.bfloat16
