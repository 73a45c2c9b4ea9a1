"""A reward model as transformers' sequence classification model with one logit, whose sigmoid is p.

Such a model reads the state of the last token and has a linear layer ``score``, in most architectures without a bias.
Ours has one: b = b₁ − b₀ of a classifier. It is not left out, since p would be another number:

- A last norm that adds a bias β (LayerNorm of GPT-2 and others): β + b·w/‖w‖² gives the same logit w·h + b.
- An RMS norm adds nothing, so one more decoder layer carries the bias. Its attention gives zero. Its MLP sees the
  normalised state h and adds Z·(w·h + b) to one channel of the residual stream and a constant C ≫ Z to another one,
  which then makes up the RMS: the last norm gives √d·(Z/C)·(w·h + b), and ``score`` takes the factor back. MLPs
  with biases exist as Llama's, so Llama and what computes as it does (Qwen 2, Mistral) are written as Llama.

The error of the second way is about ‖x‖/Z, below the rounding of float32; :mod:`esckit.export.run` compares every
export with the model that it came from, and keeps none that differs.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification
from transformers.activations import ACT2FN

from esckit.errors import CheckpointError
from esckit.models.loading import base_decoder
from esckit.reward.model import RewardNet

_LLAMA_LIKE = frozenset({"llama", "qwen2", "mistral"})

_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
)

_GATE, _Z, _C = 1.0, 2.0**40, 2.0**60


def sequence_classifier(net: RewardNet, *, pad_token_id: int | None) -> tuple[Any, str]:
    """Return the model, and where the bias of the head is now, for the card.

    Args:
        net: The trained net, its adapter merged, on the processor. Its weights become the model's.
        pad_token_id: Token after which there is no text; the last one before it is read.

    Raises:
        CheckpointError: If the objective, the pooling or the architecture has no such form.
    """
    _require_one_logit(net)
    weight, bias = _logit(net)
    decoder = base_decoder(net.backbone)
    config = deepcopy(decoder.config)
    config.num_labels, config.pad_token_id = 1, pad_token_id
    with torch.device("meta"):
        try:
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
        except ValueError as error:
            raise _no_form(f"transformers has no sequence classification for {config.model_type}") from error
    head = model._modules.get("score")
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise _no_form(f"the head of {type(model).__name__} is not a linear layer 'score' without a bias")
    if config.model_type in _LLAMA_LIKE and bias != 0:
        return _as_llama(
            decoder, weight, bias, pad_token_id
        ), "in a decoder layer that was added as the last one: do not train this model further"
    if bias != 0:
        _add_to_last_norm(decoder, weight, bias)
    setattr(model, model.base_model_prefix, decoder)
    model.score = _linear(weight, decoder.dtype)
    return model.eval(), "in the bias of the last norm" if bias != 0 else "nowhere: it is 0"


def _require_one_logit(net: RewardNet) -> None:
    if net.head is None:
        raise _no_form(f"objective {net.kind} scores a reply by the probabilities of its tokens, not by a head")
    if net.pooling != "last":
        raise _no_form(f"pooling {net.pooling!r} reads all tokens")


def _no_form(found: str) -> CheckpointError:
    return CheckpointError(
        f"this reward model has no form as AutoModelForSequenceClassification: {found}",
        expected="objective classifier or pairwise, pooling last, and a backbone like Llama, Qwen 2, Mistral or GPT-2",
        hint="Use it as {checkpoint: RUN} in esckit, or train one with model.pooling: last",
    )


def _logit(net: RewardNet) -> tuple[Tensor, float]:
    """Return w (d,) and b of the logit w·h + b whose sigmoid is p, in float64."""
    assert net.head is not None
    weight, bias = (tensor.detach().double() for tensor in (net.head.out.weight, net.head.out.bias))
    if net.kind == "classifier":
        return weight[1] - weight[0], float(bias[1] - bias[0])
    return weight[0], float(bias[0])


def _linear(weight: Tensor, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(len(weight), 1, bias=False, dtype=dtype)
    layer.load_state_dict({"weight": weight[None].to(dtype)})
    return layer


def _add_to_last_norm(decoder: nn.Module, weight: Tensor, bias: float) -> None:
    """Shift the bias of the last norm, which nothing but the head reads, along the head's weights."""
    norms = [layer for layer in decoder.children() if isinstance(layer, nn.LayerNorm) and layer.bias is not None]
    if not norms or not weight.any():
        raise _no_form(f"its head has a bias, which {type(decoder).__name__} has no place for")
    beta = norms[-1].bias
    beta.data = (beta.double() + bias * weight / weight.square().sum()).to(beta.dtype)


def _as_llama(decoder: Any, weight: Tensor, bias: float, pad_token_id: int | None) -> Any:
    """Return the model as Llama with one more layer, which computes the logit with its bias."""
    old = decoder.config
    if old.to_dict().get("use_sliding_window") or (old.model_type == "mistral" and old.sliding_window):
        raise _no_form(f"its head has a bias, and {old.model_type} attends within a window, which Llama does not")
    width, n_layers = old.hidden_size, old.num_hidden_layers
    config = LlamaConfig(
        **{name: getattr(old, name) for name in _SHARED},
        head_dim=decoder.layers[0].self_attn.head_dim,
        num_hidden_layers=n_layers + 1,
        attention_bias=decoder.layers[0].self_attn.q_proj.bias is not None,
        mlp_bias=True,
        pad_token_id=pad_token_id,
        num_labels=1,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForSequenceClassification(config)
    last = f"model.layers.{n_layers}"
    state = {f"model.{name}": tensor for name, tensor in decoder.state_dict().items()}
    unit = ACT2FN[old.hidden_act](torch.tensor(_GATE, dtype=torch.float64)).item()
    given: dict[str, tuple[Any, Any]] = {
        f"{last}.post_attention_layernorm.weight": (slice(None), state["model.norm.weight"]),
        f"{last}.mlp.gate_proj.bias": (0, _GATE),
        f"{last}.mlp.up_proj.weight": (0, weight),
        f"{last}.mlp.up_proj.bias": (0, bias),
        f"{last}.mlp.down_proj.weight": ((0, 0), _Z / unit),
        f"{last}.mlp.down_proj.bias": (1, _C),
        "model.norm.weight": (slice(None), 1.0),
        "score.weight": ((0, 0), _C / (_Z * width**0.5)),
    }
    for name, empty in model.state_dict().items():
        if name in given or name not in state:
            fresh = torch.zeros(empty.shape, dtype=decoder.dtype)
            if name in given:
                place, value = given[name]
                fresh[place] = torch.as_tensor(value, dtype=torch.float64).to(fresh.dtype)
            state[name] = fresh
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = decoder.rotary_emb  # no part of the state, but the same
    return model.eval()
