"""The flow model: its heads, what it can be packed with, and its checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaModel, Qwen2Config

from esckit.errors import CheckpointError, ConfigError
from esckit.flow.model import (
    LOGIT_ROWS,
    FlowHead,
    FlowModel,
    ResponseHead,
    StrategyHead,
    check_exact,
    load_heads,
    log_softplus,
)
from esckit.flow.text import FLOW_TEXT, HEADS, FlowMetadata, read_metadata
from esckit.models.checkpoint import ADAPTER
from esckit.models.in_memory import build_tokenizer
from esckit.models.loading import load_adapter, merge_adapter
from esckit.models.packing import NodeSpan, PackedRows, check_packable
from esckit.training.checkpoint import save_checkpoint
from tests.flow.flow_fakes import NAMES, tiny_backbone, tiny_model


def tree_rows() -> PackedRows:
    return PackedRows(
        input_ids=torch.tensor([[5, 6, 7, 8, 9]]),
        position_ids=torch.tensor([[0, 1, 2, 2, 3]]),
        readout_row=torch.zeros(3, dtype=torch.long),
        readout_column=torch.tensor([1, 2, 4]),
        subtree_end=torch.tensor([[5, 5, 3, 5, 5]]),
        spans=(NodeSpan(0, 2, -1), NodeSpan(2, 3, 0), NodeSpan(3, 5, 0)),
    )


class RowPositions(LlamaModel):
    """A model that takes positions from the row, whatever it is told."""

    def forward(self, *args: Any, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class MaskSpy(LlamaModel):
    """Keeps the masks it is given."""

    def forward(self, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        self.seen = attention_mask
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


def metadata(**changes: Any) -> FlowMetadata:
    facts = {
        "taxonomy": "test",
        "strategies": NAMES,
        "flow_text": FLOW_TEXT,
        "strategy_tags": False,
        "situation": True,
        "backbone": "tiny",
        "trainable": "lora",
        "objective": {"name": "subtb"},
        "inputs": {"trees.jsonl": "0" * 64},
        "round": 0,
        "selected_by": "best_valid",
    }
    return FlowMetadata(**(facts | changes))


def save(model: FlowModel, metadata: FlowMetadata, folder: Path) -> None:
    trained = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
    save_checkpoint(
        folder,
        metadata,
        backbone=model.backbone,
        tokenizer=build_tokenizer("tiny-random"),
        state=trained,
        heads_file=HEADS,
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_mask_given_is_a_float_and_never_boolean(attention: str) -> None:
    backbone = MaskSpy(tiny_backbone("llama").config)
    FlowModel(backbone, NAMES, attention=attention)(tree_rows())
    assert backbone.seen is not None
    assert backbone.seen.dtype == torch.float32
    assert backbone.seen.shape == (1, 1, 5, 5)


def test_soft_capped_scores_stay_capped_whatever_is_asked_for() -> None:
    eager, sdpa = (
        FlowModel(tiny_backbone("gemma2", attention="eager"), NAMES, attention=attention).eval()
        for attention in ("eager", "sdpa")
    )
    assert sdpa.attention == "eager"
    assert torch.equal(eager(tree_rows()).hidden, sdpa(tree_rows()).hidden)


def test_the_probe_refuses_positions_from_the_row() -> None:
    model = FlowModel(RowPositions(tiny_backbone("llama").config), NAMES, attention="sdpa")
    with pytest.raises(ConfigError, match="differ") as refusal:
        check_exact(model)
    assert "encoding.mode: path" in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "qwen3_5", "layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"model_type": "mamba"}, "recurrent"),
        ({"model_type": "bloom"}, "row index"),
        ({"model_type": "falcon", "alibi": True}, "row index"),
        ({"model_type": "mistral", "sliding_window": 500}, "sliding window of 500"),
        (
            {"model_type": "gemma2", "sliding_window": 500, "layer_types": ["sliding_attention", "full_attention"]},
            "sliding window of 500",
        ),
    ],
)
def test_backbones_that_cannot_be_packed_are_refused(config: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what) as refusal:
        check_packable(config, longest_path=500)
    assert "encoding.mode: path" in str(refusal.value)


def test_full_attention_and_wide_windows_can_be_packed() -> None:
    check_packable(tiny_backbone("llama").config.to_dict(), longest_path=4096)
    check_packable(tiny_backbone("gemma2", attention="eager").config.to_dict(), longest_path=2047)
    check_packable(Qwen2Config().to_dict(), longest_path=32_000)


def test_a_backbone_without_transformers_inside_is_refused() -> None:
    with pytest.raises(ConfigError, match="no transformers model"):
        FlowModel(torch.nn.Linear(2, 2), NAMES, attention="sdpa")


def test_dropout_is_left_to_the_adapter_and_heads_train() -> None:
    adapted = get_peft_model(tiny_backbone("qwen2"), LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.0))
    model = FlowModel(adapted, NAMES, attention="tree").train()
    model(tree_rows()).log_pi[:, 0].sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("lora_B" in name for name in trained)
    assert "strategy_head.out.weight" in trained
    assert not any("embed_tokens" in name for name in trained)


def test_autocast_gives_close_outputs() -> None:
    model = tiny_model("llama", attention="tree")
    exact = model(tree_rows())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(tree_rows())
    assert rough.log_pi.dtype == torch.float32
    assert torch.allclose(rough.log_pi, exact.log_pi, atol=0.1)


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("llama", attention="tree").train()
        if checkpointing:
            model.backbone.activation_checkpointing_enable()
        model(tree_rows()).log_pi[:, 0].sum().backward()
        gradients.append(model.backbone.layers[0].self_attn.q_proj.weight.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = FlowModel(get_peft_model(tiny_backbone("llama"), lora), NAMES, attention="tree").eval()
    save(model, metadata(), tmp_path)
    assert read_metadata(tmp_path, strategies=NAMES) == metadata()
    again = FlowModel(load_adapter(tiny_backbone("llama"), tmp_path / ADAPTER), NAMES, attention="sdpa").eval()
    load_heads(again, tmp_path)
    ours, theirs = model(tree_rows()), again(tree_rows())
    assert torch.allclose(ours.log_pi, theirs.log_pi, atol=1e-6)
    assert torch.allclose(ours.log_value, theirs.log_value, atol=1e-6)
    assert not list(tmp_path.rglob("*.bin"))


def test_a_checkpoint_of_another_taxonomy_is_refused(tmp_path: Path) -> None:
    save(tiny_model("llama"), metadata(trainable="full"), tmp_path)
    with pytest.raises(CheckpointError, match="taxonomy test"):
        read_metadata(tmp_path, strategies=NAMES[::-1])
    with pytest.raises(CheckpointError, match="do not fit"):
        load_heads(FlowModel(tiny_backbone("llama"), NAMES[:4], attention="sdpa"), tmp_path)


def test_half_a_checkpoint_and_another_text_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no flow model"):
        read_metadata(tmp_path)
    save(tiny_model("llama"), metadata(flow_text="flow_text/0"), tmp_path)
    with pytest.raises(CheckpointError, match="flow_text/0"):
        read_metadata(tmp_path)


def test_log_softplus_is_exact_in_the_middle_and_linear_below() -> None:
    x = torch.tensor([-14.9, -3.0, 0.0, 2.0, 40.0], dtype=torch.float64)
    assert torch.allclose(log_softplus(x), softplus(x).log(), rtol=1e-12)
    far = torch.tensor([-15.5, -60.0, -1e4])
    assert log_softplus(far).tolist() == far.tolist()


def test_log_softplus_joins_smoothly() -> None:
    around = torch.tensor([-15.0 - 1e-6, -15.0 + 1e-6], dtype=torch.float64)
    assert log_softplus(around)[0].item() == pytest.approx(log_softplus(around)[1].item(), abs=3e-6)


def test_log_softplus_has_finite_gradients_everywhere() -> None:
    x = torch.tensor([-1e4, -100.0, -15.0, -1.0, 0.0, 100.0], requires_grad=True)
    log_softplus(x).sum().backward()
    assert x.grad is not None
    assert x.grad[:2].tolist() == [1.0, 1.0]
    assert torch.isfinite(x.grad).all()
    assert (x.grad > 0).all()


def test_heads_compute_in_float32_whatever_they_are_given() -> None:
    hidden = torch.randn(5, 16, dtype=torch.bfloat16)
    policy, flow = StrategyHead(16, 8), FlowHead(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_pi, log_value = policy(hidden), flow(hidden)
    assert log_pi.dtype == log_value.dtype == torch.float32
    assert torch.allclose(log_pi.exp().sum(dim=1), torch.ones(5))
    assert torch.equal(log_pi, policy(hidden.float()))


# ---------------------------------------------------------------- the response term


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest result of an operation has."""

    n_elements = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.n_elements = max(self.n_elements, result.numel())
        return result


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_log_probabilities_in_chunks_are_those_of_all_at_once(softcap: float | None) -> None:
    n_tokens, n_words = 2 * LOGIT_ROWS + 17, 301
    torch.manual_seed(0)
    states, ids = torch.randn(n_tokens, 8, requires_grad=True), torch.randint(n_words, (n_tokens,))
    head = ResponseHead(torch.nn.Linear(8, n_words), softcap=softcap)
    weights = torch.rand(n_tokens)

    def gradients(log_p: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((log_p * weights).sum(), [states, head.weight]))

    logits = F.linear(states, head.weight, head.bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = logits.log_softmax(dim=1)[torch.arange(n_tokens), ids]
    wanted = gradients(expected)
    with LargestTensor() as seen:
        found = head(states, ids)
        got = gradients(found)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert seen.n_elements <= LOGIT_ROWS * n_words


def test_no_target_token_is_no_log_probability() -> None:
    head = ResponseHead(torch.nn.Linear(8, 30), softcap=None)
    assert head(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_tied_embeddings_are_trained_and_an_output_layer_of_its_own_is_not() -> None:
    backbone = tiny_backbone("qwen2")
    own = torch.nn.Linear(32, 300, bias=False)
    model = FlowModel(backbone, NAMES, attention="eager", lm_head=own)
    assert not own.weight.requires_grad
    tied = torch.nn.Linear(32, 300, bias=False)
    tied.weight = backbone.embed_tokens.weight
    model = FlowModel(backbone, NAMES, attention="eager", lm_head=tied)
    assert model.lm_head is not None
    assert model.lm_head.weight is backbone.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_an_adapter_on_a_quantised_base_is_not_merged() -> None:
    adapted = get_peft_model(tiny_backbone("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.base_model.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    assert merge_adapter(adapted) is adapted
    del adapted.base_model.model.config.quantization_config
    assert isinstance(merge_adapter(adapted), LlamaModel)
