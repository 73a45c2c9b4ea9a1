"""The network of a reward model, built, loaded, and as a scorer: R_fut of (conversation, response) (arXiv 2508.12935).

A backbone and a small head, or a language model whose own log-probabilities rank. Three kinds: ``classifier`` has two
logits, p = softmax(z)_1; ``pairwise`` has one scalar s, p = σ(s); ``rrhf`` keeps the LM head, s is the mean
log-probability of the response's tokens and p = exp(s).

Not here: what it reads (:mod:`esckit.reward.text`) and how it is trained (:mod:`esckit.reward.trainer`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from esckit.errors import BackendError, CheckpointError, ConfigError, NotFiniteError
from esckit.models.backbones import quiet_off_terminal, resolve_backbone
from esckit.models.checkpoint import ADAPTER, BACKBONE, TOKENIZER, checkpoint_folder, read_metadata
from esckit.models.loading import (
    Dtype,
    Float32Linear,
    as_dtype,
    base_decoder,
    check_whole,
    checkpoint_activations,
    exact_dtype,
    load_adapter,
    load_base,
    load_causal,
    load_tensors,
    load_tokenizer,
    on_device,
    pick_device,
)
from esckit.models.packing import PackedStates, States
from esckit.reward.recipe import Kind, Pooling, RewardNetwork
from esckit.reward.text import RewardInput, RewardMetadata, RewardTemplate, RewardText
from esckit.training.checkpoint import adapter_config
from esckit.training.policy import load_start
from esckit.types import Turn

HEAD = "head.safetensors"
"""File of the head in a checkpoint (of a ranker with an untied LM head: that)."""


# ---------------------------------------------------------------- the network


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


def pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one float32 state per row (B, d): that of the last real token, or the mean over real tokens.

    Args:
        hidden: States (B, T, d).
        attention_mask: 1 for real tokens (B, T), which come first.
        pooling: Which of the two.
    """
    if pooling == "last":
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return hidden[rows, attention_mask.sum(dim=1) - 1].float()
    mask = attention_mask.unsqueeze(-1).float()
    # Where, not times: what stands at padding may be NaN.
    kept = torch.where(mask > 0, hidden.float(), 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)


def collate(inputs: Sequence[RewardInput]) -> dict[str, Tensor]:
    """Return inputs as one batch, padded on the right; nothing reads what stands there.

    Returns:
        ``input_ids`` (B, T), ``attention_mask`` (B, T) with 1 for real tokens, and boolean ``response_mask`` (B, T),
        True for the response's tokens.
    """
    longest = max(len(each.ids) for each in inputs)
    ids = torch.zeros(len(inputs), longest, dtype=torch.long)
    mask = torch.zeros(len(inputs), longest, dtype=torch.long)
    response = torch.zeros(len(inputs), longest, dtype=torch.bool)
    for row, each in enumerate(inputs):
        ids[row, : len(each.ids)] = torch.tensor(each.ids)
        mask[row, : len(each.ids)] = 1
        response[row, each.response_start : each.response_end] = True
    return {"input_ids": ids, "attention_mask": mask, "response_mask": response}


class RewardNet(nn.Module):
    """Backbone and head.

    Args:
        backbone: Decoder without LM head, plain or wrapped by peft; its output has ``last_hidden_state``.
        kind: What the head gives.
        pooling: Which state the head reads.
        lm_head: Projection to the vocabulary; needed for ``rrhf`` only.
        frozen_backbone: True if gradients need not flow through the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        kind: Kind,
        *,
        pooling: Pooling = "last",
        lm_head: nn.Module | None = None,
        frozen_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.kind = kind
        self.pooling = pooling
        config = base_decoder(backbone).config
        self.logit_softcap: float | None = config.to_dict().get("final_logit_softcapping")  # Gemma 2
        self.frozen_backbone = frozen_backbone
        self.lm_head = lm_head if kind == "rrhf" else None
        self.head = None if kind == "rrhf" else RewardHead(config.hidden_size, 2 if kind == "classifier" else 1)
        if kind == "rrhf" and lm_head is None:
            raise ConfigError("objective rrhf on a backbone without LM head", expected="a causal language model")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> Tensor:
        """Return logits (B, 2) of a classifier, else scores s (B,), of a batch from :func:`collate`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_backbone):
            out = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden = out.last_hidden_state
        if self.kind == "rrhf":
            target = response_mask[:, 1:]
            log_p = self.token_log_p(hidden[:, :-1][target], input_ids[:, 1:][target])
            spread = torch.zeros_like(target, dtype=log_p.dtype).masked_scatter(target, log_p)
            return spread.sum(dim=1) / target.sum(dim=1)
        return self.read(pool(hidden, attention_mask, self.pooling))

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


