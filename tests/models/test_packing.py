"""Sequences packed into one row: every path is its sequence, shared tokens are read once, states are exact."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MambaConfig, MambaModel, MistralConfig, MistralModel

from esckit.models.packing import PackedStates, prefix_tree
from tests.flow.flow_fakes import tiny_backbone

SEQUENCES = [(5, 6, 7, 8), (5, 6, 7, 9, 10), (5, 6), (11, 12, 13), (5, 6, 7, 9, 11)]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=12))
def test_every_path_spells_its_sequence_and_no_prefix_repeats(sequences):
    ordered = sorted(sequences)
    row, leaves = prefix_tree(ordered)
    tokens, positions = torch.tensor(row.ids)[:, None], torch.tensor(row.positions)[:, None]
    for ids, leaf in zip(ordered, leaves, strict=True):
        assert row.tail(tokens, leaf, len(ids)).flatten().tolist() == list(ids)
        assert row.tail(positions, leaf, len(ids)).flatten().tolist() == list(range(len(ids)))
    assert len(row.ids) == len({ids[:end] for ids in ordered for end in range(1, len(ids) + 1)})


def states_alone(decoder, ids):
    with torch.no_grad():
        return decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]


def check(decoder, reader):
    wanted = [states_alone(decoder(), ids) for ids in SEQUENCES]
    n_tail = [1, 3, 2, 3, 5]
    for found, states, n in zip(reader.read(SEQUENCES, n_tail), wanted, n_tail, strict=True):
        torch.testing.assert_close(found.total, states.sum(dim=0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.tail, states[-n:], atol=1e-5, rtol=1e-4)


def test_states_are_those_of_each_sequence_alone():
    for family in ("llama", "qwen2", "gemma2"):
        attention = "eager" if family == "gemma2" else "sdpa"
        for max_tokens, n_read in ((100, 10), (6, 14)):
            reader = PackedStates(tiny_backbone(family, attention=attention), max_tokens=max_tokens, longest=64)
            check(lambda: tiny_backbone(family, attention=attention), reader)  # noqa: B023 - called within the turn
            assert reader.n_read == n_read


def mistral():
    torch.manual_seed(0)
    return MistralModel(
        MistralConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                      num_key_value_heads=2, sliding_window=4)
    ).eval()  # fmt: skip


def mamba():
    torch.manual_seed(0)
    return MambaModel(MambaConfig(vocab_size=300, hidden_size=32, state_size=4, num_hidden_layers=2)).eval()


def test_a_backbone_that_cannot_be_packed_reads_one_by_one():
    for decoder in (mistral, mamba):
        reader = PackedStates(decoder(), max_tokens=100, longest=64)
        check(decoder, reader)
        assert reader.n_read == sum(map(len, SEQUENCES))
