"""What a policy is trained on: contexts and futures, the policy's prompts, rows and preference pairs, and their order.

Texts of preference pairs are the outputs with reasoning and tags, because the policy must learn the form too, and with
the reply as it was rewarded (:func:`esckit.roles.asking.clean_output`).
Loads no model; tokenizers come in with a chat format.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esckit.data.contexts import build_contexts, openings
from esckit.data.selection import select_dialogues
from esckit.data.splits import is_dev, without_dev
from esckit.errors import CheckpointError, DataError, named_by
from esckit.models.checkpoint import kind_of
from esckit.play.futures import read_inputs
from esckit.prompts.prompt import load_prompt
from esckit.records import file_sha256
from esckit.rl.recipe import TrainRlRecipe
from esckit.roles.asking import asks_for_tags, clean_output
from esckit.runs import MANIFEST, read_manifest, stated
from esckit.training.policy import PolicyPrompt, PolicyStart, Start, read_start
from esckit.types import Context, Future, Message, Outcome

log = logging.getLogger(__name__)

# ---------------------------------------------------------------- contexts and futures


@dataclass(frozen=True, slots=True)
class RlMaterial:
    """Everything that is learnt from, split by dialogue.

    Attributes:
        backbone: Name of the backbone that is trained on.
        train: Contexts to train on.
        dev: Held-out contexts.
        reward_facts: What the reward is, for checkpoint and manifest.
        dialogue_ids: Dialogues that are trained or selected on, inherited ones included.
        facts: What the manifest says about the data.
        futures: Scored futures of the training contexts (DPO).
        inputs: SHA-256 of the futures by folder (DPO).
        start: The run of ``train-sft`` that the policy begins with; None for the backbone.
    """

    backbone: str
    train: tuple[Context, ...]
    dev: tuple[Context, ...]
    reward_facts: dict[str, str]
    dialogue_ids: tuple[str, ...]
    facts: dict[str, Any]
    futures: tuple[Future, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    start: Start | None = None

    @property
    def by_id(self) -> dict[str, Context]:
        """All contexts by id."""
        return {context.id: context for context in (*self.train, *self.dev)}

    @property
    def dev_ids(self) -> tuple[str, ...]:
        """The held-out dialogues."""
        return tuple(dict.fromkeys(context.dialogue_id for context in self.dev))


def collect(recipe: TrainRlRecipe) -> RlMaterial:
    """Return what the recipe trains on, without any model.

    Raises:
        EsckitError: If data, inputs or reward model are wrong.
    """
    if recipe.algorithm == "dpo":
        return _from_futures(recipe)
    assert recipe.data is not None
    with named_by("models.reward.checkpoint"):
        reward_facts, inherited = _reward_facts(recipe)
    start = policy_start(recipe)
    if start.is_tagged is False and asks_for_tags(prompt := load_prompt(recipe.prompt)):
        log.warning(
            "The policy begins with a supporter whose outputs have no <think> and <response>, and prompt %s asks for "
            "them: train it with form.reasoning=true or form.strategy=tag, or name a prompt that does not ask",
            prompt.identity,
        )
    selection = select_dialogues(recipe.data, taxonomy=None)
    if recipe.episode == "dialogue":
        contexts: Sequence[Context] = openings(selection.dialogues)
    else:
        contexts = build_contexts(selection.dialogues, recipe.contexts, run_seed=recipe.seed)
    train, dev = _split(recipe, contexts)
    before = tuple(dict.fromkeys([*inherited, *start.seen]))
    ids = tuple(dict.fromkeys([*selection.ids, *before]))
    facts = {**selection.facts(), "ids": list(ids), "inherited_ids": list(before)}
    material = RlMaterial(start.backbone, train, dev, reward_facts, ids, facts, start=start.start)
    if n_known := sum(inherited.get(name, False) for name in material.dev_ids):
        log.warning(
            "The reward model was trained on %d of %d dev dialogues, so dev rewards may flatter the policy. "
            "To keep them apart, use the seed and the dev.share of the reward model's recipe",
            n_known,
            len(material.dev_ids),
        )
    _warn(start, material)
    return material


def _from_futures(recipe: TrainRlRecipe) -> RlMaterial:
    with named_by("inputs"):
        inputs = read_inputs(recipe.inputs)
    scored = [future for future in inputs.futures if future.outcome is not Outcome.FAILED]
    used = {future.context_id for future in scored}
    train, dev = _split(recipe, [context for name, context in inputs.contexts.items() if name in used])
    names = {context.id for context in train}
    start = policy_start(recipe)
    ids = tuple(dict.fromkeys([*inputs.dialogue_ids, *start.seen]))
    material = RlMaterial(
        start.backbone,
        train,
        dev,
        reward_facts={"kind": "futures"},
        dialogue_ids=ids,
        facts={**inputs.facts(), "ids": list(ids), "inherited_ids": list(ids)},
        futures=tuple(future for future in scored if future.context_id in names),
        inputs=inputs.digests,
        start=start.start,
    )
    _warn(start, material)
    return material


def _warn(start: PolicyStart, material: RlMaterial) -> None:
    for warning in start.warnings(material.dev_ids, of="policy"):
        log.warning("%s", warning)


def policy_start(recipe: TrainRlRecipe) -> PolicyStart:
    """Return what the policy of a recipe begins with; loads no model.

    Raises:
        CheckpointError: If the run that is named holds no supporter of ``train-sft``.
        DataError: If it is no run folder.
    """
    policy = recipe.models.policy
    if policy.checkpoint is None:
        return PolicyStart(str(policy.backbone))
    with named_by("models.policy.checkpoint"):
        return read_start(policy.checkpoint)


def _split(recipe: TrainRlRecipe, contexts: Iterable[Context]) -> tuple[tuple[Context, ...], tuple[Context, ...]]:
    """Return training and dev contexts; no dialogue has contexts on both sides."""
    train, dev = without_dev(contexts, seed=recipe.seed, share=recipe.dev.share)
    if not train:
        raise DataError("no context to train on", expected="at least one outside dev", hint="See dev.share and data.*")
    if recipe.optim.select == "best_dev" and not dev:
        raise DataError("no dev context to select by", hint="Raise dev.share, change seed, or set optim.select: last")
    return tuple(train), tuple(dev)


def _reward_facts(recipe: TrainRlRecipe) -> tuple[dict[str, str], dict[str, bool]]:
    """Return facts of the reward, and of each dialogue of a reward model whether it was trained (not selected) on.

    Raises:
        CheckpointError: If the run that is named holds no reward model of the kind that is asked for, or its prompt has
            changed since.
    """
    kind, source = recipe.reward.kind, recipe.models.reward
    facts = {"kind": kind, "value": recipe.online.value if kind == "online" else recipe.reward.value}
    if kind not in ("classifier", "ranker") or source is None or source.checkpoint is None:
        return facts, {}
    folder = Path(source.checkpoint)
    kind_of(folder, "scorer")
    manifest = read_manifest(folder)
    objective = str(stated(manifest, "recipe.objective.kind", path=folder))
    if (objective == "classifier") != (kind == "classifier"):
        raise CheckpointError(
            f"{folder} is a reward model of kind {objective}",
            expected=f"reward.kind: {'classifier' if objective == 'classifier' else 'ranker'}",
        )
    facts |= {"checkpoint": source.checkpoint, "manifest": file_sha256(folder / MANIFEST), "objective": objective}
    seed, share = (stated(manifest, f"recipe.{field}", path=folder) for field in ("seed", "dev.share"))
    return facts, {name: not is_dev(seed, name, share) for name in stated(manifest, "data.ids", path=folder)}


# ---------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to train on or to measure, and what became of the contexts on the way.

    Attributes:
        rows: ``prompt`` (chat messages), ``context_id`` and ``dialogue_id`` of each; of contexts also ``conversation``,
            of preference pairs ``chosen`` and ``rejected`` (chat messages).
        counts: ``rows``; contexts that lost oldest turns in the prompt (``cut``); contexts that were left out since
            prompt or outputs do not fit (``too_long``). Of pairs also contexts without two different rewards
            (``equal``), and those of whose pair one output is malformed (``malformed``).
    """

    rows: tuple[dict[str, Any], ...]
    counts: dict[str, int]


