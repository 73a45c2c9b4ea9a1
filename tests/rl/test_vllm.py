"""GRPO with vLLM: which correction TRL is told to make, and that the loss is that of the other engine."""

import pytest
import torch

from esckit.rl.recipe import TrainRlRecipe, plan_steps
from esckit.rl.trainer import grpo_arguments, make_trainer
from esckit.training.run import TrainingRun
from tests.rl.rl_fakes import learner, optim, paired, rows, trained
from tests.rl.rl_runs import recipe

CORRECTED = {"correction": {"mode": "token_truncate", "clip_max": 2.0}}


def ours(engine="transformers", top_k=0, vllm=None) -> TrainRlRecipe:
    grpo = {"prompts_per_step": 2, "max_prompt_tokens": 2048, "max_completion_tokens": 8, "beta": 0.0}
    return recipe(grpo={**grpo, "engine": engine, "top_k": top_k, "vllm": vllm or {}}, optim=optim(max_steps=2))


class Recorded:
    """What TRL asks a vLLM engine for: recorded outputs, and the policy's log-probabilities among the ``top_k``."""

    def __init__(self, trainer, outputs, top_k):
        self.trainer, self.outputs, self.top_k = trainer, iter(outputs), top_k

    def sync_weights(self):
        pass

    def generate(self, prompts, **_):
        completions = next(self.outputs)
        return prompts, completions, [self.log_probs(*pair) for pair in zip(prompts, completions, strict=True)], None

    @torch.no_grad()
    def log_probs(self, prompt, completion):
        logits = self.trainer.model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        logits = logits / self.trainer.temperature
        if self.top_k:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        found = logits.log_softmax(dim=-1).gather(1, torch.tensor(completion)[:, None])
        return found.tolist()


def trainer_of(settings, folder):
    policy = learner()
    run = TrainingRun(folder)
    torch.manual_seed(0)
    given = rows(policy)
    plan = plan_steps(settings, n_rows=len(given), n_processes=1)
    return make_trainer(settings, policy, given, rewards=paired(), plan=plan, run=run), run


def sampled(folder, top_k=0):
    """Train on the transformers engine; return what was trained, the losses, and the outputs of each step."""
    trainer, run = trainer_of(ours(top_k=top_k), folder)
    outputs, generate = [], trainer._generate_single_turn

    def record(*args, **options):
        completions, log_probs = generate(*args, **options)
        outputs.append(completions)
        return completions, log_probs

    trainer._generate_single_turn = record
    return trained(trainer, run), losses(trainer), outputs


def replayed(folder, outputs, *, vllm=None, top_k=0):
    """Train on recorded outputs as vLLM would return them, whatever the recipe would refuse."""
    trainer, run = trainer_of(ours(top_k=top_k, vllm=vllm), folder)
    trainer.use_vllm, trainer.vllm_mode, trainer._last_loaded_step = True, "server", -1
    trainer.vllm_generation = Recorded(trainer, outputs, top_k)
    weights = trained(trainer, run)
    name = "sampling/importance_sampling_ratio/mean"
    ratios = [row[name] for row in trainer.state.log_history if name in row]
    return weights, losses(trainer), ratios


def losses(trainer):
    return [row[name] for row in trainer.state.log_history if "loss" in row for name in ("loss", "grad_norm")]


def test_a_recorded_batch_has_the_loss_of_the_other_engine(tmp_path):
    weights, expected, outputs = sampled(tmp_path / "sampled")
    assert max(expected) > 0.1
    for name, vllm in (("off", None), ("corrected", CORRECTED)):
        again, found, ratios = replayed(tmp_path / name, outputs, vllm=vllm)
        assert found == pytest.approx(expected, abs=1e-5)
        assert all(torch.allclose(again[key], weights[key], atol=1e-5) for key in weights)
        assert ratios == pytest.approx([1.0, 1.0] if vllm else [], abs=1e-4)


def test_probabilities_among_the_top_k_would_weigh_every_token_wrongly(tmp_path):
    _, expected, outputs = sampled(tmp_path / "sampled", top_k=80)
    _, found, ratios = replayed(tmp_path / "wrong", outputs, vllm=CORRECTED, top_k=80)
    assert len(ratios) == 2
    assert max(ratios) < 0.99
    assert found != pytest.approx(expected, abs=1e-3)
    assert replayed(tmp_path / "off", outputs, top_k=80)[1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("vllm", "wanted"), [({}, (False, "token_truncate", 3.0, None)), (CORRECTED, (True, "token_truncate", 2.0, None))]
)
def test_trl_is_told_whether_and_how_to_correct(tmp_path, vllm, wanted):
    settings = ours(vllm=vllm)
    found = grpo_arguments(settings, plan_steps(settings, n_rows=8, n_processes=1), TrainingRun(tmp_path))
    names = ("correction", "mode", "clip_max", "clip_min")
    assert tuple(getattr(found, f"vllm_importance_sampling_{name}") for name in names) == wanted


@pytest.mark.parametrize("truncated", [{"top_k": 80}, {"top_k": 0, "top_p": 0.9}])
def test_a_correction_of_truncated_sampling_is_refused(truncated):
    with pytest.raises(ValueError, match=r"set top_k: 0 and top_p: 1.0, or vllm.correction: null"):
        recipe(grpo={"engine": "vllm", "vllm": CORRECTED, **truncated})
    assert recipe(grpo={"engine": "vllm", **truncated}).grpo.vllm.correction is None
    with pytest.raises(ValueError, match=r"clip_min \(4\) must be less than clip_max \(3\)"):
        recipe(grpo={"engine": "vllm", "top_k": 0, "vllm": {"correction": {"clip_min": 4}}})
