from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.models.kvcache import Group, length_batches, n_common, share_prefixes

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
