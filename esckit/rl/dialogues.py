"""Whole dialogues as episodes: the policy plays them with the seeker while it is trained, and each turn has a return.

Φ_t is what the critic says of the conversation after turn t, and Φ_0 = 0. The return of turn t is the sum of what all
turns from t on change, Σ_{u≥t} (Φ_u − Φ_{u−1}) = Φ_T − Φ_{t−1}: a turn that prepares a later one is worth what the
later one brings. As for single replies, R_t = w_fut · (Φ_T − Φ_{t−1}) + w_fmt · (1 if the output is well-formed), and
A_t = (R_t − mean) / (std + 1e-4) over the dialogues of the group (those of one seeker) that reach turn t.

Every turn is a row of TRL, whose prompt is what the supporter is shown at that turn when it is used: the replies so far
without their reasoning, whole oldest turns left out where they do not fit. So nothing the seeker says is ever learnt,
and a group of TRL is (seeker, turn): TRL gathers it over processes and computes the advantages. Rows of turns that a
dialogue does not reach are masked and stand outside their group.

A seeker that fails leaves its dialogue without returns; a critic that fails leaves none from that turn on. A blank
reply ends a dialogue with ``dialogue.blank_value``. After a malformed output with a reply in it the dialogue goes on
with that reply, as in use; R_fmt is what it loses.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import takewhile
from math import fsum
from statistics import fmean, stdev
from typing import Any, Literal, get_args

from esckit.errors import ModelError
from esckit.ledger import Ledger
from esckit.models.loading import generating
from esckit.play.rollout import Conversation, failure_of
from esckit.rl.recipe import TrainRlRecipe
from esckit.rl.rewards import Completion, Judged, Players, log_outputs, play_all, shuffled
from esckit.roles.asking import read_output
from esckit.training.learner import write_outputs
from esckit.training.policy import PolicyPrompt
from esckit.training.run import StepPlan, TrainingRun, gathered, together
from esckit.types import Context, CriticReading, Failure, Generation, Outcome, Sampling, Turn

log = logging.getLogger(__name__)

# ---------------------------------------------------------------- what a turn is worth


def returns_to_go(potentials: Sequence[float | None]) -> list[float | None]:
    """Return Φ_T − Φ_{t−1} of each turn; None from the first turn on that has no potential.

    T is the last turn before it. (0.2, 0.1, 0.6) gives (0.6, 0.4, 0.5).

    Args:
        potentials: Φ_1 … Φ_T in [-1, 1].
    """
    known = [value for value in takewhile(lambda value: value is not None, potentials) if value is not None]
    before = [0.0, *known]
    return [known[-1] - before[t] if t < len(known) else None for t in range(len(potentials))]


def advantages(rewards: Sequence[float | None]) -> list[float]:
    """Return the advantages in one group as TRL computes them; 0 for what has no reward, or has it alone."""
    known = [value for value in rewards if value is not None]
    if len(known) < 2:
        return [0.0] * len(rewards)
    mean, spread = fmean(known), stdev(known) + 1e-4
    return [0.0 if value is None else (value - mean) / spread for value in rewards]


# ---------------------------------------------------------------- an episode

End = Literal["resolved", "left", "max_turns", "blank", "too_long", "failed"]
"""The goal was reached; the seeker left; no turn was left; the policy said nothing, or its prompt had no room for what
the seeker said; a model failed."""

_BY_SEEKER: dict[Outcome | None, End] = {Outcome.RESOLVED: "resolved", Outcome.DISENGAGED: "left"}


@dataclass(slots=True)
class PolicyTurn:
    """One turn of the policy, and what followed.

    Attributes:
        prompt: Token ids that it answered.
        output: Token ids that it wrote, their end included.
        generation: The output, taken apart.
        seeker: The answer; None if there was none.
        potential: Φ_t in [-1, 1]; None if it is not known.
        judged: The output with its return as R_fut; None in dialogues that are not learnt from.
        advantage: A_t.
        has_signal: Whether the rewards of its group differ, so that there is something to learn.
    """

    prompt: tuple[int, ...]
    output: list[int]
    generation: Generation
    seeker: str | None = None
    potential: float | None = None
    judged: Judged | None = None
    advantage: float = 0.0
    has_signal: bool = False


@dataclass(slots=True)
class Episode:
    """A dialogue of the policy with the seeker of a context.

    Attributes:
        context: Where it begins.
        member: Which of its group it is, from 0.
        ledger: Seeds and spending; its unit is the context and the step.
        talk: What was said.
        ended: How it ended; None while it is played.
        failure: What failed, where something did.
    """

    context: Context
    member: int
    ledger: Ledger
    talk: Conversation
    spoken: list[PolicyTurn] = field(default_factory=list)
    ended: End | None = None
    failure: Failure | None = None

    @classmethod
    def begin(cls, context: Context, member: int, *, run_seed: int, at: str) -> Episode:
        """Return an episode in which nobody has spoken but the seeker.

        Args:
            context: Where it begins.
            member: Which of its group it is.
            run_seed: Of the run.
            at: When it is played, as part of every seed.
        """
        talk = Conversation(context.scenario, list(context.turns))
        return cls(context, member, Ledger(run_seed, f"{context.id}:{at}"), talk)

    def returns(self) -> list[float | None]:
        """Return the return to go of every turn; without the seeker's answer the dialogue has no end and no returns."""
        if self.failure is not None and self.failure.stage == "seeker":
            return [None] * len(self.spoken)
        return returns_to_go([turn.potential for turn in self.spoken])

    def completion(self, t: int, step: int) -> Completion:
        """Return the output of a turn, counted from 0."""
        before = tuple(self.talk.turns[: len(self.context.turns) + 2 * t])
        return Completion(self.context.id, before, self.spoken[t].generation, self.member, step)

    def facts(self) -> dict[str, float]:
        """Return what the training's metrics are means of."""
        known = [turn.potential for turn in self.spoken if turn.potential is not None]
        return {
            **{f"ended/{end}": float(self.ended == end) for end in get_args(End)},
            "turns": float(len(self.spoken)),
            "tokens": float(sum(len(turn.output) for turn in self.spoken)),
            **({"potential": known[-1]} if known and self.failure is None else {}),
        }

    def row(self, recipe: TrainRlRecipe) -> dict[str, Any]:
        """Return the dialogue for reading, with what every turn was worth."""
        turns = [
            {
                "t": t,
                "reply": turn.generation.response,
                "reasoning": turn.generation.reasoning,
                "raw": turn.generation.raw,
                "parse_kind": turn.generation.parse_kind,
                "seeker": turn.seeker,
                "potential": turn.potential,
                "future": turn.judged.future if turn.judged else None,
                "format": turn.judged.format if turn.judged else None,
                "reward": turn.judged.reward(recipe.reward.weights) if turn.judged else None,
                "advantage": turn.advantage,
            }
            for t, turn in enumerate(self.spoken, start=1)
        ]
        return {
            "context_id": self.context.id,
            "member": self.member,
            "opening": [turn.text for turn in self.context.turns],
            "ended": self.ended,
            "failure": None if self.failure is None else self.failure.model_dump(),
            "turns": turns,
        }


