"""Random search trees, a byte tokenizer and tiny random backbones for the tests of flow training."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers import Gemma2Config, Gemma2Model, LlamaConfig, LlamaModel, PreTrainedModel, Qwen2Config, Qwen2Model

from esckit.flow.batch import LossTerms
from esckit.flow.data import FlowNode, FlowPath, FlowTree, StateFacts, flow_tree
from esckit.flow.model import Attention, FlowModel
from esckit.flow.recipe import FlowObjective, Kl, Rank
from esckit.flow.text import FlowText
from esckit.types import Outcome, Scenario, SearchTree, TreeNode, Turn

NAMES = ("Reflect", "Clarify", "Validate", "Empathise", "Affirm", "Plan", "Suggest", "Inform")
ABBREVIATIONS = dict(zip(NAMES, ("RS", "Cla", "EV", "ES", "Aff", "CP", "SO", "SI"), strict=True))
WORDS = ("well", "I", "do", "not", "know", "today", "it", "hurts", "maybe", "so", "and", "you", "see", "ça va", "🙂")

PAPER = LossTerms(FlowObjective(), Rank(), Kl())


def changed(
    terms: LossTerms,
    *,
    objective: dict[str, Any] | None = None,
    rank: dict[str, Any] | None = None,
    kl: dict[str, Any] | None = None,
    **more: Any,
) -> LossTerms:
    """Return a loss with some fields of its sections changed."""
    return replace(
        terms,
        objective=terms.objective.model_copy(update=objective or {}),
        rank=terms.rank.model_copy(update=rank or {}),
        kl=terms.kl.model_copy(update=kl or {}),
        **more,
    )


def ids_of(pieces: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(token for piece in pieces for token in piece)


class ByteTokenizer:
    """One token per UTF-8 byte, ids 3 to 258; 1 opens a text."""

    bos_token_id: int | None = 1
    added_tokens_decoder: ClassVar[dict[int, str]] = {}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [3 + byte for byte in text.encode()]


def flow_text(*, strategy_tags: bool = False, situation: bool = True) -> FlowText:
    return FlowText(ByteTokenizer(), situation=situation, tags=ABBREVIATIONS if strategy_tags else None)


def some_words(random_: random.Random, most: int = 4) -> str:
    return " ".join(random_.choices(WORDS, k=random_.randint(1, most)))


def search_tree(seed: int, *, n_nodes: int = 40, max_depth: int = 6) -> SearchTree:
    """Grow a random tree; its leaves are partly terminal, partly open."""
    random_ = random.Random(seed)
    root = TreeNode(
        id="r",
        parent=None,
        depth=0,
        strategy=None,
        turns=(Turn(speaker="seeker", text=some_words(random_)),),
        prior=some_prior(random_),
        visits=n_nodes,
        value=round(random_.uniform(0.4, 0.9), 3),
    )
    nodes, taken = [root], {"r": set()}
    while len(nodes) < n_nodes:
        parent = random_.choice([node for node in nodes if node.prior is not None])
        free = [name for name in NAMES if name not in taken[parent.id]]
        if not free:
            continue
        name = random_.choice(free)
        taken[parent.id].add(name)
        node = some_node(random_, parent, name, max_depth)
        taken[node.id] = set()
        nodes.append(node)
    return SearchTree(
        id=f"scene-{seed}#0",
        scenario=Scenario(id=f"scene-{seed}", situation=some_words(random_, 8), problem_type="job crisis"),
        split="train",
        run_seed=7,
        taxonomy="test",
        strategies=NAMES,
        round=0,
        prior_source="none",
        readout="sampled",
        prompts={},
        mcts={},
        status="complete",
        nodes=tuple(nodes),
    )


def some_prior(random_: random.Random) -> tuple[float, ...]:
    weights = [random_.uniform(0.05, 1.0) for _ in NAMES]
    return tuple(weight / sum(weights) for weight in weights)


def some_node(random_: random.Random, parent: TreeNode, name: str, max_depth: int) -> TreeNode:
    outcome = random_.choice([None, None, None, None, Outcome.RESOLVED, Outcome.DISENGAGED])
    if parent.depth + 1 == max_depth and outcome is None:
        outcome = Outcome.MAX_TURNS
    turns = [Turn(speaker="supporter", text=some_words(random_), strategy=name)]
    if outcome is not Outcome.DISENGAGED:
        turns.append(Turn(speaker="seeker", text=some_words(random_)))
    value = 0.0 if outcome is Outcome.DISENGAGED else round(random_.uniform(0.2, 1.0), 3)
    return TreeNode(
        id=f"{parent.id}.{ABBREVIATIONS[name]}",
        parent=parent.id,
        depth=parent.depth + 1,
        strategy=name,
        turns=tuple(turns),
        prior=some_prior(random_) if outcome is None else None,
        visits=1,
        value=value,
        reward=round(random_.uniform(0.2, 1.0), 3),
        first_return=value,
        outcome=outcome,
    )


def some_flow_tree(seed: int, **options: int) -> FlowTree:
    tree = flow_tree(search_tree(seed, **options), flow_text(), min_actions=2, max_path_tokens=4096)
    assert tree is not None
    return tree


EDGES = {"a": "r", "b": "r", "c": "a", "d": "a", "e": "c", "f": "c", "g": "b"}


def counting_tree() -> FlowTree:
    """The tree of the token counts: root 100 tokens, all others 50; edges r-a, r-b, a-c, a-d, c-e, c-f, b-g."""
    facts = StateFacts(0.5, (0.125,) * 8, (None,) * 8)
    keys = ("r", "a", "c", "b")
    nodes = tuple(
        FlowNode(key, keys.index(EDGES[key]) if key in EDGES else -1, (5,) * (100 if key == "r" else 50), facts)
        for key in keys
    )
    ways = (("r", "a", "c"), ("r", "a", "c"), ("r", "a"), ("r", "b"))
    paths = tuple(
        FlowPath(f"path{index}", tuple(keys.index(key) for key in way), tuple(range(len(way))), 0.5)
        for index, way in enumerate(ways)
    )
    return FlowTree("7/counting#0", "counting", 40, nodes, paths)


def tiny_backbone(family: str, *, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """Return a tiny random decoder: ``llama``, ``qwen2`` or ``gemma2``."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "attn_implementation": attention,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    if family == "llama":
        return LlamaModel(LlamaConfig(**sizes)).eval()
    if family == "qwen2":
        return Qwen2Model(Qwen2Config(**sizes)).eval()
    config = Gemma2Config(**sizes, attn_logit_softcapping=5.0, query_pre_attn_scalar=8, sliding_window=2048)
    return Gemma2Model(config).eval()


def tiny_model(family: str = "llama", *, attention: Attention = "sdpa", seed: int = 0) -> FlowModel:
    backbone = tiny_backbone(family, attention="eager" if family == "gemma2" else "sdpa", seed=seed)
    return FlowModel(backbone, NAMES, attention=attention).eval()
