"""Supporters that are trained as language models, by ``train-sft`` and ``train-rl``: prompt, template, and checkpoints.

::

    checkpoint/policy.json   metadata of train-rl, or sft.json, that of train-sft
    checkpoint/adapter/      as peft writes it (safetensors), or backbone/, if the whole model was trained
    checkpoint/start/        of a train-rl run that began with one of train-sft: that one's adapter/ or backbone/
    checkpoint/tokenizer/    as transformers writes it, with the chat template of the training
    checkpoint/prompt.yaml   the prompt of the training, if it was a user's own

Wherever a recipe names a chat model, ``{checkpoint: RUN}`` loads this one. What it writes holds its reasoning, so it
is read as any supporter's output is (:func:`esckit.roles.asking.split_output`).

Training needs more of a template than talking does: the prompt must be the beginning of the prompt with its answer,
and an answer must stand in it as it was written. Templates of models that think by themselves cut ``<think>`` out of
earlier answers, and base models have no template. In their place esckit takes one of its own that renders the same
prompts. Loads no torch before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from esckit.config.training import Attention, Quantisation
from esckit.errors import CheckpointError, ConfigError
from esckit.ledger import Ledger
from esckit.models.backbones import resolve_backbone
from esckit.models.chat import CHATML, PLAIN, ChatFormat, merge_messages
from esckit.models.checkpoint import (
    ADAPTER,
    BACKBONE,
    KINDS,
    START,
    TOKENIZER,
    CheckpointMetadata,
    checkpoint_folder,
    read_metadata,
)
from esckit.prompts.prompt import KEPT, Prompt, load_prompt, prompt_names
from esckit.protocols import Part
from esckit.records import file_sha256
from esckit.roles.asking import Window, as_chat
from esckit.runs import MANIFEST, read_manifest
from esckit.types import Context, Message, Record, Turn

if TYPE_CHECKING:
    import torch

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


# ---------------------------------------------------------------- the prompt


@dataclass(frozen=True, slots=True)
class PolicyPrompt:
    """How a context becomes the policy's prompt; the same messages as a prompted supporter's.

    Attributes:
        prompt: The supporter's prompt.
        chat: The policy's chat format.
        max_tokens: Longest prompt; whole oldest turns are left out above it.
    """

    prompt: Prompt
    chat: ChatFormat
    max_tokens: int

    def messages(self, turns: Sequence[Turn], strategy: str | None = None) -> list[Message]:
        """Return system message and turns; a strategy stands in the prompt, which must know it, if one is given."""
        given = {} if strategy is None else {"strategy": strategy}
        return merge_messages([*self.prompt.render(**given), *as_chat(turns, speaking="supporter")])

    def n_tokens(self, messages: Sequence[Message]) -> int:
        """Return the length of a prompt in tokens."""
        return len(self.chat.encode(messages))

    def fitted(self, context: Context, strategy: str | None = None) -> tuple[list[Message], int] | None:
        """Return the messages over as many of the latest turns as fit, and how many turns were left out.

        Args:
            context: What is answered.
            strategy: Of the answer, if the prompt is to name it.

        Returns:
            None if the system message and the last turn alone are too long.
        """
        ledger = Ledger(0, context.id)
        window = Window(self.max_tokens, self.n_tokens)
        over = partial(self.messages, strategy=strategy)
        messages = window.fit(over, context.turns, ledger.at(), "policy")
        spent = ledger.usage.get("policy")
        n_dropped = spent.dropped_turns if spent else 0
        if n_dropped == len(context.turns) - 1 and self.n_tokens(messages) > self.max_tokens:
            return None
        return messages, n_dropped


# ---------------------------------------------------------------- checkpoints


class Start(Record):
    """The run of ``train-sft`` that a policy began with; its weights are in the policy's own checkpoint.

    Attributes:
        run: Its folder, as the recipe names it.
        manifest: SHA-256 of its manifest.
        trainable: Whether it left an adapter or a whole model.
    """

    run: str
    manifest: str
    trainable: Literal["lora", "full"]


class PolicyMetadata(CheckpointMetadata):
    """What belongs to a policy of ``train-rl``.

    Attributes:
        algorithm: How it was trained.
        prompt: Identity of the prompt it was trained with.
        reward: What it was rewarded by: the kind, and for a reward model the digest of its manifest.
        start: What it began with; None for its backbone.
        diverged: True if training diverged after this step.
    """

    SCHEMA: ClassVar[str] = "esckit.policy/1"
    COMMAND: ClassVar[str] = "train-rl"

    algorithm: Literal["grpo", "dpo"]
    prompt: str
    reward: dict[str, str]
    start: Start | None = None
    diverged: bool = False


class SftMetadata(CheckpointMetadata):
    """What belongs to a supporter of ``train-sft``.

    Attributes:
        trainable: Whether an adapter was trained, or the whole backbone.
        prompt: Identity of the prompt it was trained with.
        source: What its replies were taken from.
        reasoning: Whether they begin with the source's own reasoning.
        strategy: Where their strategy stands: nowhere, in the reasoning (``tag``) or in the ``prompt``.
        diverged: True if training diverged after this step.
    """

    SCHEMA: ClassVar[str] = "esckit.sft/1"
    COMMAND: ClassVar[str] = "train-sft"

    trainable: Literal["lora", "full"]
    prompt: str
    source: Literal["corpus", "futures", "trees"]
    reasoning: bool
    strategy: Literal["none", "tag", "prompt"]
    diverged: bool = False


def read_supporter(run: Path) -> PolicyMetadata | SftMetadata:
    """Return the metadata of a supporter that was trained, by whichever command.

    Raises:
        CheckpointError: If there is none, or its metadata cannot be read.
    """
    is_sft = (checkpoint_folder(run) / KINDS[SftMetadata.COMMAND].file).is_file()
    return read_metadata(SftMetadata, run) if is_sft else read_metadata(PolicyMetadata, run)


class PolicyStart(NamedTuple):
    """What a model begins with that is trained further.

    Attributes:
        backbone: Name of its backbone.
        start: The run of ``train-sft``, if it is one.
        seen: Of each dialogue of that run whether it was trained (not selected) on.
        is_tagged: Whether it was taught to write ``<think>`` and ``<response>``; None for a backbone.
        is_complete: Whether that run is finished.
    """

    backbone: str
    start: Start | None = None
    seen: Mapping[str, bool] = MappingProxyType({})
    is_tagged: bool | None = None
    is_complete: bool = True

    def warnings(self, dev_ids: Collection[str], *, of: str) -> list[str]:
        """Return a warning if that run is not finished, and one if dev dialogues were trained on before.

        Args:
            dev_ids: Dialogues that are held out, each once.
            of: What begins with it.
        """
        found = []
        if self.start is not None and not self.is_complete:
            found.append(
                f"The {of} begins with {self.start.run}, which is not finished, as it was last kept. Finish that run "
                "first: once it has gone on, this one cannot be resumed"
            )
        if n_known := sum(self.seen.get(name, False) for name in dev_ids):
            found.append(
                f"The {of} begins with a supporter that was trained on {n_known} of {len(dev_ids)} dev dialogues. "
                "To keep them apart, use the seed and the dev.share of the recipe of train-sft"
            )
        return found


def read_start(run: str) -> PolicyStart:
    """Return what a run of ``train-sft`` is known by to a training that begins with it; loads no model.

    Raises:
        CheckpointError: If the run holds no supporter of ``train-sft``.
        DataError: If it is no run folder.
    """
    # A checkpoint folder by itself does not say which run it is of.
    is_complete = read_manifest(Path(run)).get("status") == "complete"
    metadata = read_metadata(SftMetadata, Path(run))
    start = Start(run=run, manifest=file_sha256(Path(run) / MANIFEST), trainable=metadata.trainable)
    dev = frozenset(metadata.dev_ids)
    seen = {name: name not in dev for name in metadata.dialogue_ids}
    is_tagged = metadata.reasoning or metadata.strategy == "tag"
    return PolicyStart(metadata.backbone, start, seen, is_tagged, is_complete)


def begun_with(backbone: str, start: Start | None) -> str:
    """Return what the card of a model says that its training began with."""
    return backbone if start is None else f"{backbone}, with the weights of {start.run} (train-sft)"


def trained_prompt(run: Path, named: str) -> str:
    """Return the name or file of the prompt that a supporter was trained with.

    Args:
        run: The run folder.
        named: What its recipe names; a file may have changed since, or be gone.

    Raises:
        CheckpointError: If the checkpoint keeps no copy of the file, and it is another prompt today.
        ConfigError: If there is no copy, and no file.
    """
    kept = checkpoint_folder(run) / KEPT
    if kept.is_file():
        return str(kept)
    if named not in prompt_names():
        today, then = load_prompt(named).identity, read_supporter(run).prompt
        if today != then:
            raise CheckpointError(
                f"{run} was trained with prompt {then}, which is {today} today",
                expected="the prompt of the training",
                hint="Bring the prompt file back as it was",
            )
    return named


@dataclass(frozen=True, slots=True)
class SupporterKind:
    """Checkpoints of one of the two commands: chat models.

    Attributes:
        metadata: The class of their metadata.
        prefix: Of the name under which records know them.
    """

    metadata: type[CheckpointMetadata]
    prefix: str
    parts: frozenset[Part] = frozenset({"chat"})

    def check(self, run: Path, part: Part, strategies: tuple[str, ...] | None) -> None:
        """Refuse a checkpoint whose metadata cannot be read."""
        read_metadata(self.metadata, run)

    def identity(self, run: Path) -> str:
        """Return ``policy/<name of the run>``, or ``sft/<name of the run>``."""
        return f"{self.prefix}/{run.resolve().name}"

    def taxonomy(self, run: Path) -> str | None:
        """Return None: it knows no strategies."""
        return None

    def prompt(self, run: Path) -> str | None:
        """Return the identity of the prompt of its training."""
        return read_supporter(run).prompt

    def load(self, run: Path, part: Part, abbreviations: Mapping[str, str], **options: Any) -> LocalModel:
        """Return it as a chat model."""
        return load_policy(run, **options)


def policy_kind() -> SupporterKind:
    """Return the kind of ``train-rl``'s checkpoints."""
    return SupporterKind(PolicyMetadata, "policy")