def build_rows(contexts: Iterable[Context], prompt: PolicyPrompt) -> Rows:
    """Return one row per context, in order; the conversation is whole, whatever the prompt shows of it."""
    rows: list[dict[str, Any]] = []
    counts = {"rows": 0, "cut": 0, "too_long": 0}
    for context in contexts:
        fitted = prompt.fitted(context)
        if fitted is None:
            counts["too_long"] += 1
            continue
        counts["rows"] += 1
        counts["cut"] += fitted[1] > 0
        conversation = [{"speaker": turn.speaker, "text": turn.text} for turn in context.turns]
        rows.append({**_row(context, prompt, fitted[0]), "conversation": conversation})
    return Rows(tuple(rows), counts)


def _row(context: Context, prompt: PolicyPrompt, messages: Sequence[Message]) -> dict[str, Any]:
    return {
        "prompt": prompt.chat.as_dicts(messages),
        "context_id": context.id,
        "dialogue_id": context.dialogue_id,
    }


# ---------------------------------------------------------------- preference pairs


def best_and_worst(futures: Iterable[Future]) -> list[tuple[Future, Future] | None]:
    """Return for each context the candidates with the highest and the lowest reward; the first among equals.

    Those of several run seeds are kept apart.

    Returns:
        None for a context of which all rewards are equal, or fewer than two candidates are scored.
    """
    groups: dict[tuple[int, str], list[Future]] = {}
    for future in futures:
        groups.setdefault((future.run_seed, future.context_id), []).append(future)
    pairs: list[tuple[Future, Future] | None] = []
    for group in groups.values():
        scored = [(future.fraction, future) for future in group if future.fraction is not None]
        best = max(scored, key=lambda each: (each[0], -each[1].candidate), default=None)
        worst = min(scored, key=lambda each: (each[0], each[1].candidate), default=None)
        pairs.append((best[1], worst[1]) if best and worst and best[0] != worst[0] else None)
    return pairs


