"""Writes what plain transformers and peft load, and numbers of the model that it was made of, to compare with.

Every function fills a folder with weights, configuration, tokenizer and ``esckit.json``, and returns a
:class:`Proof`. Adapters are merged in float32; the sum is then rounded to the type that is asked for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import GenerationConfig

from esckit.errors import CheckpointError, ConfigError
from esckit.export.classifier import sequence_classifier
from esckit.export.plain import flow as plain_flow
from esckit.export.plain import policy as plain_policy
from esckit.export.plain import reward as plain_reward
from esckit.export.source import ExportSource, Recorded
from esckit.flow.model import load_flow_model
from esckit.flow.policy import DEFAULT_MAX_TOKENS, CheckpointPolicy
from esckit.flow.text import HEADS, MAX_SITUATION_TOKENS, FlowMetadata, FlowText, scene
from esckit.models.backbones import BackboneSource
from esckit.models.chat import ChatFormat
from esckit.models.checkpoint import ADAPTER, TOKENIZER
from esckit.models.loading import (
    Dtype,
    as_dtype,
    base_decoder,
    check_whole,
    free_memory,
    load_tokenizer,
    pick_dtype,
    save_tokenizer,
    weight_bytes,
)
from esckit.records import write_json
from esckit.reward.model import RewardModel, load_net
from esckit.reward.text import RewardMetadata, RewardText
from esckit.roles.pool import policy_taxonomy
from esckit.text import Controls
from esckit.training.checkpoint import tidy_adapter
from esckit.training.policy import load_merged

log = logging.getLogger(__name__)

FACTS = "esckit.json"
"""File of an export that says what it is, in words of this package; ``config.esckit`` holds the same."""


class Proof(NamedTuple):
    """Numbers of the model in esckit, and how a user without esckit gets the same ones.

    Attributes:
        what: What the numbers are.
        expected: By esckit.
        found: Computes them from the folder by plain transformers.
        notes: Sentences for the card.
    """

    what: str
    expected: list[float]
    found: Callable[[str], list[float]]
    notes: tuple[str, ...] = ()


def _save(folder: Path, model: Any, tokenizer: Any, facts: dict[str, Any]) -> None:
    model.config.esckit = facts
    model.save_pretrained(str(folder))
    _save_beside(folder, tokenizer, facts)


def _save_beside(folder: Path, tokenizer: Any, facts: dict[str, Any]) -> None:
    save_tokenizer(tokenizer, folder)
    write_json(folder / FACTS, facts)


def _one_type(dtype: Dtype, own: torch.dtype) -> torch.dtype:
    return own if dtype == "auto" else pick_dtype(dtype, torch.device("cpu"))


def require_room(source: ExportSource) -> None:
    """Refuse weights that do not fit the memory of this machine; where it is unknown, nothing is said.

    Raises:
        ConfigError: If they do not fit.
    """
    whole = source.whole
    weights = source.backbone if whole is None else BackboneSource(str(source.run), "folder", folder=whole)
    needed = None if weights is None else weight_bytes(weights, torch.float32)
    free = free_memory(torch.device("cpu"))
    if needed is not None and free is not None and needed > free:
        raise ConfigError(
            f"the weights of {source.metadata.backbone} take {needed / 1e9:.1f} GB in float32, as they are merged",
            expected=f"at most the {free / 1e9:.1f} GB of memory that are free here",
            hint="Export on a machine with more memory, or use --adapter (policies only), which loads no weights",
        )


# ---------------------------------------------------------------- policies


def write_policy(source: ExportSource, folder: Path, facts: dict[str, Any], dtype: Dtype) -> Proof:
    """Write a policy with its adapter merged; ``auto`` is the type in which the backbone is stored."""
    check_whole(source.checkpoint)
    model, tokenizer = load_merged(source.run)
    chat = _chat(tokenizer, model.generation_config)
    stored = None
    if source.backbone is not None and source.backbone.folder is not None:
        stored = json.loads((source.backbone.folder / "config.json").read_text(encoding="utf-8"))
        stored = stored.get("dtype") or stored.get("torch_dtype")
    own = getattr(torch, stored) if isinstance(stored, str) else torch.float32
    model = as_dtype(model, _one_type(dtype, own)).eval()
    facts |= _policy_facts(source, chat)
    model.generation_config = _generation(source, chat)
    ids = torch.tensor([plain_policy.prompt_ids(tokenizer, facts, [("seeker", "I feel lost.")])])
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, -1].double().log_softmax(-1).tolist()
    _save(folder, model, tokenizer, facts)

    def found(name: str) -> list[float]:
        _, plain, _ = plain_policy.load(name)
        with torch.no_grad():
            return cast(list[float], plain(input_ids=ids).logits[0, -1].double().log_softmax(-1).tolist())

    return Proof("log-probabilities of the first token after a prompt", expected, found)


def write_adapter(source: ExportSource, folder: Path, facts: dict[str, Any]) -> Proof:
    """Write a policy's adapter, which names its backbone by hub id or, with a warning, by folder; loads no weights."""
    check_whole(source.checkpoint)
    assert source.backbone is not None
    base = source.backbone.hub or str(source.backbone.folder)
    if source.backbone.hub is None:
        log.warning("the adapter names its backbone by a folder of this machine, %s: others cannot load it", base)
    for path in (source.checkpoint / ADAPTER).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tidy_adapter(folder, base)
    tokenizer = load_tokenizer(source.checkpoint / TOKENIZER)
    chat = _chat(tokenizer, None)
    _generation(source, chat).save_pretrained(str(folder))
    _save_beside(folder, tokenizer, facts | _policy_facts(source, chat))
    return Proof("nothing: its backbone was not loaded", [], lambda _: [])


