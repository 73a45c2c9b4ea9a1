"""The trained policy: a LoRA adapter over a backbone, the chat template it was trained under, and how it is loaded.

::

    checkpoint/policy.json   metadata: backbone, prompt, reward, what it was trained on
    checkpoint/adapter/      as peft writes it (safetensors)
    checkpoint/tokenizer/    as transformers writes it, with the chat template of the training

Wherever a recipe names a chat model, ``{checkpoint: RUN}`` loads this one. What it writes holds its reasoning, so it
is read as any supporter's output is (:func:`esckit.roles.asking.split_output`).

Training needs more of a template than talking does: the prompt must be the beginning of the prompt with its answer,
and an answer must stand in it as it was written. Templates of models that think by themselves cut ``<think>`` out of
earlier answers, and base models have no template. In their place esckit takes one of its own that renders the same
prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from esckit.errors import ConfigError
from esckit.models.backbones import resolve_backbone
from esckit.models.chat import CHATML, PLAIN, ChatFormat
from esckit.models.checkpoint import ADAPTER, TOKENIZER, CheckpointMetadata, checkpoint_folder, read_metadata
from esckit.protocols import Part
from esckit.types import Message

if TYPE_CHECKING:
    from esckit.models.loading import Dtype
    from esckit.models.local import LocalModel

# ---------------------------------------------------------------- the template

_OUTPUT = "<think>They seem tired.</think> <response>That sounds hard.</response>"

_DIALOGUE = (Message("system", "Play a role."), Message("user", "I am sad."))


def training_format(tokenizer: Any, eos_ids: list[int]) -> ChatFormat:
    """Return the chat format to train under, and set its template on the tokenizer.

    Args:
        tokenizer: The policy's tokenizer; its template may be replaced.
        eos_ids: What the model's generation settings name as end of text.

    Raises:
        ConfigError: If neither the model's template nor one of ours will do.
    """
    own = ChatFormat.of(tokenizer, eos_ids)
    chatml = replace(own, template=CHATML)
    # ChatML may stand in for a template that renders dialogues without answers the same way.
    same = own.has_system and own.render(_DIALOGUE) == chatml.render(_DIALOGUE)
    fitting = next((chat for chat in ([own, chatml] if same else [own]) if keeps_answers(chat)), None)
    if fitting is None:
        raise ConfigError(
            "a chat template that changes answers, or does not begin with its prompt",
            expected="a template that renders answers as they were written",
            hint="Set a plain chat_template in the model's tokenizer_config.json",
        )
    ids = tokenizer(_OUTPUT, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) != _OUTPUT:
        raise ConfigError(
            "a tokenizer that loses the tags <think> and <response>", expected="one that gives back any text"
        )
    tokenizer.chat_template = fitting.template
    tokenizer.padding_side = "left"
    return fitting


def keeps_answers(chat: ChatFormat) -> bool:
    """Return whether prompts begin their answered selves, and answers stand in them as written."""
    answered = (*_DIALOGUE, Message("assistant", _OUTPUT))
    lead = " " if chat.template == PLAIN else ""
    begins = chat.render(answered, generation_prompt=False).startswith(chat.render(_DIALOGUE) + lead + _OUTPUT)
    return begins and _OUTPUT in chat.render((*answered, Message("user", "Yes.")))


# ---------------------------------------------------------------- the checkpoint


class PolicyMetadata(CheckpointMetadata):
    """What belongs to a trained policy.

    Attributes:
        algorithm: How it was trained.
        prompt: Identity of the prompt it was trained with.
        reward: What it was rewarded by: the kind, and for a reward model the digest of its manifest.
        diverged: True if training diverged after this step.
    """

    SCHEMA: ClassVar[str] = "esckit.policy/1"
    COMMAND: ClassVar[str] = "train-rl"

    algorithm: Literal["grpo", "dpo"]
    prompt: str
    reward: dict[str, str]
    diverged: bool = False


class PolicyKind:
    """Checkpoints of ``train-rl``: chat models."""

    parts: frozenset[Part] = frozenset({"chat"})

    def check(self, run: Path, part: Part, strategies: tuple[str, ...] | None) -> None:
        """Refuse a checkpoint whose metadata cannot be read."""
        read_metadata(PolicyMetadata, run)

    def identity(self, run: Path) -> str:
        """Return ``policy/<name of the run>``."""
        return f"policy/{run.resolve().name}"

    def taxonomy(self, run: Path) -> str | None:
        """Return None: it knows no strategies."""
        return None

    def load(self, run: Path, part: Part, abbreviations: Mapping[str, str], **options: Any) -> LocalModel:
        """Return the policy as a chat model."""
        return load_policy(run, **options)


def load_policy(
    run: Path,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    max_batch_tokens: int | None = None,
) -> LocalModel:
    """Return a trained policy as a chat model, its adapter merged into the backbone.

    Args:
        run: The run folder.
        dtype: ``auto`` is bfloat16 where processor or GPU computes in it, else float32.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_batch_tokens: Tokens in flight together; None takes a default for the device.

    Raises:
        CheckpointError: If there is no policy, or its adapter does not fit its backbone.
        ConfigError: If its backbone cannot be had.
    """
    read_metadata(PolicyMetadata, run)
    from esckit.models.loading import on_device, pick_device, pick_dtype
    from esckit.models.local import LocalModel

    place = pick_device(device)
    model, tokenizer = load_merged(run)
    name = f"policy/{run.resolve().name}"
    merged = on_device(model, place, name=name, dtype=pick_dtype(dtype, place))
    return LocalModel(merged, tokenizer, name=name, max_batch_tokens=max_batch_tokens)


def load_merged(run: Path) -> tuple[Any, Any]:
    """Return a policy's causal language model in float32, its adapter merged, and its tokenizer.

    Raises:
        CheckpointError: If there is no policy, or its adapter does not fit its backbone.
        ConfigError: If its backbone cannot be had.
    """
    metadata, folder = read_metadata(PolicyMetadata, run), checkpoint_folder(run)
    import torch

    from esckit.models.loading import check_whole, load_adapter, load_causal, load_tokenizer

    check_whole(folder)
    # Merged in float32: in a narrow type the sum of weight and update would round the update away.
    model, _ = load_causal(resolve_backbone(metadata.backbone), dtype=torch.float32)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    return load_adapter(model, folder / ADAPTER).merge_and_unload(), tokenizer
