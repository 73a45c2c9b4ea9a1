import pytest
from pydantic import ValidationError

from esckit.config.data import AlternatingData, DataConfig


def test_a_lone_split_is_a_tuple_of_one():
    data = DataConfig.model_validate({"dataset": "esconv", "path": "p", "scheme": "hub", "split": "train"}, strict=True)
    assert data.split == ("train",)
    assert (data.seed, data.ratios, data.format, data.merge) == (13, (0.8, 0.1, 0.1), "auto", False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "train"}, "split needs a scheme"),
        ({"scheme": "hub", "split": ("train", "train")}, "different parts"),
        ({"scheme": "hub", "split": ()}, "different parts"),
        ({"scheme": "hub", "split": ("train", "dev")}, "'train', 'valid' or 'test'"),
        ({"scheme": "ratio", "ratios": (0.8, 0.1, 0.2)}, "sum to 1, not 1.1"),
        ({"scheme": "ratio", "ratios": (1.2, -0.1, -0.1)}, "greater than or equal to 0"),
        ({"scheme": "random"}, "'hub', 'ppdpp', 'ratio' or 'files'"),
        ({"limit": 0}, "greater than 0"),
        ({"unknown_strategy": "drop"}, "'refuse' or 'keep'"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate({"dataset": "esconv", "path": "p", **fields}, strict=True)
    assert message in str(caught.value)


def test_alternating_data_is_always_merged():
    assert AlternatingData(dataset="esconv", path="p").merge is True
    with pytest.raises(ValidationError, match="must be true here"):
        AlternatingData(dataset="esconv", path="p", merge=False)
