"""The prompt of a reward model, the token ids that it reads, and the metadata that is stored with its weights.

An input is an instruction, a labelled conversation and a response. Every piece (the instruction, each turn, the
response) is tokenised **by itself** and the ids are joined. So the candidates of one context begin with the same ids,
and the oldest turns can be left out without touching the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from esckit.errors import ConfigError, DataError
from esckit.models.checkpoint import CheckpointMetadata
from esckit.prompts.prompt import load_prompt
from esckit.reward.recipe import Kind, Pooling, Trainable
from esckit.roles.asking import LABELS
from esckit.text import Controls, as_turn, opens_a_part_of
from esckit.training.policy import Start
from esckit.types import Record, Turn

_CONVERSATION, _RESPONSE = "\x00conversation\x00", "\x00response\x00"


class RewardTemplate(Record):
    """The prompt around conversation and response; stored with a checkpoint, so that it is read as it was trained.

    Attributes:
        prompt: Identity of the prompt, ``reward_model/<digest>``.
        head: Text before the conversation.
        middle: Text between conversation and response.
        tail: Text after the response.
        seeker: Label of seeker turns.
        supporter: Label of supporter turns.
    """

    prompt: str
    head: str
    middle: str
    tail: str
    seeker: str
    supporter: str


def reward_template(name: str) -> RewardTemplate:
    """Return a reward model's prompt as it is today.

    Raises:
        ConfigError: If there is no such prompt, or it has not the right variables, first conversation, then response.
    """
    prompt = load_prompt(name, "reward model")
    messages = prompt.render(conversation=_CONVERSATION, response=_RESPONSE)
    head, found, rest = "\n\n".join(message.content for message in messages).partition(_CONVERSATION)
    middle, found_too, tail = rest.partition(_RESPONSE)
    if not found or not found_too:
        raise ConfigError(
            f"prompt {prompt.identity} as a reward model's",
            expected="first {conversation}, then {response}, once each",
        )
    return RewardTemplate(prompt=prompt.identity, head=head, middle=middle, tail=tail, **LABELS)


class RewardMetadata(CheckpointMetadata):
    """What belongs to a trained reward model.

    Attributes:
        kind: What its output is, see :mod:`esckit.reward.model`.
        trainable: What was trained.
        start: The supporter that it began with; None for its backbone.
        pooling: Which state the head reads.
        max_length: Longest input in tokens.
        template: The prompt it was trained with.
        label: The label rule, as the recipe says it.
        delta: The threshold that the rule came to, as a fraction; None for ``goal``.
        simulation: Preset, read-out, horizon, threshold and critic prompt of the futures.
    """

    SCHEMA: ClassVar[str] = "esckit.reward_model/1"
    COMMAND: ClassVar[str] = "train-reward"

    kind: Kind
    trainable: Trainable
    start: Start | None = None
    pooling: Pooling
    max_length: int
    template: RewardTemplate
    label: dict[str, str]
    delta: str | None
    simulation: dict[str, str | int | bool]


class RewardInput(NamedTuple):
    """Token ids of one (conversation, response).

    Attributes:
        ids: All ids.
        response_start: Index of the first token of the response.
        response_end: Index after its last one.
        n_dropped_turns: Oldest turns left out because they did not fit.
    """

    ids: tuple[int, ...]
    response_start: int
    response_end: int
    n_dropped_turns: int


class RewardText:
    """Turns conversations and responses into token ids.

    Args:
        tokenizer: The backbone's Hugging Face tokenizer.
        template: The prompt.
        max_length: Longest input in tokens.
    """

    def __init__(self, tokenizer: Any, template: RewardTemplate, *, max_length: int) -> None:
        self.template = template
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._controls = Controls.of(tokenizer)
        self._opens_a_part = opens_a_part_of(f"{template.head}{template.middle}")
        self._encode = lru_cache(maxsize=65_536)(self._encode_anew)
        bos = tokenizer.bos_token_id
        self._head = (() if bos is None else (int(bos),)) + self._encode(template.head)
        self._middle = self._encode(template.middle)
        self._tail = self._encode(template.tail)

    def encode(self, conversation: Sequence[Turn], response: str) -> RewardInput | None:
        """Return the ids; whole oldest turns go first if they do not fit, never instruction or response.

        Returns:
            The input, or None if instruction, last turn and response alone are too long.

        Raises:
            DataError: If the response is blank or the conversation empty.
        """
        if not response.strip() or not conversation:
            raise DataError("a blank response or no conversation", expected="something to judge")
        answer = self._encode(self._controls.neutralise(response.strip()))
        fixed = len(self._head) + len(self._middle) + len(answer) + len(self._tail)
        lines = [self._line(turn, first=index == 0) for index, turn in enumerate(conversation)]
        first, length = 0, fixed + sum(map(len, lines))
        while length > self.max_length and first < len(lines) - 1:
            length -= len(lines[first])
            first += 1
        if first:
            # The turn that now opens the conversation has no line break before it.
            lines[first] = self._line(conversation[first], first=True)
            length = fixed + sum(map(len, lines[first:]))
        if length > self.max_length:
            return None
        talk = tuple(token for line in lines[first:] for token in line)
        start = len(self._head) + len(talk) + len(self._middle)
        ids = self._head + talk + self._middle + answer + self._tail
        return RewardInput(ids, start, start + len(answer), first)

    def _line(self, turn: Turn, *, first: bool) -> tuple[int, ...]:
        label = self.template.seeker if turn.speaker == "seeker" else self.template.supporter
        text = self._controls.neutralise(as_turn(as_turn(turn.text), self._opens_a_part))
        return self._encode(f"{'' if first else chr(10)}{label}: {text}")

    def _encode_anew(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False)) if text else ()
