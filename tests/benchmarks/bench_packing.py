"""Seconds and tokens of one training step on a 60-simulation tree: packed against one row per step or path.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.bench_packing --dtype float32

The tree has the shape that search gives at selection temperature 0.1 with random priors and rewards, a root of 190
tokens and exchanges of 65. A step is the forward and backward passes over all its paths plus one AdamW step on a LoRA
adapter (rank 32 on every linear layer) and both heads. Without ``--model`` the backbone has random weights in the shape
of SmolLM2-135M, which take the same time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, LlamaConfig, LlamaModel, PreTrainedModel

from esckit.flow.batch import FlowBatch, chunks, make_update
from esckit.flow.data import FlowNode, FlowPath, FlowTree, StateFacts, token_counts
from esckit.flow.model import Attention, FlowModel
from esckit.flow.recipe import FlowEncoding
from esckit.flow.trainer import flow_loss
from esckit.models.packing import PackedRows
from tests.flow.flow_fakes import NAMES, PAPER

ROOT_TOKENS, EXCHANGE_TOKENS, MAX_DEPTH, PADDED = 190, 65, 10, 512
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Node:
    """A node of a scripted search."""

    def __init__(self, parent: Node | None, draw: random.Random) -> None:
        self.parent = parent
        self.depth = 0 if parent is None else parent.depth + 1
        weights = [draw.random() for _ in NAMES]
        self.prior = [0.99 * weight / sum(weights) + 0.01 / 8 for weight in weights]
        self.children: dict[int, Node] = {}
        self.visits, self.value, self.first_return = 0, 0.0, 0.0


def scripted_search(seed: int, *, n_simulations: int = 60, temperature: float = 0.1) -> Node:
    """Search a world with rewards uniform in [0.5, 0.95] and no ends but the depth limit."""
    draw = random.Random(seed)
    root = Node(None, draw)
    for _ in range(n_simulations):
        path = [root]
        while path[-1].depth < MAX_DEPTH:
            node = path[-1]
            action = draw.choices(range(8), weights=selection(node, temperature))[0]
            fresh = action not in node.children
            if fresh:
                node.children[action] = Node(node, draw)
            path.append(node.children[action])
            if fresh:
                turns = 1 + min(3, MAX_DEPTH - path[-1].depth)
                path[-1].first_return = statistics.fmean(draw.uniform(0.5, 0.95) for _ in range(turns))
                break
        for node in path:
            node.visits += 1
            node.value += (path[-1].first_return - node.value) / node.visits
    return root


def selection(node: Node, temperature: float) -> Sequence[float]:
    """Return the selection probabilities at a node (exploration 1, kappa 0.1)."""
    visits = [node.children[a].visits if a in node.children else 0 for a in range(8)]
    if not sum(visits):
        return node.prior
    values = [node.children[a].value if a in node.children else 0.0 for a in range(8)]
    total = sum(visits)
    scores = [q + p * math.sqrt(total / (1 + n)) for q, p, n in zip(values, node.prior, visits, strict=True)]
    weights = [math.exp((score - max(scores)) / temperature) for score in scores]
    rho = 0.1 / (0.1 + math.log(total + 1))
    return [(1 - rho) * weight / sum(weights) + rho / 8 for weight in weights]


def synthetic_tree(seed: int) -> FlowTree:
    """Return a searched tree with random tokens and root-to-leaf paths of at least two actions."""
    draw = random.Random(seed)
    nodes: list[FlowNode] = []
    paths: list[FlowPath] = []

    def visit(node: Node, key: str, parent: int, above: tuple[int, ...], actions: tuple[int, ...]) -> None:
        if not node.children:
            if len(actions) > 1:
                paths.append(FlowPath(key, above, actions, node.value))
            return
        length = ROOT_TOKENS if parent < 0 else EXCHANGE_TOKENS
        tokens = tuple(draw.randrange(3, 49_000) for _ in range(length))
        tried = tuple(node.children[a].value if a in node.children else None for a in range(8))
        nodes.append(FlowNode(key, parent, tokens, StateFacts(node.value, tuple(node.prior), tried)))
        index = len(nodes) - 1
        for action, child in sorted(node.children.items()):
            visit(child, f"{key}.{action}", index, (*above, index), (*actions, action))

    visit(scripted_search(seed), "r", -1, (), ())
    return FlowTree(f"{seed}/bench#0", f"bench-{seed}", ROOT_TOKENS, tuple(nodes), tuple(paths))


def typical_tree(n_trees: int = 200) -> tuple[FlowTree, dict[str, int]]:
    """Return the tree closest to the mean token counts of many, and those means."""
    counted = [(tree, token_counts([tree])) for tree in map(synthetic_tree, range(n_trees))]
    means = {name: round(statistics.fmean(counts[name] for _, counts in counted)) for name in counted[0][1]}

    def distance(counts: dict[str, int]) -> float:
        return sum(abs(math.log(counts[name] / means[name])) for name in means)

    return min(counted, key=lambda entry: distance(entry[1]))[0], means


# ---------------------------------------------------------------- what is timed


@dataclass(frozen=True)
class Case:
    """One way of reading the tree; ``share`` of its rows are timed and the time scaled up."""

    name: str
    attention: Attention
    passes: Sequence[FlowBatch]
    tokens: int
    share: float = 1.0


def cases(tree: FlowTree, share: float) -> list[Case]:
    """Return all encodings of a tree."""
    packed = FlowEncoding(mode="tree", max_tokens=8192)
    by_path = packed.model_copy(update={"mode": "path", "max_tokens": 1})
    (whole,) = make_update(list(chunks(tree, packed)), packed, PAPER)
    counts = token_counts([tree])
    rows = make_update(list(chunks(tree, by_path)), by_path, PAPER)
    steps = padded_steps(tree)[: max(1, round(share * sum(len(path.states) for path in tree.paths) / 4))]
    n_steps = sum(len(path.states) for path in tree.paths)
    return [
        Case("one row per step, padded to 512", "sdpa", steps, counts["padded"], 4 * len(steps) / n_steps),
        Case("one row per path", "sdpa", rows, counts["paths"]),
        Case("tree, dense mask", "sdpa", [whole], counts["tree"]),
        Case("tree, tree attention", "tree", [whole], counts["tree"]),
    ]


def padded_steps(tree: FlowTree) -> list[FlowBatch]:
    """Return the passes of one row per step, padded or cut to 512 tokens, four rows each; the loss is over rows."""
    encoding = FlowEncoding(mode="prefix", max_tokens=10**9)
    template = make_update(list(chunks(tree, encoding)), encoding, PAPER)[0]
    steps = [state for path in tree.paths for state in path.states]
    found = []
    for start in range(0, len(steps), 4):
        part = steps[start : start + 4]
        ids = torch.zeros(len(part), PADDED, dtype=torch.long)
        ends = []
        for row, state in enumerate(part):
            tokens = [token for node in tree.lineage(state) for token in tree.nodes[node].tokens][-PADDED:]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            ends.append(len(tokens) - 1)
        rows = PackedRows(
            input_ids=ids,
            position_ids=torch.arange(PADDED).expand(len(part), PADDED),
            readout_row=torch.arange(len(part)),
            readout_column=torch.tensor(ends),
        )
        chosen = torch.tensor(part)
        found.append(
            replace(
                template,
                rows=rows,
                state=torch.zeros_like(template.state),
                prior=template.prior[chosen],
                child_value=template.child_value[chosen],
                visited=template.visited[chosen],
                root_value=template.root_value[chosen],
                first_state=template.first_state[chosen],
            )
        )
    return found


def backbone(folder: str | None, layers: int) -> PreTrainedModel:
    """Return the backbone in float32."""
    if folder:
        loaded: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=torch.float32)
        return loaded
    return LlamaModel(
        LlamaConfig(
            vocab_size=49_152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
    )


def step_seconds(model: FlowModel, case: Case, dtype: torch.dtype, repeats: int) -> float:
    """Return the least time of a training step."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5)

    def step() -> None:
        optimiser.zero_grad()
        for batch in case.passes:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
                outputs = model(batch.rows)
            flow_loss(outputs, batch, PAPER)["loss"].backward()
        optimiser.step()

    return min(timed(step) for _ in range(repeats)) / case.share


def timed(action: Callable[[], None]) -> float:
    """Return the seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--model", help="folder of a backbone; random weights of SmolLM2's shape without it")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.1, help="share of the padded rows that is timed")
    parser.add_argument("--only", default="", help="time only the cases with this in their name")
    options = parser.parse_args()
    tree, means = typical_tree()
    torch.manual_seed(0)
    adapter = LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules=TARGETS)
    adapted = get_peft_model(backbone(options.model, options.layers), adapter)
    dtype = getattr(torch, options.dtype)
    found = []
    for case in cases(tree, options.share):
        if options.only in case.name:
            model = FlowModel(adapted, NAMES, attention=case.attention).train()
            seconds = step_seconds(model, case, dtype, options.repeats)
            found.append({"case": case.name, "tokens": case.tokens, "seconds": round(seconds, 2)})
            print(json.dumps(found[-1]), flush=True)
    best = found[-1]
    ratios = {row["case"]: {key: round(row[key] / best[key], 2) for key in ("tokens", "seconds")} for row in found[:-1]}
    print(
        json.dumps(
            {"dtype": options.dtype, "threads": torch.get_num_threads(), "mean_counts": str(means), "ratios": ratios}
        )
    )


if __name__ == "__main__":
    main()