def _chat(tokenizer: Any, generation: GenerationConfig | None) -> ChatFormat:
    eos = None if generation is None else generation.eos_token_id
    return ChatFormat.of(tokenizer, [] if eos is None else [eos] if isinstance(eos, int) else list(eos))


def _policy_facts(source: ExportSource, chat: ChatFormat) -> dict[str, Any]:
    return {"system_prompt": source.system_prompt, "system_role": chat.has_system}


def _generation(source: ExportSource, chat: ChatFormat) -> GenerationConfig:
    """Return the settings under which outputs were sampled in training, and the tokens that end one."""
    recipe, tokenizer = source.manifest["recipe"], chat.tokenizer
    algorithm = recipe.get("algorithm", "encoding")  # of train-sft, where the lengths stand
    section = recipe[algorithm]
    sampled = {"do_sample": True, "temperature": section["temperature"]} if algorithm == "grpo" else {}
    return GenerationConfig(
        eos_token_id=sorted(chat.stop_ids),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        max_new_tokens=section["max_completion_tokens"],
        **sampled,
    )


# ---------------------------------------------------------------- reward models


def write_reward(
    source: ExportSource, folder: Path, facts: dict[str, Any], dtype: Dtype, texts: Sequence[Recorded]
) -> Proof:
    """Write a reward model as a sequence classification model with one logit; ``auto`` is float32."""
    metadata = source.metadata
    assert isinstance(metadata, RewardMetadata)
    net, tokenizer = load_net(source.run, metadata, dtype=torch.float32)
    text = RewardText(tokenizer, metadata.template, max_length=metadata.max_length)
    scorer = RewardModel(net, text, metadata=metadata)
    controls = Controls.of(tokenizer)
    fitting = [each for each in _plain_texts(texts, controls) if text.encode(each.turns, each.reply) is not None]
    if not fitting:
        raise CheckpointError(f"{source.run}: no recorded text fits its {metadata.max_length} tokens to compare on")
    expected = scorer.score([each.turns for each in fitting], [each.reply for each in fitting])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model, bias = sequence_classifier(net, pad_token_id=tokenizer.pad_token_id)
    template = metadata.template.model_dump(exclude={"prompt"}) | {"max_length": metadata.max_length}
    facts |= {"template": template, "prompt": metadata.template.prompt, "objective": metadata.kind}
    write_json(folder / "reward_template.json", template)
    _save(folder, as_dtype(model, _one_type(dtype, torch.float32)), tokenizer, facts)

    def found(name: str) -> list[float]:
        own_tokenizer, plain = plain_reward.load(name)
        return [plain_reward.score(own_tokenizer, plain, _pairs(each), each.reply) for each in fitting]

    return Proof("probabilities", expected, found, (f"The bias of the trained head stands {bias}.",))


def _pairs(each: Recorded) -> list[tuple[str, str]]:
    return [(turn.speaker, turn.text) for turn in each.turns]


def _plain_texts(texts: Sequence[Recorded], controls: Controls) -> list[Recorded]:
    """Return the texts without control strings, which esckit breaks up and plain transformers does not."""
    return [
        each
        for each in texts
        if not any(controls.found(text) for text in (each.reply, *(turn.text for turn in each.turns)))
    ]


# ---------------------------------------------------------------- flow policies


def write_flow(
    source: ExportSource, folder: Path, facts: dict[str, Any], dtype: Dtype, texts: Sequence[Recorded]
) -> Proof:
    """Write the backbone of a strategy policy, its adapter merged, and its heads beside it; ``auto`` is float32."""
    metadata, taxonomy = source.metadata, policy_taxonomy(source.run)
    assert isinstance(metadata, FlowMetadata)
    model, tokenizer, _ = load_flow_model(source.run)
    tags = dict(zip(taxonomy.names, taxonomy.abbrs, strict=True)) if metadata.strategy_tags else {}
    max_tokens, single_turns = metadata.max_tokens or DEFAULT_MAX_TOKENS, metadata.max_tokens is None
    text = FlowText(tokenizer, situation=metadata.situation, tags=tags or None, single_turns=single_turns)
    policy = CheckpointPolicy(model, text, name=str(source.run), max_tokens=max_tokens)
    kept = _plain_texts(texts, Controls.of(tokenizer))
    readings = [policy.read(each.scenario, each.turns) for each in kept]
    expected = [number for each in readings for number in (*each.probabilities, *each.values)]
    facts |= {
        "strategies": list(metadata.strategies),
        "tags": tags,
        "situation": metadata.situation,
        "max_situation_tokens": MAX_SITUATION_TOKENS,
        "max_tokens": max_tokens,
        "single_turns": single_turns,
        "values_trained": metadata.objective.get("name") != "bc",
    }
    (folder / HEADS).write_bytes((source.checkpoint / HEADS).read_bytes())
    _save(folder, as_dtype(base_decoder(model.backbone), _one_type(dtype, torch.float32)), tokenizer, facts)

    def found(name: str) -> list[float]:
        plain = plain_flow.load(name)
        numbers: list[float] = []
        for each in kept:
            turns = [(turn.speaker, turn.text, turn.strategy) for turn in each.turns]
            pi, value = plain_flow.read(plain, turns, scene(each.scenario), each.scenario.situation)
            numbers += [*pi.values(), *value.values()]
        return numbers

    notes = () if facts["values_trained"] else ("Its values V were not trained: use π only.",)
    return Proof("probabilities and values of all strategies", expected, found, notes)