def judge(group: Sequence[Episode], step: int, recipe: TrainRlRecipe) -> None:
    """Give all turns of the dialogues of one seeker their returns and advantages."""
    returns = [episode.returns() for episode in group]
    for t in range(max(map(len, returns))):
        reached = [(episode, values[t]) for episode, values in zip(group, returns, strict=True) if t < len(values)]
        judged = [Judged(episode.completion(t, step), value) for episode, value in reached]
        if recipe.reward.shuffled:
            judged = shuffled(judged, recipe.seed, "shuffled", group[0].context.id, step, t)
        rewards = [each.reward(recipe.reward.weights) for each in judged]
        known = [reward for reward in rewards if reward is not None]
        for (episode, _), each, advantage in zip(reached, judged, advantages(rewards), strict=True):
            turn = episode.spoken[t]
            turn.judged, turn.advantage = each, advantage
            turn.has_signal = bool(known) and max(known) - min(known) > 1e-8


# ---------------------------------------------------------------- play


@dataclass(slots=True)
class DialoguePlayer:
    """Plays dialogues of the policy with the run's seeker and critic: all of them together, one batch for each turn.

    Attributes:
        recipe: Says how.
        prompt: The policy's prompt.
        tokenizer: Of the policy.
        others: Who plays beside it.
    """

    recipe: TrainRlRecipe
    prompt: PolicyPrompt
    tokenizer: Any
    others: Players
    _warned: bool = field(default=False, init=False)

    def play(self, model: Any, episodes: Sequence[Episode]) -> None:
        """Play episodes to their end; processes that share a model call this together, each with its own.

        Raises:
            EsckitError: If the policy's numbers are not finite, or a model cannot be used any more.
        """
        chat, grpo = self.prompt.chat, self.recipe.grpo
        sampling = Sampling(
            temperature=grpo.temperature, top_k=grpo.top_k, top_p=grpo.top_p, max_tokens=grpo.max_completion_tokens
        )
        for t in range(1, self.recipe.dialogue.max_turns + 1):
            asked = [(episode, ids) for episode in episodes if (ids := self._prompt(episode)) is not None]
            if not any(n for share in gathered([len(asked)]) for n in share):
                break
            outputs = write_outputs(
                model,
                self.tokenizer,
                # A process whose dialogues are over writes along, since a forward pass may take all of them.
                [ids for _, ids in asked] or [(chat.end_of_turn,)],
                stop_ids=chat.stop_ids,
                sampling=sampling,
                seeds=[episode.ledger.at(episode.member, t).seed("supporter") for episode, _ in asked] or [0],
            )
            for (episode, ids), output in zip(asked, outputs, strict=False):
                self._speak(episode, ids, output)
            live = [episode for episode, _ in asked if episode.ended is None]
            together(partial(play_all, self.others.portal, self._answer, live))
        for episode in episodes:
            episode.ended = episode.ended or "max_turns"

    def _prompt(self, episode: Episode) -> tuple[int, ...] | None:
        """Return the policy's prompt; None where the dialogue is over, or ends here since the prompt has no room."""
        if episode.ended is not None:
            return None
        fitted = self.prompt.fitted(episode.context.model_copy(update={"turns": tuple(episode.talk.turns)}))
        if fitted is not None:
            return self.prompt.chat.encode(fitted[0])
        episode.ended = "too_long"
        if not self._warned:
            self._warned = True
            log.warning(
                "a dialogue ended in turn %d: what the seeker said does not fit into grpo.max_prompt_tokens (%d). "
                "rl/episode/ended/too_long in metrics.jsonl says how many do",
                len(episode.spoken) + 1,
                self.prompt.max_tokens,
            )
        return None

    def _speak(self, episode: Episode, ids: tuple[int, ...], output: list[int]) -> None:
        chat = self.prompt.chat
        text = chat.decode([token for token in output if token not in chat.stop_ids])
        said = PolicyTurn(ids, output, read_output(chat.opening + text))
        episode.spoken.append(said)
        episode.talk.turns.append(Turn(speaker="supporter", text=said.generation.response))
        if not said.generation.response:
            said.potential, episode.ended = self.recipe.dialogue.blank_value, "blank"

    async def _answer(self, episode: Episode) -> None:
        """Let the seeker answer, and the critic say how the conversation stands."""
        talk, said, t = episode.talk, episode.spoken[-1], len(episode.spoken)
        scope = episode.ledger.at(episode.member, t)
        try:
            answer = await talk.ask_seeker(self.others.seeker, scope)
            said.seeker = answer.text
            talk.stage = "critic"
            reading = (await self.others.critic.score(talk.scenario, tuple(talk.turns), scope)).reading
        except ModelError as error:
            episode.failure, episode.ended = failure_of(error, talk.stage, t), "failed"
            return
        if not isinstance(reading, CriticReading):
            raise TypeError("a dialogue needs a resolution critic")
        said.potential = float(reading.fraction)
        resolved = reading.fraction > Fraction(self.recipe.online.critic.threshold)
        episode.ended = "resolved" if resolved else _BY_SEEKER.get(answer.outcome)


