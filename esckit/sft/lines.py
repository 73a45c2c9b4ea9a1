"""Replies to learn as lines of files that other trainers read; ``esckit data convert`` writes them.

They are those that ``train-sft`` would learn (:mod:`esckit.sft.examples`), one a line: in TRL's conversational
``prompt`` and ``completion``, whose loss is that of the reply alone, or as the last message of a chat record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from esckit.data.conversion import Written, check_free
from esckit.data.corpus import source_files
from esckit.data.writers import chat_record
from esckit.errors import ConfigError, DataError
from esckit.models.chat import merge_messages
from esckit.prompts.prompt import Prompt, load_prompt
from esckit.records import write_atomic
from esckit.roles.asking import as_chat
from esckit.sft.examples import SftExample, collect, form_warnings, target
from esckit.sft.recipe import Form, ReplySource
from esckit.types import Message

Layout = Literal["prompt-completion", "messages", "sharegpt"]

_OPTIONS = {
    "without_reasoning": "leave --reasoning out: only futures of a supporter that reasons have reasoning",
    "without_strategy": "leave --strategy out: these replies name none",
    "not_good": "lower --min-score",
}


def write_replies(
    source: ReplySource, out: Path, *, to: Layout, prompt: str | None = None, force: bool = False
) -> Written:
    """Write the replies of a source.

    Args:
        source: Which replies, and what stands before them; none is held out.
        out: The file.
        to: Its layout.
        prompt: Name or file of the supporter's prompt, the system message of every record; None for none.
        force: Whether to write over a file.

    Raises:
        DataError: If the file exists and ``force`` is not set, the source cannot be read, or no reply is left.
        ConfigError: If the strategy is to stand in a prompt that has no place for it.
    """
    check_free([out], force, sources=_files(source))
    asked = load_prompt(prompt, "policy") if prompt is not None else None
    if source.form.strategy == "prompt" and (asked is None or "strategy" not in asked.optional):
        raise ConfigError(
            f"--strategy prompt {'without a prompt' if asked is None else f'with prompt {asked.identity}'}",
            expected="a prompt with optional: [strategy]",
            hint="Name one, such as --prompt supporter_rlff",
        )
    material = collect(source)
    left_out = {reason: n for reason, n in material.left_out.items() if n}
    if not material.train:
        why = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in left_out.items()) or "none left out"
        ways = [way for reason, way in _OPTIONS.items() if reason in left_out]
        raise DataError(
            f"no reply to write ({why})",
            expected="at least one",
            hint=f"Perhaps {'; or '.join(ways)}" if ways else None,
        )
    lines = [json.dumps(_record(example, source.form, asked, to), ensure_ascii=False) for example in material.train]
    write_atomic(out, "".join(line + "\n" for line in lines))
    notes = tuple(f"left out, {reason.replace('_', ' ')}: {n:,}" for reason, n in sorted(left_out.items()))
    warnings = form_warnings(source.form, asked) if asked is not None else []
    return Written(f"{len(lines):,} replies written to {out}", tuple(warnings), notes)


def _files(source: ReplySource) -> list[Path]:
    """Return the files that replies are read from."""
    of_corpus = source_files(source.data.path) if source.data is not None else ()
    of_runs = (
        file for folder in map(Path, source.inputs) if folder.is_dir() for file in folder.iterdir() if file.is_file()
    )
    return [*of_corpus, *of_runs]


def _record(example: SftExample, form: Form, prompt: Prompt | None, to: Layout) -> dict[str, Any]:
    """Return one reply with the conversation before it."""
    named = {"strategy": example.strategy} if form.strategy == "prompt" and example.strategy else {}
    system = [] if prompt is None else prompt.render(**named)
    before = merge_messages([*system, *as_chat(example.context.turns, speaking="supporter")])
    reply = Message("assistant", target(example, form))
    facts = {"dialogue_id": example.dialogue_id}
    if to == "prompt-completion":
        return {**facts, "prompt": _dicts(before), "completion": _dicts([reply])}
    return {**facts, **chat_record(((message.role, message.content) for message in (*before, reply)), to)}


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
