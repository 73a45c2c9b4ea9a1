"""Corpus dialogues as paths of decisions: where each is read, and what happens to long ones."""

import pytest

from esckit.flow.batch import chunks, pack
from esckit.flow.data import class_counts, class_weights, gold_trees
from esckit.flow.recipe import FlowEncoding
from esckit.types import Dialogue, Scenario, Turn
from tests.flow.flow_fakes import NAMES, flow_text

TEXT = flow_text(strategy_tags=True)
SCENE = Scenario(id="d", situation="short", problem_type="job crisis")


def talk(*turns: tuple[str, str, str | None]) -> Dialogue:
    return Dialogue(scenario=SCENE, turns=tuple(Turn(speaker=s, text=t, strategy=n) for s, t, n in turns))  # type: ignore[arg-type]


OPENING = talk(
    ("supporter", "Hello.", "Clarify"),
    ("seeker", "Hi.", None),
    ("supporter", "So?", "Reflect"),
    ("supporter", "Go on.", "Validate"),
    ("seeker", "Well.", None),
    ("supporter", "No label.", None),
    ("supporter", "Try this.", "Suggest"),
    ("seeker", "Thanks.", None),
)


def test_every_decision_is_read_at_the_last_token_before_it() -> None:
    (tree,) = gold_trees(OPENING, TEXT, NAMES, max_tokens=4096, window=False)
    assert [NAMES[action] for action in tree.paths[0].actions] == ["Clarify", "Reflect", "Validate", "Suggest"]
    before = [0, 2, 3, 6]
    for state, end in zip(tree.paths[0].states, before, strict=True):
        ids = tuple(token for node in tree.lineage(state) for token in tree.nodes[node].tokens)
        assert ids == TEXT.ids(SCENE, OPENING.turns[:end])
    assert tree.nodes[0].tokens == TEXT.header(SCENE)


def test_one_row_reads_all_decisions_of_a_dialogue() -> None:
    (tree,) = gold_trees(OPENING, TEXT, NAMES, max_tokens=4096, window=False)
    encoding = FlowEncoding(mode="path", max_tokens=4096)
    rows = pack(list(chunks(tree, encoding)), encoding)
    assert rows.input_ids.shape == (1, tree.prefix_length(3))
    assert rows.readout_column.tolist() == [tree.prefix_length(state) - 1 for state in range(4)]


@pytest.mark.parametrize("room", [0, 4, 12])
def test_training_cuts_the_end_and_evaluation_reads_as_use_does(room: int) -> None:
    (whole,) = gold_trees(OPENING, TEXT, NAMES, max_tokens=4096, window=False)
    limit = whole.prefix_length(1) + room
    (cut,) = gold_trees(OPENING, TEXT, NAMES, max_tokens=limit, window=False)
    assert cut.paths[0].actions == whole.paths[0].actions[:2]
    first, *late = gold_trees(OPENING, TEXT, NAMES, max_tokens=limit, window=True)
    assert first == cut
    assert sum(len(path.actions) for tree in [first, *late] for path in tree.paths) == 4
    for tree, end in zip(late, (3, 6), strict=True):
        assert tree.nodes[0].tokens == TEXT.ids(SCENE, OPENING.turns[:end], max_tokens=limit)
        assert len(tree.nodes[0].tokens) <= limit
        assert tree.nodes[0].tokens[: tree.n_header] == TEXT.header(SCENE)


def test_a_dialogue_without_labels_has_no_decision() -> None:
    assert gold_trees(talk(("seeker", "Hi.", None)), TEXT, NAMES, max_tokens=100, window=True) == []


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_class_weights_have_mean_one_over_the_data(power: float) -> None:
    counts = (4, 1, 0, 16)
    weights = class_weights(counts, power=power)
    assert sum(w * c for w, c in zip(weights, counts, strict=True)) / 21 == pytest.approx(1.0)
    assert weights[1] / weights[3] == pytest.approx(16**power)
    assert weights[2] == 0.0


def test_classes_are_counted_over_decisions() -> None:
    trees = gold_trees(OPENING, TEXT, NAMES, max_tokens=4096, window=False)
    assert class_counts(trees, 8) == (1, 1, 1, 0, 0, 0, 1, 0)