# ---------------------------------------------------------------- what TRL asks for


class DialogueRollout:
    """TRL's ``rollout_func`` over dialogues, and the two rewards of their turns.

    Args:
        player: Plays the dialogues.
        contexts: Where they begin, in the order of training.
        plan: The steps over them.
        run: The run; its processes share the dialogues of a step.
    """

    def __init__(
        self, player: DialoguePlayer, contexts: Sequence[Context], *, plan: StepPlan, run: TrainingRun
    ) -> None:
        self._player, self._contexts, self._plan, self._run = player, contexts, plan, run
        self._episodes: list[Episode] = []
        self._at: list[tuple[Episode, int]] = []

    @property
    def context_ids(self) -> list[str]:
        """Contexts of the dialogues of the last batch, all processes together."""
        return [episode.context.id for episode in self._episodes]

    def rows(self) -> list[dict[str, Any]]:
        """Return the dialogues of the last batch for reading; all of them in the main process, none elsewhere."""
        return [episode.row(self._player.recipe) for episode in self._episodes if self._run.process.is_main]

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """Play the dialogues of a step and return this process's share of their turns, as TRL takes outputs.

        Args:
            prompts: One for each row of this process. A row is a seeker, a turn, and a member of the group.
            trainer: TRL's trainer.
        """
        recipe, process = self._player.recipe, self._run.process
        step, n_members = trainer.state.global_step, recipe.grpo.n_generations
        first = step // recipe.grpo.iterations * self._plan.batch
        self._episodes = [
            Episode.begin(context, member, run_seed=recipe.seed, at=f"g{step}")
            for context in self._contexts[first : first + self._plan.batch]
            for member in range(n_members)
        ]
        own = self._episodes[process.rank :: process.count]
        with generating(trainer) as model:
            self._player.play(model, own)
        shares = gathered(own)
        self._episodes = [shares[at % process.count][at // process.count] for at in range(len(self._episodes))]
        groups = [self._episodes[at : at + n_members] for at in range(0, len(self._episodes), n_members)]
        for group in groups:
            judge(group, step, recipe)
        rows = [(episode, t) for group in groups for t in range(recipe.dialogue.max_turns) for episode in group]
        self._at = rows[process.rank * len(prompts) : (process.rank + 1) * len(prompts)]
        spoken = [episode.spoken[t] if t < len(episode.spoken) else None for episode, t in self._at]
        nothing = self._player.prompt.chat.end_of_turn
        return {
            "prompt_ids": [list(turn.prompt) if turn else [nothing] for turn in spoken],
            "completion_ids": [turn.output if turn else [nothing] for turn in spoken],
            "env_mask": [[1] * len(turn.output) if turn else [0] for turn in spoken],
            "logprobs": None,
        }

    def future_reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return the return to go of each row; None where it has none, or its dialogue does not reach the turn."""
        judged = self._judged()
        reached = [each for each in judged if each is not None]
        if reached:
            log_outputs(reached, columns["log_metric"])
        for episode, t in self._at:
            if t == 0:
                for name, value in episode.facts().items():
                    columns["log_metric"](f"episode/{name}", value)
        columns["log_metric"]("episode/reached", len(reached) / len(judged))
        turns = [turn for episode in self._episodes for turn in episode.spoken]
        rewarded = [turn for turn in turns if turn.judged is not None and turn.judged.future is not None]
        if rewarded:
            columns["log_metric"]("no_signal", 1.0 - sum(turn.has_signal for turn in rewarded) / len(rewarded))
        return [each.future if each else None for each in judged]

    def format_reward(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return R_fmt of each row; None where it has no return."""
        return [each.format if each else None for each in self._judged()]

    def _judged(self) -> list[Judged | None]:
        return [episode.spoken[t].judged if t < len(episode.spoken) else None for episode, t in self._at]


@dataclass(frozen=True, slots=True)
class DialogueDev:
    """Dialogues with held-out seekers; the policy draws as in training, by seeds that stay the same.

    Attributes:
        player: Plays them.
        contexts: Where they begin.
    """

    player: DialoguePlayer
    contexts: Sequence[Context]

    def measure(self, model: Any, step: int, *, rank: int = 0, n_processes: int = 1) -> dict[str, float | None]:
        """Return the critic's mean last value, and shares of dialogues and outputs.

        Each process plays its share, and all of them return the values of all dialogues.
        """
        seed = self.player.recipe.seed
        own = [Episode.begin(each, 0, run_seed=seed, at="dev") for each in self.contexts[rank::n_processes]]
        self.player.play(model, own)
        episodes = [episode for share in gathered(own) for episode in share]
        facts: list[Mapping[str, float]] = [episode.facts() for episode in episodes]
        values = [each["potential"] for each in facts if "potential" in each]
        forms = [turn.generation.format_ok for episode in episodes for turn in episode.spoken]
        n = len(episodes)
        return {
            "dev/reward/future": fsum(values) / len(values) if values else None,
            "dev/success_share": fsum(each["ended/resolved"] for each in facts) / n,
            "dev/format_share": sum(forms) / len(forms) if forms else None,
            "dev/unscored_share": fsum(each["ended/failed"] for each in facts) / n,
        }
