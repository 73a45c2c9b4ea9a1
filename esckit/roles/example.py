"""What a model would read: a role's prompt filled in by the role itself, with a dialogue of the sample corpus.

The role asks a stand-in, which notes the messages (:mod:`esckit.roles.rehearsal`). So an example shows the prompt as a
run sends it, in each form that the role has, and no model is loaded. Not here: whether a role can fill a prompt in
(:mod:`esckit.prompts.prompt`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from esckit.config import sections
from esckit.config.sections import Checkpoint, Recipe, Roles, ScriptedBinding, WorldBinding
from esckit.data.contexts import contexts
from esckit.data.corpus import read_corpus
from esckit.data.layouts import IssueList
from esckit.errors import ConfigError, ModelError
from esckit.ledger import Ledger, Scope
from esckit.models.chat import merge_messages
from esckit.prompts.prompt import FIELDS, Prompt, load_prompt
from esckit.roles.asking import as_chat, as_lines, asks_for_tags
from esckit.roles.cast import Casting, role_prompt
from esckit.roles.critics import CRISIS_QUESTIONS, DIMENSIONS
from esckit.roles.pool import part_of
from esckit.roles.rehearsal import Rehearsal, answers
from esckit.roles.verdicts import PRESETS, load_preset
from esckit.strategies.taxonomy import Taxonomy, load_taxonomy
from esckit.text import ANY_FORMAT, REASONING_TAGS, Controls
from esckit.types import Context, Dialogue, Message, Turn

CORPUS = "sample:esconv"

_ROLES = ("supporter", "seeker", "critic", "strategist", "judge", "turn_judge")

_OTHER_REPLY = "That sounds hard."


class Example(NamedTuple):
    """The messages of one call.

    Attributes:
        form: When a role asks in this form, for a heading; empty where there is only one.
        messages: As the model gets them.
    """

    form: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class _Talk:
    """A dialogue of the sample corpus.

    Attributes:
        dialogue: The whole of it.
        context: Its beginning, up to a turn of the seeker.
        strategy: A strategy for the next turn.
    """

    dialogue: Dialogue
    context: Context
    strategy: str

    @property
    def reply(self) -> Turn:
        """The supporter's next turn."""
        assert self.context.reference is not None
        return self.context.reference

    @property
    def answered(self) -> tuple[Turn, ...]:
        """The beginning with the supporter's next turn."""
        return (*self.context.turns, self.reply)


def _talk(taxonomy: Taxonomy) -> _Talk:
    """Return the first dialogue of the sample; its turns are given the strategies of a taxonomy in their order."""
    corpus = read_corpus(CORPUS, format="auto", sink=IssueList())
    dialogue = next(iter(corpus.dialogues))
    names = iter(taxonomy.names * len(dialogue.turns))
    turns = tuple(
        turn.model_copy(update={"strategy": next(names)}) if turn.speaker == "supporter" else turn
        for turn in dialogue.turns
    )
    labelled = dialogue.model_copy(update={"turns": turns})
    context = next(context for context in contexts(labelled, merged=True) if len(context.turns) >= 3)
    return _Talk(labelled, context, taxonomy.names[0])


_Play = Callable[[Casting, _Talk, Scope], Awaitable[object]]


def _supporter(casting: Casting, talk: _Talk, scope: Scope, *, told: bool) -> Awaitable[object]:
    return casting.supporter().reply(talk.context.turns, scope, strategy=talk.strategy if told else None)


def _seeker(casting: Casting, talk: _Talk, scope: Scope) -> Awaitable[object]:
    return casting.seeker().reply(talk.dialogue.scenario, talk.answered, scope)


def _aflow_seeker(casting: Casting, talk: _Talk, scope: Scope) -> Awaitable[object]:
    memories = {talk.dialogue.scenario.id: talk.dialogue.turns}
    return casting.aflow_seeker(memories, memory_guard=False).reply(talk.dialogue.scenario, talk.answered, scope)


def _strategist(casting: Casting, talk: _Talk, scope: Scope) -> Awaitable[object]:
    return casting.strategist().decide(talk.dialogue.scenario, talk.context.turns, scope)


def _resolution(casting: Casting, talk: _Talk, scope: Scope) -> Awaitable[object]:
    critic = casting.resolution_critic(sections.ResolutionCritic(samples=1, max_attempts=1))
    return critic.score(talk.dialogue.scenario, talk.answered, scope)


