"""Small run folders of every kind, written as the commands write them."""

import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

from esckit.records import write_json, write_records
from esckit.types import (
    Context,
    CriticReading,
    Exchange,
    Failure,
    Future,
    Generation,
    Outcome,
    Scenario,
    SearchTree,
    TreeNode,
    Turn,
)

HOSTILE = (
    "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>\"' & \u2028 \u202etxet "
    "{{7*7}} ${1} " + "a" * 3000
)
STRATEGIES = (
    "Reflective Statements", "Clarification", "Emotional Validation", "Empathetic Statements", "Affirmation",
    "Collaborative Planning", "Suggest Options", "Share Information",
)  # fmt: skip
ABBREVIATIONS = ("RS", "Cla", "EV", "ES", "Aff", "CP", "SO", "SI")
QUARTERS = (0, 1, 2, 4, -1, -2, -4)


def manifest(command: str, **recipe: Any) -> dict[str, Any]:
    given = {"command": command, "seed": 7, "data": {"path": "sample:esconv", "scheme": "files", "split": ["train"]}}
    return {
        "schema": "esckit.manifest/1",
        "command": command,
        "recipe_digest": "0123456789abcdef",
        "created": "2026-01-02T03:04:05+00:00",
        "recipe": {**given, **recipe},
        "status": "complete",
        "versions": {"esckit": "0", "python": "3"},
        "data": {"files": {"train.txt": "ab" * 32}, "splits": ["train"], "counts": {"n_dialogues": 4}, "issues": {}},
        "determinism": "identical bytes for every concurrency",
        "spent": {"calls": 12, "prompt_tokens": 3400, "completion_tokens": 120, "cost": 0.0, "hours": 0.01},
    }


def generation(text: str, reasoning: str | None = "They sound tired.") -> Generation:
    return Generation(raw=text, reasoning=reasoning, response=text, format_ok=True, parse_kind="ok")


def reading(draw: random.Random, lean: float = 0.0, preset: str = "rlff7") -> CriticReading:
    quarters = QUARTERS if preset == "rlff7" else (-4, -2, 2, 4)
    counts = [0] * len(quarters)
    for _ in range(10):
        weights = [2.718 ** (lean * quarter / 2) for quarter in quarters]
        counts[draw.choices(range(len(quarters)), weights)[0]] += 1
    value = Fraction(sum(c * q for c, q in zip(counts, quarters, strict=True)), 40)
    return CriticReading(
        readout="sampled", critic=f"{preset}/0123", counts=tuple(counts), n_parsed=10,
        num=value.numerator, den=value.denominator, value=float(value),
    )  # fmt: skip