# ---------------------------------------------------------------- built anew, or from a checkpoint


def build_net(
    model: RewardNetwork, kind: Kind, *, dtype: torch.dtype = torch.float32, gradient_checkpointing: bool = False
) -> tuple[RewardNet, Any]:
    """Return a net to train with dropout off, what is trained in float32, and its tokenizer.

    Args:
        model: The recipe's section.
        kind: What the head gives.
        dtype: Number type of the backbone's weights where they stay frozen.
        gradient_checkpointing: Save memory by computing states twice.

    Raises:
        ConfigError: If there is no such backbone, or it cannot be loaded or adapted.
        CheckpointError: If the run that it begins with holds no supporter.
    """
    if kind == "rrhf" and model.trainable == "head":
        raise ConfigError("objective rrhf with a frozen backbone", expected="model.trainable: full or lora")
    source = resolve_backbone(model.backbone)
    how: dict[str, Any] = {"quantisation": model.quantisation, "attention": model.attention}
    how["dtype"] = torch.float32 if model.trainable == "full" else dtype
    causal, tokenizer = load_causal(source, **how) if model.start is None else load_start(Path(model.start), **how)
    decoder, lm_head = causal.base_model, causal.get_output_embeddings()
    for module in decoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # rewards and comparisons of runs must not depend on it
    if model.trainable != "full":
        decoder.requires_grad_(False)
        lm_head.requires_grad_(False)
    if gradient_checkpointing:
        checkpoint_activations(decoder)
    if model.trainable == "lora":
        if gradient_checkpointing:
            decoder.enable_input_require_grads()
        usual = source.backbone.lora_targets if source.backbone else None
        config = adapter_config(model.lora, decoder, usual=usual, task_type="FEATURE_EXTRACTION")
        decoder = get_peft_model(decoder, config)
    frozen = model.trainable == "head"
    return RewardNet(decoder, kind, pooling=model.pooling, lm_head=lm_head, frozen_backbone=frozen), tokenizer


def load_net(run: Path, metadata: RewardMetadata, *, dtype: torch.dtype) -> tuple[RewardNet, Any]:
    """Return a trained net in evaluation mode, adapters merged, and its tokenizer.

    Raises:
        CheckpointError: If files are missing or do not fit.
        ConfigError: If the backbone that it names cannot be had.
    """
    folder = checkpoint_folder(run)
    quiet_off_terminal()
    check_whole(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    stored = load_tensors(folder / HEAD)
    lm_head: nn.Module | None = None
    if metadata.trainable == "full":
        decoder = load_base(folder / BACKBONE, dtype=dtype)
        if metadata.kind == "rrhf":
            weight = stored.get("lm_head.weight", decoder.get_input_embeddings().weight.detach())
            lm_head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
            lm_head.load_state_dict({"weight": weight})
    else:
        causal, _ = load_causal(resolve_backbone(metadata.backbone), dtype=dtype)
        decoder, lm_head = causal.base_model, causal.get_output_embeddings()
        if metadata.trainable == "lora":
            decoder = load_adapter(decoder, folder / ADAPTER).merge_and_unload()
    net = RewardNet(decoder, metadata.kind, pooling=metadata.pooling, lm_head=lm_head)
    if net.head is not None:
        own = {name.removeprefix("head."): tensor for name, tensor in stored.items() if name.startswith("head.")}
        if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in net.head.state_dict().items()}:
            raise CheckpointError(f"the head in {folder} does not fit its backbone")
        net.head.load_state_dict(own)
    return net.eval(), tokenizer


# ---------------------------------------------------------------- the scorer


_BATCH_TOKENS = {"cpu": 8_192, "cuda": 16_384}