def build_pairs(
    contexts: Mapping[str, Context],
    futures: Iterable[Future],
    prompt: PolicyPrompt,
    *,
    require_format: bool,
    max_completion_tokens: int,
) -> Rows:
    """Return one preference pair for each context whose candidates differ in reward (DPO).

    Args:
        contexts: By id.
        futures: Of the contexts to train on.
        prompt: Makes the policy's prompt.
        require_format: Leave out pairs in which an output is malformed.
        max_completion_tokens: Leave out pairs with a longer output.
    """
    rows: list[dict[str, Any]] = []
    counts = dict.fromkeys(("rows", "cut", "too_long", "equal", "malformed"), 0)
    for pair in best_and_worst(futures):
        if pair is None:
            counts["equal"] += 1
            continue
        outputs = [future.exchanges[0].supporter for future in pair]
        if require_format and not all(output.format_ok for output in outputs):
            counts["malformed"] += 1
            continue
        context = contexts[pair[0].context_id]
        fitted = prompt.fitted(context)
        texts = [clean_output(output) for output in outputs]
        if fitted is None or any(len(prompt.chat.answer(text)) > max_completion_tokens for text in texts):
            counts["too_long"] += 1
            continue
        counts["rows"] += 1
        counts["cut"] += fitted[1] > 0
        chosen, rejected = (prompt.chat.as_dicts([Message("assistant", text)]) for text in texts)
        rows.append({**_row(context, prompt, fitted[0]), "chosen": chosen, "rejected": rejected})
    return Rows(tuple(rows), counts)
