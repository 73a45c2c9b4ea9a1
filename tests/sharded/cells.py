"""The trainings of the matrix, and the backbone that they train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

WIDTH = 4096
"""Inner width of the MLP. ZeRO-3 keeps tensors under 100,000 elements whole; 32 x 4096 and rank 32 are above that."""

HERE = Path(__file__).parent
_POLICY = {
    "prompt": HERE / "policy.yaml", "lora.rank": 32, "optim.gradient_checkpointing": True, "logging.save_every": 2,
}  # fmt: skip
_REWARD = {"prompt": HERE / "reward.yaml", "model.max_length": 400, "logging.save_every": 2}
_SFT = {
    "prompt": HERE / "policy.yaml", "data.limit": 8, "encoding.max_prompt_tokens": 300, "optim.max_steps": 4,
    "encoding.max_completion_tokens": 300, "optim.gradient_checkpointing": True, "monitor.dev_every": 2,
    "logging.save_every": 2,
}  # fmt: skip
_FLOW = {
    "model.gradient_checkpointing": True, "checkpoints.every": 2, "optim.paths_per_update": 8, "lora.rank": 32,
    "lora.targets": "[q_proj, v_proj, up_proj, down_proj]",
}  # fmt: skip
CELLS: Mapping[str, tuple[str, str, Mapping[str, object]]] = {
    "grpo": (
        "train-rl", "smoke/train_rl_lexicon",
        {
            **_POLICY, "reward.kind": "tests.rl.rl_runs:letter_reward", "data.limit": 6,
            "grpo.max_prompt_tokens": 300, "grpo.max_completion_tokens": 12, "grpo.micro_batch": 4,
            "optim.max_steps": 4, "optim.select": "best_dev", "monitor.log_every": 1, "monitor.sample_every": 2,
            "monitor.dev_every": 2,
        },
    ),
    "dialogue": (
        "train-rl", "smoke/train_rl_dialogue",
        {**_POLICY, "optim.select": "best_dev", "grpo.max_completion_tokens": 12, "grpo.max_prompt_tokens": 600},
    ),
    "dpo": (
        "train-rl", "smoke/train_rl_dpo",
        {**_POLICY, "logging.save_every": 1, "dpo.micro_batch": 2, "dpo.max_prompt_tokens": 300},
    ),
    "sft": (
        "train-sft", "smoke/train_sft",
        {**_SFT, "lora.rank": 32, "lora.targets": "[q_proj, v_proj, up_proj, down_proj]", "optim.select": "best_dev"},
    ),
    "sft_full": ("train-sft", "smoke/train_sft", {**_SFT, "model.trainable": "full"}),
    "classifier": (
        "train-reward", "smoke/train_reward_scripted",
        {**_REWARD, "optim.gradient_checkpointing": True, "dev.select_by": "log_loss"},
    ),
    "ranker": (
        "train-reward", "smoke/train_reward_scripted",
        {
            **_REWARD, "objective.kind": "pairwise", "model.trainable": "lora", "model.lora.rank": 32,
            "dev.select_by": "auc",
        },
    ),
    "flow": ("train-flow", "smoke/train_flow_tiny", {**_FLOW, "optim.validate_every": 1, "optim.patience": 2}),
    "flow_mean": ("train-flow", "smoke/train_flow_tiny", {**_FLOW, "optim.average_from": 0.25}),
}  # fmt: skip
_BACKBONE = {"train-rl": "models.policy.backbone"}
"""By command, where it is not ``model.backbone``."""
_PRECISION = {"train-flow": "model.precision"}
"""By command, where it is not ``optim.precision``."""
_OF_A_CORPUS = ("smoke/train_rl_lexicon", "smoke/train_rl_dialogue", "smoke/train_sft")


def arguments(cell: str, *, wide: Path, runs: Path, bf16: bool = False, **changes: object) -> list[str]:
    """Return the command line of a cell.

    Args:
        cell: Name of one of :data:`CELLS`.
        wide: The backbone.
        runs: Folder with the runs of ``smoke/simulate_scripted`` and ``smoke/search_scripted``.
        bf16: Train in bfloat16.
        changes: More fields of the recipe; ``__`` stands for the dot.
    """
    command, recipe, sets = CELLS[cell]
    fields = {**sets, _BACKBONE.get(command, "model.backbone"): wide}
    fields[_PRECISION.get(command, "optim.precision")] = "bfloat16" if bf16 else "float32"
    if command == "train-flow":
        fields["data.trees"] = f"[{runs / 'search'}]"
    elif recipe not in _OF_A_CORPUS:
        fields["inputs"] = f"[{runs / 'futures'}]"
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return [command, recipe, *(word for name, value in fields.items() for word in ("--set", f"{name}={_yaml(value)}"))]


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_wide(folder: Path) -> Path:
    """Write a random Qwen2 of one layer that is narrow, but for its MLP."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from esckit.models.in_memory import build

    small, tokenizer = build("tiny-random")
    config = Qwen2Config(
        vocab_size=small.config.vocab_size, hidden_size=32, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=None,
        eos_token_id=small.config.eos_token_id, pad_token_id=small.config.pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = small.generation_config.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
