"""The shape of a language model: how many weights it has and where, from its configuration alone.

Read from ``config.json`` of a folder, or from the registry's entry of a backbone (:mod:`esckit.models.backbones`), so
that a dry run knows sizes without torch and without the weights. A model of a type that is not listed here, or with
experts, has no shape: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from esckit.documents import read_json_object
from esckit.models.backbones import find_backbone, local_folder

_GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")

_TIED = ("gemma", "gemma2", "gpt2")
"""Types whose output layer is the input embedding unless the configuration says otherwise."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class Shape(NamedTuple):
    """Sizes of a decoder with attention and a feed-forward part in every layer.

    Attributes:
        hidden: Width of the hidden states.
        n_layers: Number of layers.
        n_heads: Attention heads.
        queries: Width of all queries together.
        keys: Width of all keys together; that of the values is the same.
        inner: Width inside the feed-forward part.
        vocabulary: Rows of the embedding.
        positions: Learned positions, 0 for rotary ones.
        tied: Whether the output layer is the embedding.
        gated: Feed-forward part with a gate and RMS norms (Llama and its kin), or GPT-2's form.
        n_norms: Norms of a layer over hidden states.
        qk_norms: Whether queries and keys are normed too.
        soft_caps: Whether attention scores are soft-capped, which SDPA cannot do.
        extra: Biases and norms of a layer's attention and feed-forward part.
    """

    hidden: int
    n_layers: int
    n_heads: int
    queries: int
    keys: int
    inner: int
    vocabulary: int
    positions: int
    tied: bool
    gated: bool
    n_norms: int
    qk_norms: bool
    soft_caps: bool
    extra: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear layers of one decoder layer: name → (inputs, outputs)."""
        h, q, k, i = self.hidden, self.queries, self.keys, self.inner
        if self.gated:
            attention = {"q_proj": (h, q), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (q, h)}
            return {**attention, "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}
        return {"c_attn": (h, 3 * h), "attn.c_proj": (h, h), "c_fc": (h, i), "mlp.c_proj": (i, h)}

    @property
    def in_linears(self) -> int:
        """Weights of all linear layers of all decoder layers, biases not counted."""
        return self.n_layers * sum(n_in * n_out for n_in, n_out in self.linears.values())

    @property
    def layer(self) -> int:
        """Weights of one decoder layer."""
        norm = self.hidden if self.gated else 2 * self.hidden
        return self.in_linears // self.n_layers + self.extra + self.n_norms * norm

    @property
    def embedding(self) -> int:
        """Weights of the input embedding, positions included."""
        return (self.vocabulary + self.positions) * self.hidden

    @property
    def decoder(self) -> int:
        """Weights without the output layer."""
        return self.embedding + self.n_layers * self.layer + (1 if self.gated else 2) * self.hidden

    @property
    def total(self) -> int:
        """All weights, a tied output layer counted once."""
        return self.decoder + (0 if self.tied else self.vocabulary * self.hidden)


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """Return the shape of a model with this configuration (the keys of ``config.json``), None if it is not known."""
    kind = config.get("model_type")
    if any(config.get(name) for name in _EXPERTS) or (kind not in _GATED and kind != "gpt2"):
        return None
    tied = bool(config.get("tie_word_embeddings", kind in _TIED))
    try:
        if kind == "gpt2":
            h = int(config["n_embd"])
            inner = int(config.get("n_inner") or 4 * h)
            return Shape(
                hidden=h, n_layers=int(config["n_layer"]), n_heads=int(config["n_head"]), queries=h, keys=h,
                inner=inner, vocabulary=int(config["vocab_size"]), positions=int(config["n_positions"]), tied=tied,
                gated=False, n_norms=2, qk_norms=False, soft_caps=False, extra=3 * h + h + inner + h,
            )  # fmt: skip
        h, n_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or h // n_heads)
        queries, keys = n_heads * head, int(config.get("num_key_value_heads") or n_heads) * head
        inner = int(config["intermediate_size"])
        extra = queries + 2 * keys if kind == "qwen2" or config.get("attention_bias") else 0
        extra += h if config.get("attention_bias") and kind != "qwen2" else 0
        extra += 2 * inner + h if config.get("mlp_bias") else 0
        extra += 2 * head if kind == "qwen3" else 0
        return Shape(
            hidden=h, n_layers=int(config["num_hidden_layers"]), n_heads=n_heads, queries=queries, keys=keys,
            inner=inner, vocabulary=int(config["vocab_size"]), positions=0, tied=tied, gated=True,
            n_norms=4 if kind == "gemma2" else 2, qk_norms=kind == "qwen3",
            soft_caps=kind == "gemma2" and config.get("attn_logit_softcapping", 50.0) is not None,
            extra=extra,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def shape_of_backbone(ref: str) -> Shape | None:
    """Return the shape of a backbone by NAME, FOLDER or HUB-ID; None if it is not known without the network.

    Raises:
        ConfigError: If there is no such backbone.
    """
    source = find_backbone(ref)
    if source.backbone is not None:
        return shape_of({"model_type": source.backbone.model_type, **source.backbone.config})
    folder = local_folder(source)
    return None if folder is None else shape_of(read_json_object(folder / "config.json"))
