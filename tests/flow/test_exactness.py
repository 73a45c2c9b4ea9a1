"""Hidden states, heads, losses and gradients of tree, path and prefix encodings are the same."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from esckit.flow.batch import Chunk, LossTerms, chunks, make_update, pack
from esckit.flow.data import FlowTree, flow_tree
from esckit.flow.model import Attention, FlowModel, check_exact
from esckit.flow.recipe import FlowEncoding
from esckit.flow.text import FlowText
from esckit.flow.trainer import flow_loss
from esckit.models.packing import PackedRows
from esckit.training.run import Process
from tests.flow.flow_fakes import NAMES, PAPER, ByteTokenizer, changed, search_tree, some_flow_tree, tiny_model

TREE = FlowEncoding(mode="tree", max_tokens=100_000)
BACKBONES = [
    ("llama", "sdpa"),
    ("llama", "eager"),
    ("llama", "tree"),
    ("qwen2", "sdpa"),
    ("qwen2", "eager"),
    ("qwen2", "tree"),
    ("gemma2", "eager"),
    ("gemma2", "tree"),
]
VARIANTS = {
    "paper": PAPER,
    "unique": changed(
        PAPER, objective={"weighting": "unique", "state_value": "policy_mean", "subtb_lambda": 0.9}, kl={"form": "full"}
    ),
    "unique_taken": changed(PAPER, objective={"weighting": "unique", "terminal_boundary": False}),
    "dpo": changed(PAPER, objective={"name": "dpo"}, kl={"weight": 0.0}),
}


def all_chunks(trees: Sequence[FlowTree], encoding: FlowEncoding) -> list[Chunk]:
    return [chunk for tree in trees for chunk in chunks(tree, encoding)]


def loss_and_gradient(
    model: FlowModel, trees: Sequence[FlowTree], encoding: FlowEncoding, settings: LossTerms
) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for batch in make_update(all_chunks(trees, encoding), encoding, settings):
        loss = flow_loss(model(batch.rows), batch, settings)["loss"]
        loss.backward()
        total += loss.item()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return total, torch.cat([part.flatten() for part in gradient])


def assert_same(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert ((found[1] - expected[1]).norm() / expected[1].norm()).item() < 1e-4


@pytest.mark.parametrize(("family", "attention"), BACKBONES)
def test_states_and_heads_are_those_of_every_prefix_alone(family: str, attention: Attention) -> None:
    model = tiny_model(family, attention=attention)
    trees = [some_flow_tree(11), some_flow_tree(12)]
    assert min(len(tree.nodes) for tree in trees) >= 15
    outputs = {}
    with torch.no_grad():
        for mode in ("tree", "path", "prefix"):
            encoding = TREE.model_copy(update={"mode": mode})
            outputs[mode] = model(pack(all_chunks(trees, encoding), encoding))
        tree = trees[0]
        for index in range(len(tree.nodes)):
            ids = [token for node in tree.lineage(index) for token in tree.nodes[node].tokens]
            alone = model(single_row(ids)).hidden[0]
            assert torch.allclose(outputs["tree"].hidden[index], alone, atol=1e-4)
    for mode in ("path", "prefix"):
        for name in ("hidden", "log_pi", "log_value"):
            ours, theirs = getattr(outputs["tree"], name), getattr(outputs[mode], name)
            assert torch.allclose(ours, theirs, atol=1e-4), (mode, name, (ours - theirs).abs().max())


def single_row(ids: Sequence[int]) -> PackedRows:
    return PackedRows(
        input_ids=torch.tensor([ids]),
        position_ids=torch.arange(len(ids)).unsqueeze(0),
        readout_row=torch.tensor([0]),
        readout_column=torch.tensor([len(ids) - 1]),
    )


@pytest.mark.parametrize(("family", "attention"), BACKBONES)
def test_losses_and_gradients_are_the_same(family: str, attention: Attention) -> None:
    model = tiny_model(family, attention=attention)
    trees = [some_flow_tree(13)]
    packed, path, prefix = (
        loss_and_gradient(model, trees, TREE.model_copy(update={"mode": mode}), PAPER)
        for mode in ("tree", "path", "prefix")
    )
    assert_same(packed, path)
    assert_same(packed, prefix)


@pytest.mark.parametrize("variant", VARIANTS)
def test_budget_order_and_shared_rows_do_not_change_the_loss(variant: str) -> None:
    model = tiny_model("llama", attention="tree")
    settings = VARIANTS[variant]
    trees = [some_flow_tree(seed, n_nodes=25) for seed in (14, 15)]
    expected = loss_and_gradient(model, trees, TREE, settings)
    for encoding in (
        TREE.model_copy(update={"max_tokens": 1}),
        TREE.model_copy(update={"max_tokens": 500}),
        TREE.model_copy(update={"max_paths_per_chunk": 2}),
        TREE.model_copy(update={"mode": "path", "max_tokens": 700}),
    ):
        assert_same(loss_and_gradient(model, trees, encoding, settings), expected)
    assert_same(loss_and_gradient(model, trees[::-1], TREE, settings), expected)


@pytest.mark.parametrize("n_ranks", [2, 5])
def test_the_ranks_of_an_update_add_up(n_ranks: int) -> None:
    model = tiny_model("llama", attention="tree")
    encoding = TREE.model_copy(update={"max_tokens": 400})
    group = all_chunks([some_flow_tree(16)], encoding)
    settings = VARIANTS["unique"]
    expected = loss_and_gradient(model, [some_flow_tree(16)], TREE, settings)
    shares = [make_update(group, encoding, settings, Process(rank, n_ranks)) for rank in range(n_ranks)]
    assert len({len(share) for share in shares}) == 1
    model.zero_grad()
    total = torch.zeros(())
    for batch in (batch for share in shares for batch in share):
        total = total + flow_loss(model(batch.rows), batch, settings)["loss"]
    total.backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    assert_same((total.item(), torch.cat([part.flatten() for part in gradient])), expected)


def test_an_empty_pass_costs_nothing_and_touches_the_heads() -> None:
    model = tiny_model("llama", attention="tree")
    group = all_chunks([some_flow_tree(17)], TREE)
    (batch,) = make_update(group, TREE, PAPER, Process(1, 2))
    assert len(batch.mask) == 0
    loss = flow_loss(model(batch.rows), batch, PAPER)["loss"]
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.strategy_head.parameters())
    assert all(p.grad is not None and not p.grad.any() for p in model.flow_head.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "tree"])
def test_a_siblings_text_changes_nothing(attention: Attention) -> None:
    model = tiny_model("qwen2", attention=attention)
    tree = some_flow_tree(18)
    first = next(i for i, node in enumerate(tree.nodes) if sum(n.parent == node.parent for n in tree.nodes) > 1 and i)
    changed = list(tree.nodes)
    changed[first] = replace(changed[first], tokens=(9, 9, 9))
    below = {index for index in range(len(tree.nodes)) if first in tree.lineage(index)}
    rows = [pack(all_chunks([t], TREE), TREE) for t in (tree, replace(tree, nodes=tuple(changed)))]
    with torch.no_grad():
        before, after = (model(row).hidden for row in rows)
    others = [index for index in range(len(tree.nodes)) if index not in below]
    assert torch.allclose(before[others], after[others], atol=1e-5)
    assert not torch.allclose(before[sorted(below)], after[sorted(below)], atol=1e-3)


@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("gemma2", "eager"), ("gemma2", "tree")])
def test_the_probe_accepts_attention_models(family: str, attention: Attention) -> None:
    check_exact(tiny_model(family, attention=attention))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_response_term_is_the_same_in_chunks(family: str) -> None:
    head = torch.nn.Linear(32, 300, bias=False)
    torch.nn.init.normal_(head.weight, std=4.0)  # beyond the cap of Gemma 2
    model = FlowModel(tiny_model(family).backbone, NAMES, attention="tree", lm_head=head).eval()
    text = FlowText(ByteTokenizer(), situation=True)
    tree = flow_tree(search_tree(19), text, min_actions=2, max_path_tokens=4096, responses=True)
    assert tree is not None
    settings = changed(PAPER, response_weight=0.5)
    whole = loss_and_gradient(model, [tree], TREE, settings)
    for budget in (1, 600):
        encoding = TREE.model_copy(update={"max_tokens": budget})
        assert_same(loss_and_gradient(model, [tree], encoding, settings), whole)
    reference = response_by_paths(model, tree)
    (batch,) = make_update(all_chunks([tree], TREE), TREE, settings)
    found = flow_loss(model(batch.rows), batch, settings)["resp"].item()
    assert found == pytest.approx(reference, rel=1e-5)


def response_by_paths(model: FlowModel, tree: FlowTree) -> float:
    """Return the response term path by path, each in a row of its own."""
    assert model.lm_head is not None
    total, count = 0.0, 0.0
    for path in tree.paths:
        ids: list[int] = []
        spans = []
        for index in path.nodes:
            node = tree.nodes[index]
            if node.words is not None:
                spans.append((len(ids) + node.words[0], len(ids) + node.words[1]))
            ids += node.tokens
        with torch.no_grad():
            row = single_row(ids)
            reads = replace(
                row, readout_row=torch.zeros(len(ids), dtype=torch.long), readout_column=torch.arange(len(ids))
            )
            logits = F.linear(model(reads).hidden, model.lm_head.weight)
            cap = model.backbone.config.to_dict().get("final_logit_softcapping")
            log_p = (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(-1)
        for start, end in spans:
            total -= path.response_weight * sum(log_p[at - 1, ids[at]].item() for at in range(start, end))
            count += path.response_weight * (end - start)
    return total / count
