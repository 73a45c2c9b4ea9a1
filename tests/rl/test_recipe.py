import pytest

from esckit.config.load import load_recipe
from esckit.errors import ConfigError
from esckit.rl.recipe import TrainRlRecipe
from esckit.runs import without
from tests.config.configfakes import write_recipe

RIGHT = """\
command: train-rl
seed: 7
data: {dataset: esconv, path: somewhere, scheme: hub, split: train}
models: {policy: {backbone: tiny-random}, reward: {checkpoint: runs/reward}}
"""
ONLINE = ["reward.kind=online", "models.seeker={scripted: seeker}"]


def load(folder, *overrides):
    return load_recipe(write_recipe(folder, RIGHT), TrainRlRecipe, overrides=overrides).recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["grpo.n_generations=1"], "greater than or equal to 2"),
        (["reward.kind=classifer"], "must be one of classifier, ranker, untrained, online, or module:attr"),
        (["reward.kind=untrained"], "untrained needs models.reward with a backbone"),
        (["models.reward={backbone: tiny-random}"], "classifier needs models.reward with a checkpoint"),
        (["models.reward={}"], "either checkpoint or backbone"),
        (ONLINE, "online needs models.seeker and models.critic"),
        (["reward.weights={future: 0, format: 0}"], "at least one weight must be positive"),
        (["algorithm=dpo"], "dpo needs inputs"),
        (["inputs=[runs/x]"], "grpo needs data"),
        (["optim.select=best_dev", "monitor.dev_every=null"], "best_dev needs monitor.dev_every"),
        (["data.merge=false"], "must be true here"),
        (["lora.targets=q_proj"], "lora.targets (--set): must be a list of module names, or all-linear, not 'q_proj'"),
        ([*ONLINE, "models.critic={scripted: critic}", "reward.value=hard_label"], "has online.value"),
    ],
)
def test_what_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *overrides)
    assert message in str(caught.value)


def test_the_papers_recipe_states_the_papers_values():
    recipe = load_recipe("rlff/train_rl", TrainRlRecipe).recipe
    grpo, optim, lora = recipe.grpo, recipe.optim, recipe.lora
    assert (grpo.n_generations, grpo.prompts_per_step, grpo.temperature, grpo.top_k, grpo.top_p) == (4, 4, 1.1, 80, 1.0)
    assert (grpo.beta, grpo.epsilon, grpo.iterations, grpo.loss_type) == (0.04, 0.2, 1, "grpo")
    assert (grpo.max_prompt_tokens, grpo.max_completion_tokens) == (2048, 512)
    assert (optim.lr, optim.epochs, optim.schedule, optim.warmup_share, optim.select) == (
        1e-6,
        2,
        "linear",
        0.03,
        "last",
    )
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (8, 32, 0.0, "all-linear")
    assert (recipe.reward.weights.future, recipe.reward.weights.format) == (1.0, 0.5)
    assert recipe.max_failure_rate == 0.05


def test_dpo_has_a_learning_rate_of_its_own(tmp_path):
    text = "command: train-rl\nseed: 7\nalgorithm: dpo\ninputs: [runs/x]\nmodels: {policy: {backbone: tiny-random}}\n"
    ref = write_recipe(tmp_path, text)
    assert load_recipe(ref, TrainRlRecipe).recipe.optim.lr == 5e-6
    assert load_recipe(ref, TrainRlRecipe, overrides=["optim.lr=1e-3"]).recipe.optim.lr == 1e-3


def test_operational_fields_are_no_part_of_a_runs_identity(tmp_path):
    changed = load(
        tmp_path, "logging.save_every=1", "max_failure_rate=0.5", "executor.threads=1", "trackers=[tensorboard]"
    )
    one = load(tmp_path)
    assert without(one.resolved(), one.OPERATIONAL) == without(changed.resolved(), changed.OPERATIONAL)
    other = load(tmp_path, "grpo.beta=0.1")
    assert without(one.resolved(), one.OPERATIONAL) != without(other.resolved(), other.OPERATIONAL)
