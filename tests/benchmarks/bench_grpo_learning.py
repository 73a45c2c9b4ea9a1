"""Does GRPO learn? Held-out reward and format share before and after a small run under one fixed reward.

Run: ``python -m tests.benchmarks.bench_grpo_learning [--seeds 3] [--steps 80]``. Only prints. The policy is a model of
some hundred thousand weights that was taught to write outputs, well-formed about half the time and with supportive
words now and then; the reward is the form and a word list (esckit.rl.rewards), which one can check by hand. Held-out
contexts are answered four times each at the temperature of training. Intervals are 95 % t intervals over seeds.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from esckit.ledger import derive_seed
from esckit.models.chat import ChatFormat
from esckit.models.local import LocalModel
from esckit.prompts.prompt import load_prompt
from esckit.rl.recipe import TrainRlRecipe
from esckit.rl.rewards import lexicon_reward
from esckit.rl.rows import collect
from esckit.rl.run import run
from esckit.roles.asking import split_output
from esckit.training.policy import PolicyPrompt, load_policy
from esckit.types import Context, Message, Sampling

PROMPT = """\
name: short
version: 1
variables: []
messages:
  - {role: system, content: "Think, then answer."}
"""
THOUGHTS = ("They are low.", "A small step.", "Stay with it.")
PLAIN = ("Go on.", "Tell me more.", "It is late.", "Maybe rest.", "Well then.")
WARM = ("That sounds hard.", "I hear you.", "I am sorry.", "What would help?")
SAMPLING = Sampling(temperature=1.1, top_k=80, max_tokens=110)
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def output(draw: random.Random) -> str:
    reply = " ".join(draw.choice(WARM if draw.random() < 0.25 else PLAIN) for _ in range(2))
    thought = draw.choice(THOUGHTS)
    broken = (f"<think>{thought}</think> {reply}", f"<response>{reply}</response>", f"{thought} {reply}")
    return f"<think>{thought}</think> <response>{reply}</response>" if draw.random() < 0.5 else draw.choice(broken)


def teach(folder: Path, prompts: list[list[Message]], steps: int) -> None:
    """Train a small model from scratch to write such outputs, and leave it as a backbone."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from esckit.models.in_memory import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer("tiny-random")
    chat = ChatFormat.of(tokenizer)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = random.Random(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (steps - step) / (steps / 3))
        pairs = [(chat.encode(draw.choice(prompts)), chat.answer(output(draw))) for _ in range(16)]
        longest = max(len(asked) + len(said) for asked, said in pairs)
        ids = torch.full((16, longest), tokenizer.pad_token_id)
        labels = torch.full((16, longest), -100)
        mask = torch.zeros(16, longest, dtype=torch.long)
        for row, (asked, said) in enumerate(pairs):
            ids[row, : len(asked) + len(said)] = torch.tensor([*asked, *said])
            labels[row, len(asked) : len(asked) + len(said)] = torch.tensor(said)
            mask[row, : len(asked) + len(said)] = 1
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    print(f"taught for {steps} steps, last loss {loss.item():.2f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


async def answers(model: LocalModel, prompts: list[list[Message]], seed: int) -> list[str]:
    calls = [
        model.complete(messages, SAMPLING, seed=derive_seed(seed, index, candidate))
        for index, messages in enumerate(prompts)
        for candidate in range(4)
    ]
    replies = await asyncio.gather(*calls)
    await model.aclose()
    return [reply.text for reply in replies]


def held_out(model: LocalModel, prompts: list[list[Message]], seed: int) -> tuple[float, float]:
    """Return mean reward of the replies and share of well-formed outputs."""
    said = [split_output(text) for text in asyncio.run(answers(model, prompts, seed))]
    rewards = lexicon_reward([()] * len(said), [each.response for each in said])
    return statistics.mean(rewards), statistics.mean(each.format_ok for each in said)


def recipe_of(backbone: Path, prompt: Path, seed: int, steps: int) -> TrainRlRecipe:
    settings: dict[str, Any] = {
        "command": "train-rl",
        "seed": seed,
        "data": {"dataset": "esconv", "path": "sample:esconv", "scheme": "files", "split": ("train", "valid", "test")},
        "models": {"policy": {"backbone": str(backbone)}},
        "prompt": str(prompt),
        "reward": {"kind": "esckit.rl.rewards:lexicon_reward"},
        "grpo": {"n_generations": 8, "micro_batch": 16, "max_prompt_tokens": 200, "max_completion_tokens": 110},
        "optim": {"lr": 2e-3, "max_steps": steps, "schedule": "constant", "gradient_checkpointing": False},
        "dev": {"share": 0.3},
        "monitor": {"dev_every": None, "sample_every": None},
        "logging": {"save_every": 1000},
    }
    return TrainRlRecipe.model_validate(settings)


def interval(values: list[float]) -> str:
    mean = statistics.mean(values)
    half = T_975.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{mean:.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--teach", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prompt_file = folder / "short.yaml"
        prompt_file.write_text(PROMPT)
        backbone = folder / "taught"

        def fitted(contexts: tuple[Context, ...], tokenizer: Any) -> list[list[Message]]:
            maker = PolicyPrompt(load_prompt(str(prompt_file)), ChatFormat.of(tokenizer), 200)
            return [found[0] for context in contexts if (found := maker.fitted(context))]

        from esckit.models.in_memory import build_tokenizer

        every = collect(recipe_of(Path("tiny-random"), prompt_file, 1, 1))
        teach(backbone, fitted(every.train, build_tokenizer("tiny-random")), args.teach)
        found: dict[str, list[float]] = {}
        for seed in range(1, args.seeds + 1):
            ours = recipe_of(backbone, prompt_file, seed, args.steps)
            prompts = fitted(collect(ours).dev, build_tokenizer("tiny-random"))
            before = held_out(LocalModel.load(str(backbone), dtype="float32"), prompts, seed)
            run(ours, out=folder / f"run{seed}")
            after = held_out(load_policy(folder / f"run{seed}", dtype="float32"), prompts, seed)
            for name, x, y in zip(("reward", "format"), before, after, strict=True):
                found.setdefault(f"{name} before", []).append(x)
                found.setdefault(f"{name} after", []).append(y)
                found.setdefault(f"{name} gain", []).append(y - x)
            print(f"seed {seed}: {len(prompts)} held-out contexts, before {before}, after {after}", flush=True)
        for name, values in found.items():
            print(f"{name:>14}  {interval(values)}")


if __name__ == "__main__":
    main()
