"""What a policy is trained on: corpus contexts, or simulated futures; and whose dialogues they are."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esckit.data.contexts import build_contexts
from esckit.data.selection import select_dialogues
from esckit.data.splits import is_dev
from esckit.errors import CheckpointError, DataError
from esckit.play.futures import read_inputs
from esckit.prompts.prompt import load_prompt
from esckit.records import file_sha256
from esckit.reward.checkpoint import reward_manifest
from esckit.reward.text import reward_template
from esckit.rl.recipe import TrainRlRecipe
from esckit.roles.verdicts import load_preset
from esckit.runs import MANIFEST, stated
from esckit.types import Context, Future, Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RlMaterial:
    """Everything that is learnt from, split by dialogue.

    Attributes:
        train: Contexts to train on.
        dev: Held-out contexts.
        futures: Scored futures of the training contexts (DPO).
        inputs: SHA-256 of the futures by folder (DPO).
        reward_facts: What the reward is, for checkpoint and manifest.
        dialogue_ids: Dialogues that are trained or selected on, inherited ones included.
        facts: What the manifest says about the data.
    """

    train: tuple[Context, ...]
    dev: tuple[Context, ...]
    futures: tuple[Future, ...]
    inputs: dict[str, str]
    reward_facts: dict[str, str]
    dialogue_ids: tuple[str, ...]
    facts: dict[str, Any]


def collect(recipe: TrainRlRecipe) -> RlMaterial:
    """Return what the recipe trains on, without any model.

    Raises:
        EsckitError: If data, inputs or reward model are wrong.
    """
    return _from_futures(recipe) if recipe.algorithm == "dpo" else _from_corpus(recipe)


def _from_corpus(recipe: TrainRlRecipe) -> RlMaterial:
    assert recipe.data is not None
    facts, inherited, known = _reward(recipe)
    selection = select_dialogues(recipe.data, taxonomy=None)
    contexts = build_contexts(
        selection.dialogues,
        run_seed=recipe.seed,
        per_dialogue=recipe.contexts.per_dialogue,
        supporter_opening=recipe.contexts.supporter_opening,
        situation_first=recipe.contexts.situation_first,
    )
    train, dev = _split(recipe, contexts)
    _warn_of_known(dev, known)
    ids = _union(selection.ids, inherited)
    return RlMaterial(
        train=train,
        dev=dev,
        futures=(),
        inputs={},
        reward_facts=facts,
        dialogue_ids=ids,
        facts={**selection.facts(), "ids": list(ids), "inherited_ids": list(inherited)},
    )


def _from_futures(recipe: TrainRlRecipe) -> RlMaterial:
    inputs = read_inputs(recipe.inputs)
    scored = [future for future in inputs.futures if future.outcome is not Outcome.FAILED]
    used = {future.context_id for future in scored}
    train, dev = _split(recipe, [context for name, context in inputs.contexts.items() if name in used])
    names = {context.id for context in train}
    return RlMaterial(
        train=train,
        dev=dev,
        futures=tuple(future for future in scored if future.context_id in names),
        inputs=inputs.digests,
        reward_facts={"kind": "futures"},
        dialogue_ids=inputs.dialogue_ids,
        facts={**inputs.facts(), "inherited_ids": list(inputs.dialogue_ids)},
    )


def _split(recipe: TrainRlRecipe, contexts: Iterable[Context]) -> tuple[tuple[Context, ...], tuple[Context, ...]]:
    """Return training and dev contexts; no dialogue has contexts on both sides."""
    train: list[Context] = []
    dev: list[Context] = []
    for context in contexts:
        (dev if is_dev(recipe.seed, context.dialogue_id, recipe.dev.share) else train).append(context)
    if not train:
        raise DataError("no context to train on", expected="at least one outside dev", hint="See dev.share and data.*")
    if recipe.optim.select == "best_dev" and not dev:
        raise DataError("no dev context to select by", hint="Raise dev.share, change seed, or set optim.select: last")
    return tuple(train), tuple(dev)


def _warn_of_known(dev: Sequence[Context], known: Container[str]) -> None:
    """Say so if the reward model learnt from dialogues that the policy is to be measured on."""
    held_out = {context.dialogue_id for context in dev}
    if n_known := sum(name in known for name in held_out):
        log.warning(
            "%d of %d dev dialogues are among those that the reward model was trained on, so dev rewards may flatter "
            "the policy. The seed and dev.share of its own recipe keep them apart",
            n_known,
            len(held_out),
        )


def _reward(recipe: TrainRlRecipe) -> tuple[dict[str, str], tuple[str, ...], frozenset[str]]:
    """Return facts of the reward, the dialogues that a reward model brings along, and those it was trained on.

    Raises:
        CheckpointError: If the run that is named holds no reward model of the kind that is asked for, or its prompt has
            changed since.
    """
    kind, source = recipe.reward.kind, recipe.models.reward
    facts = {"kind": kind, "value": recipe.online.value if kind == "online" else recipe.reward.value}
    if kind not in ("classifier", "ranker") or source is None or source.checkpoint is None:
        return facts, (), frozenset()
    folder = Path(source.checkpoint)
    manifest = reward_manifest(folder)
    trained = str(stated(manifest, "recipe.objective.kind", path=folder))
    if (trained == "classifier") != (kind == "classifier"):
        raise CheckpointError(
            f"{folder} is a reward model of kind {trained}",
            expected=f"reward.kind: {'classifier' if trained == 'classifier' else 'ranker'}",
        )
    facts |= {"checkpoint": source.checkpoint, "manifest": file_sha256(folder / MANIFEST), "objective": trained}
    ids = tuple(stated(manifest, "data.ids", path=folder))
    seed, share = (stated(manifest, f"recipe.{field}", path=folder) for field in ("seed", "dev.share"))
    return facts, ids, frozenset(name for name in ids if not is_dev(seed, name, share))


def reward_prompts(recipe: TrainRlRecipe) -> dict[str, str]:
    """Return the identity of every prompt that the reward is read with and no checkpoint answers for."""
    if recipe.algorithm == "dpo":
        return {}
    if recipe.reward.kind == "untrained":
        return {"reward_model": reward_template(recipe.reward.prompt).prompt}
    if recipe.reward.kind != "online":
        return {}
    named, critic = recipe.online.prompts, recipe.online.critic
    own = named.critic or load_preset(critic.preset).prompt
    names = {"supporter": named.supporter, "seeker": named.seeker, "critic": own}
    if critic.readout == "expected" and not named.critic:
        names["critic_letters"] = f"{own}_letters"  # what a model that gives probabilities of letters is asked
    kinds = {role: role if role in ("supporter", "seeker") else "resolution critic" for role in names}
    return {role: load_prompt(name, kinds[role]).identity for role, name in names.items()}


def _union(*parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))
