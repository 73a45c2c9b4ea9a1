"""What a policy thinks is shown to nobody, whichever command lets it speak."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from esckit.evaluate.run import run as run_evaluate
from esckit.predict.run import run as run_predict
from esckit.report.blocks import Explorer, Table
from esckit.report.run import build_report
from esckit.report.source import open_run
from esckit.rl.run import run
from esckit.search.run import run as run_search
from esckit.simulate.run import run as run_simulate
from esckit.types import Message, Sampling
from tests.evaluate import players, talk, verdicts
from tests.evaluate.evalrecipes import evaluation, prediction
from tests.fakes import FakeModel
from tests.rl.rl_runs import recipe, simulated_recipe
from tests.search.test_run import recipe as search_recipe

Script = Callable[[Sequence[Message], Sampling, int], str]
OVERHEARD: list[str] = []


def overhear(script: Script) -> Script:
    """Return a script that notes down everything it is shown."""

    def listening(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
        OVERHEARD.extend(message.content for message in messages)
        return script(messages, sampling, seed)

    return listening


talk_seeker, talk_critic = overhear(talk.seeker), overhear(talk.critic)
players_seeker, players_critic = overhear(players.seeker), overhear(players.critic)
players_strategist = overhear(players.strategist)
verdicts_seeker, verdicts_critic = overhear(verdicts.seeker), overhear(verdicts.critic)
verdicts_judge, verdicts_strategist = overhear(verdicts.judge), overhear(verdicts.strategist)


class Thinker(FakeModel):
    """A policy that thinks what nobody may see."""

    context_length = 100_000
    notes = ()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return 1


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rl") / "policy"
    run(recipe(optim={"max_steps": 1}, monitor={"dev_every": None}), out=out)
    return out


@pytest.fixture(autouse=True)
def thinker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Thinker]:
    """The loaded policy; whoever takes part in a run with it is shown its replies, and no reasoning."""
    model = Thinker(lambda messages, seed: "<think>SECRET</think> <response>Hi.</response>", capabilities=frozenset())
    monkeypatch.setattr("esckit.training.policy.load_policy", lambda *args, **options: model)
    OVERHEARD.clear()
    yield model
    assert model.asked
    assert any("Hi." in text for text in OVERHEARD)
    shown = [*OVERHEARD, *(message.content for messages, _ in model.asked for message in messages)]
    assert not [text for text in shown if "SECRET" in text]


def roles(module: str, policy: Path, *names: str) -> dict[str, Any]:
    scripts = {name: {"scripted": f"tests.rl.test_train_rl_reasoning:{module}_{name}"} for name in names}
    return {**scripts, "supporter": {"checkpoint": str(policy)}}


def replies(found: Any) -> Iterator[str]:
    """Yield every text that passes for a reply, wherever in a record it stands."""
    for name, value in found.items() if isinstance(found, dict) else enumerate(found):
        if isinstance(value, dict | list):
            yield from replies(value)
        elif name in ("reply", "response") and isinstance(value, str):
            yield value


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_simulate(policy: Path, tmp_path: Path) -> None:
    run_simulate(simulated_recipe(policy, **roles("talk", policy, "seeker", "critic")), out=tmp_path / "run")
    assert set(replies(records(tmp_path / "run/futures.jsonl"))) == {"Hi."}


def test_search(policy: Path, tmp_path: Path) -> None:
    models = roles("players", policy, "seeker", "critic", "strategist")
    run_search(search_recipe(models=models, data={"limit": 1}), out=tmp_path / "run")
    trees = records(tmp_path / "run/trees.jsonl")
    thoughts = [thought for tree in trees for thought in tree.pop("reasoning")]
    assert {(thought["role"], thought["text"]) for thought in thoughts} == {("supporter", "SECRET")}
    assert '"Hi."' in json.dumps(trees)
    assert "SECRET" not in json.dumps(trees)
    others = [path for path in (tmp_path / "run").iterdir() if path.name != "trees.jsonl"]
    assert not [path.name for path in others if "SECRET" in path.read_text()]


def test_predict(policy: Path, tmp_path: Path) -> None:
    run_predict(prediction(models=roles("verdicts", policy, "strategist"), data={"limit": 1}), out=tmp_path / "run")
    OVERHEARD.extend(replies(records(tmp_path / "run/predictions.jsonl")))
    assert "SECRET" not in (tmp_path / "run/predictions.jsonl").read_text()


def test_evaluate_and_its_report(policy: Path, tmp_path: Path) -> None:
    models = roles("verdicts", policy, "strategist", "seeker", "critic", "judge")
    asked = evaluation("response", "dialogue", "safety", models=models, data={"limit": 1})
    run_evaluate(asked, out=tmp_path / "run")
    files = [*(tmp_path / "run/examples").glob("*.jsonl"), tmp_path / "run/episodes.jsonl"]
    said = [text for path in files for text in replies(records(path))]
    report = build_report([open_run(tmp_path / "run")])
    blocks = [block for part in report.parts for section in part.sections for block in section.blocks]
    said += [text for block in blocks if isinstance(block, Explorer) for text in replies(block.data)]
    said += [row[at] for block in blocks if isinstance(block, Table) for at in places(block) for row in block.rows]
    assert {"Hi."} <= set(said)
    assert not [text for text in said if "SECRET" in text]


def places(table: Table) -> list[int]:
    return [at for at, name in enumerate(table.columns) if name == "reply"]
