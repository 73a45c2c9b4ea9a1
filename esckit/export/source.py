"""What is exported: a finished training, its backbone, its data, and the texts that an export is compared on.

Everything that can be refused before weights are read is refused here; loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from esckit.config.data import DataConfig
from esckit.config.sections import Contexts
from esckit.data.contexts import build_contexts
from esckit.data.selection import select_dialogues
from esckit.documents import read_json_object
from esckit.errors import CheckpointError, ConfigError, DataError
from esckit.flow.text import read_metadata as read_flow_metadata
from esckit.lineage import read_run
from esckit.models.backbones import BackboneSource, find_backbone, resolve_backbone
from esckit.models.checkpoint import BACKBONE, FOLDER, KINDS, START, CheckpointMetadata, read_metadata
from esckit.play.futures import read_inputs
from esckit.play.runner import SUMMARY
from esckit.prompts.prompt import load_prompt
from esckit.reward.run import reward_manifest
from esckit.reward.text import RewardMetadata
from esckit.runs import read_manifest
from esckit.training.policy import read_supporter, trained_prompt
from esckit.types import Context, Scenario, Turn

N_TEXTS = 16
"""On so many recorded texts an export is compared with the model that it was made of."""

SAMPLES = ("esconv", "extes")

POLICIES = ("train-rl", "train-sft")
"""Commands whose checkpoints are chat models."""

_COMPUTED_ID = re.compile(r"([a-z]+)-[0-9a-f]{12}")


class Recorded(NamedTuple):
    """A dialogue in which the supporter spoke next, and what was said."""

    scenario: Scenario
    turns: tuple[Turn, ...]
    reply: str


@dataclass(frozen=True)
class ExportSource:
    """A finished training.

    Attributes:
        run: Its folder.
        manifest: Of the run.
        metadata: Of its checkpoint.
        backbone: The backbone that it was trained on; None if a whole model was trained and the backbone is gone.
        system_prompt: Of a policy: what was said to it before every conversation; "" for the other kinds.
    """

    run: Path
    manifest: dict[str, Any]
    metadata: CheckpointMetadata
    backbone: BackboneSource | None
    system_prompt: str = ""

    @property
    def command(self) -> str:
        """The training's command."""
        return str(self.manifest["command"])

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.run / FOLDER

    @property
    def identity(self) -> str:
        """Which training it is, as the manifest of an evaluation says it."""
        return f"{self.manifest['recipe_digest']} of {self.manifest.get('created')}"

    @property
    def is_whole(self) -> bool:
        """Whether the whole backbone was trained, so that its weights are in the checkpoint."""
        return self.whole is not None

    @property
    def whole(self) -> Path | None:
        """Folder of the whole backbone in the checkpoint, trained or begun with; None where there are adapters only."""
        places = (self.checkpoint / BACKBONE, self.checkpoint / START / BACKBONE)
        return next((place for place in places if place.is_dir()), None)

    @cached_property
    def corpora(self) -> tuple[str, ...]:
        """Corpora that the training's dialogues are of, those that ship with esckit as ``sample:NAME``; sorted."""
        found = set()
        for name in self.metadata.dialogue_ids:
            computed = _COMPUTED_ID.fullmatch(name)
            corpus = computed[1] if computed else "unknown"
            found.add(f"sample:{corpus}" if corpus in SAMPLES and name in _sample_ids(corpus) else corpus)
        return tuple(sorted(found))


def find_source(run: Path, *, adapter: bool) -> ExportSource:
    """Return what a run folder holds, ready to be exported.

    Args:
        run: The run folder.
        adapter: Whether only the adapter is wanted.

    Raises:
        DataError: If it is no run folder.
        CheckpointError: If it is of another command or not finished, or has no form that others can load.
        ConfigError: If the backbone is not there.
    """
    manifest = read_run(run)
    command = manifest["command"]
    if command not in KINDS:
        raise CheckpointError(f"{run} is a run of {command!r}", expected=f"a run of {', '.join(KINDS)}")
    if manifest.get("status") != "complete" or not (run / SUMMARY).is_file():
        raise CheckpointError(
            f"{run} is not finished (status {manifest.get('status')!r})",
            expected="a training that came to its end",
            hint=f"Finish it: give the same `esckit {command} … --out {run}` again",
        )
    if adapter and command not in POLICIES:
        raise ConfigError(
            f"--adapter of a run of {command!r}", expected=f"a run of {' or '.join(POLICIES)}", hint="Leave it out"
        )
    metadata, prompt = _metadata(run, command)
    source = ExportSource(run, manifest, metadata, None, prompt)
    if adapter and (source.is_whole or (source.checkpoint / START).is_dir()):
        began = "began with a run of train-sft, so that its adapter does not stand on a backbone"
        raise ConfigError(
            f"--adapter: {run} {began if command == 'train-rl' else 'has no adapter'}",
            expected="an adapter of a backbone",
            hint="Leave --adapter out: whole weights",
        )
    return replace(source, backbone=_backbone(source, adapter=adapter))


