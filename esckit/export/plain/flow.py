"""Read strategy probabilities and values from this policy; needs torch, transformers and safetensors only."""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file


def load(folder: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Return tokenizer, backbone and heads of a folder or a model id on the hub."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, trust_remote_code=False)
    return tokenizer, model.eval(), load_file(str(cached_file(folder, "heads.safetensors")))


def token_ids(
    tokenizer: Any, form: dict[str, Any], turns: Sequence[tuple[str, str, str | None]], scene: str, situation: str
) -> list[int]:
    """Return what the model reads: every piece is tokenised by itself; whole oldest exchanges go if it is too long."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if form["situation"]:
        cut = encode(f" {situation.strip() or 'unknown'}")[: form["max_situation_tokens"]]
        head += [*encode(f"Scene: {scene or 'unknown'}\n"), *encode("Situation:"), *cut, *encode("\n")]
    head += encode("Task: choose the next support strategy.\n")
    pieces: list[list[int]] = []
    before = ""
    for speaker, text, strategy in turns:
        tag = form["tags"].get(strategy) if speaker == "supporter" else None
        marker = f"{speaker.capitalize()} [{tag}]:" if tag else f"{speaker.capitalize()}:"
        if not pieces or form["single_turns"] or (speaker == "supporter" and before != "supporter"):
            pieces.append([])
        pieces[-1] += [*encode(marker), *encode(f" {text}"), *encode("\n")]
        before = speaker
    while len(pieces) > 1 and len(head) + sum(map(len, pieces)) > form["max_tokens"]:
        del pieces[0]
    body = [token for piece in pieces for token in piece]
    return head + body[-max(form["max_tokens"] - len(head), 1) :]


@torch.no_grad()
def read(
    policy: tuple[Any, Any, dict[str, torch.Tensor]],
    turns: Sequence[tuple[str, str, str | None]],
    scene: str = "",
    situation: str = "",
) -> tuple[dict[str, float], dict[str, float]]:
    """Return π(a|s) and V(s, a) by strategy, of turns (speaker, text, strategy) in which the supporter speaks next."""
    tokenizer, model, heads = policy
    form = model.config.esckit
    ids = token_ids(tokenizer, form, turns, scene, situation)
    states = model(input_ids=torch.tensor([ids], device=model.device)).last_hidden_state[:, -1].float().cpu()

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, heads[f"{name}.weight"], heads[f"{name}.bias"])

    log_pi = F.log_softmax(linear("strategy_head.out", states).double(), dim=-1)
    value = F.softplus(linear("flow_head.out", F.gelu(linear("flow_head.inner", states))).double())
    pairs = zip(form["strategies"], log_pi[0].exp().tolist(), value[0].tolist(), strict=True)
    rows = list(pairs)
    return {name: pi for name, pi, _ in rows}, {name: v for name, _, v in rows}
