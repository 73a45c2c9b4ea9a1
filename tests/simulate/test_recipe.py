import pytest

from esckit.config.load import load_recipe
from esckit.errors import ConfigError
from esckit.runs import without
from esckit.simulate.run import SimulateRecipe
from tests.config.configfakes import write_recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["critic.threshold=1.5"], "must lie in [-1, 1]"),
        (["critic.threshold=half"], "critic.threshold"),
        (["critic.threshold=true"], "critic.threshold"),
        (["critic.min_parsed=11"], "min_parsed (11) is more than samples (10)"),
        (["simulation.strategy=predicted"], "needs models.strategist"),
        (["simulation.max_attempts=11"], "less than or equal to 10"),
        (["budget.max_cost=1", "models.critic={endpoint: openai, model: m}"], "needs prices"),
        (["seed=-1"], "seed"),
        (["max_failure_rate=1.1"], "max_failure_rate"),
    ],
)
def test_what_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe(write_recipe(tmp_path), SimulateRecipe, overrides=overrides)
    assert message in str(caught.value)


def test_operational_fields_are_no_part_of_a_runs_identity(tmp_path):
    ref = write_recipe(tmp_path)
    changes = [
        "concurrency.futures=1",
        "budget.max_calls=9",
        "executor.threads=2",
        "max_failure_rate=0.5",
        "simulation.retry_failed=true",
    ]
    one, other = (load_recipe(ref, SimulateRecipe, overrides=each).recipe for each in ([], changes))
    assert one != other
    assert without(one.resolved(), one.OPERATIONAL) == without(other.resolved(), other.OPERATIONAL)
    third = load_recipe(ref, SimulateRecipe, overrides=["simulation.horizon=2"]).recipe
    assert without(one.resolved(), one.OPERATIONAL) != without(third.resolved(), third.OPERATIONAL)


def test_a_threshold_may_be_written_as_a_number(tmp_path):
    loaded = load_recipe(write_recipe(tmp_path), SimulateRecipe, overrides=["critic.threshold=0.40"])
    assert loaded.recipe.critic.threshold == "0.4"
