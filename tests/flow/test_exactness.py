"""Hidden states, heads, losses and gradients of tree, path and prefix encodings are the same."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from esckit.errors import ConfigError
from esckit.flow.batch import Chunk, LossTerms, chunks, make_update, pack
from esckit.flow.data import FlowTree, flow_tree
from esckit.flow.model import Attention, FlowModel, check_exact
from esckit.flow.recipe import FlowEncoding
from esckit.flow.text import FlowText
from esckit.flow.trainer import FlexCheck, flow_loss
from esckit.models.packing import PackedRows, allowed
from esckit.training.run import Process
from tests.flow.flow_fakes import (
    NAMES,
    PAPER,
    ByteTokenizer,
    changed,
    search_tree,
    some_flow_tree,
    tiny_backbone,
    tiny_model,
)

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


def rows_read(model: FlowModel) -> list[torch.Size]:
    read: list[torch.Size] = []
    model.backbone.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    return read


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """FlexAttention as plain operations, which torch has for forward passes on a processor."""
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        yield


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_flex_reads_whole_blocks_and_the_same_states(family: str) -> None:
    trees = [some_flow_tree(20, n_nodes=25), some_flow_tree(21, n_nodes=12)]
    rows = pack(all_chunks(trees, TREE), TREE)
    model = tiny_model(family, attention="flex")
    read = rows_read(model)
    found, expected = (each(rows) for each in (model, tiny_model(family, attention="tree")))
    torch.testing.assert_close(found.hidden, expected.hidden, atol=1e-5, rtol=1e-4)
    assert rows.input_ids.shape[1] % 128
    assert read == [torch.Size((1, -(-rows.input_ids.shape[1] // 128) * 128))]


class Unmasked(FlowModel):
    """A model in whose rows every token sees all before it."""

    def _masking(self, rows: PackedRows) -> dict[str, object]:
        return {}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_probe_covers_several_blocks_of_flex() -> None:
    model = tiny_model("llama", attention="flex")
    read = rows_read(model)
    FlexCheck(lambda: SimpleNamespace(model_wrapped=model)).on_train_begin()  # type: ignore[arg-type,return-value]
    assert read == [torch.Size((2, 256)), torch.Size((1, 384))]
    wrong = Unmasked(tiny_backbone("llama"), NAMES, attention="flex")
    with pytest.raises(ConfigError, match="differ"):
        check_exact(wrong, node_tokens=100)


def test_padding_is_seen_by_nobody_and_sees_something() -> None:
    rows = pack(all_chunks([some_flow_tree(22, n_nodes=12)], TREE), TREE)
    n = rows.input_ids.shape[1]
    for some in (rows, replace(rows, subtree_end=None)):
        padded = some.padded(128)
        assert padded.subtree_end is not None
        seen = allowed(padded.subtree_end)[0]
        real = torch.ones(n, n, dtype=torch.bool).tril() if some.subtree_end is None else allowed(some.subtree_end)[0]
        assert torch.equal(seen[:n, :n], real)
        assert not seen[:n, n:].any()
        assert seen.any(dim=1).all()


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
