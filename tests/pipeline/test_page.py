"""A pipeline's page: what is wrong with one is told at once, with its places; references become folders."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.config.load import shipped_recipes
from esckit.documents import parse_yaml
from esckit.errors import ConfigError
from esckit.lineage import named_runs
from esckit.pipeline.page import as_yaml, load_pipeline

SHIPPED = [page.name for page in shipped_recipes() if page.name.startswith("pipelines/")]


def page(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(f"command: run\nstages:\n{text}", encoding="utf-8")
    return str(path)


def refused(ref: str, *changes: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_pipeline(ref, changes=changes)
    return str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_pipelines_stages_read_earlier_ones(name: str) -> None:
    pipeline = load_pipeline(name.removeprefix("pipelines/"))
    assert pipeline.out == Path("runs") / pipeline.name
    outs = [str(stage.out) for stage in pipeline.stages]
    for number, stage in enumerate(pipeline.stages):
        named = {run.path for run in named_runs(stage.recipe.resolved())} & {*outs}
        assert named == {str(pipeline.out / other) for other in stage.reads} <= set(outs[:number])
        assert stage.section.about


def test_references_become_folders_in_a_command_to_paste(tmp_path: Path) -> None:
    ref = page(
        tmp_path,
        "  a: {recipe: smoke/search_scripted, set: {data.limit: 2}}\n"
        "  b: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:a]}}\n",
    )
    first, second = load_pipeline(ref, out=Path("o p"), changes=["b.optim.lr=1e-5"]).stages
    assert first.line() == "esckit search smoke/search_scripted --set data.limit=2 --out 'o p/a'"
    assert second.changes == ("data.trees=[o p/a]", "optim.lr=1.0e-05")
    assert second.recipe.model_dump()["data"]["trees"] == ("o p/a",)
    assert second.reads == ("a",)


def test_all_that_is_wrong_with_a_page_is_told_at_once(tmp_path: Path) -> None:
    message = refused(
        page(
            tmp_path,
            "  a: {recipe: smoke/search_scripted, set: {data.limt: 2}}\n"
            "  b: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:c]}}\n"
            "  c: {recipe: smoke/search_scripted}\n"
            "  d: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:serch]}}\n"
            "  e: {recipe: smoke/train_flow_tny}\n"
            "  f: {recipe: pipelines/smoke}\n"
            "  g: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:g]}}\n"
            "  h: {recipe: chat/scripted}\n",
        ),
        "k.seed=1",
        "seed=1",
    )
    assert "pipeline mine: 9 problems" in message
    assert "stages.a (line 3)" in message
    assert "did you mean 'limit'?" in message
    assert "stages.b (line 4): reads c, which comes later; stages run in the order of the page, so move c up" in message
    assert "stages.d (line 6): stage:serch is no stage; the stages are a, b, c, d, e, f, g, h" in message
    assert "stages.e (line 7): no recipe 'smoke/train_flow_tny'" in message
    assert "stages.f (line 8): recipe pipelines/smoke is a pipeline itself" in message
    assert "stages.g (line 9): refers to itself" in message
    assert "stages.h (line 10): recipe chat/scripted is a chat" in message
    assert "--set 'k.seed=1': no stage 'k'" in message
    assert "--set 'seed=1'; expected STAGE.field=value, such as a.seed=2" in message


def test_a_stage_that_writes_something_else_is_refused_before_any_runs() -> None:
    message = refused(
        "practice",
        "train_reward.model.start=stage:taught",
        "train_rl.models.policy.checkpoint=stage:train_reward",
        "rlff.compare_to=stage:train_sft",
        "rlff.models.supporter.checkpoint=stage:train_flow",
    )
    assert "3 problems" in message
    assert "model.start: stage:taught is a run of evaluate; expected one of train-sft" in message
    assert "models.policy.checkpoint: stage:train_reward is a run of train-reward; expected one of train-sft" in message
    assert "compare_to: stage:train_sft is a run of train-sft; expected one of evaluate" in message


def test_a_cycle_is_named_with_all_its_stages(tmp_path: Path) -> None:
    message = refused(
        page(
            tmp_path,
            "  a: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:c]}}\n"
            "  b: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:a]}}\n"
            "  c: {recipe: smoke/train_flow_tiny, set: {data.trees: [stage:b]}}\n",
        )
    )
    assert "stages.a (line 3): a cycle: a reads c reads b reads a" in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("  a: {recipe: smoke/search_scripted}\n  a: {recipe: smoke/search_scripted}\n", "stages.a is given twice"),
        ("  a: {set: {}}\n", "stages.a.recipe (line 3): is missing"),
        ("  a: {recipe: smoke/search_scripted, sets: {}}\n", "did you mean 'set'?"),
        ("  {}\n", "stages (line 2): must not be empty"),
        ("  a.b: {recipe: smoke/search_scripted}\n", "unlike 'a.b'"),
    ],
)
def test_a_page_is_read_as_strictly_as_a_recipe(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(page(tmp_path, text))


def test_a_recipe_beside_the_page_is_found(tmp_path: Path) -> None:
    shipped = next(each for each in shipped_recipes() if each.name == "smoke/search_scripted")
    (tmp_path / "own.yaml").write_text(shipped.path.read_text(encoding="utf-8"), encoding="utf-8")
    (stage,) = load_pipeline(page(tmp_path, "  a: {recipe: own.yaml}\n")).stages
    assert stage.recipe_name == str(tmp_path / "own.yaml")


def test_an_unknown_pipeline_is_told_with_those_there_are() -> None:
    message = refused("aflo")
    assert "expected one of aflow, mixed, practice, rlff, smoke, or a YAML file. Did you mean 'aflow'?" in message
    assert "for the command 'simulate'" in refused("smoke/simulate")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(PLAIN)
def test_a_value_is_on_the_command_line_what_it_is_on_the_page(value: object) -> None:
    assert parse_yaml(as_yaml(value), "value") == value