def _rubric(
    casting: Casting, talk: _Talk, scope: Scope, *, readout: Literal["sampled", "expected"]
) -> Awaitable[object]:
    critic = casting.rubric_critic(sections.RubricCritic(readout=readout))
    return critic.score(talk.dialogue.scenario, talk.answered, scope)


def _pair(casting: Casting, talk: _Talk, scope: Scope) -> Awaitable[object]:
    judge = casting.pair_judge(tuple(DIMENSIONS))
    return judge.compare(talk.dialogue.scenario, talk.context.turns, talk.reply.text, _OTHER_REPLY, scope)


def _reply(casting: Casting, talk: _Talk, scope: Scope) -> Awaitable[object]:
    asked = dict([next(iter(CRISIS_QUESTIONS.items()))])
    return casting.reply_judge().answer(talk.context.turns, talk.reply.text, asked, scope)


_FORMS: Mapping[str, Mapping[str, _Play]] = {
    "supporter": {
        "without a strategy": partial(_supporter, told=False),
        "with a strategy": partial(_supporter, told=True),
    },
    "aflow supporter": {"": partial(_supporter, told=True)},
    "seeker": {"": _seeker},
    "aflow seeker": {"": _aflow_seeker},
    "strategist": {"strategist.readout: json": _strategist, "strategist.readout: choices": _strategist},
    "resolution critic": {"": _resolution},
    "rubric critic": {
        "critic.readout: sampled": partial(_rubric, readout="sampled"),
        "critic.readout: expected": partial(_rubric, readout="expected"),
    },
    "pair judge": {"": _pair},
    "reply judge": {"": _reply},
}


def examples(name: str, role: str, *, taxonomy: Taxonomy | None = None) -> list[Example]:
    """Return what a model would read with a prompt, once for every form in which the role asks.

    Args:
        name: Name or file of the prompt.
        role: A key of :data:`esckit.prompts.prompt.ROLES`.
        taxonomy: The strategies; None takes AFlow's.

    Raises:
        ConfigError: If there is no such prompt, or the role cannot fill it in.
    """
    prompt = load_prompt(name, role)
    labels = taxonomy or load_taxonomy("aflow")
    talk = _talk(labels)
    if role == "policy":
        turns = as_chat(talk.context.turns, speaking="supporter")
        return [Example("", tuple(merge_messages([*prompt.render(), *turns])))]
    if role == "reward model":
        filled = prompt.render(conversation=as_lines(talk.context.turns), response=talk.reply.text)
        return [Example("as one plain text", (Message("user", "\n\n".join(message.content for message in filled)),))]
    return [Example(form, _asked(name, form, play, talk, labels)) for form, play in _FORMS[role].items()]


def _asked(name: str, form: str, play: _Play, talk: _Talk, taxonomy: Taxonomy) -> tuple[Message, ...]:
    """Return the messages of a role's first call."""
    pool = Rehearsal(answers(taxonomy))
    fields = (*_ROLES, "judge_pairwise", "judge_reply")
    casting = Casting(
        pool,
        bindings=dict.fromkeys(_ROLES, ScriptedBinding(scripted="example")),
        prompts=dict.fromkeys(fields, name),
        max_attempts=1,
        taxonomy=taxonomy,
        readout="choices" if form.endswith("choices") else "json",
    )

    async def ask() -> None:
        # A stand-in's answer may be none to the role; what it was asked is noted all the same.
        with suppress(ModelError):
            await play(casting, talk, Ledger(0, talk.context.id).at("example"))

    asyncio.run(ask())
    (stand_in,) = pool.stand_ins.values()
    return stand_in.asked[0]