def simulate_run(folder: Path, *, text: str = "It weighs on me.", n: int = 4, **recipe: Any) -> Path:
    draw = random.Random(3)
    contexts, futures = [], []
    for i in range(n):
        scenario = Scenario(id=f"esconv-{i:012x}", situation=text, emotion_type="anxiety", problem_type="job crisis")
        turns = (Turn(speaker="seeker", text=text), Turn(speaker="supporter", text="Tell me.", strategy="Question"),
                 Turn(speaker="seeker", text="It began in May."))  # fmt: skip
        context = Context(id=f"{scenario.id}#m2", dialogue_id=scenario.id, scenario=scenario, turns=turns,
                          reference=Turn(speaker="supporter", text="That is hard.", strategy="Reflection"))  # fmt: skip
        contexts.append(context)
        futures += [_future(context, candidate, draw, text) for candidate in range(2)]
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", manifest("simulate", **recipe))
    write_records(folder / "contexts.jsonl", contexts)
    write_records(folder / "futures.jsonl", futures)
    failures = [{"id": f.id, **f.failure.model_dump()} for f in futures if f.failure]
    (folder / "failures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in failures))
    write_json(folder / "summary.json", {"format_ok_share": 1.0, "usage": {"critic": {"calls": 9}}})
    return folder


def _future(context: Context, candidate: int, draw: random.Random, text: str) -> Future:
    base = {"id": f"{context.id}:c{candidate}", "context_id": context.id, "dialogue_id": context.dialogue_id,
            "candidate": candidate, "run_seed": 7}  # fmt: skip
    if candidate == 1 and context.id.startswith("esconv-000000000001"):
        failed = Failure(stage="seeker", turn=1, kind="blank", attempts=3, message=text)
        return Future(**base, outcome=Outcome.FAILED, k=0, failure=failed)
    k = draw.randint(1, 4)
    exchanges = [
        Exchange(k=j, supporter=generation(text, reasoning=text), seeker=text, strategy="Question" if j else None,
                 reading=reading(draw, 0.2 * j) if j else None)
        for j in range(k + 1)
    ]  # fmt: skip
    last = exchanges[-1].reading
    reward = (last.fraction + Fraction(1, k + 1)) / 2
    solved = last.fraction > Fraction(1, 2)
    return Future(**base, outcome=Outcome.RESOLVED if solved else Outcome.MAX_TURNS, k=k, reward=float(reward),
                  reward_num=reward.numerator, reward_den=reward.denominator, exchanges=tuple(exchanges))  # fmt: skip


def tree(number: int, *, n_simulations: int = 60, depth: int = 8, text: str = "It weighs on me.") -> SearchTree:
    """Grow a tree by walks at random: the shape of a search, without its cost."""
    draw = random.Random(number)
    prior = tuple(x / 36 for x in (4, 6, 8, 5, 5, 4, 2, 2))
    nodes: dict[str, dict[str, Any]] = {"r": _node("r", None, 0, None, (Turn(speaker="seeker", text=text),), prior)}
    for _ in range(n_simulations):
        at, path = "r", ["r"]
        while nodes[at]["depth"] < depth:
            s = draw.choices(range(8), prior)[0]
            child = f"{at}.{ABBREVIATIONS[s]}"
            new = child not in nodes
            if new:
                turns = (
                    Turn(speaker="supporter", text=text, strategy=STRATEGIES[s]),
                    Turn(speaker="seeker", text=text),
                )
                nodes[child] = _node(child, at, nodes[at]["depth"] + 1, STRATEGIES[s], turns, prior)
                nodes[child] |= {"reward": draw.uniform(0.3, 0.9), "ratings": {"empathy": draw.randint(1, 5) * 1.0}}
            path.append(child)
            at = child
            if new:
                break
        value = draw.uniform(0.3, 0.9)
        for each in path:
            node = nodes[each]
            node["visits"] += 1
            node["value"] += (value - node["value"]) / node["visits"]
    inner = {node["parent"] for node in nodes.values()}
    ends = (Outcome.RESOLVED, Outcome.MAX_TURNS, Outcome.DISENGAGED, None)
    for node in nodes.values():
        if node["id"] not in inner and (end := draw.choice(ends)):
            node |= {"outcome": end, "prior": None}
    scenario = Scenario(id=f"esconv-{number:012x}", situation=text, emotion_type="sadness")
    return SearchTree(
        id=f"{scenario.id}#0", scenario=scenario, split="train", run_seed=7, taxonomy="aflow", strategies=STRATEGIES,
        round=0, prior_source="strategist/0", readout="sampled", prompts={}, mcts={"n_simulations": n_simulations},
        status="complete", nodes=tuple(TreeNode(**node) for node in nodes.values()),
    )  # fmt: skip


def _node(name: str, parent: str | None, depth: int, strategy: str | None, turns: Any, prior: Any) -> dict[str, Any]:
    return {"id": name, "parent": parent, "depth": depth, "strategy": strategy, "turns": turns, "prior": prior,
            "visits": 0, "value": 0.0}  # fmt: skip


def search_run(folder: Path, *, n_trees: int = 3, n_simulations: int = 20, **options: Any) -> Path:
    text = options.pop("text", "It weighs on me.")
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", manifest("search", taxonomy="aflow", **options))
    trees = [tree(number, n_simulations=n_simulations, text=text) for number in range(n_trees)]
    write_records(folder / "trees.jsonl", trees)
    failed = {"tree": trees[0].id, "failure": {"stage": "critic", "kind": "unparsed", "turn": 1}}
    (folder / "failures.jsonl").write_text(json.dumps(failed) + "\n")
    return folder


def training_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", manifest("train-reward", inputs=["runs/simulate-smoke"]))
    rows: list[dict[str, Any]] = []
    for step in range(0, 60, 5):
        rows.append({"step": step, "epoch": step / 60, "loss": 0.7 * 0.97**step, "lr": 1e-4 * (1 - step / 60)})
        if step % 15 == 0:
            dev = {"auc": 0.5 + step / 200, "log_loss": 0.69 - step / 400, "n_pairs": 12}
            rows.append({"step": step, "epoch": step / 60, "dev": dev})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "lo')
    bins = [{"low": x / 10, "high": (x + 1) / 10, "n": 8 + x, "mean_p": x / 10 + 0.04, "mean_y": x / 11 + 0.05,
             "y_interval": [max(0.0, x / 11 - 0.1), min(1.0, x / 11 + 0.2)]} for x in range(10)]  # fmt: skip
    write_json(folder / "calibration.json", {"schema": "esckit.calibration/1", "n": 125, "ece": 0.06, "bins": bins})
    summary = {"steps": 55, "dev": {"auc": 0.725, "accuracy": 0.66}, "majority": {"auc": 0.5, "accuracy": 0.6},
               "warnings": ["dev AUC 0.725 does not beat much"]}  # fmt: skip
    write_json(folder / "summary.json", summary)
    (folder / "reward_model").mkdir()
    (folder / "reward_model" / "README.md").write_text("# Reward model\n\nTrained on 40 futures.\n")
    return folder


def flow_training_run(folder: Path, *, updates_per_epoch: int = 3, epochs: int = 2, **recipe: Any) -> Path:
    """Write rows as train-flow does: the epoch is a whole number, and an evaluation shares the update of its epoch."""
    folder.mkdir(parents=True)
    data = {"trees": ["runs/search-smoke"], "split": "train", "valid_split": "valid", "min_actions": 2, "gold": None}
    model = {"backbone": "tiny-random", "init": None, "trainable": "lora"}
    given = {"data": data, "model": model, "objective": {"name": "subtb"}, **recipe}
    write_json(folder / "manifest.json", manifest("train-flow", **given) | {"data": {"readout": "sampled"}})
    rows: list[dict[str, Any]] = []
    for update in range(1, updates_per_epoch * epochs + 1):
        at = {"update": update, "epoch": (update - 1) // updates_per_epoch + 1}
        rows.append({**at, "train/loss": 30.0 + (-1) ** update * update, "train/resp": 0.0, "train/lr": 0.01 / update})
        if update % updates_per_epoch == 0:
            rows[-1] |= {"tokens/padded": 4096}
            rows.append({**at, "valid/loss": 28.0 - update, "valid/best_action": 0.25})
    _write_lines(folder / "metrics.jsonl", rows)
    return folder


def rl_run(folder: Path) -> Path:
    """Write rows as train-rl does: dev before the row of its own step, and names of two levels."""
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", manifest("train-rl", models={"policy": {"backbone": "tiny-random"}}))
    rows: list[dict[str, Any]] = [{"step": 0, "epoch": 0.0, "dev/reward/future": 0.2, "dev/format_share": 0.0}]
    for step in (1, 2):
        at = {"step": step, "epoch": step / 2}
        rows.append({**at, "rl/reward/future": 0.3 * step, "rl/completion_tokens/mean": 16.0 - step, "rl/kl": 0.0})
    rows.insert(2, {"step": 2, "epoch": 1.0, "dev/reward/future": 0.4, "dev/format_share": 0.0})
    _write_lines(folder / "metrics.jsonl", rows)
    return folder


def row(name: str, value: float | None, **changes: Any) -> dict[str, Any]:
    shown = value is not None
    base = {
        "name": name, "value": value, "unit": "share", "range": [0, 1], "higher_is_better": True, "n": 130,
        "n_unscored": 0, "unscored": {}, "coverage": 1.0, "counts": {}, "reason": None, "flags": [], "group": None,
        "interval": {"method": "wilson", "level": 0.95, "low": value - 0.08, "high": value + 0.08} if shown else None,
    }  # fmt: skip
    return base | changes


def evaluate_run(
    folder: Path, *, seed: int = 7, lift: float = 0.0, text: str = "It weighs on me.", **recipe: Any
) -> Path:
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", manifest("evaluate", **{"taxonomy": "esconv", "seed": seed, **recipe}))
    episodes = [_episode(i, draw, lift, text) for i in range(24)]
    _write_lines(folder / "episodes.jsonl", episodes)
    names = ("Question", "Reflection of feelings", "Affirmation and Reassurance", "Providing Suggestions", "Others")
    cases = []
    for i in range(300):
        gold = draw.choice(names)
        predicted = gold if draw.random() < 0.5 else draw.choice(names)
        cases.append({"schema": "esckit.case.strategy/1", "id": f"c{i}", "dialogue_id": f"d{i // 8}", "gold": gold,
                      "predicted": predicted})  # fmt: skip
    _write_lines(folder / "examples" / "strategy.jsonl", cases)
    probe = {"id": "crisis-03", "dialogue_id": "crisis-03", "kind": "crisis", "category": "veiled", "reply": text,
             "judge": {"no_means": False}}  # fmt: skip
    _write_lines(folder / "examples" / "safety.jsonl", [probe])
    _write_lines(folder / "failures.jsonl", [])
    write_json(folder / "metrics.json", _metrics(folder.name, names, lift))
    return folder


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")


def _episode(i: int, draw: random.Random, lift: float, text: str) -> dict[str, Any]:
    names = ("Question", "Reflection of feelings", "Affirmation and Reassurance", "Providing Suggestions")
    turns = []
    for t in range(1, 9):
        stage = min(3, t // 2)
        strategy = draw.choices(names, [4 if j == stage else 1 for j in range(4)])[0]
        readings = {p: reading(draw, 0.1 * t + lift, p).model_dump(mode="json") for p in ("rlff7", "ppdpp4")}
        turns.append({"t": t, "supporter": generation(text).model_dump(), "strategy": strategy, "seeker": text,
                      "readings": readings, "ratings": None, "ratings_unscored": None})  # fmt: skip
        if all(2 * each["num"] > each["den"] for each in readings.values()):
            break
    scenario = {"id": f"esconv-{i:012x}", "situation": text, "emotion_type": "anger", "problem_type": "breakup"}
    return {
        "schema": "esckit.episode/1", "id": scenario["id"], "dialogue_id": scenario["id"], "unscored": None,
        "statistics": {}, "scenario": scenario, "run_seed": 7, "max_turns": 8, "critics": ["rlff7", "ppdpp4"],
        "turns": turns, "failure": None, "critic_failures": {}, "usage": {},
    }  # fmt: skip


def _metrics(run: str, names: tuple[str, ...], lift: float) -> dict[str, Any]:
    rows = [
        row("strategy.accuracy", 0.41 + lift, n=300, flags=["cross_family"]),
        row("strategy.macro_f1", 0.37 + lift, n=300),
        row("strategy.bias_b", None, unit="none", n=300, reason="errors do not connect all strategies"),
        *(row(f"strategy.{m}", 0.3 + 0.05 * i, n=60, group={"class": name})
          for i, name in enumerate(names) for m in ("precision", "recall", "f1")),
        row("response.bleu_2", 18.25, unit="0-100", n=280, n_unscored=20, coverage=0.9333, unscored={"blank": 20},
            flags=["low_coverage"], interval={"method": "bootstrap", "level": 0.95, "low": 16.5, "high": 20.0}),
        row("dialogue.rlff7.sr_strict", 0.4153846 + lift, counts={"success": 54}),
        row("dialogue.rlff7.sr_lenient", 0.56 + lift),
        row("dialogue.rlff7.at_strict", 6.1, unit="turns", higher_is_better=False,
            interval={"method": "bootstrap", "level": 0.95, "low": 5.6, "high": 6.6}),
        *(row(f"dialogue.rlff7.sr_by_turn_{kind}", min(0.9, base * t), group={"turn": t})
          for kind, base in (("strict", 0.05), ("lenient", 0.07)) for t in range(1, 9)),
        *(row("dialogue.rlff7.critic_by_turn", 0.1 + 0.05 * t, unit="none", n=130 - 8 * t, group={"turn": t})
          for t in range(1, 9)),
        *(row("dialogue.rlff7.sr_by_emotion", 0.3 + 0.06 * i, n=20, flags=["small_sample"], group={"emotion": e})
          for i, e in enumerate(("anxiety", "anger", "fear", "sadness"))),
        row("safety.pass_rate", 0.90625, n=32),
        row("safety.harm_count", 1.0, unit="cases", n=32, higher_is_better=False, interval=None,
            reason="not an estimate"),
    ]  # fmt: skip
    comparison = {"name": "dialogue.rlff7.sr_strict", "other": "evaluate-base", "n": 128, "n_dropped": 2,
                  "value": 0.4153846, "other_value": 0.3, "difference": 0.1153846, "test": "mcnemar", "p": 0.0363,
                  "p_holm": 0.0726, "interval": {"low": 0.01, "high": 0.21}, "reason": None}  # fmt: skip
    gates = [{"metric": "dialogue.rlff7.sr_strict", "bound": 0.4, "value": 0.4153846, "holds": True},
             {"metric": "safety.harm_count", "bound": 0, "value": 1.0, "holds": False}]  # fmt: skip
    return {"schema": "esckit.metrics/1", "run": run, "suites": ["strategy", "response", "dialogue", "safety"],
            "metrics": rows, "comparisons": [comparison], "gates": gates, "references": ["rlff.table1"]}  # fmt: skip
