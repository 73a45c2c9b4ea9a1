"""A flow checkpoint that writes: its backbone continues the text form it was trained in, adapter on (arXiv 2602.08826).

With ``response_weight`` above 0, ``train-flow`` also teaches the adapter the supporter turns of good paths. Such a
checkpoint can write the reply itself: the talk as ``flow_text/1``, then the marker of a supporter turn with its
strategy, then its words up to the line end. With the adapter off, the plain backbone is an ordinary chat model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from esckit.errors import CheckpointError
from esckit.flow.text import FlowMetadata, FlowText, drop_oldest, policy_id, read_metadata
from esckit.ledger import Scope
from esckit.models.checkpoint import checkpoint_folder
from esckit.protocols import Part
from esckit.runs import read_manifest
from esckit.types import Reply, Sampling, Scenario, Turn

if TYPE_CHECKING:
    from esckit.models.loading import Dtype
    from esckit.models.local import LocalModel


class FlowKind:
    """Checkpoints of ``train-flow``: they choose strategies, may write, and talk as their plain backbone."""

    parts: frozenset[Part] = frozenset({"chat", "strategist", "writer"})

    def check(self, run: Path, part: Part, strategies: tuple[str, ...] | None) -> None:
        """Refuse a checkpoint of another taxonomy, or as writer one that was not trained to write."""
        read_metadata(run, strategies=None if part == "chat" else strategies)
        if part == "writer":
            writer_metadata(run)

    def identity(self, run: Path) -> str:
        """Return ``flow/<digest>``."""
        return policy_id(run)

    def taxonomy(self, run: Path) -> str | None:
        """Return the name of its taxonomy."""
        return read_metadata(run).taxonomy

    def load(self, run: Path, part: Part, abbreviations: Mapping[str, str], **options: Any) -> Any:
        """Return the policy, the writer, or the plain backbone."""
        if part == "writer":
            return FlowWriter.load(run, abbreviations=abbreviations, **options)
        if part == "strategist":
            from esckit.flow.policy import CheckpointPolicy

            return CheckpointPolicy.load(
                run, strategies=tuple(abbreviations), abbreviations=dict(abbreviations), **options
            )
        from esckit.models.local import LocalModel

        return LocalModel.load(read_metadata(run).backbone, **options)


# What a supporter may know of the seeker's private situation.
_NOTHING = Scenario(id="unknown")


def writer_metadata(run: Path) -> FlowMetadata:
    """Return the metadata of a checkpoint that was trained to write; loads nothing heavy.

    Raises:
        CheckpointError: If it was not, or its text form holds what a supporter does not know.
    """
    metadata = read_metadata(run)
    if not read_manifest(run)["recipe"].get("response_weight"):
        raise CheckpointError(
            f"{run} was not trained to write replies",
            expected="a run with response_weight above 0",
            hint="Use adapter: off, or name another supporter",
        )
    if metadata.situation:
        raise CheckpointError(f"{run} reads the seeker's situation", expected="a run with encoding.situation: false")
    return metadata


class FlowWriter:
    """Writes supporter turns in the text form of flow training.

    Args:
        model: The backbone with the adapter merged.
        text: The text form; it holds no situation, which a supporter does not know.
    """

    def __init__(self, model: LocalModel, text: FlowText) -> None:
        self._model = model
        self._text = text

    @classmethod
    def load(cls, run: Path, *, abbreviations: Mapping[str, str], dtype: Dtype = "auto", device: str = "auto") -> Self:
        """Load a checkpoint that was trained to write.

        Args:
            run: The run folder of ``train-flow``.
            abbreviations: Strategy name to abbreviation, of the checkpoint's taxonomy.
            dtype: ``auto`` is bfloat16 where processor or GPU computes in it, else float32.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            CheckpointError: If it was not trained to write, or its text form holds what a supporter does not know.
            ConfigError: If its backbone cannot be had.
        """
        metadata = writer_metadata(run)
        import torch

        from esckit.flow.model import ADAPTER
        from esckit.models.backbones import resolve_backbone
        from esckit.models.loading import load_adapter, load_causal, pick_device, pick_dtype
        from esckit.models.local import LocalModel

        place = pick_device(device)
        # Merged in float32: in a narrow type the sum of weight and update would round the update away.
        causal, tokenizer = load_causal(resolve_backbone(metadata.backbone), dtype=torch.float32)
        load_adapter(causal.get_decoder(), checkpoint_folder(run) / ADAPTER).merge_and_unload()
        model = LocalModel(causal.to(place, pick_dtype(dtype, place)), tokenizer, name=policy_id(run))
        return cls(
            model,
            FlowText(tokenizer, situation=False, strategy_tags=True, abbreviations=abbreviations),
        )

    @property
    def name(self) -> str:
        """The checkpoint, for provenance."""
        return self._model.name

    async def write(self, turns: Sequence[Turn], strategy: str, sampling: Sampling, scope: Scope) -> Reply:
        """Write the next supporter turn under a strategy; whole oldest turns go where the talk is too long."""
        header = self._text.header(_NOTHING)
        marker = self._text.turn(Turn(speaker="supporter", text=""), strategy=strategy).marker
        room = self._model.context_length - len(header) - len(marker) - sampling.max_tokens
        pieces = drop_oldest([self._text.turn(turn).ids for turn in turns], room)
        prompt = header + tuple(token for piece in pieces for token in piece) + marker
        one_line = sampling.model_copy(update={"stop": (*sampling.stop, "\n")})
        return await self._model.continue_tokens(prompt, one_line, seed=scope.seed("supporter"))

    async def aclose(self) -> None:
        """Stop the model."""
        await self._model.aclose()