def sft_kind() -> SupporterKind:
    """Return the kind of ``train-sft``'s checkpoints."""
    return SupporterKind(SftMetadata, "sft")


# ---------------------------------------------------------------- loading


def load_policy(
    run: Path,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    max_batch_tokens: int | None = None,
    is_invariant: bool = False,
) -> LocalModel:
    """Return a trained supporter as a chat model, its adapter merged into the backbone.

    Args:
        run: The run folder.
        dtype: ``auto`` is bfloat16 where processor or GPU computes in it, else float32.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_batch_tokens: Tokens in flight together; None takes a default for the device.
        is_invariant: Compute each call alone.

    Raises:
        CheckpointError: If there is no supporter, or its adapter does not fit its backbone.
        ConfigError: If its backbone cannot be had.
    """
    kind = policy_kind() if isinstance(read_supporter(run), PolicyMetadata) else sft_kind()
    from esckit.models.loading import on_device, pick_device, pick_dtype
    from esckit.models.local import LocalModel

    place, name = pick_device(device), kind.identity(run)
    model, tokenizer = load_merged(run)
    merged = on_device(model, place, name=name, dtype=pick_dtype(dtype, place))
    return LocalModel(merged, tokenizer, name=name, max_batch_tokens=max_batch_tokens, is_invariant=is_invariant)