def remarks(prompt: Prompt, role: str, *, preset: str | None = None) -> list[str]:
    """Return what may be wrong with a prompt that a role can fill in.

    Args:
        prompt: The prompt.
        role: A key of :data:`esckit.prompts.prompt.ROLES`.
        preset: By whose levels a resolution critic is read; None if it may be any.
    """
    declared = (*prompt.variables, *prompt.optional)
    found = [f"{{{name}}} is declared and never used" for name in declared if name not in prompt.used]
    text = "\n".join(message.content for message in prompt.messages)
    said = text.casefold()
    if role == "resolution critic":
        presets = [load_preset(preset)] if preset is not None else list(PRESETS.values())
        unnamed = {one.name: [level for level in one.levels if level.casefold() not in said] for one in presets}
        if all(unnamed.values()):
            told = "; ".join(f"of preset {name} it does not name {', '.join(them)}" for name, them in unnamed.items())
            found.append(f"answers are read as names of levels: {told}")
    if role == "reply judge" and not ("yes" in said and "no" in said):
        found.append("the answer is read as yes or no, and the prompt does not ask for these words")
    if role == "policy" and not asks_for_tags(prompt):
        found.append("it does not ask for <think> and <response>, the form that train-rl rewards")
    controls = Controls(set(ANY_FORMAT) - REASONING_TAGS).found(text) if role != "reward model" else []
    if controls:
        shown = ", ".join(dict.fromkeys(controls))
        found.append(f"it holds {shown}: a chat template writes such strings itself, so they are broken up here")
    return found


# ---------------------------------------------------------------- the prompts of a recipe


class NamedPrompt(NamedTuple):
    """A prompt that takes part in a run.

    Attributes:
        field: Where the recipe names it.
        name: Name or file.
        role: What it is for, a key of :data:`esckit.prompts.prompt.ROLES`.
    """

    field: str
    name: str
    role: str


def named_prompts(recipe: Recipe) -> list[NamedPrompt]:
    """Return the prompts that take part in a run of a recipe.

    Raises:
        ConfigError: If a prompt is not there or cannot be what the recipe takes it for; all of them are named.
    """
    found, wrong = [], []
    for field, roles in FIELDS.get(recipe.command, {}).items():
        if not _takes_part(recipe, field):
            continue
        try:
            name = _name_of(recipe, field)
            role = roles[-1] if "transcript" in load_prompt(name).variables else roles[0]
            load_prompt(name, role)
        except ConfigError as error:
            wrong.append(f"{field}: {error}")
        else:
            found.append(NamedPrompt(field, name, role))
    if wrong:
        raise ConfigError("\n  ".join(wrong))
    return found


def preset_of(recipe: Recipe) -> str | None:
    """Return the name of the preset by whose levels a recipe's resolution critic is read; None if it has none."""
    data = recipe.resolved()
    if recipe.command == "evaluate":
        return str(data["settings"]["dialogue"]["critics"][0])
    found = (data.get("online") or data).get("critic") or {}
    return found.get("preset")


def _takes_part(recipe: Recipe, field: str) -> bool:
    """Return whether a run reads a field that names a prompt: somebody plays the role, who was not trained for it."""
    data = recipe.resolved()
    if recipe.command in ("train-reward", "train-sft", "train-rl"):
        section = field.partition(".")[0]
        kind = {"reward": "untrained", "online": "online"}.get(section)
        return kind is None or data["reward"]["kind"] == kind
    role = field.rpartition(".")[2].removesuffix("_pairwise").removesuffix("_reply")
    binding = _bindings(recipe).get(role)
    if binding is None or isinstance(binding, WorldBinding):
        return False
    if isinstance(binding, Checkpoint):
        return Path(binding.checkpoint).exists() and part_of(role, binding) in ("chat", "writer")
    return True


def _bindings(recipe: Recipe) -> dict[str, Any]:
    models = dict(recipe).get("models")
    return models.bindings() if isinstance(models, Roles) else {}


def _name_of(recipe: Recipe, field: str) -> str:
    """Return what a field names, or what stands for it where it names nothing."""
    value: Any = recipe.resolved()
    for key in field.split("."):
        value = value[key]
    role = field.rpartition(".")[2]
    if role == "strategist" and value in (None, "strategist"):
        taxonomy = taxonomy_of(recipe)
        return role_prompt(role, value, taxonomy=taxonomy).name if taxonomy is not None else "strategist_any"
    if value is None and recipe.resolved().get("rubric"):  # of a chat
        return "critic_aflow"
    return str(value) if value is not None else load_preset(preset_of(recipe) or "rlff7").prompt


def taxonomy_of(recipe: Recipe) -> Taxonomy | None:
    """Return the taxonomy that a recipe names; None if it names none."""
    named = dict(recipe).get("taxonomy")
    return load_taxonomy(named) if isinstance(named, str) else None
