"""Prompts that belong together, prefixes held once, and one slot per row."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.models.kvcache import (
    EMPTY_PREFIX,
    Group,
    PrefixKV,
    PrefixStore,
    SlotCache,
    length_batches,
    n_common,
    share_prefixes,
)

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


def saved(groups: list[Group]) -> int:
    return sum((len(group.members) - 1) * group.n_shared for group in groups)


@given(TOKENS, TOKENS)
@settings(deadline=None)
def test_common_beginning(a, b):
    n = n_common(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


@given(st.lists(TOKENS, max_size=8))
@settings(deadline=None)
def test_groups_hold_every_prompt_once_and_leave_it_a_token(prompts):
    groups = share_prefixes(prompts, min_shared=2)
    assert sorted(i for group in groups for i in group.members) == list(range(len(prompts)))
    for group in groups:
        assert len({prompts[i][: group.n_shared] for i in group.members}) == 1
        assert all(group.n_shared < len(prompts[i]) for i in group.members)
        assert group.n_shared == 0 or (len(group.members) > 1 and group.n_shared >= 2)


def test_equal_prompts_share_all_but_the_last_token():
    assert share_prefixes([(1, 2, 3, 4)] * 3, min_shared=2) == [Group((0, 1, 2), 3)]


def test_two_deep_families_save_more_than_one_shallow():
    head, a, b = (0,) * 4, (1,) * 10, (2,) * 10
    prompts = [(*head, *a, 5), (*head, *b, 5), (*head, *a, 6), (*head, *b, 6)]
    groups = share_prefixes(prompts, min_shared=2)
    assert {frozenset(group.members) for group in groups} == {frozenset({0, 2}), frozenset({1, 3})}
    assert saved(groups) == 28


def test_what_is_short_is_not_shared():
    assert share_prefixes([(1, 2, 3), (1, 2, 4)], min_shared=3) == [Group((0,), 0), Group((1,), 0)]
    assert share_prefixes([]) == []


def test_batches_hold_rows_of_similar_length_within_the_budget():
    lengths = [100, 3, 90, 4, 300]
    assert length_batches(lengths, 200) == [[1, 3], [2, 0], [4]]
    assert length_batches([], 200) == []


LAYERS, HEADS, WIDTH = 2, 3, 4


def states(n_tokens: int, value: float = 1.0) -> tuple[torch.Tensor, ...]:
    return tuple(torch.full((HEADS, n_tokens, WIDTH), value) for _ in range(LAYERS))


def prefix(*ids: int) -> PrefixKV:
    return EMPTY_PREFIX.extended(ids, states(len(ids)), states(len(ids)))


def test_the_store_finds_the_longest_beginning():
    store = PrefixStore(2**20)
    for kv in (prefix(1, 2, 3), prefix(1, 2, 9, 9), prefix(7)):
        store.add(kv)
    found = store.longest((1, 2, 9, 4, 5))
    assert (found.ids, found.keys[0].shape) == ((1, 2, 9), (HEADS, 3, WIDTH))
    assert store.longest((8, 8)) is EMPTY_PREFIX


def test_the_store_drops_covered_and_least_recently_used_parts():
    store = PrefixStore(5 * prefix(1).n_bytes)
    store.add(prefix(1, 2))
    store.add(prefix(1, 2, 3))
    store.add(prefix(8, 9))
    assert store.longest((1, 2, 3)).length == 3  # used now
    store.add(prefix(5, 6))
    assert [store.longest(ids).length for ids in ((1, 2, 3), (8, 9), (5, 6))] == [3, 0, 2]


def test_extending_leaves_the_original_alone():
    short = prefix(1, 2)
    longer = short.extended((3,), states(1, 5.0), states(1, 6.0))
    assert (short.ids, longer.ids) == ((1, 2), (1, 2, 3))
    assert longer.keys[0][0, :, 0].tolist() == [1.0, 1.0, 5.0]
    assert longer.values[1][0, :, 0].tolist() == [1.0, 1.0, 6.0]


def test_rows_of_the_slots_grow_leave_and_keep_their_own():
    slots = SlotCache(LAYERS, torch.device("cpu"))
    for length, value in ((3, 1.0), (70, 2.0), (1, 3.0)):
        slots.append(states(length, value), states(length, value))
    slots.begin_step()
    new = torch.arange(3.0).add(10)[:, None, None, None].expand(3, HEADS, 1, WIDTH)
    keys, _ = slots.update(new, new, 0)
    assert keys.shape == (3, HEADS, 71, WIDTH)
    assert keys[0, 0, :5, 0].tolist() == [1.0, 1.0, 1.0, 10.0, 0.0]
    assert keys[2, 0, :3, 0].tolist() == [3.0, 12.0, 0.0]
    positions = slots.key_positions(torch.tensor([100, 0, 5]))
    assert positions[0, :5].tolist() == [100, 101, 102, 103, -1]
    slots.keep([2, 0])
    assert slots.lengths == [2, 4]
    assert slots.layers[0].keys[0, 0, :2, 0].tolist() == [3.0, 12.0]
    assert slots.layers[0].keys[1, 0, :4, 0].tolist() == [1.0, 1.0, 1.0, 10.0]
    slots.keep([])
    assert slots.layers[0].keys is None


def test_a_row_that_left_nan_behind_does_not_reach_the_next():
    slots = SlotCache(LAYERS, torch.device("cpu"))
    for n_tokens, value in ((3, 1.0), (9, torch.nan), (2, 2.0)):
        slots.append(states(n_tokens, value), states(n_tokens, value))
    slots.keep([0, 2])
    slots.wipe()
    slots.append(states(1, 3.0), states(1, 3.0))
    for layer in slots.layers:
        assert not layer.keys.isnan().any()
        assert not layer.values.isnan().any()
        assert [int(row[0, :, 0].sum()) for row in layer.keys[:3]] == [3, 4, 3]