def load_merged(run: Path) -> tuple[Any, Any]:
    """Return a supporter's causal language model in float32, its adapter merged, and its tokenizer.

    Raises:
        CheckpointError: If there is no supporter, or its adapter does not fit its backbone.
        ConfigError: If its backbone cannot be had.
    """
    metadata, folder = read_supporter(run), checkpoint_folder(run)
    from esckit.models.loading import check_whole, load_tokenizer

    check_whole(folder)
    return _assembled(folder, metadata.backbone), load_tokenizer(folder / TOKENIZER)


def load_start(
    run: Path, *, dtype: torch.dtype, quantisation: Quantisation | None, attention: Attention
) -> tuple[Any, Any]:
    """Return the model of a ``train-sft`` run to train an adapter on, and its tokenizer.

    Args:
        run: The run folder.
        dtype: Number type of its weights, or in which quantised ones are computed.
        quantisation: How its linear layers are held; None holds them in ``dtype``.
        attention: Implementation of its attention.

    Raises:
        CheckpointError: If the run holds none, or its adapter does not fit its backbone.
        ConfigError: If its backbone cannot be had.
    """
    metadata, folder = read_metadata(SftMetadata, run), checkpoint_folder(run)
    from esckit.models.loading import check_whole, held_as, load_tokenizer, load_whole

    check_whole(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if (folder / BACKBONE).is_dir():
        return load_whole(folder / BACKBONE, dtype=dtype, quantisation=quantisation, attention=attention), tokenizer
    model = _assembled(folder, metadata.backbone)
    return held_as(model, dtype=dtype, quantisation=quantisation, attention=attention), tokenizer


def _assembled(folder: Path, backbone: str) -> Any:
    """Return the model of a folder: a whole one, or an adapter merged into that of ``start/``, or into the backbone."""
    import torch

    from esckit.models.loading import load_adapter, load_causal, load_whole

    if (folder / BACKBONE).is_dir():
        return load_whole(folder / BACKBONE, dtype=torch.float32)
    # Merged in float32: in a narrow type the sum of weight and update would round the update away.
    if (folder / START).is_dir():
        model = _assembled(folder / START, backbone)
    else:
        model, _ = load_causal(resolve_backbone(backbone), dtype=torch.float32)
    return load_adapter(model, folder / ADAPTER).merge_and_unload()
