"""What is left of an adapter is a function of its training alone."""

import json
from pathlib import Path

import pytest

from esckit.models.loading import tidy_adapter


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
