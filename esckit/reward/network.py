"""The small float32 head that makes a reward model of a backbone, and where it reads (RLFF-ESC, arXiv 2508.12935).

The network of a reward model: a backbone and a small head, or a language model whose own log-probabilities rank.

Three kinds (RLFF-ESC, arXiv 2508.12935): ``classifier`` has two logits, p = softmax(z)_1; ``pairwise`` has one scalar
s, p = σ(s); ``rrhf`` keeps the LM head, s is the mean log-probability of the response's tokens and p = exp(s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from esckit.errors import ConfigError
from esckit.models.backbones import resolve_backbone
from esckit.models.capabilities import checkpoint_activations
from esckit.models.decoder import Float32Linear
from esckit.models.loading import load_causal
from esckit.reward.text import RewardInput
from esckit.training.checkpoint import adapter_config
from esckit.training.sections import Lora

Pooling = Literal["last", "mean"]


class RewardHead(nn.Module):
    """A linear layer to two logits, or to one scalar for rankers; always in float32.

    Args:
        hidden_size: Width of the backbone's states.
        n_outputs: 2 for a classifier, 1 for a ranker.
    """

    def __init__(self, hidden_size: int, n_outputs: int = 2) -> None:
        super().__init__()
        self.out = Float32Linear(hidden_size, n_outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits (B, n_outputs) of pooled states (B, d)."""
        out: Tensor = self.out(pooled)
        return out


