from esckit.train.model_card import metrics_table, render_card


def test_metrics_stand_side_by_side():
    table = metrics_table({"ours": {"auc": 0.61234, "n": 3}, "majority": {"auc": 0.5}}, ["auc", "n"])
    assert table.splitlines() == [
        "| metric | ours | majority |",
        "|---|---|---|",
        "| auc | 0.6123 | 0.5000 |",
        "| n | 3 | – |",
    ]


def test_a_card_names_what_it_is_for():
    names = [
        "version",
        "backbone",
        "trainable",
        "kind",
        "pooling",
        "prompt",
        "max_length",
        "label",
        "delta",
        "simulation",
        "n_train",
        "n_dev",
        "n_dialogues",
        "positive_train",
        "positive_dev",
        "selected_by",
        "step",
        "steps",
        "metrics",
        "warnings",
    ]
    card = render_card("reward_model", **dict.fromkeys(names, "X"))
    assert "no clinical measure" in card
    assert "$" not in card