def _metadata(run: Path, command: str) -> tuple[CheckpointMetadata, str]:
    """Return what is known of a checkpoint, and a policy's system prompt."""
    if command == "train-flow":
        return read_flow_metadata(run), ""
    if command == "train-reward":
        reward_manifest(run)
        reward = read_metadata(RewardMetadata, run)
        if reward.kind == "rrhf" or reward.pooling != "last":
            raise CheckpointError(
                f"{run}: objective {reward.kind} with pooling {reward.pooling!r} has no form as "
                "AutoModelForSequenceClassification",
                expected="objective classifier or pairwise, with pooling last: one logit from the last token's state",
                hint="Train it so, or use this one as {checkpoint: RUN} in esckit",
            )
        return reward, ""
    policy = read_supporter(run)
    prompt = load_prompt(trained_prompt(run, str(read_manifest(run)["recipe"].get("prompt"))), "policy")
    if prompt.identity != policy.prompt:
        raise CheckpointError(
            f"{run} was trained with prompt {policy.prompt}, which is {prompt.identity} today",
            expected="the prompt of the training",
            hint="Bring the prompt file back as it was",
        )
    messages = prompt.render()
    if other := {message.role for message in messages} - {"system"}:
        raise CheckpointError(
            f"prompt {prompt.identity} has messages of {', '.join(sorted(other))}",
            expected="system messages only, which users of other tools can repeat",
        )
    return policy, "\n".join(message.content for message in messages)


def _backbone(source: ExportSource, *, adapter: bool) -> BackboneSource | None:
    """Return the backbone, which must be on this machine unless its weights are not needed."""
    name = source.metadata.backbone
    if source.is_whole:
        try:
            return find_backbone(name)
        except ConfigError:
            return None
    if adapter:
        found = find_backbone(name)
        if found.kind == "memory":
            raise ConfigError(f"--adapter: {name} is built in memory", hint="Leave --adapter out: merged weights")
        return found
    found = resolve_backbone(name)
    if found.folder is not None:
        _require_unquantised(found.folder, name)
    return found


def _require_unquantised(folder: Path, name: str) -> None:
    """Refuse weights that an adapter cannot be added to."""
    quantised = read_json_object(folder / "config.json").get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ConfigError(
            f"the weights of {name} are quantised ({method or 'by an unknown method'})",
            expected="unquantised weights, since an adapter is merged into them",
            hint="Put the unquantised model in its place, or use --adapter (policies only)",
        )


# ---------------------------------------------------------------- texts


def recorded_texts(source: ExportSource) -> tuple[list[Recorded], str]:
    """Return dialogues with a reply to compare on, and where they are from.

    Those of a reward model are of its own futures where they are still there; else they are of the shipped sample.
    """
    if source.command == "train-reward":
        try:
            inputs = read_inputs(source.manifest["recipe"]["inputs"])
        except DataError:
            inputs = None
        if inputs is not None:
            found = [
                Recorded(context.scenario, context.turns, future.exchanges[0].supporter.response)
                for future in inputs.futures
                if future.exchanges and (context := inputs.contexts.get(future.context_id)) is not None
            ]
            return _spread(found), "the futures that it was trained and selected on"
    contexts = _sample("esconv")
    return _spread(
        [
            Recorded(context.scenario, context.turns, context.reference.text)
            for context in contexts
            if context.reference is not None
        ]
    ), "dialogues of sample:esconv"


def _spread(texts: Sequence[Recorded]) -> list[Recorded]:
    """Return some texts from all over a list, each on one line."""
    kept = list(texts)[:: max(1, len(texts) // N_TEXTS)][:N_TEXTS]
    return [
        Recorded(each.scenario, tuple(turn.model_copy(update={"text": _line(turn.text)}) for turn in each.turns), reply)
        for each in kept
        if (reply := _line(each.reply))
    ]


def _line(text: str) -> str:
    return " ".join(text.split())


def _sample(corpus: str) -> Sequence[Context]:
    data = DataConfig(dataset=corpus, path=f"sample:{corpus}", merge=True)
    dialogues = select_dialogues(data).dialogues
    return build_contexts(dialogues, Contexts(), run_seed=0)


def _sample_ids(corpus: str) -> frozenset[str]:
    return frozenset(select_dialogues(DataConfig(dataset=corpus, path=f"sample:{corpus}")).ids)