def positions(attention_mask: Tensor) -> Tensor:
    """Return each token's position in its own sequence (B, T); padding on either side counts for nothing."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def last_index(attention_mask: Tensor) -> Tensor:
    """Return the column of the last real token of each row (B,), whichever side is padded."""
    columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (columns * attention_mask.long()).argmax(dim=1)


def pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one float32 state per row (B, d): that of the last real token, or the mean over real tokens.

    Args:
        hidden: States (B, T, d).
        attention_mask: 1 for real tokens (B, T), padding on either side.
        pooling: Which of the two.
    """
    if pooling == "last":
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, last_index(attention_mask)].float()
    mask = attention_mask.unsqueeze(-1).float()
    # Where, not times: what stands at padding may be NaN.
    kept = torch.where(mask > 0, hidden.float(), 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


Kind = Literal["classifier", "pairwise", "rrhf"]

Trainable = Literal["full", "head", "lora"]


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """Padded inputs of one forward pass.

    Attributes:
        input_ids: (B, T).
        attention_mask: 1 for real tokens (B, T), padding on either side.
        response_mask: True for the response's tokens, boolean (B, T).
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


def collate(inputs: Sequence[RewardInput], *, side: Literal["left", "right"] = "right") -> RewardBatch:
    """Return inputs as one batch, padded on a side with token 0 (whatever stands there is never looked at)."""
    longest = max(len(each.ids) for each in inputs)
    ids = torch.zeros(len(inputs), longest, dtype=torch.long)
    mask = torch.zeros(len(inputs), longest, dtype=torch.long)
    response = torch.zeros(len(inputs), longest, dtype=torch.bool)
    for row, each in enumerate(inputs):
        shift = longest - len(each.ids) if side == "left" else 0
        ids[row, shift : shift + len(each.ids)] = torch.tensor(each.ids)
        mask[row, shift : shift + len(each.ids)] = 1
        response[row, shift + each.response_start : shift + each.response_end] = True
    return RewardBatch(ids, mask, response)


class RewardNet(nn.Module):
    """Backbone and head.

    Args:
        backbone: Decoder without LM head, plain or wrapped by peft; its output has ``last_hidden_state``.
        kind: What the head gives.
        hidden_size: Width of the backbone's states.
        pooling: Which state the head reads.
        lm_head: Projection to the vocabulary; needed for ``rrhf`` only.
        logit_softcap: Bound of the vocabulary logits (Gemma 2), None for none.
        frozen_backbone: True if gradients need not flow through the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        kind: Kind,
        *,
        hidden_size: int,
        pooling: Pooling = "last",
        lm_head: nn.Module | None = None,
        logit_softcap: float | None = None,
        frozen_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.kind = kind
        self.pooling = pooling
        self.logit_softcap = logit_softcap
        self.frozen_backbone = frozen_backbone
        self.lm_head = lm_head if kind == "rrhf" else None
        self.head = None if kind == "rrhf" else RewardHead(hidden_size, 2 if kind == "classifier" else 1)
        if kind == "rrhf" and lm_head is None:
            raise ConfigError("objective rrhf on a backbone without LM head", expected="a causal language model")

    def forward(self, batch: RewardBatch) -> Tensor:
        """Return logits (B, 2) of a classifier, else scores s (B,)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_backbone):
            hidden = self.backbone(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=positions(batch.attention_mask),
                use_cache=False,
            ).last_hidden_state
        if self.kind == "rrhf":
            target = batch.response_mask[:, 1:]
            log_p = self.token_log_p(hidden[:, :-1][target], batch.input_ids[:, 1:][target])
            spread = torch.zeros_like(target, dtype=log_p.dtype).masked_scatter(target, log_p)
            return spread.sum(dim=1) / target.sum(dim=1)
        return self.read(pool(hidden, batch.attention_mask, self.pooling))

    def read(self, pooled: Tensor) -> Tensor:
        """Return what the head says of pooled states (B, d): logits (B, 2), or scores (B,)."""
        assert self.head is not None
        out: Tensor = self.head(pooled)
        return out if self.kind == "classifier" else out.squeeze(-1)

    def token_log_p(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the log-probability of tokens (N,) that follow hidden states (N, d)."""
        assert self.lm_head is not None
        logits = self.lm_head(hidden).float()
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return -F.cross_entropy(logits, target, reduction="none")


def probability(kind: Kind, out: Tensor) -> Tensor:
    """Return p in [0, 1], float64 (B,), of what a net gives."""
    if kind == "classifier":
        return torch.sigmoid(out[:, 1].double() - out[:, 0].double())
    return torch.sigmoid(out.double()) if kind == "pairwise" else out.double().exp()


# ---------------------------------------------------------------- building


def build_net(
    ref: str,
    kind: Kind,
    *,
    trainable: Trainable,
    pooling: Pooling,
    lora: Lora | None = None,
    gradient_checkpointing: bool = False,
) -> tuple[RewardNet, Any]:
    """Return a net to train, in float32 and with dropout off, and its tokenizer.

    Args:
        ref: NAME, FOLDER or HUB-ID of the backbone.
        kind: What the head gives.
        trainable: Whether backbone and head are trained, the head alone, or head and adapter.
        pooling: Which state the head reads.
        lora: The adapter; needed with ``lora``.
        gradient_checkpointing: Save memory by computing states twice.

    Raises:
        ConfigError: If there is no such backbone, or it cannot be loaded.
    """
    source = resolve_backbone(ref)
    causal, tokenizer = load_causal(source)
    decoder = causal.base_model
    lm_head = causal.get_output_embeddings()
    _no_dropout(decoder)
    if trainable != "full":
        decoder.requires_grad_(False)
        lm_head.requires_grad_(False)
    if gradient_checkpointing:
        checkpoint_activations(decoder)
        if trainable == "lora":
            decoder.enable_input_require_grads()
    backbone = decoder
    if trainable == "lora":
        assert lora is not None
        usual = source.backbone.lora_targets if source.backbone else None
        backbone = get_peft_model(decoder, adapter_config(lora, decoder, usual=usual, task_type="FEATURE_EXTRACTION"))
    net = RewardNet(
        backbone,
        kind,
        hidden_size=decoder.config.hidden_size,
        pooling=pooling,
        lm_head=lm_head,
        logit_softcap=decoder.config.to_dict().get("final_logit_softcapping"),
        frozen_backbone=trainable == "head",
    )
    if kind == "rrhf" and trainable == "head":
        raise ConfigError("objective rrhf with a frozen backbone", expected="model.trainable: full or lora")
    return net, tokenizer


def _no_dropout(decoder: nn.Module) -> None:
    """Turn dropout off: rewards and comparisons of runs must not hang on it."""
    for module in decoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