class RewardModel:
    """Scores responses, no simulation needed.

    Inputs are packed into rows under a token budget, without padding, and what they begin with in common (instruction,
    conversation) is read once. The score of an input does not depend on what else is scored with it, but for the last
    bits.

    Args:
        net: The trained net, in evaluation mode, where it shall run; adapters are merged.
        text: Makes its inputs.
        metadata: What it was trained on; None for a net that was not trained.
        max_batch_tokens: Tokens in one forward pass; None takes a default for the device.
        is_invariant: Read each input alone, so that its score is the same in every bit whatever is scored with it.
    """

    def __init__(
        self,
        net: RewardNet,
        text: RewardText,
        *,
        metadata: RewardMetadata | None = None,
        max_batch_tokens: int | None = None,
        is_invariant: bool = False,
    ) -> None:
        device = next(net.parameters()).device
        self.net = net
        self.text = text
        self.metadata = metadata
        self.is_invariant = is_invariant
        budget = max_batch_tokens or _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["cpu"])
        self.states = PackedStates(net.backbone, max_tokens=budget, longest=text.max_length)

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        dtype: Dtype = "auto",
        device: str = "auto",
        max_batch_tokens: int | None = None,
        is_invariant: bool = False,
    ) -> RewardModel:
        """Load a model to read as it was trained, whatever became of its prompt.

        Args:
            run: The run folder.
            dtype: ``auto`` is float32 on a processor, bfloat16 on a GPU.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            max_batch_tokens: Tokens in one forward pass; None takes a default for the device.
            is_invariant: Read each input alone.

        Raises:
            CheckpointError: If there is no reward model, or it is not whole.
            ConfigError: If its backbone cannot be had.
        """
        metadata = read_metadata(RewardMetadata, run)
        place = pick_device(device)
        net, tokenizer = load_net(run, metadata, dtype=exact_dtype(dtype, place))
        text = RewardText(tokenizer, metadata.template, max_length=metadata.max_length)
        net = on_device(net, place, name=str(run))
        return cls(net, text, metadata=metadata, max_batch_tokens=max_batch_tokens, is_invariant=is_invariant)

    @classmethod
    def untrained(
        cls, backbone: str, template: RewardTemplate, *, max_length: int, seed: int, dtype: Dtype, device: str
    ) -> RewardModel:
        """Return a classifier with a fresh head: the paper's random reward.

        Args:
            backbone: NAME, FOLDER or HUB-ID.
            template: The prompt.
            max_length: Longest input in tokens.
            seed: Of the head; torch's generator is seeded with it.
            dtype: As for :meth:`load`.
            device: The same.
        """
        torch.manual_seed(seed)
        net, tokenizer = build_net(RewardNetwork(backbone=backbone, trainable="head"), "classifier")
        place = pick_device(device)
        as_dtype(net.backbone, exact_dtype(dtype, place))
        return cls(net.eval().to(place), RewardText(tokenizer, template, max_length=max_length))

    def score(self, conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
        """Return R_fut in [0, 1] of each response.

        Args:
            conversations: Turns before each response, oldest first; too long ones lose their oldest turns.
            responses: The replies themselves, without any reasoning.

        Raises:
            BackendError: ``too_long`` if a response does not fit.
            NotFiniteError: If the model gives a number that is not finite.
        """
        inputs = []
        for turns, response in zip(conversations, responses, strict=True):
            found = self.text.encode(turns, response)
            if found is None:
                raise BackendError(f"a response beyond {self.text.max_length} tokens", kind="too_long")
            inputs.append(found)
        distinct = list(dict.fromkeys(inputs))
        batches = [[each] for each in distinct] if self.is_invariant else [distinct]
        scores = chain.from_iterable(map(self._score_inputs, batches))
        of_input = dict(zip(distinct, scores, strict=True))
        return [of_input[each] for each in inputs]

    @torch.inference_mode()
    def _score_inputs(self, inputs: Sequence[RewardInput]) -> list[float]:
        if not inputs:
            return []
        # A ranker reads the states from the one before the response on.
        n_tail = [len(each.ids) - each.response_start + 1 if self.net.kind == "rrhf" else 1 for each in inputs]
        states = self.states.read([each.ids for each in inputs], n_tail)
        scores = probability(self.net.kind, self._outputs(inputs, states)).tolist()
        for score in scores:
            if not math.isfinite(score):
                raise NotFiniteError("p of the reward model", score)
        return scores

    def _outputs(self, inputs: Sequence[RewardInput], states: Sequence[States]) -> Tensor:
        """Return what the net gives for each input."""
        if self.net.kind == "rrhf":
            return torch.stack([self._mean_log_p(each, read) for each, read in zip(inputs, states, strict=True)])
        if self.net.pooling == "last":
            return self.net.read(torch.stack([read.tail[-1].float() for read in states]))
        pairs = zip(inputs, states, strict=True)
        return self.net.read(torch.stack([read.total / len(each.ids) for each, read in pairs]))

    def _mean_log_p(self, each: RewardInput, read: States) -> Tensor:
        n_response = each.response_end - each.response_start
        target = torch.tensor(each.ids[each.response_start : each.response_end], device=read.tail.device)
        return self.net.token_log_p(read.tail[:n_response], target).mean()
